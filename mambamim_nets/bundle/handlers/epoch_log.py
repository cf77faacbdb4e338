"""What a training run says of every epoch: a line of the log with the time that is left, and curves.

The curves are in TensorBoard, and in `progress.png` beside the checkpoints, made from the table `progress.csv`.
"""

import csv
import logging
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Evaluator, Trainer

from mambamim_nets.bundle.files import write_csv
from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.runtime import process_rank
from mambamim_nets.bundle.visualize.planes import save_figure
from mambamim_nets.bundle.visualize.training import MOST_CURVES, curves_figure

__all__ = ["EpochLog", "TrainingCurves", "ValidationLog", "curves_of", "read_progress"]

logger = logging.getLogger("mambamim_nets")
TABLE, PICTURE = "progress.csv", "progress.png"
EPOCH, RATE, SECONDS = "epoch", "learning rate", "seconds"  # columns of every row
PROBED, PROBED_LABEL = "probe_", "probe_dice of "  # how columns of a `LinearProbe`, and of one of its labels, begin
SHARE = 0.02  # of a run's time, that drawing may take
SOONEST = 10.0  # seconds of a run before its first picture, unless it ends before


class EpochLog:
    """Log every epoch of a training: its number of how many, its loss, and when the whole run will be done.

    The time is that of the epochs since this start, with their validations. The learning rate of every step becomes a
    curve of TensorBoard. Attached to a trainer; silent on all processes but the first.

    Args:
        optimizer: whose learning rate is shown.
        writer: a TensorBoard SummaryWriter, or None.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, writer: Any = None) -> None:
        self.optimizer, self.writer = optimizer, writer
        self.started, self.first = 0.0, 0  # seconds of a clock, and the steps that there had been

    def attach(self, engine: Trainer) -> None:
        """Follow a trainer from its start, or from where it goes on."""
        if process_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)
            if self.writer is not None:
                engine.add_event_handler(Events.ITERATION_STARTED, self._show_rate)

    def _start(self, engine: Trainer) -> None:
        self.started, self.first = time.monotonic(), engine.state.iteration

    def _show_rate(self, engine: Trainer) -> None:
        self.writer.add_scalar("learning_rate", self.optimizer.param_groups[0]["lr"], engine.state.iteration)

    def __call__(self, engine: Trainer) -> None:
        """Log the epoch that has ended."""
        epoch, epochs = engine.state.epoch, engine.state.max_epochs
        rate = self.optimizer.param_groups[0]["lr"]
        each = (time.monotonic() - self.started) / (engine.state.iteration - self.first) * engine.state.epoch_length
        left = timedelta(seconds=round(each * (epochs - epoch)))
        end = datetime.now() + left
        when = f"{end:%H:%M}" if end.date() == datetime.now().date() else f"{end:%Y-%m-%d %H:%M}"
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in engine.state.metrics.items())
        remaining = f"{each:.0f} s each, {left} left, done at about {when}" if epoch < epochs else "the last one"
        logger.info("epoch %d/%d: %s, learning rate %.3g; %s", epoch, epochs, numbers, rate, remaining)


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
            state.by_structure = dict(zip(self.names, torch.as_tensor(details).nanmean(0).tolist(), strict=True))
        best = f"best {state.best_metric:.4f} of epoch {state.best_metric_epoch}"
        logger.info("validation after epoch %d/%d: %s; %s", state.epoch, self.epochs, ", ".join(parts), best)


class TrainingCurves:
    """Keep what every epoch came to in `progress.csv`, and draw it as `progress.png`; for the first process alone.

    A row has the epoch, the training's metrics, learning rate and seconds of the epoch with its validation, and of a
    validation its metrics, by structure too where `ValidationLog` has left them in ``state.by_structure``; what a
    `LinearProbe` has left in the trainer's ``state.probed`` is there too, and in a row of epoch 0 what it has left in
    ``state.probed_before``. The picture is drawn anew after every epoch from ten seconds on; where this would take more
    than a fiftieth of the time, as often as that allows, and always after the last.

    Args:
        folder: of both files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.rows: list[dict[str, float]] = []
        self.ended = self.started = time.monotonic()
        self.drawing = 0.0  # seconds that all pictures took

    def start(self, epoch: int) -> None:
        """Begin after an epoch, 0 where nothing is resumed: rows of later ones are dropped, since they are repeated."""
        self.rows = [row for row in read_progress(self.folder / TABLE) if row[EPOCH] <= epoch] if epoch else []
        self.ended = self.started = time.monotonic()

    def add(self, trainer: Trainer, evaluator: Evaluator | None, rate: float) -> None:
        """Add the epoch that has ended, with its validation if it had one, and renew both files."""
        now, epoch = time.monotonic(), trainer.state.epoch
        row = {EPOCH: float(epoch), RATE: rate, SECONDS: round(now - self.ended, 2)} | _numbers(trainer.state.metrics)
        if evaluator is not None and evaluator.state.epoch == epoch:
            row |= _numbers(evaluator.state.metrics) | getattr(evaluator.state, "by_structure", {})
        row |= getattr(trainer.state, "probed", {})
        self.ended = now
        if not self.rows and (before := getattr(trainer.state, "probed_before", {})):
            self.rows.append({EPOCH: 0.0} | before)
        self.rows.append(row)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = ([f"{row[key]:.6g}" if key in row else "" for key in columns] for row in self.rows)
        write_csv(self.folder / TABLE, [columns, *lines])
        worthwhile = now - self.started >= SOONEST and self.drawing <= SHARE * (now - self.started)
        if worthwhile or epoch >= trainer.state.max_epochs:
            trained = [*_numbers(trainer.state.metrics)]
            save_figure(curves_figure(curves_of(self.rows, trained)), self.folder / PICTURE, announced=False)
            self.drawing += time.monotonic() - now


def curves_of(
    rows: Iterable[Mapping[str, float]], trained: Iterable[str] = ("train_loss",)
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return the curves of `curves_figure` from the rows of a `progress.csv`.

    Args:
        rows: by epoch.
        trained: columns of the training; all others, but those of every row, are of the validation.
    """
    rows, trained = list(rows), list(trained)
    columns = dict.fromkeys(key for row in rows for key in row)
    probed = [key for key in columns if key.startswith(PROBED)]
    validated = [key for key in columns if key not in (EPOCH, RATE, SECONDS, *trained, *probed)]
    if len(validated) > MOST_CURVES:
        validated = [key for key in validated if key.startswith("val_")] or validated[:1]
    panels = {"training": trained, "validation": validated, **({"probe": probed[:MOST_CURVES]} if probed else {})}
    panels |= {RATE: [RATE], "seconds of an epoch": [SECONDS]}
    return {
        panel: {
            name.removeprefix(PROBED_LABEL): [(row[EPOCH], row[name]) for row in rows if name in row] for name in names
        }
        for panel, names in panels.items()
    }


def read_progress(path: Path) -> list[dict[str, float]]:
    """Return the rows of a `progress.csv`, without what is empty; none where there is no such file, or no sound one."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError):
        return []
    return [row for row in rows if EPOCH in row]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
