"""What reports of an evaluation have in common: a row of a table for each case, pictures, and what was evaluated."""

from __future__ import annotations

import json
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import Evaluator
from monai.transforms import LoadImage

from mambamim_nets.bundle.checkpoint_files import LAST
from mambamim_nets.bundle.errors import first_line
from mambamim_nets.bundle.files import some, write_text
from mambamim_nets.bundle.handlers.identity import TRAINING_CASES, run_settings
from mambamim_nets.bundle.handlers.provenance import made_with, now
from mambamim_nets.bundle.metrics.table import MetricTable
from mambamim_nets.bundle.visualize.planes import log_figure, save_figure
from mambamim_nets.bundle.weights import file_digest, weights_caption, weights_files, weights_note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CaseCollector", "ValidationFigure", "stored_image"]

logger = logging.getLogger("mambamim_nets")
RECORD = "evaluation.json"
FORMAT = 1

Table = TypeVar("Table", bound=MetricTable[Any])


class CaseCollector(ABC, Generic[Table]):
    """Fill a table with the cases of an evaluation; attached to an evaluator.

    Beside the tables, evaluation.json says of which cases and weights they are: data, fold and part, files and their
    digests, versions, machine and settings. Cases that the weights were trained on, as the checkpoint beside them says,
    are listed there, and warned of after the table: folds that are made anew, of a data set that has grown, hold
    others out.

    Args:
        folder: where pictures go, as `<case>_overlay.png`.
        pictures: of how many cases to draw one at most, over all processes and runs of the evaluator.
        checkpoint: file of the weights, or files of an ensemble, whose note tables and pictures repeat;
            None: there is none.
    """

    table: Table  # of the evaluation that runs, or ran last

    def __init__(
        self, folder: str | Path = ".", pictures: int = 0, checkpoint: str | Sequence[str] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.evaluates(checkpoint)
        self.pictures = math.ceil((pictures - idist.get_rank()) / idist.get_world_size())  # this process's share

    def evaluates(self, checkpoint: str | Sequence[str] | None) -> None:
        """Say whose weights the next evaluation is of, see `checkpoint`."""
        self.note, self.weights = weights_note(checkpoint), weights_files(checkpoint)

    @abstractmethod
    def new_table(self) -> Table:
        """Return the empty table of an evaluation that starts."""

    @abstractmethod
    def row(self, source: Mapping[str, Any], item: Mapping[str, Any]) -> Any:
        """Return the row of a case from its item of the batch, and from what the evaluator made of it."""

    def draw(self, source: Mapping[str, Any], item: Mapping[str, Any]) -> Figure:
        """Return the figure of a case, where there are pictures."""
        raise NotImplementedError

    @abstractmethod
    def finish(self, engine: Evaluator) -> None:
        """Do what is to be done with the table when all cases are there; every process calls it."""

    def title(self, source: Mapping[str, Any]) -> str:
        """Return the title of a case's picture: its name, and on a second line what the weights are."""
        return "\n".join(filter(None, (source["case"], weights_caption(self.note))))

    def attach(self, engine: Evaluator) -> None:
        """Let an evaluator fill the table whenever it runs."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        engine.add_event_handler(Events.COMPLETED, self._say_what_was_evaluated)

    def _start(self, engine: Evaluator) -> None:
        self.table = self.new_table()

    def write_table(self) -> str:
        """Write the tables, which name the weights and what was evaluated; every process calls it.

        Returns:
            The content of summary.md.
        """
        return self.table.write(self.folder, self.note, _evaluated(self.weights))

    def _say_what_was_evaluated(self, engine: Evaluator) -> None:
        if idist.get_rank() != 0 or not self.weights:
            return
        dataset = getattr(engine.state.dataloader, "dataset", None)
        items = [item for item in getattr(dataset, "data", ()) if isinstance(item, Mapping)]
        trained = {path: trained_cases(items, path) for path in self.weights}
        found = {
            "format": FORMAT,
            "ended": now(),
            "cases": {item["case"]: item.get("image") for item in items if item.get("case") in self.table.rows},
            "trained_on": trained,
            **made_with(self.weights, getattr(engine.state, "device", "")),
        }
        write_text(self.folder / RECORD, json.dumps(found, indent=1, default=str) + "\n")
        for path, seen in trained.items():
            if seen:
                logger.warning(
                    "%d of %d evaluated cases were trained on, by the checkpoint beside %s: %s; their scores say"
                    " nothing about new scans: evaluate on the cases that its run held out",
                    len(seen),
                    len(items),
                    path,
                    some(seen, 5),
                )

    def _collect(self, engine: Evaluator) -> None:
        for source, item in zip(engine.state.batch, engine.state.output, strict=True):
            self.table.add(source["case"], self.row(source, item))
            if self.pictures > 0:
                self.pictures -= 1
                save_figure(self.draw(source, item), self.folder / f"{source['case']}_overlay.png")


def _evaluated(weights: Sequence[str]) -> str:
    """Return which part of which data was evaluated with which weights, as far as the configuration says it, or ""."""
    options = run_settings().values
    said = [f"{name} {options[name]}" for name in ("fold", "part") if options.get(name) is not None]
    files = [f"`{path}` (SHA-256 {file_digest(path)[:16]})" for path in weights]
    if not options or not files:
        return ""
    said.append(f"data `{options.get('data_root')}`")
    return f"{', '.join(said)}; weights {', '.join(files)}; more in `{RECORD}`"


def trained_cases(items: Sequence[Mapping[str, Any]], weights: str | Path) -> list[str] | None:
    """Return which cases the run trained on that left weights; None where no checkpoint beside them says it.

    Where there is a checkpoint, but of an earlier version, damaged, or of so many cases that it holds their digest
    alone, the log says so.

    Args:
        items: cases with "case" and "image"; those of another folder than that of the run are others of the same name.
        weights: file that a run has exported.
    """
    last = Path(weights).with_name(LAST)
    if not last.is_file():
        return None
    try:
        held = torch.load(last, map_location="cpu", weights_only=True, mmap=True)["identity"]
        root, names = os.path.join(str(held["data_root"]), ""), held[TRAINING_CASES]
    except Exception as error:  # of any kind, as damage has it
        held, root, names = {}, "", first_line(error)
    if not isinstance(names, list):
        logger.warning(
            "%s does not list what it was trained on, so no evaluated case is known to be new: %s", last, names
        )
        return None
    files = {
        item["case"]: item["image"] if isinstance(item["image"], str) else item["image"][0]
        for item in items
        if item.get("case") and item.get("image")
    }
    return sorted(case for case, file in files.items() if file.startswith(root) and case in names)


def stored_image(item: Mapping[str, Any]) -> MetaTensor:
    """Return the image of an item as it is stored, (C, D, H, W); of several files, one for each channel, the first."""
    image: Any = LoadImage(image_only=True, ensure_channel_first=True)(item["image"].meta["filename_or_obj"])
    return image


class ValidationFigure(ABC):
    """Show the first case of every validation in TensorBoard; attached to an evaluator.

    Args:
        writer: a TensorBoard SummaryWriter, or None: no pictures.
    """

    def __init__(self, writer: Any = None) -> None:
        self.writer = writer

    @abstractmethod
    def draw(self, source: Mapping[str, Any], item: Mapping[str, Any]) -> Figure:
        """Return the figure of a case from its item of the batch, and from what the evaluator made of it."""

    def attach(self, engine: Evaluator) -> None:
        """Let an evaluator show the first case whenever it runs."""
        if self.writer is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Evaluator) -> None:
        """Show the first case of the batch."""
        figure = self.draw(engine.state.batch[0], engine.state.output[0])
        log_figure(self.writer, "validation", figure, engine.state.epoch)
