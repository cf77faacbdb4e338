"""What a training run says of every epoch: a line of the log with the time that is left, and curves in TensorBoard."""

import logging
import time
from datetime import datetime, timedelta
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Evaluator, Trainer

from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.runtime import process_rank

__all__ = ["EpochLog", "ValidationLog"]

logger = logging.getLogger("mambamim_nets")


class EpochLog:
    """Log every epoch of a training: its number of how many, its loss, and when the whole run will be done.

    The time is that of the epochs since this start, with their validations. The learning rate becomes a curve of
    TensorBoard. Attached to a trainer; silent on all processes but the first.

    Args:
        optimizer: whose learning rate is shown.
        writer: a TensorBoard SummaryWriter, or None.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, writer: Any = None) -> None:
        self.optimizer, self.writer = optimizer, writer
        self.started, self.first = 0.0, 0

    def attach(self, engine: Trainer) -> None:
        """Follow a trainer from its start, or from where it goes on."""
        if process_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: Trainer) -> None:
        self.started, self.first = time.monotonic(), engine.state.epoch

    def __call__(self, engine: Trainer) -> None:
        """Log the epoch that has ended."""
        epoch, epochs = engine.state.epoch, engine.state.max_epochs
        rate = self.optimizer.param_groups[0]["lr"]
        each = (time.monotonic() - self.started) / (epoch - self.first)
        left = timedelta(seconds=round(each * (epochs - epoch)))
        end = datetime.now() + left
        when = f"{end:%H:%M}" if end.date() == datetime.now().date() else f"{end:%Y-%m-%d %H:%M}"
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in engine.state.metrics.items())
        remaining = f"{each:.0f} s each, {left} left, done at about {when}" if epoch < epochs else "the last one"
        logger.info("epoch %d/%d: %s, learning rate %.3g; %s", epoch, epochs, numbers, rate, remaining)
        if self.writer is not None:
            self.writer.add_scalar("learning_rate", rate, epoch)


class ValidationLog:
    """Log every validation: its numbers, by structure too, and the best one so far; attached to an evaluator.

    Args:
        targets: of the task, whose structures are the channels of the key metric; None: it has no channels.
        epochs: of the whole run.
        writer: a TensorBoard SummaryWriter, or None; each structure becomes a curve of it.
    """

    def __init__(self, epochs: int, targets: Targets | None = None, writer: Any = None) -> None:
        self.epochs, self.writer = epochs, writer
        self.names = [] if targets is None else list(targets.structures)

    def attach(self, engine: Evaluator) -> None:
        """Follow an evaluator; silent on all processes but the first."""
        if process_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Evaluator) -> None:
        """Log the validation that has ended."""
        state = engine.state
        parts = [f"{name} {value:.4f}" for name, value in state.metrics.items()]
        details = state.metric_details.get(state.key_metric_name) if self.names else None
        if details is not None:
            for name, value in zip(self.names, torch.as_tensor(details).nanmean(0).tolist(), strict=True):
                parts.append(f"{name} {value:.4f}")
                if self.writer is not None:
                    self.writer.add_scalar(f"{state.key_metric_name}/{name}", value, state.epoch)
        best = f"best {state.best_metric:.4f} of epoch {state.best_metric_epoch}"
        logger.info("validation after epoch %d/%d: %s; %s", state.epoch, self.epochs, ", ".join(parts), best)
