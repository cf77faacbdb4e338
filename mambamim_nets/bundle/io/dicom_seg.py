"""Write a label map as DICOM-SEG beside the series it was made from.

The label map is mapped onto the series' own slices by permuting and flipping its axes, never by resampling, and each
stored frame refers to its slice. highdicom gets the label map as an array and not as its `Volume`, whose frames would
lie on an even grid: so each frame has the very position of its slice, also where slices lie unevenly within the
tolerance.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import inv_ornt_aff

from mambamim_nets.bundle.files import atomic_write
from mambamim_nets.bundle.io.dicom_files import INSTALL, made_uid
from mambamim_nets.bundle.io.dicom_series import Series
from mambamim_nets.bundle.io.headers import corners_apart

__all__ = [
    "SegmentCode",
    "on_series_grid",
    "require_known",
    "segment_codes",
    "source_headers",
    "write_dicom_seg",
]

logger = logging.getLogger("mambamim_nets")

GRID_TOLERANCE = 0.05  # of a voxel's smallest edge: how far a result's grid may lie off its series'
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
ANATOMICAL_STRUCTURE = ("91723000", "SCT", "Anatomical Structure")
TISSUE = ("85756007", "SCT", "Tissue")
TEXT_LENGTH = 64  # of DICOM's long string
RESEARCH = " (research use only)"
SERIES_NUMBER = 900

Code = tuple[str, str, str]  # value, coding scheme, meaning; SCT is SNOMED CT


class SegmentCode(NamedTuple):
    """What a label is in the terms of DICOM-SEG.

    Attributes:
        category: of the segmented property, e.g. anatomical structure.
        type: of the segmented property, e.g. kidney.
        modifiers: of the type, e.g. left.
        regions: where it lies, if the type does not say so, e.g. a tumour of the kidney.
    """

    category: Code
    type: Code
    modifiers: tuple[Code, ...] = ()
    regions: tuple[Code, ...] = ()


UNKNOWN = SegmentCode(ANATOMICAL_STRUCTURE, TISSUE)


def segment_codes(metadata: str | os.PathLike[str], labels: Collection[str]) -> dict[str, SegmentCode]:
    """Read the codes of labels from a bundle's metadata, where they stand beside `label_def`.

    They are `segment_codes` of `network_data_format.post_processed_outputs.pred`: label name -> category, type and
    perhaps modifiers and regions, each code a list of value, coding scheme and meaning.

    Args:
        metadata: metadata.json of the bundle.
        labels: names of the labels.

    Returns:
        label name -> code. A label without one is left out, and a warning names it.

    Raises:
        ValueError: a code is incomplete.
    """
    path = Path(metadata)
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for key in ("network_data_format", "post_processed_outputs", "pred", "segment_codes"):
        data = data.get(key, {})
    codes = {name: _segment_code(data[name], name, path) for name in labels if name in data}
    missing = [name for name in labels if name not in data]
    if missing:
        logger.warning("segment_codes of %s has no %s: a DICOM-SEG calls them tissue", path, ", ".join(missing))
    return codes


def _segment_code(entry: Any, name: str, path: Path) -> SegmentCode:
    def code(values: Any) -> Code:
        if not (isinstance(values, list) and len(values) == 3 and all(v and isinstance(v, str) for v in values)):
            raise ValueError(
                f"segment_codes of {path}: a code of {name!r} must be a list of value, coding scheme and meaning, e.g. "
                f'["64033007", "SCT", "Kidney"], is {values!r}'
            )
        return values[0], values[1], values[2]

    if not isinstance(entry, dict) or not {"category", "type"} <= set(entry):
        raise ValueError(f"segment_codes of {path}: {name!r} must have the keys category and type, is {entry!r}")
    modifiers, regions = (tuple(code(values) for values in entry.get(key, [])) for key in ("modifiers", "regions"))
    return SegmentCode(code(entry["category"]), code(entry["type"]), modifiers, regions)


def require_known(label: np.ndarray, labels: Mapping[int, str]) -> None:
    """Refuse a label map with values that are no label of the task.

    Raises:
        ValueError: that names them.
    """
    unknown = sorted(set(np.unique(label).tolist()) - {0, *map(int, labels)})
    if unknown:
        raise ValueError(f"label values {unknown[:5]} must be 0 or among {sorted(map(int, labels))}")


def write_dicom_seg(
    label: np.ndarray,
    affine: np.ndarray,
    series: Series,
    labels: Mapping[int, str],
    path: str | os.PathLike[str],
    description: str,
    codes: Mapping[str, SegmentCode] | None = None,
    caption: str = "",
) -> Path:
    """Write a label map as a binary DICOM-SEG that refers to the slices it was made from.

    Every class is a segment, in the order of `labels`, also where the scan has none of it; only frames that hold
    something are stored, or all of them if none does.

    Args:
        label: (D, H, W) integers, on the series' grid with its axes in any order and direction.
        affine: (4, 4), RAS mm, of label.
        series: the series that the label map was made from.
        labels: label value -> class name; 0 is background.
        path: the file to write.
        description: SeriesDescription, to which "research use only" is added.
        codes: class name -> what it is, see `segment_codes`; a class without one is called tissue.
        caption: what the weights are, such as a demonstration, for the name of the algorithm.

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
    from pydicom.sr.codedict import codes as dictionary
    from pydicom.uid import generate_uid

    from mambamim_nets import __version__

    # it reports each attribute that it copies
    logging.getLogger("highdicom").setLevel(logging.DEBUG if logger.isEnabledFor(logging.DEBUG) else logging.WARNING)
    numbers = {int(value): number for number, value in enumerate(labels, start=1)}
    require_known(label, labels)
    lookup = np.zeros(max(numbers) + 1, dtype=np.uint16)
    lookup[list(numbers)] = list(numbers.values())
    on_grid = on_series_grid(np.asarray(label), np.asarray(affine, dtype=float), series)
    name = f"mambamim_nets, {caption}" if caption else "mambamim_nets"
    algorithm = hd.AlgorithmIdentificationSequence(name, dictionary.DCM.ArtificialIntelligence, __version__)
    segments = [
        _segment(numbers[int(value)], name, (codes or {}).get(name, UNKNOWN), algorithm)
        for value, name in labels.items()
    ]
    segmentation = hd.seg.Segmentation(
        source_images=source_headers(series),
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


def _segment(number: int, name: str, code: SegmentCode, algorithm: Any) -> Any:
    """Describe one segment; highdicom has no argument for the modifiers, which belong into the item of the type."""
    import highdicom as hd

    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:TEXT_LENGTH],
        segmented_property_category=hd.sr.CodedConcept(*code.category),
        segmented_property_type=hd.sr.CodedConcept(*code.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        anatomic_regions=[hd.sr.CodedConcept(*region) for region in code.regions] or None,
    )
    if code.modifiers:
        (item,) = segment.SegmentedPropertyTypeCodeSequence
        item.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept(*modifier) for modifier in code.modifiers]
    return segment


def on_series_grid(label: np.ndarray, affine: np.ndarray, series: Series) -> np.ndarray:
    """Return a label map with the axes (i, j, k) of a series: permuted and flipped, never resampled.

    Args:
        label: (D, H, W).
        affine: (4, 4), RAS mm, of the label map.
        series: whose columns, rows and slices are wanted.

    Raises:
        ValueError: the label map does not lie on the grid of the series.
    """
    wanted = np.asarray(series.affine)
    turn = nib.io_orientation(np.linalg.inv(wanted) @ affine)
    turned = nib.apply_orientation(label, turn)
    lies = affine @ inv_ornt_aff(turn, label.shape)
    apart = corners_apart(wanted, lies, turned.shape)
    if turned.shape != series.shape or not apart <= GRID_TOLERANCE:
        raise ValueError(
            f"label of shape {label.shape} is not on the grid of the series of {series.files[0]} with {series.shape}"
            f" columns, rows and slices (corners lie {apart:.3g} voxels apart); invert the transforms"
        )
    return turned


def source_headers(series: Series) -> list[Any]:
    """Return headers of the slices that a result refers to, from what was read when the series was found.

    The first has patient and study; the others have what highdicom compares and refers to. What de-identification
    emptied is filled, the same for every slice.

    Raises:
        ValueError: a slice has no UID of its own or of its class.
    """
    from pydicom import Dataset
    from pydicom.valuerep import DS

    first = series.slices[0]
    identifiers = {"StudyInstanceUID": first.study, "FrameOfReferenceUID": first.frame_of_reference}
    made = {name: made_uid(name, first.instance) for name, value in identifiers.items() if not value}
    if made or not first.uid:
        missing = [*made, *([] if first.uid else ["SeriesInstanceUID"])]
        logger.info("%s has no %s: made from its SOPInstanceUID", first.file, " and ".join(missing))
    sources = []
    for header in series.slices:
        if not header.instance or not header.sop_class:
            raise ValueError(
                f"{header.file} has no SOPInstanceUID or SOPClassUID: no result can refer to it; restore its header"
            )
        source = copy.deepcopy(series.dataset) if header is first else Dataset()
        source.SOPInstanceUID, source.SOPClassUID = header.instance, header.sop_class
        source.StudyInstanceUID = made.get("StudyInstanceUID", header.study)
        source.SeriesInstanceUID = series.uid
        source.FrameOfReferenceUID = made.get("FrameOfReferenceUID", header.frame_of_reference)
        source.Rows, source.Columns = header.shape
        if len(header.origins) == 1:
            source.ImagePositionPatient = [DS(float(value), auto_format=True) for value in header.origins[0]]
            source.ImageOrientationPatient = [DS(float(value), auto_format=True) for value in header.orientations[0]]
        sources.append(source)
    for name in PATIENT_AND_STUDY:
        if name not in sources[0]:
            setattr(sources[0], name, None)
    return sources
