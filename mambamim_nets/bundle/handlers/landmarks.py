"""What people look at: errors and overlays of an evaluation of landmarks; points, lengths, previews of new scans."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ignite.engine import Events
from monai.engines import Evaluator
from monai.transforms import LoadImage

from mambamim_nets.bundle.handlers.scan_results import ScanResults
from mambamim_nets.bundle.inference.scan_loader import ScanLoader
from mambamim_nets.bundle.io.landmarks import write_markups, write_table
from mambamim_nets.bundle.io.reader import LoadScand
from mambamim_nets.bundle.metrics.landmarks import LandmarkCase, LandmarkTable, length_mm
from mambamim_nets.bundle.runtime import process_rank
from mambamim_nets.bundle.visualize.landmarks import landmark_figure, landmark_overlay, sdr_curve
from mambamim_nets.bundle.visualize.planes import figure_array

__all__ = ["LandmarkPicture", "LandmarkReport", "LandmarkScanReport"]

logger = logging.getLogger("mambamim_nets")
BIOMETRY = "biometry.csv"


class LandmarkReport:
    """Collect the errors of every case in world space; write tables, the curve of detection rates and overlays.

    Expects ``points``, ``confidence`` and ``image`` of `DecodeLandmarksd`, and batches with ``case`` and ``landmarks``;
    attached to an evaluator.

    Args:
        names: of the points.
        lengths: name -> its two ends.
        folder: where files go.
        pictures: how many overlay pictures to draw at most, over all processes.
    """

    def __init__(
        self, names: Sequence[str], lengths: Mapping[str, Sequence[str]], folder: str, pictures: int = 8
    ) -> None:
        self.names, self.lengths, self.folder = list(names), dict(lengths), Path(folder)
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self.pictures = (pictures + processes - 1 - process_rank()) // processes  # this process's share
        self.table = LandmarkTable(self.names, self.lengths)

    def attach(self, engine: Evaluator) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Evaluator) -> None:
        self.table = LandmarkTable(self.names, self.lengths)

    def _collect(self, engine: Evaluator) -> None:
        for source, item in zip(engine.state.batch, engine.state.output, strict=True):
            case = source["case"]
            points, truth = item["points"].numpy(), source["landmarks"].cpu().numpy()
            self.table.add(case, LandmarkCase(points, truth, item["confidence"].numpy()))
            if self.pictures > 0:
                self.pictures -= 1
                image: Any = LoadImage(image_only=True, ensure_channel_first=True)(
                    item["image"].meta["filename_or_obj"]
                )
                path = self.folder / f"{case}_overlay.png"
                landmark_overlay(image, points, self.names, self.lengths, path, case, truth)
                logger.info("picture: %s", path)

    def _write(self, engine: Evaluator) -> None:
        summary, rates = self.table.write(self.folder), self.table.detection_rates()
        if process_rank() == 0:
            title = f"success detection rate, {summary.split(';', 1)[0]}"
            logger.info("picture: %s", sdr_curve(rates, self.folder / "sdr.png", title))
            logger.info("errors of %s\n%s", self.folder, summary)


class LandmarkScanReport(ScanResults):
    """Write what was found in every new scan: points (CSV in RAS, .mrk.json in LPS), overlay, a row of biometry.csv.

    Expects ``points`` and ``confidence`` of `DecodeLandmarksd` and batches with ``name``; attached to an evaluator.
    A scan whose results cannot be written is recorded as failed; the others go on.

    Args:
        loader: of the scans.
        names: of the points.
        lengths: name -> its two ends.
        folder: where files go.
        pictures: whether to draw overlays.
        min_confidence: points below are named in the column "check" and in the log.
        checkpoint: file of the weights.
        overwrite: do again what an earlier run has done.

    Raises:
        ValueError: if the folder's biometry.csv is of other lengths.
    """

    def __init__(
        self,
        loader: ScanLoader,
        names: Sequence[str],
        lengths: Mapping[str, Sequence[str]],
        folder: str,
        pictures: bool = True,
        min_confidence: float = 0.3,
        checkpoint: str | None = None,
        overwrite: bool | str = False,
    ) -> None:
        columns = [*(f"{length} (mm)" for length in lengths), "confidence", "check"]
        super().__init__(loader, folder, BIOMETRY, columns, checkpoint, overwrite)
        self.names, self.lengths = list(names), dict(lengths)
        self.pictures, self.min_confidence = pictures, min_confidence

    def files(self, name: str) -> list[str]:
        endings = ["landmarks.csv", "landmarks.mrk.json", *(["preview.png"] if self.pictures else [])]
        return [f"{name}_{ending}" for ending in endings]

    def write(self, name: str, item: Mapping[str, Any]) -> list[str]:
        points, confidence = item["points"].numpy(), item["confidence"].numpy()
        found = dict(zip(self.names, points, strict=True))
        sure = dict(zip(self.names, confidence.tolist(), strict=True))
        path = write_table(self.folder / f"{name}_landmarks.csv", {name: found}, "RAS", {name: sure})
        notes = {point: f"confidence {value:.2f}" for point, value in sure.items()}
        write_markups(self.folder / f"{name}_landmarks.mrk.json", found, "LPS", notes)
        lengths = {length: length_mm(points, self.names, ends) for length, ends in self.lengths.items()}
        doubtful = [point for point, value in sure.items() if not value >= self.min_confidence]
        measured = ", ".join(f"{length} {mm:.1f} mm" for length, mm in lengths.items())
        logger.info("%s: %s, confidence %.2f", path, measured, min(sure.values()))
        if doubtful:
            logger.warning("%s: look at %s: confidence below %g", name, ", ".join(doubtful), self.min_confidence)
        if self.pictures:
            image: Any = LoadScand("image")(self.items[name])["image"]
            picture = self.folder / f"{name}_preview.png"
            landmark_overlay(image, points, self.names, self.lengths, picture, self.title(name))
            logger.info("picture: %s", picture)
        return [*(f"{mm:.2f}" for mm in lengths.values()), f"{min(sure.values()):.3f}", " ".join(doubtful)]


class LandmarkPicture:
    """Show the first validation case in TensorBoard, predicted and true points; attached to an evaluator.

    Args:
        names: of the points.
        lengths: name -> its two ends.
        writer: a TensorBoard SummaryWriter, or None: no pictures.
    """

    def __init__(self, names: Sequence[str], lengths: Mapping[str, Sequence[str]], writer: Any = None) -> None:
        self.names, self.lengths, self.writer = list(names), dict(lengths), writer

    def attach(self, engine: Evaluator) -> None:
        if self.writer is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Evaluator) -> None:
        item, source = engine.state.output[0], engine.state.batch[0]
        points, truth = item["points"].numpy(), source["landmarks"].cpu().numpy()
        figure = landmark_figure(item["image"].cpu(), points, self.names, self.lengths, source["case"], truth)
        self.writer.add_image("validation", figure_array(figure), engine.state.epoch, dataformats="HWC")
