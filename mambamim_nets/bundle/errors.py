"""How a run ends that fails: with one sentence as its last line, and the traceback in a file.

MONAI evaluates a configuration as nested references, so an error in it arrives inside a traceback of up to 200 lines
whose last line says "Failed to evaluate". What a person needs is the sentence at the bottom of that chain. Only
programs of `monai.bundle` are changed; whoever calls a workflow from Python gets the exception itself.
"""

import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import TracebackType

from monai.utils import run_debug

from mambamim_nets.bundle.files import write_text

__all__ = [
    "cause_of",
    "ends_with_a_sentence",
    "first_line",
    "install",
    "is_bundle_program",
    "keep_tracebacks_in",
    "sentence_of",
]

WRAPPERS = ("Failed to evaluate ", "Failed to instantiate component ", "applying transform ")  # MONAI's own words
PLAIN = (ValueError, OSError, ImportError, RuntimeError, ArithmeticError)  # raised by us with a whole sentence
_folder: Path | None = None


def cause_of(error: BaseException) -> BaseException:
    """Return the exception that says what is wrong, below those that MONAI raises from it."""
    while error.__cause__ is not None and str(error).startswith(WRAPPERS):
        error = error.__cause__
    return error


def sentence_of(error: BaseException) -> str:
    """Return what a person needs of an error: its text, with its type where the text alone says too little."""
    cause = cause_of(error)
    text = str(cause).strip()
    if text.startswith("Caught ") and "Original Traceback" in text:  # in a worker of a DataLoader: its last line
        text = text.splitlines()[-1]
        return text.partition(": ")[2] if text.split(":")[0] in {kind.__name__ for kind in PLAIN} else text
    if isinstance(cause, PLAIN) and text:
        return text
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


def first_line(error: BaseException) -> str:
    """Return the text of an error on one line."""
    return " ".join(sentence_of(error).split())


def is_bundle_program() -> bool:
    """Return whether this process was started as `python -m monai.bundle`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.startswith("monai.bundle")


def keep_tracebacks_in(folder: str | os.PathLike[str] | None) -> None:
    """Name the folder for tracebacks; without one, or if it cannot be written, they go to the temporary folder."""
    global _folder
    _folder = None if folder is None else Path(folder)


def ends_with_a_sentence(error: BaseException) -> str:
    """Write the traceback of an error to a file, and return the sentence that is to be the last line.

    In MONAI's debug mode (MONAI_DEBUG_CONFIG=1) there is no file: the traceback comes in front of the sentence.
    """
    lines = "".join(traceback.format_exception(error))
    if run_debug:
        return f"{lines}\n{sentence_of(error)}"
    name = f"error_{time.strftime('%Y%m%d-%H%M%S')}_{os.getpid()}.log"
    for folder in (_folder, Path(tempfile.gettempdir())):
        if folder is None or not folder.is_dir():
            continue
        try:
            write_text(folder / name, lines)
        except OSError:
            continue
        return f"{sentence_of(error)} (traceback: {folder / name})"
    return sentence_of(error)


def install() -> None:
    """Let uncaught errors of `python -m monai.bundle` end with their sentence; elsewhere do nothing."""
    if is_bundle_program():
        sys.excepthook = _last_words


def _last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\n{ends_with_a_sentence(error)}\n")
    sys.stderr.flush()
