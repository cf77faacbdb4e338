"""What a run will take, from some measured steps: time, memory, disk, on this machine and on several processes."""

from __future__ import annotations

import json
import logging
import math
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.engines import Evaluator, Trainer
from torch import nn

from mambamim_nets.bundle.config import announce
from mambamim_nets.bundle.data.store import Store
from mambamim_nets.bundle.files import write_text
from mambamim_nets.bundle.runtime import peak_memory, process_rank

__all__ = ["RunEstimate"]

logger = logging.getLogger("mambamim_nets")
FILE = "estimate.json"
GIB, MIB = 2**30, 2**20
MOST_PROCESSES = 64
ASSUMPTIONS = (
    "a step takes the median of the measured ones, and all epochs have the same length",
    "n processes share the crops of a step and take 1/n of its time, each on a device and cores of its own like these; "
    "the time to exchange gradients is left out: each process sends and receives about twice their size in a step",
    "start, pictures, probes and the writing of checkpoints are left out",
)


class RunEstimate:
    """Take some steps as training would, measure them, and say what the whole run takes; nothing else is written.

    The steps are real ones, with reading, network and optimiser, from the first step of the run on; their weights are
    thrown away. Of several processes the first one reports, with the largest memory of all.

    Args:
        trainer: of the run, not yet started.
        network: in training.
        optimizer: of the run.
        store: what is read.
        batch_size: samples of a step, over all processes.
        folder: where estimate.json goes.
        evaluator: of the validation, of which one is measured too; None: there is none.
        val_interval: epochs between validations.
        steps: how many are measured.
        warmup: steps before these.
    """

    def __init__(
        self,
        trainer: Trainer,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        store: Store,
        batch_size: int,
        folder: str,
        evaluator: Evaluator | None = None,
        val_interval: int = 1,
        steps: int = 20,
        warmup: int = 3,
    ) -> None:
        self.trainer, self.network, self.optimizer, self.store = trainer, network, optimizer, store
        self.batch_size, self.folder, self.evaluator = batch_size, Path(folder), evaluator
        self.val_interval, self.steps, self.warmup = val_interval, steps, warmup
        self.waiting: list[float] = []
        self.computing: list[float] = []
        self._since = 0.0

    def run(self) -> dict[str, Any]:
        """Measure, log and write the estimate; returns it.

        Raises:
            ValueError: the run has no more steps than those before the first measured one.
        """
        trainer = self.trainer
        epochs, length = trainer.state.max_epochs, trainer.state.epoch_length
        if epochs * length <= self.warmup:
            raise ValueError(
                f"estimate needs a run of more than {self.warmup} steps, and max_epochs {epochs} times"
                f" epoch_iterations {length} is {epochs * length}"
            )
        for event, handler in (
            (Events.GET_BATCH_STARTED, self._begin),
            (Events.GET_BATCH_COMPLETED, self._waited),
            (Events.ITERATION_STARTED, self._begin),
            (Events.ITERATION_COMPLETED, self._computed),
        ):
            trainer.add_event_handler(event, handler)
        trainer.run()
        validation = None
        if self.evaluator is not None:
            self._begin()
            self.evaluator.run(1)
            validation = self._elapsed()
        found = self._estimate(epochs, length, validation)
        if process_rank() == 0:
            write_text(self.folder / FILE, json.dumps(found, indent=2) + "\n")
            self._report(found)
        return found

    def _begin(self) -> None:
        self._since = time.perf_counter()

    def _elapsed(self) -> float:
        if self.trainer.state.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.state.device)
        return time.perf_counter() - self._since

    def _waited(self) -> None:
        self.waiting.append(self._elapsed())

    def _computed(self, trainer: Trainer) -> None:
        self.computing.append(self._elapsed())
        if len(self.computing) == self.warmup + self.steps:
            trainer.terminate()

    def _estimate(self, epochs: int, length: int, validation: float | None) -> dict[str, Any]:
        waiting, computing = self.waiting[self.warmup :], self.computing[self.warmup :]
        whole = [a + b for a, b in zip(waiting, computing, strict=True)]
        step, processes = statistics.median(whole), dist.get_world_size() if dist.is_initialized() else 1
        seconds = epochs * length * step + math.ceil(epochs / self.val_interval) * (validation or 0.0)
        shares = [2**power for power in range(int(math.log2(MOST_PROCESSES)) + 1)]
        shares = sorted({processes, *(n for n in shares if self.batch_size % n == 0)})
        device = self.trainer.state.device
        cuda = device.type == "cuda"
        return {
            "steps": epochs * length,
            "crops": epochs * length * self.batch_size,
            "seconds of a step": {"median": step, "least": min(whole), "most": max(whole), "measured": len(whole)},
            "of it waiting for data": statistics.median(waiting),
            "seconds of a validation": validation,
            "hours": seconds / 3600,
            "hours by processes": {str(n): seconds * processes / n / 3600 for n in shares},
            "processes": processes,
            "device": torch.cuda.get_device_name(device) if cuda else f"{device}, {platform.processor()}".strip(", "),
            "threads": torch.get_num_threads(),
            "memory of a process": _largest(peak_memory() or 0, device),
            "memory of the device": _largest(torch.cuda.max_memory_allocated(device) if cuda else 0, device) or None,
            "store": {"volumes": len(self.store), "bytes": self.store.file_bytes},
            "bytes of a checkpoint": _bytes_of(self.network.state_dict()) + _bytes_of(self.optimizer.state_dict()),
            "bytes of gradients": sum(p.numel() * p.element_size() for p in self.network.parameters()),
            "assumptions": list(ASSUMPTIONS),
        }

    def _report(self, found: dict[str, Any]) -> None:
        step, device = found["seconds of a step"], found["memory of the device"]
        facts = {
            "steps": f"{found['steps']} of {self.batch_size} crops",
            "a step": f"{step['median']:.3g} s ({step['least']:.3g} to {step['most']:.3g}, {step['measured']} steps),"
            f" of it {found['of it waiting for data']:.3g} s waiting for data",
        }
        if found["seconds of a validation"] is not None:
            facts["a validation"] = f"{found['seconds of a validation']:.3g} s"
        facts["whole run"] = f"{found['hours']:.3g} h on {found['processes']} process(es) of {found['device']}"
        facts["by processes"] = ", ".join(f"{n}: {hours:.3g} h" for n, hours in found["hours by processes"].items())
        facts["memory"] = f"{found['memory of a process'] / GIB:.1f} GiB of a process"
        facts["memory"] += f", {device / GIB:.1f} GiB of its GPU" if device else ""
        facts["store"] = f"{found['store']['volumes']} volumes, {found['store']['bytes'] / GIB:.2f} GiB"
        facts["checkpoint"] = f"{found['bytes of a checkpoint'] / MIB:.0f} MiB"
        facts["gradients"] = f"{found['bytes of gradients'] / MIB:.0f} MiB in each step"
        announce("what this run takes", **facts)
        for number, sentence in enumerate(ASSUMPTIONS, 1):
            logger.info("assumption %d: %s", number, sentence)
        logger.info("written: %s; without --estimate true the same command trains", self.folder / FILE)


def _largest(number: int, device: torch.device) -> int:
    """Return the largest number of all processes."""
    if not dist.is_initialized():
        return number
    held = torch.tensor([number], device=device)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held)


def _bytes_of(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(_bytes_of, parts))
