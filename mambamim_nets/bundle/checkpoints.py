"""Checkpoints of a run: the whole state of every epoch, the best network, resuming, and averaged weights."""

import logging
from pathlib import Path
from typing import Any, cast

import torch
from ignite.engine import Events
from ignite.handlers import DiskSaver, EMAHandler
from monai.engines import Evaluator, Trainer
from torch import nn

from mambamim_nets.bundle.launch import bare, flag, process_rank
from mambamim_nets.checkpoint import read_state, stamped

__all__ = ["LAST", "Average", "Checkpoints"]

logger = logging.getLogger("mambamim_nets")
LAST, BEST, ENCODER = "checkpoint_last.pt", "model_best.pt", "encoder.pt"


class Average:
    """Exponential moving average of a network's weights, by ignite's EMAHandler; what is validated and kept as best.

    Args:
        network: the network in training.
        decay: share of the average that each iteration keeps, such as 0.999; 0 switches averaging off.

    Attributes:
        network: the averaged network, or with decay 0 the network in training itself.

    Raises:
        ValueError: if the decay is not in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float = 0.0) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema {decay} must be in [0, 1); 0 switches averaging off, 0.999 is usual")
        self.handler = EMAHandler(network, momentum=1 - decay) if decay else None
        self.network = self.handler.ema_model if self.handler else network

    def attach(self, engine: Trainer) -> None:
        if self.handler:
            self.handler.attach(engine, event=Events.ITERATION_COMPLETED)


class Checkpoints:
    """Save the whole state every epoch, the best network by validation, and resume.

    ``checkpoint_last.pt`` holds network, optimiser, schedule, trainer (epoch, iteration), the best metric so far and
    the run's identity; ``model_best.pt`` holds the bare weights of the best epoch; with ``encoder=True``,
    ``encoder.pt`` the bare encoder weights of the last epoch. Files are replaced whole or not at all. The last epoch is
    validated whatever the interval.

    Args:
        trainer, evaluator, network, optimizer, lr_scheduler: the parts of the run; no evaluator in pre-training.
        folder: where files go.
        identity: plain values that make this run what it is; resuming with other values is refused.
        resume: "auto" continues what is in the folder, True demands it, False refuses a folder that holds a run.
        encoder: whether to write ``encoder.pt``.
        average: averaged weights of the network, if there are any.
        early_stopping: stop after this many epochs without a better validation; 0: never.
        record: what the weights are, written into every file of weights; see ``mambamim_nets.checkpoint.stamped``.
    """

    def __init__(
        self,
        trainer: Trainer,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        folder: str,
        identity: dict[str, Any],
        evaluator: Evaluator | None = None,
        resume: bool | str = "auto",
        encoder: bool = False,
        average: Average | None = None,
        early_stopping: int = 0,
        record: dict[str, Any] | None = None,
    ) -> None:
        resume = resume if resume == "auto" else flag(resume, "resume")
        self.trainer, self.evaluator, self.network = trainer, evaluator, network
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.folder, self.identity, self.resume, self.encoder = Path(folder), identity, resume, encoder
        self.average = average.network if average is not None and average.handler else None
        self.early_stopping, self.record = early_stopping, record
        self.folder.mkdir(parents=True, exist_ok=True)  # DiskSaver's own way fails if another process is faster
        self.saver = DiskSaver(str(folder), create_dir=False, require_empty=False)

    def start(self) -> bool:
        """Restore what is to be resumed, and attach to the engines.

        Returns:
            Whether there is anything left to train.

        Raises:
            FileNotFoundError: if resume is True and there is nothing to resume.
            ValueError: if the folder holds a run that must not be replaced, or one of another identity.
        """
        last = self.folder / LAST
        if last.is_file():
            if self.resume is False:
                raise ValueError(f"{self.folder} holds a run; --resume true continues it, or give another --output_dir")
            self._restore(last)
        elif any((self.folder / name).exists() for name in (BEST, ENCODER)):
            raise ValueError(f"{self.folder} holds weights that this run would replace; give another --output_dir")
        elif self.resume is True:
            raise FileNotFoundError(f"nothing to resume: {last} does not exist")
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._save_best)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._save_last)
        return self.trainer.state.epoch < self.trainer.state.max_epochs and not self._stalled()

    def _stalled(self) -> bool:
        """Return whether early stopping ends the run; it depends on saved values only, so resuming changes nothing."""
        if self.evaluator is None or not self.early_stopping:
            return False
        best = self.evaluator.state.best_metric_epoch
        without = self.evaluator.state.epoch - best  # at the last validation: between two, nothing can get better
        if best <= 0 or without < self.early_stopping:
            return False
        logger.info("early stopping: no better validation since epoch %d, %d epochs ago", best, without)
        return True

    def _restore(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        held = state["identity"]
        differing = [f"{k}={held.get(k)!r} there, {v!r} here" for k, v in self.identity.items() if held.get(k) != v]
        if differing:
            raise ValueError(f"{path} belongs to another run ({'; '.join(differing)}); give another --output_dir")
        bare(self.network).load_state_dict(read_state(path), strict=True)
        if self.average is not None:
            self.average.load_state_dict(state["average"], strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        wanted = self.trainer.state.max_epochs
        self.trainer.load_state_dict({**state["trainer"], "max_epochs": max(wanted, state["epoch"])})
        self.trainer.state.max_epochs = max(wanted, state["epoch"])
        if self.evaluator is not None and state["best_epoch"] > 0:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_epoch"]
            self.evaluator.state.epoch = state.get("validated_epoch", state["epoch"])
        done = "finished, nothing left to train" if state["epoch"] >= wanted else f"continuing up to epoch {wanted}"
        logger.info("resumed %s after epoch %d: %s", path, state["epoch"], done)

    def _save(self, state: dict[str, Any], name: str) -> None:
        if process_rank() == 0:
            self.saver(state, name)

    def _save_last(self, trainer: Trainer) -> None:
        if self.evaluator is not None and trainer.state.epoch == trainer.state.max_epochs != self.evaluator.state.epoch:
            self.evaluator.run(trainer.state.epoch)  # val_interval left the last epoch out
        best = self.evaluator.state if self.evaluator is not None else None
        network = bare(self.network)
        state = {
            "model": stamped(network.state_dict(), self.record),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "trainer": dict(trainer.state_dict()),
            "epoch": trainer.state.epoch,
            "best_metric": float(best.best_metric) if best is not None else 0.0,
            "best_epoch": int(best.best_metric_epoch) if best is not None else 0,
            "validated_epoch": int(best.epoch) if best is not None else 0,
            "identity": self.identity,
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        self._save(state, LAST)
        if self.encoder:
            self._save(stamped(cast(nn.Module, network.encoder).state_dict(), self.record), ENCODER)
        if self._stalled():
            trainer.terminate()

    def _save_best(self, evaluator: Evaluator) -> None:
        if evaluator.state.best_metric_epoch == evaluator.state.epoch:
            network = self.average if self.average is not None else bare(self.network)
            self._save(stamped(network.state_dict(), self.record), BEST)
