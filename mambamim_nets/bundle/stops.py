"""How a run ends that is stopped: SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (a queue's time limit) with one line.

The status is 128 and the number of the signal: 130, 143 and 138. A signal ends a run at any point, except for a
training that writes checkpoints between its steps (`handlers/stop_signals.py`), which finishes its step and writes one.
What is on disk then is whole, because every file of a run is written under another name and renamed: the line says
which of it the next start goes on from. Only programs of `monai.bundle` are changed.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser

from mambamim_nets.bundle.checkpoint_files import LAST
from mambamim_nets.bundle.errors import is_bundle_program

__all__ = ["install", "last_line"]

SIGNALS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def install(parser: ConfigParser, values: Mapping[str, Any]) -> None:
    """Let signals end `python -m monai.bundle` with one line; elsewhere do nothing.

    Args:
        parser: of the running configuration.
        values: its options; see `check_options`.
    """
    if not is_bundle_program():
        return
    process = os.getpid()
    rank = int(os.environ.get("RANK", 0))

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a process that loads data inherited this, and ends with the one that reads it
            return None if number == signal.SIGINT else os._exit(128 + number)
        for other in SIGNALS:
            signal.signal(other, lambda again, frame: os._exit(128 + again))  # the second one does not wait
        logging.disable()  # engines and their handlers log a stop as an error, with a traceback
        if rank == 0:
            atexit.register(_say, lambda: last_line(signal.Signals(number).name, parser, values))
        raise SystemExit(128 + number)

    for number in SIGNALS:
        signal.signal(number, stop)


def _say(line: Callable[[], str]) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\n{line()}\n")
    sys.stderr.flush()


def last_line(stopped_by: str, parser: ConfigParser, values: Mapping[str, Any]) -> str:
    """Say what was stopped, and how to go on.

    Args:
        stopped_by: name of the signal.
        parser: of the running configuration.
        values: its options.
    """
    folder = values.get("output_dir", "")
    if "eval_dir" in values:
        return f"{stopped_by} stopped the evaluation; its tables are not complete: run the same command again"
    if "checkpoints" not in parser:
        return f"{stopped_by} stopped the run; the scans that are done are in {folder}: run the same command again"
    last = Path(folder, LAST)
    if not last.is_file():
        return f"{stopped_by} stopped the training before its first checkpoint: the same command starts it again"
    again = "the same command" if values.get("resume") != False else "the same command with --resume true"  # noqa: E712
    saved = "where it was last saved" if "checkpoints#every" in parser else "its last whole epoch"
    return f"{stopped_by} stopped the training; {last} holds it up to {saved}: {again} goes on from there"
