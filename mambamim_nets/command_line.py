"""Commands by fire: a function is a command, and an option that it does not have is refused before it begins."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import fire

__all__ = ["INTERRUPTED", "call", "run"]

INTERRUPTED = 130  # exit status of a command that was stopped, as of a shell


def call(
    function: Callable[..., Any], program: str, arguments: Sequence[str] | None = None, **fire_options: Any
) -> Any:
    """Call a function with the options of a command line.

    Args:
        function: the command; fire makes its help from the docstring.
        program: how the command is typed, for messages.
        arguments: of the command line; None: of this process.
        **fire_options: further arguments of `fire.Fire`.

    Returns:
        What the function returns.

    Raises:
        ValueError: an option is unknown. fire itself would say so when the function has done its work.
        SystemExit: help was asked for, or an argument is missing.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _refuse_unknown(function, program, words)
    return fire.Fire(function, command=words, name=program, **fire_options)


def _refuse_unknown(function: Callable[..., Any], program: str, words: Sequence[str]) -> None:
    """Refuse an option that is no argument of a function; `--dry-run` is `--dry_run`, and `--nodry_run` its opposite.

    What follows a lone `--` is for fire itself.
    """
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for word in words[: words.index("--") if "--" in words else None]:
        found = re.fullmatch(r"--([A-Za-z][\w-]*)(?:=.*)?", word, re.DOTALL)
        name = found[1].replace("-", "_") if found else "help"
        if name != "help" and name not in parameters and name.removeprefix("no") not in parameters:
            near = difflib.get_close_matches(name, parameters, n=3, cutoff=0.5)
            hint = f"did you mean --{' or --'.join(near)}?" if near else f"valid are --{', --'.join(parameters)}"
            raise ValueError(f"option --{name} is unknown to {program}; {hint}")


def run(
    function: Callable[..., Any],
    program: str,
    refusals: tuple[type[Exception], ...] = (ValueError, OSError),
    **fire_options: Any,
) -> None:
    """Run a command and leave the process as a command does: a refusal is one sentence and exit status 1.

    Args:
        function: as of `call`.
        program: likewise.
        refusals: exceptions whose message is for the user.
        **fire_options: further arguments of `fire.Fire`.

    Raises:
        SystemExit: the command was refused, or stopped by Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        call(function, program, **fire_options)
    except refusals as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; what was finished is kept, and the same command goes on with the rest\n")
        sys.exit(INTERRUPTED)
