"""Programs in processes of their own that start at once: forked from one that has imported MONAI and done nothing else.

Importing MONAI takes seconds of a core for each process, and the tests start many. What runs is what ``python -m`` or
``python file`` runs, with its own folder, environment, output, exit status, signals and hooks at exit; what the
interpreter does at its own end is left out.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Any

from helpers import touch

PRELOADED = ["monai.bundle", "mambamim_nets.bundle", "processes"]


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _program(line: Sequence[str], cwd: str, variables: Mapping[str, str], outputs: Sequence[Path]) -> None:
    """Become a program, in a process that was forked for it."""
    import torch

    gc.freeze()  # what was imported before the fork need not be looked through
    for stream, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    warnings.resetwarnings()
    warnings.simplefilter(variables.get("PYTHONWARNINGS", "default"))  # type: ignore[arg-type]
    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status: Any = 0
    try:
        if line[0] == "-m":
            sys.argv, sys.path[0:0] = list(line[1:]), [cwd]
            runpy.run_module(line[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0:0] = list(line), [str(Path(line[0]).parent)]
            runpy.run_path(line[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    sys.exit(status)  # a text is printed, and is status 1


def run(
    *lines: Sequence[str],
    cwd: Path,
    variables: Sequence[Mapping[str, str]],
    timeout: float = 600,
) -> list[CompletedProcess[str]]:
    """Run programs side by side to their end.

    Args:
        lines: of each program what follows ``python``: a file, or "-m" and a module, then its arguments.
        cwd: the folder in which all of them start.
        variables: the environment of each.
        timeout: seconds after which all are killed.

    Raises:
        TimeoutExpired: a program took longer; what all have printed is its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [
            [touch(Path(folder, f"{number}.{stream}")) for stream in ("out", "err")] for number in range(len(lines))
        ]
        started = [
            _context().Process(target=_program, args=([str(part) for part in line], str(cwd), dict(of), files))
            for line, of, files in zip(lines, variables, outputs, strict=True)
        ]
        for process in started:
            process.start()
        try:
            for process in started:
                process.join(timeout)
            late = [process for process in started if process.is_alive()]
        finally:
            for process in started:
                process.kill()
                process.join()
        texts = [[path.read_text(encoding="utf-8", errors="replace") for path in files] for files in outputs]
        if late:
            raise TimeoutExpired([*lines], timeout, output="".join(text for pair in texts for text in pair))
        return [
            CompletedProcess(list(line), process.exitcode, *pair)
            for line, process, pair in zip(lines, started, texts, strict=True)
        ]


def ranks(number: int, nodes: int = 1) -> list[dict[str, str]]:
    """Return the variables by which processes on this machine, shared out to nodes, find each other, as of torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(number)}
    local = number // nodes
    shared |= {"LOCAL_WORLD_SIZE": str(local)}
    return [
        {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank % local), "GROUP_RANK": str(rank // local)}
        for rank in range(number)
    ]
