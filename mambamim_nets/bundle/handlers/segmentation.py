"""Segmentation: metrics and overlays of an evaluation; label maps, previews and volumes of new scans."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import Evaluator
from monai.transforms import LoadImage, Orientation

from mambamim_nets.bundle.errors import first_line
from mambamim_nets.bundle.files import atomic_write
from mambamim_nets.bundle.handlers.scan_results import ScanResults
from mambamim_nets.bundle.inference.scan_lists import source_files
from mambamim_nets.bundle.inference.scan_loader import ScanLoader
from mambamim_nets.bundle.io.dicom_seg import segment_codes, write_dicom_seg
from mambamim_nets.bundle.io.reader import LoadScand
from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.metrics.segmentation import MetricsTable, case_metrics
from mambamim_nets.bundle.runtime import process_rank
from mambamim_nets.bundle.visualize.planes import figure_array
from mambamim_nets.bundle.visualize.segmentation import overlay, overlay_figure

__all__ = ["CaseReport", "ScanReport", "ValidationPicture", "preview_window"]

logger = logging.getLogger("mambamim_nets")
VOLUMES = "volumes.csv"


def preview_window(kind: str, low: float = 0.0, high: float = 0.0) -> tuple[float, float] | None:
    """Return the grey window of pictures: the HU range of CT; None, percentiles of the picture, for everything else."""
    return (low, high) if kind == "ct" else None


def _preview(
    image: MetaTensor,
    prediction: np.ndarray,
    labels: Mapping[int, str],
    path: Path,
    title: str,
    reference: np.ndarray | None = None,
    window: tuple[float, float] | None = None,
) -> None:
    """Draw label maps over the first channel of an image (C, D, H, W) on the same grid."""
    to_ras = Orientation("RAS", labels=None)

    def upright(array: Any) -> Any:
        return to_ras(MetaTensor(torch.as_tensor(array)[None], affine=image.affine))[0].numpy()

    upright_image: Any = to_ras(image[:1])
    spacing = tuple(float(s) for s in upright_image.pixdim)
    maps = [None if array is None else upright(array) for array in (prediction, reference)]
    overlay(upright_image[0].numpy(), maps[0], labels, path, title, maps[1], spacing, window)
    logger.info("picture: %s", path)


class CaseReport:
    """Collect metrics of every case on its own grid; write tables and overlays of prediction and reference.

    Expects ``pred`` (1, D, H, W) label maps with the affine of the input, ``image`` with its file name and ``label``,
    and batches with ``case``; attached to an evaluator.

    Args:
        targets: of the task.
        folder: where files go.
        pictures: how many overlay pictures to draw at most, over all processes.
        tolerance_mm: of the surface Dice.
        window: grey values shown black and white; None: percentiles.
    """

    def __init__(
        self,
        targets: Targets,
        folder: str,
        pictures: int = 8,
        tolerance_mm: float = 1.0,
        window: tuple[float, float] | None = None,
    ) -> None:
        self.targets, self.folder, self.tolerance_mm, self.window = targets, Path(folder), tolerance_mm, window
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self.pictures = (pictures + processes - 1 - process_rank()) // processes  # this process's share
        self.table = MetricsTable(targets.structures, tolerance_mm)

    def attach(self, engine: Evaluator) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Evaluator) -> None:
        self.table = MetricsTable(self.targets.structures, self.tolerance_mm)

    def _collect(self, engine: Evaluator) -> None:
        for source, item in zip(engine.state.batch, engine.state.output, strict=True):
            pred: Any = item["pred"]
            file = item["image"].meta["filename_or_obj"]  # of several, one for each channel, the first
            case = source["case"]
            prediction = pred[0].cpu().numpy().astype("uint8")
            reference = item["label"][0].cpu().numpy().round().astype("uint8")
            spacing = [float(s) for s in pred.pixdim]
            metrics = case_metrics(prediction, reference, self.targets.structures, spacing, self.tolerance_mm)
            self.table.add(case, metrics)
            if self.pictures > 0:
                self.pictures -= 1
                image: Any = LoadImage(image_only=True, ensure_channel_first=True)(file)
                path = self.folder / f"{case}_overlay.png"
                _preview(image, prediction, self.targets.labels, path, case, reference, self.window)

    def _write(self, engine: Evaluator) -> None:
        summary = self.table.write(self.folder)
        if process_rank() == 0:
            logger.info("metrics of %s\n%s", self.folder, summary)


class ScanReport(ScanResults):
    """Write what was found in every new scan: label map, DICOM-SEG, preview, and a row of volumes.csv.

    Expects ``pred`` (1, D, H, W) uint8 label maps with the affine of the input, and batches with ``name``; attached to
    an evaluator.
    A scan whose results cannot be written is recorded as failed; the others go on. A scan whose DICOM-SEG alone cannot
    be written, such as for a header that breaks the standard, has all else, a warning, and is named at the end.

    Args:
        loader: of the scans.
        targets: of the task.
        folder: where files go.
        pictures: whether to draw previews.
        window: grey values shown black and white; None: percentiles.
        description: of the network, for the DICOM-SEG.
        checkpoint: file of the weights.
        overwrite: do again what an earlier run has done.
        metadata: metadata.json of the bundle, which says what each label is in a DICOM-SEG; None: tissue.

    Raises:
        ValueError: if the folder's volumes.csv is of another task, or a code of the metadata is incomplete.
    """

    def __init__(
        self,
        loader: ScanLoader,
        targets: Targets,
        folder: str,
        pictures: bool = True,
        window: tuple[float, float] | None = None,
        description: str = "mambamim_nets",
        checkpoint: str | None = None,
        overwrite: bool | str = False,
        metadata: str | None = None,
    ) -> None:
        columns = [f"{name} (ml)" for name in targets.structures]
        super().__init__(loader, folder, VOLUMES, columns, checkpoint, overwrite)
        self.targets, self.pictures, self.window, self.description = targets, pictures, window, description
        self.codes = segment_codes(metadata, targets.labels.values()) if metadata else {}

    def files(self, name: str) -> list[str]:
        endings = ["seg.nii.gz", *(["preview.png"] if self.pictures else [])]
        if self.items[name]["series"]:
            endings.append("seg.dcm")
        return [f"{name}_{ending}" for ending in endings]

    def write(self, name: str, item: Mapping[str, Any]) -> list[str]:
        pred, scan = item["pred"], self.items[name]
        label, affine = pred[0].cpu().numpy().astype("uint8"), np.asarray(pred.affine, dtype=float)
        path = self.folder / f"{name}_seg.nii.gz"
        _save_nifti(label, affine, path)
        if scan["series"]:
            self._write_dicom(name, label, affine)
        ml = float(abs(np.linalg.det(affine[:3, :3]))) / 1000
        counts = np.bincount(label.ravel(), minlength=256)
        volumes = [counts[list(values)].sum() * ml for values in self.targets.structures.values()]
        found = zip(self.targets.structures, volumes, strict=True)
        logger.info("%s: %s", path, ", ".join(f"{part} {volume:.1f} ml" for part, volume in found if volume))
        if self.pictures:
            image: Any = LoadScand("image")(scan)["image"]
            picture = path.with_name(f"{name}_preview.png")
            _preview(image, label, self.targets.labels, picture, self.title(name), None, self.window)
        return [f"{volume:.3f}" for volume in volumes]

    def _write_dicom(self, name: str, label: np.ndarray, affine: np.ndarray) -> None:
        path = self.folder / f"{name}_seg.dcm"
        path.unlink(missing_ok=True)  # that of an earlier run is not of this label map
        try:
            files, labels = source_files(self.items[name]), self.targets.labels
            write_dicom_seg(label, affine, files, labels, path, self.description, self.codes)
        except Exception as error:  # whatever highdicom raises on tags that break the standard
            logger.debug("%s: %s cannot be written", name, path, exc_info=True)
            self.lacks(name, f"no DICOM-SEG, the series' headers do not allow one: {first_line(error)}")


def _save_nifti(label: np.ndarray, affine: np.ndarray, path: Path) -> None:
    image = nib.Nifti1Image(label, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    atomic_write(path, lambda part: nib.save(image, part))


class ValidationPicture:
    """Show the first validation case in TensorBoard, prediction above reference; attached to an evaluator.

    Args:
        targets: of the task.
        spacing: of the validation images in mm; they are in RAS.
        writer: a TensorBoard SummaryWriter, or None: no pictures.
    """

    def __init__(self, targets: Targets, spacing: Sequence[float], writer: Any = None) -> None:
        self.targets, self.spacing, self.writer = targets, tuple(spacing), writer

    def attach(self, engine: Evaluator) -> None:
        if self.writer is not None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Evaluator) -> None:
        item = engine.state.output[0]
        maps = (item["pred_map"], item["label_map"])
        figure = overlay_figure(item["image"][:1], maps[0], self.targets.labels, None, maps[1], self.spacing)
        self.writer.add_image("validation", figure_array(figure), engine.state.epoch, dataformats="HWC")
