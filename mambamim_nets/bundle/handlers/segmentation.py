"""Segmentation: metrics and overlays of an evaluation; label maps, previews and volumes of new scans."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.engines import Evaluator
from monai.transforms import Orientation, Transform

from mambamim_nets.bundle.data.plausibility import volume_objections
from mambamim_nets.bundle.errors import first_line
from mambamim_nets.bundle.files import atomic_write, some, write_csv
from mambamim_nets.bundle.handlers.evaluation import CaseCollector, ValidationFigure, stored_image
from mambamim_nets.bundle.handlers.scan_results import ScanResults
from mambamim_nets.bundle.inference.scan_loader import ScanLoader
from mambamim_nets.bundle.io.dicom_seg import segment_codes, write_dicom_seg
from mambamim_nets.bundle.io.rtstruct import write_rtstruct
from mambamim_nets.bundle.io.scan_formats import scan_header
from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.metrics.intensities import structure_intensities
from mambamim_nets.bundle.metrics.radiomics import radiomics_table, require_radiomics
from mambamim_nets.bundle.metrics.segmentation import SegmentationTable, case_metrics
from mambamim_nets.bundle.runtime import process_rank
from mambamim_nets.bundle.transforms.normalisation import scaling_of
from mambamim_nets.bundle.visualize.planes import save_figure
from mambamim_nets.bundle.visualize.segmentation import label_colours, overlay_figure
from mambamim_nets.bundle.weights import seen_in_training, weights_caption

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CaseReport", "ScanReport", "ValidationPicture", "preview_window"]

logger = logging.getLogger("mambamim_nets")
VOLUMES = "volumes.csv"
NOTHING = "nothing was found: look at the field of view, at the intensities and where the axes of the scan point"
STEPS = 65535  # between the probabilities 0 and 1, in a file
GIB = 2**30


def preview_window(intensity: Transform) -> tuple[float, float] | None:
    """Return the grey window of pictures for images that a transform scales.

    Args:
        intensity: of the task, such as MONAI's ScaleIntensityRanged.

    Returns:
        The HU range of CT; None, percentiles of the picture, for everything else.
    """
    scaling = scaling_of([intensity])
    return tuple(scaling["intensity_range"]) if scaling.get("intensity") == "ct" else None


def _preview(
    image: MetaTensor,
    prediction: np.ndarray,
    labels: Mapping[int, str],
    title: str,
    reference: np.ndarray | None = None,
    window: tuple[float, float] | None = None,
) -> Figure:
    """Draw label maps (D, H, W) over the first channel of an image (C, D, H, W) on the same grid, all turned to RAS."""
    to_ras = Orientation("RAS", labels=None)

    def upright(label: np.ndarray) -> Any:
        return to_ras(MetaTensor(torch.as_tensor(label)[None], affine=image.affine))

    scan: Any = to_ras(image[:1])
    maps = [None if label is None else upright(label) for label in (prediction, reference)]
    return overlay_figure(scan, maps[0], labels, title, maps[1], [float(edge) for edge in scan.pixdim], window)


def _label_map(item: Mapping[str, Any], key: str) -> np.ndarray:
    """Return a label map of an item, (D, H, W) uint8."""
    label: np.ndarray = item[key][0].cpu().numpy().round().astype("uint8")
    return label


class CaseReport(CaseCollector[SegmentationTable]):
    """Collect metrics of every case on its own grid; write tables and overlays of prediction and reference.

    Expects `pred` (1, D, H, W) label maps with the affine of the input, `image` with its file name and `label`,
    and batches with `case`; attached to an evaluator.

    Args:
        targets: of the task.
        folder: where files go.
        pictures: how many overlay pictures to draw at most, over all processes.
        tolerance_mm: of the surface Dice.
        window: grey values shown black and white; None: percentiles.
        checkpoint: file of the weights, see `CaseCollector`.
        predictions: whether to keep every predicted label map, as `<case>_seg.nii.gz`.
    """

    def __init__(
        self,
        targets: Targets,
        folder: str,
        pictures: int = 8,
        tolerance_mm: float = 1.0,
        window: tuple[float, float] | None = None,
        checkpoint: str | Sequence[str] | None = None,
        predictions: bool = False,
    ) -> None:
        super().__init__(folder, pictures, checkpoint)
        self.targets, self.tolerance_mm, self.window, self.predictions = targets, tolerance_mm, window, predictions

    def new_table(self) -> SegmentationTable:
        """Return a table of the task's structures."""
        return SegmentationTable(self.targets.structures, self.tolerance_mm)

    def row(self, source: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Measure a case with the voxel edges of its own grid."""
        spacing = [float(edge) for edge in item["pred"].pixdim]
        prediction, reference = _label_map(item, "pred"), _label_map(item, "label")
        if self.predictions:
            affine = np.asarray(item["pred"].affine, dtype=float)
            _save_nifti(prediction, affine, self.folder / f"{source['case']}_seg.nii.gz")
        return case_metrics(prediction, reference, self.targets.structures, spacing, self.tolerance_mm)

    def draw(self, source: Mapping[str, Any], item: Mapping[str, Any]) -> Figure:
        """Draw prediction and reference over the image as it is stored."""
        prediction, reference = _label_map(item, "pred"), _label_map(item, "label")
        title = self.title(source)
        return _preview(stored_image(item), prediction, self.targets.labels, title, reference, self.window)

    def finish(self, engine: Evaluator) -> None:
        """Write the tables."""
        summary = self.write_table()
        if process_rank() == 0:
            logger.info("metrics of %s\n%s", self.folder, summary)


class ScanReport(ScanResults):
    """Write what was found in every new scan: label map, DICOM-SEG, preview, and a row of volumes.csv.

    Expects `pred` (1, D, H, W) uint8 label maps with the affine of the input, where they are to be written
    `probabilities` (channels, D, H, W), and batches with `name`; attached to an evaluator. Beside the volumes the row
    has mean and standard deviation of the first channel of the scan in each structure, in the units of its file.
    A scan whose results cannot be written is recorded as failed; the others go on. A scan whose DICOM-SEG alone cannot
    be written, such as for a header that breaks the standard, has all else, a warning, and is named at the end.

    Args:
        loader: of the scans.
        targets: of the task.
        folder: where files go.
        pictures: whether to draw previews.
        window: grey values shown black and white; None: percentiles.
        description: of the network, for the DICOM-SEG.
        checkpoint: file of the weights, or files of an ensemble.
        overwrite: do again what an earlier run has done.
        metadata: metadata.json of the bundle, which says what each label is in a DICOM-SEG; None: tissue.
        rtstruct: whether to write an RTSTRUCT too, where the scan is a DICOM series.
        probabilities: whether to write the probabilities of the channels too.
        max_gib: memory that these may take; a scan that needs more is recorded as failed, before it is read.
        radiomics: whether to write the radiomics of each structure too, by pyradiomics.

    Raises:
        ImportError: radiomics are asked for, and pyradiomics is not installed.
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
        checkpoint: str | Sequence[str] | None = None,
        overwrite: bool = False,
        metadata: str | None = None,
        rtstruct: bool = False,
        probabilities: bool = False,
        max_gib: float = 2.0,
        radiomics: bool = False,
    ) -> None:
        if radiomics:
            require_radiomics()
        columns = [f"{name} (ml)" for name in targets.structures]
        further = [f"{name} {what}" for name in targets.structures for what in ("mean", "s.d.")]
        super().__init__(loader, folder, VOLUMES, columns, checkpoint, overwrite, loaded=True, further=further)
        self.rtstruct, self.probabilities, self.max_gib = rtstruct, probabilities, max_gib
        self.radiomics = radiomics
        self.targets, self.pictures, self.window, self.description = targets, pictures, window, description
        self.codes = segment_codes(metadata, targets.labels.values()) if metadata else {}
        self.seen: Mapping[str, Any] = {}

    def files(self, name: str) -> list[str]:
        """Return the names of label map, further results, and for DICOM series of DICOM-SEG and RTSTRUCT."""
        series = bool(self.items[name]["series"])
        wanted = {
            "seg.nii.gz": True,
            "preview.png": self.pictures,
            "probabilities.nii.gz": self.probabilities,
            "radiomics.csv": self.radiomics,
            "seg.dcm": series,
            "rtstruct.dcm": series and self.rtstruct,
        }
        endings = [ending for ending, is_wanted in wanted.items() if is_wanted]
        return [f"{name}_{ending}" for ending in endings]

    def made_with(self) -> list[Any]:
        """Return what results depend on, and learn what the weights saw."""
        made_with = super().made_with()
        self.seen = seen_in_training(self.checkpoint)
        return made_with

    def check(self) -> None:
        """Refuse scans whose probabilities are too large, and say of which there will be no RTSTRUCT."""
        for item in self.items.values() if self.probabilities else ():
            if "error" in item:
                continue
            shape, channels = scan_header(item["image"], item["series"]).shape[:3], self.targets.out_channels
            needed = 4 * channels * math.prod(shape) / GIB
            if needed > self.max_gib:
                item["error"] = (
                    f"probabilities of {channels} channels on {' x '.join(map(str, shape))} voxels take {needed:.1f}"
                    f" GiB, over --max_gib {self.max_gib:g}: raise it, crop the scan, or leave --probabilities out"
                )
        files = [name for name, item in self.items.items() if not item["series"]] if self.rtstruct else []
        if files:
            logger.warning("no RTSTRUCT of %s: it refers to slices, and these are no DICOM series", some(files))

    def write(self, name: str, item: Mapping[str, Any]) -> list[str]:
        """Write the files of a scan; return the volume of each structure in ml, and its intensities."""
        pred, scan = item["pred"], self.items[name]
        label, affine = pred[0].cpu().numpy().astype("uint8"), np.asarray(pred.affine, dtype=float)
        path = self.folder / f"{name}_seg.nii.gz"
        _save_nifti(label, affine, path)
        if self.probabilities:
            _save_probabilities(item["probabilities"], affine, self.folder / f"{name}_probabilities.nii.gz")
        if scan["series"]:
            self._write_dicom_seg(name, label, affine)
            if self.rtstruct:
                self._write_rtstruct(name, label, affine)
        ml = float(abs(np.linalg.det(affine[:3, :3]))) / 1000
        # a plane at a time: bincount takes 8 bytes for each voxel
        counts = np.sum([np.bincount(plane.ravel(), minlength=256) for plane in label], axis=0)
        volumes = [counts[list(values)].sum() * ml for values in self.targets.structures.values()]
        found = dict(zip(self.targets.structures, volumes, strict=True))
        logger.info("%s: %s", path, ", ".join(f"{part} {volume:.1f} ml" for part, volume in found.items() if volume))
        if not label.any():
            self.warn(name, NOTHING)
        for objection in volume_objections(self.seen, found):
            self.warn(name, objection)
        if self.pictures:
            figure = _preview(self.loaded, label, self.targets.labels, self.title(name), window=self.window)
            save_figure(figure, self.folder / f"{name}_preview.png")
        image = self.loaded[0].cpu().numpy()
        if self.radiomics:
            self._write_radiomics(name, image, label, [float(edge) for edge in pred.pixdim])
        measured = structure_intensities(image, label, self.targets.structures)
        intensities = [measured.get(structure, ("", "")) for structure in self.targets.structures]
        values = [value if isinstance(value, str) else f"{value:.6g}" for pair in intensities for value in pair]
        return [*(f"{volume:.3f}" for volume in volumes), *values]

    def _write_radiomics(self, name: str, image: np.ndarray, label: np.ndarray, spacing: Sequence[float]) -> None:
        lines, refused = radiomics_table(image, label, spacing, self.targets.structures)
        write_csv(self.folder / f"{name}_radiomics.csv", lines)
        for structure, why in refused.items():
            self.warn(name, f"no radiomics of {structure}: {why}")

    def _write_dicom_seg(self, name: str, label: np.ndarray, affine: np.ndarray) -> None:
        series, labels, caption = self.items[name]["series"], self.targets.labels, weights_caption(self.note)
        path = self.folder / f"{name}_seg.dcm"
        with self._dicom(name, path, "DICOM-SEG"):
            write_dicom_seg(label, affine, series, labels, path, self._said(), self.codes, caption)

    def _write_rtstruct(self, name: str, label: np.ndarray, affine: np.ndarray) -> None:
        series, labels, path = self.items[name]["series"], self.targets.labels, self.folder / f"{name}_rtstruct.dcm"
        with self._dicom(name, path, "RTSTRUCT"):
            write_rtstruct(label, affine, series, labels, path, self._said(), label_colours(labels))

    def _said(self) -> str:
        """Return the description of a DICOM result, with what the weights are."""
        caption = weights_caption(self.note)
        return f"{caption}: {self.description}" if caption else self.description

    @contextlib.contextmanager
    def _dicom(self, name: str, path: Path, kind: str) -> Iterator[None]:
        """Record that a scan lacks a DICOM result where its series' tags break the standard."""
        path.unlink(missing_ok=True)  # that of an earlier run is not of this label map
        try:
            yield
        except Exception as error:  # whatever highdicom and pydicom raise
            logger.debug("%s: %s cannot be written", name, path, exc_info=True)
            self.lacks(name, f"no {kind}, the series' headers do not allow one: {first_line(error)}")


def _save_probabilities(probabilities: torch.Tensor, affine: np.ndarray, path: Path) -> None:
    """Write probabilities (channels, D, H, W) with the channels last, in steps of 1 / 65535."""
    values = np.asarray(probabilities.cpu())
    steps = np.empty((*values.shape[1:], len(values)), np.uint16)
    for channel, found in enumerate(values):
        steps[..., channel] = np.rint(found * STEPS)
    image = nib.Nifti1Image(steps, affine)
    image.header.set_slope_inter(1 / STEPS, 0)
    _save(image, path)


def _save_nifti(label: np.ndarray, affine: np.ndarray, path: Path) -> None:
    _save(nib.Nifti1Image(label, affine), path)


def _save(image: nib.Nifti1Image, path: Path) -> None:
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    atomic_write(path, lambda part: nib.save(image, part))


class ValidationPicture(ValidationFigure):
    """Show the first validation case in TensorBoard, prediction above reference; attached to an evaluator.

    Args:
        targets: of the task.
        spacing: of the validation images in mm; they are in RAS.
        writer: a TensorBoard SummaryWriter, or None: no pictures.
    """

    def __init__(self, targets: Targets, spacing: Sequence[float], writer: Any = None) -> None:
        super().__init__(writer)
        self.targets, self.spacing = targets, tuple(spacing)

    def draw(self, source: Mapping[str, Any], item: Mapping[str, Any]) -> Figure:
        """Draw the label maps `pred_map` and `label_map` over the first channel of `image`."""
        reference = item["label_map"]
        return overlay_figure(item["image"][:1], item["pred_map"], self.targets.labels, None, reference, self.spacing)
