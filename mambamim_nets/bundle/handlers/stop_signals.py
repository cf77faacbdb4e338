"""Signals that end a training between two of its steps: SIGTERM and SIGUSR1, as queues send them before a time limit.

A signal that comes while the trainer is at work is noted. After the step every process of the run learns of it, in
whichever of them it came, so that all stop at the same step; then the signal goes on to whoever had it before, which
ends the program as if it had come only now (`bundle/stops.py`). Without a trainer at work it goes there at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from monai.engines import Trainer

__all__ = ["StopSignals"]

SIGNALS = [signal.Signals[name] for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class _Undisturbed:
    """Start a process that loads data so that SIGTERM does not end it: it ends with the process that reads from it.

    A queue, and torchrun, signal all processes of a group; without its data, the step could not be finished.
    """

    def __init__(self, begin: Callable[[int], object] | None) -> None:
        self.begin = begin

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.begin is not None:
            self.begin(worker)


class StopSignals:
    """Note SIGTERM and SIGUSR1 while a trainer is at work, until it asks.

    Python hands signals to its main thread only; in another one, nothing is changed.

    Args:
        trainer: whose steps are not to be broken off.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.number, self.process = trainer, 0, os.getpid()
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
            loader: Any = trainer.data_loader
            if getattr(loader, "num_workers", 0):
                loader.worker_init_fn = _Undisturbed(loader.worker_init_fn)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a process that loads data
            return
        while frame is not None and frame.f_locals.get("self") is not self.trainer:
            frame = frame.f_back
        if frame is None:
            self.give_back()
            signal.raise_signal(number)
        else:
            self.number = number

    def noted(self) -> int:
        """Return the number of the signal that came to this process or to another one of the run, 0 without one.

        Every process must ask at the same step.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self.number
        number = torch.tensor([self.number], device=self.trainer.state.device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def give_back(self) -> None:
        """Let the signals do again what they did before."""
        for number, before in self.before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
        self.before = {}

    def obey(self, number: int) -> None:
        """Do what the signal did before, in every process, once all are here."""
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
        self.give_back()
        signal.raise_signal(number)
