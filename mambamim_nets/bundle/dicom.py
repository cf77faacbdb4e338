"""Write a label map as DICOM-SEG beside the series it was made from.

The label map is mapped onto the series' own slices by permuting and flipping its axes, never by resampling, and each
stored frame refers to its slice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mambamim_nets.bundle.files import atomic_write
from mambamim_nets.bundle.series import series_geometry
from mambamim_nets.bundle.slices import INSTALL, instance_of, made_uid, open_header

__all__ = ["write_dicom_seg"]

logger = logging.getLogger(__name__)

GRID_TOLERANCE = 0.05  # of a voxel: how far a result's grid may lie off its series'
ANATOMICAL_STRUCTURE = ("123037004", "Anatomical Structure")
TISSUE = ("85756007", "Tissue")
# class name -> SNOMED CT code and its meaning; the left adrenal gland has that of either, its segment's label the side
SNOMED = {
    "liver": ("10200004", "Liver"),
    "spleen": ("78961009", "Spleen"),
    "right kidney": ("9846003", "Right kidney"),
    "left kidney": ("18639004", "Left kidney"),
    "gallbladder": ("28231008", "Gallbladder"),
    "oesophagus": ("32849002", "Esophagus"),
    "esophagus": ("32849002", "Esophagus"),
    "stomach": ("69695003", "Stomach"),
    "aorta": ("15825003", "Aorta"),
    "inferior vena cava": ("64131007", "Inferior vena cava"),
    "portal vein": ("32764006", "Portal vein"),
    "portal and splenic veins": ("32764006", "Portal vein"),
    "pancreas": ("15776009", "Pancreas"),
    "right adrenal gland": ("29392005", "Right adrenal gland"),
    "left adrenal gland": ("23451007", "Adrenal gland"),
    "duodenum": ("38848004", "Duodenum"),
    "urinary bladder": ("89837001", "Urinary bladder"),
    "prostate": ("41216001", "Prostate"),
}
PATIENT_AND_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
TEXT_LENGTH = 64  # of DICOM's long string
RESEARCH = " (research use only)"
SERIES_NUMBER = 900


def write_dicom_seg(
    label: np.ndarray,
    affine: np.ndarray,
    files: Sequence[str],
    labels: Mapping[int, str],
    path: str | os.PathLike[str],
    description: str,
) -> Path:
    """Write a label map as a binary DICOM-SEG that refers to the slices it was made from.

    Every class is a segment, in the order of ``labels``, also where the scan has none of it; only frames that hold
    something are stored, or all of them if none does.

    Args:
        label: (D, H, W) integers, on the series' grid with its axes in any order and direction.
        affine: (4, 4), RAS mm, of label.
        files: the series' slices; see ``series.series_files``.
        labels: label value -> class name; 0 is background.
        path: the file to write.
        description: SeriesDescription, to which "research use only" is added.

    Returns:
        path.

    Raises:
        ImportError: highdicom is not installed.
        ValueError: label has other values, or does not lie on the grid of the series.
    """
    try:
        import highdicom as hd
    except ImportError as error:
        raise ImportError(INSTALL) from error
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    from mambamim_nets import __version__

    # it reports each attribute that it copies
    logging.getLogger("highdicom").setLevel(logging.DEBUG if logger.isEnabledFor(logging.DEBUG) else logging.WARNING)
    numbers = {int(value): number for number, value in enumerate(labels, start=1)}
    unknown = sorted(set(np.unique(label).tolist()) - {0, *numbers})
    if unknown:
        raise ValueError(f"label values {unknown[:5]} must be 0 or among {sorted(numbers)}")
    lookup = np.zeros(max(numbers) + 1, dtype=np.uint16)
    lookup[list(numbers)] = list(numbers.values())
    on_grid = _on_grid(np.asarray(label), np.asarray(affine, dtype=float), files)
    algorithm = hd.AlgorithmIdentificationSequence("mambamim_nets", codes.DCM.ArtificialIntelligence, __version__)
    segments = [
        hd.seg.SegmentDescription(
            segment_number=numbers[int(value)],
            segment_label=name[:TEXT_LENGTH],
            segmented_property_category=hd.sr.CodedConcept(ANATOMICAL_STRUCTURE[0], "SCT", ANATOMICAL_STRUCTURE[1]),
            segmented_property_type=hd.sr.CodedConcept(code, "SCT", meaning),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for value, name in labels.items()
        for code, meaning in [SNOMED.get(name.lower(), TISSUE)]
    ]
    segmentation = hd.seg.Segmentation(
        source_images=_sources(files),
        pixel_array=np.ascontiguousarray(lookup[on_grid].transpose(2, 1, 0)),  # frames, rows, columns
        segmentation_type="BINARY",
        omit_empty_frames=bool(on_grid.any()),
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="mambamim_nets",
        manufacturer_model_name="mambamim_nets",
        software_versions=__version__,
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description=RESEARCH.strip(" ()"),
        series_description=description[: TEXT_LENGTH - len(RESEARCH)] + RESEARCH,
    )
    return atomic_write(path, segmentation.save_as)


def _on_grid(label: np.ndarray, affine: np.ndarray, files: Sequence[str]) -> np.ndarray:
    """Return label with the axes (i, j, k) of a series: permuted and flipped, never resampled."""
    wanted, shape = series_geometry(files)
    between = np.linalg.inv(wanted) @ affine  # voxel of label -> voxel of the series
    axes = np.abs(between[:3, :3]).argmax(axis=0)  # of the series, per axis of label
    signs = np.sign(between[axes, range(3)])
    if sorted(axes) != [0, 1, 2]:
        raise ValueError(_off_grid(label, files, "its axes are turned"))
    turned = np.flip(label, tuple(axis for axis in range(3) if signs[axis] < 0)).transpose(np.argsort(axes))
    exact = np.zeros((3, 4))
    exact[axes, range(3)] = signs
    for axis in range(3):  # where label's first voxel lies if its grid is the series'
        exact[axes[axis], 3] = label.shape[axis] - 1 if signs[axis] < 0 else 0
    corners = np.array([(i, j, k, 1) for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    corners = corners * [*(n - 1 for n in label.shape), 1]
    apart = float(np.abs(corners @ (between[:3] - exact).T).max())
    if not apart <= GRID_TOLERANCE:
        raise ValueError(_off_grid(label, files, f"corners lie {apart:.3g} voxels apart"))
    if turned.shape != shape:
        raise ValueError(_off_grid(label, files, f"the series has {shape} columns, rows and slices"))
    return turned


def _off_grid(label: np.ndarray, files: Sequence[str], why: str) -> str:
    return f"label of shape {label.shape} is not on the grid of the series of {files[0]} ({why}); invert the transforms"


def _sources(files: Sequence[str]) -> list[Any]:
    """Read the slices a result refers to; what de-identification emptied is filled, the same for every slice."""
    sources = [open_header(file) for file in files]
    for source in sources:
        source.SOPInstanceUID = instance_of(source)
        source.SOPClassUID = source.get("SOPClassUID") or source.file_meta.get("MediaStorageSOPClassUID")
        if not source.SOPInstanceUID or not source.SOPClassUID:
            raise ValueError(
                f"{source.filename} has no SOPInstanceUID or SOPClassUID: no result can refer to it; restore its header"
            )
        for name in PATIENT_AND_STUDY:
            if name not in source:
                setattr(source, name, None)
    missing = [name for name in UIDS if not sources[0].get(name)]
    if missing:
        logger.info("%s has no %s: made from its SOPInstanceUID", files[0], " and ".join(missing))
    for name in missing:
        for source in sources:
            setattr(source, name, made_uid(name, str(sources[0].SOPInstanceUID)))
    return sources
