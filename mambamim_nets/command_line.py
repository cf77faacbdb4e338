"""Commands by fire: a function is a command, and an option that it does not have is refused before it begins."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import fire

__all__ = ["INTERRUPTED", "call", "run"]

INTERRUPTED = 130  # exit status of a command that was stopped, as of a shell


def call(function: Callable[..., Any], program: str, arguments: Sequence[str] | None = None) -> Any:
    """Call a function with the options of a command line.

    Args:
        function: the command; fire makes its help from the docstring.
        program: how the command is typed, for messages.
        arguments: of the command line; None: of this process.

    Returns:
        What the function returns.

    Raises:
        ValueError: an option is unknown.
        SystemExit: help was asked for, an argument is missing, or there is one too many.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _refuse_unknown(function, program, words)

    bound: list[Callable[[], Any]] = []

    @functools.wraps(function)
    def bind(*values: Any, **options: Any) -> None:
        bound.append(functools.partial(function, *values, **options))

    # fire notices what is left over only when a function has returned: so it gets one that does no work
    fire.Fire(bind, command=words, name=program)
    return bound[0]()


def _refuse_unknown(function: Callable[..., Any], program: str, words: Sequence[str]) -> None:
    """Refuse an option that is no argument of a function.

    As fire has it, `-dry-run` is `--dry_run`, `--nodry_run` its opposite, `-d` what alone begins with it, and what
    follows a lone `--` is for fire itself.
    """
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for word in words[: words.index("--") if "--" in words else None]:
        found = re.fullmatch(r"--?([A-Za-z][\w-]*)(?:=.*)?", word, re.DOTALL)
        name = found[1].replace("-", "_") if found else "help"
        known = name in ("h", "help", *parameters) or name.removeprefix("no") in parameters
        if not known and not (len(name) == 1 and any(parameter[0] == name for parameter in parameters)):
            near = difflib.get_close_matches(name, parameters, n=3, cutoff=0.5)
            hint = f"did you mean --{' or --'.join(near)}?" if near else f"valid are --{', --'.join(parameters)}"
            raise ValueError(f"option --{name} is unknown to {program}; {hint}")


def run(
    function: Callable[..., Any], program: str, refusals: tuple[type[Exception], ...] = (ValueError, OSError)
) -> None:
    """Run a command, print what it says, and leave the process as a command does.

    A refusal is one sentence and exit status 1.

    Args:
        function: as of `call`.
        program: likewise.
        refusals: exceptions whose message is for the user.

    Raises:
        SystemExit: the command was refused, or stopped by Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        said = call(function, program)
    except refusals as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; what was finished is kept, and the same command goes on with the rest\n")
        sys.exit(INTERRUPTED)
    if isinstance(said, str):
        print(said)
