"""Landmarks: errors and overlays of an evaluation; points, lengths and previews of new scans."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from monai.engines import Evaluator

from mambamim_nets.bundle.handlers.evaluation import CaseCollector, ValidationFigure, stored_image
from mambamim_nets.bundle.handlers.scan_results import ScanResults
from mambamim_nets.bundle.inference.scan_loader import ScanLoader
from mambamim_nets.bundle.io.landmarks import write_markups, write_table
from mambamim_nets.bundle.metrics.landmarks import LandmarkCase, LandmarkTable, length_mm
from mambamim_nets.bundle.runtime import process_rank
from mambamim_nets.bundle.visualize.landmarks import landmark_figure, sdr_figure
from mambamim_nets.bundle.visualize.planes import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LandmarkPicture", "LandmarkReport", "LandmarkScanReport"]

logger = logging.getLogger("mambamim_nets")
BIOMETRY = "biometry.csv"


class LandmarkReport(CaseCollector[LandmarkTable]):
    """Collect the errors of every case in world space; write tables, the curve of detection rates and overlays.

    Expects `points`, `confidence` and `image` of `DecodeLandmarksd`, and batches with `case` and `landmarks`;
    attached to an evaluator.

    Args:
        names: of the points.
        lengths: name -> its two ends.
        folder: where files go.
        pictures: how many overlay pictures to draw at most, over all processes.
        checkpoint: file of the weights, see `CaseCollector`.
    """

    def __init__(
        self,
        names: Sequence[str],
        lengths: Mapping[str, Sequence[str]],
        folder: str,
        pictures: int = 8,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(folder, pictures, checkpoint)
        self.names, self.lengths = list(names), dict(lengths)

    def new_table(self) -> LandmarkTable:
        """Return a table of the points and lengths."""
        return LandmarkTable(self.names, self.lengths)

    def row(self, source: Mapping[str, Any], item: Mapping[str, Any]) -> LandmarkCase:
        """Return the predicted points of a case and the true ones."""
        return LandmarkCase(item["points"].numpy(), source["landmarks"].cpu().numpy(), item["confidence"].numpy())

    def draw(self, source: Mapping[str, Any], item: Mapping[str, Any]) -> Figure:
        """Draw the points over the image as it is stored."""
        points, truth = item["points"].numpy(), source["landmarks"].cpu().numpy()
        return landmark_figure(stored_image(item), points, self.names, self.lengths, self.title(source), truth)

    def finish(self, engine: Evaluator) -> None:
        """Write the tables, the predicted points (landmarks.csv) and the curves of detection rates (sdr.png)."""
        summary = self.write_table()
        if process_rank() == 0:
            cases = self.table.rows
            points = {case: dict(zip(self.names, row.points, strict=True)) for case, row in cases.items()}
            confidence = {case: dict(zip(self.names, row.confidence, strict=True)) for case, row in cases.items()}
            write_table(self.folder / "landmarks.csv", points, "RAS", confidence)
            title = f"success detection rate, {self.table.count}"
            save_figure(sdr_figure(self.table.detection_rates(), title), self.folder / "sdr.png")
            logger.info("errors of %s\n%s", self.folder, summary)


class LandmarkScanReport(ScanResults):
    """Write what was found in every new scan: points (CSV in RAS, .mrk.json in LPS), overlay, a row of biometry.csv.

    Expects `points` and `confidence` of `DecodeLandmarksd` and batches with `name`; attached to an evaluator.
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
        overwrite: bool = False,
    ) -> None:
        columns = [*(f"{length} (mm)" for length in lengths), "confidence", "check"]
        super().__init__(loader, folder, BIOMETRY, columns, checkpoint, overwrite, loaded=pictures)
        self.names, self.lengths = list(names), dict(lengths)
        self.pictures, self.min_confidence = pictures, min_confidence

    def files(self, name: str) -> list[str]:
        """Return the names of the two files of points, and of the preview."""
        endings = ["landmarks.csv", "landmarks.mrk.json", *(["preview.png"] if self.pictures else [])]
        return [f"{name}_{ending}" for ending in endings]

    def write(self, name: str, item: Mapping[str, Any]) -> list[str]:
        """Write the files of a scan; return its lengths in mm, its lowest confidence and its unsure points."""
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
            figure = landmark_figure(self.loaded, points, self.names, self.lengths, self.title(name))
            save_figure(figure, self.folder / f"{name}_preview.png")
        return [*(f"{mm:.2f}" for mm in lengths.values()), f"{min(sure.values()):.3f}", " ".join(doubtful)]


class LandmarkPicture(ValidationFigure):
    """Show the first validation case in TensorBoard, predicted and true points; attached to an evaluator.

    Args:
        names: of the points.
        lengths: name -> its two ends.
        writer: a TensorBoard SummaryWriter, or None: no pictures.
    """

    def __init__(self, names: Sequence[str], lengths: Mapping[str, Sequence[str]], writer: Any = None) -> None:
        super().__init__(writer)
        self.names, self.lengths = list(names), dict(lengths)

    def draw(self, source: Mapping[str, Any], item: Mapping[str, Any]) -> Figure:
        """Draw the points over the image as the network had it."""
        points, truth = item["points"].numpy(), source["landmarks"].cpu().numpy()
        return landmark_figure(item["image"].cpu(), points, self.names, self.lengths, source["case"], truth)
