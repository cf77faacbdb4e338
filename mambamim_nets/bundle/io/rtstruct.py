"""Write a label map as an RTSTRUCT beside the series it was made from: closed contours in the planes of its slices.

The label map is mapped onto the series' own slices, as for a DICOM-SEG. Contours run halfway between the centres of the
voxels of a structure and those around it; a voxel whose centre is inside of them is one of the structure, and no other
is. A hole is joined to the contour around it by a channel of no width, the keyhole technique of DICOM PS3.3 C.8.8.6.3:
there every contour is filled, and one inside of another would be none.

It is written by pydicom alone. rt-utils, the usual library, puts contours on the centres of the outermost voxels, which
makes every structure smaller by half a voxel all around, and needs OpenCV.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mambamim_nets.bundle.files import atomic_write
from mambamim_nets.bundle.io.dicom_files import INSTALL
from mambamim_nets.bundle.io.dicom_seg import PATIENT_AND_STUDY, RESEARCH, on_series_grid, require_known, source_headers
from mambamim_nets.bundle.io.dicom_series import Series

__all__ = ["slice_contours", "write_rtstruct"]

SERIES_NUMBER = 901
NAME_LENGTH = 64  # characters of a long string of DICOM
STUDY = "1.2.840.10008.3.1.2.3.1"  # SOP class of detached study management: retired, and what RTSTRUCT still refers to
GREY = (200, 200, 200)
ORGAN_OR_TUMOUR = ""  # the interpreted type of a region of interest: nobody has said


def slice_contours(mask: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the closed contours of a mask, one for each connected part, its holes joined to it.

    Args:
        mask: (I, J) bool.

    Yields:
        (N, 2) positions (i, j) of the corners, in voxels; the first is not repeated at the end.
    """
    from contourpy import FillType, contour_generator

    if not mask.any():
        return
    padded = np.pad(mask, 1).astype(np.float64)  # contours close at the border too
    generator: Any = contour_generator(z=padded.T, fill_type=FillType.OuterOffset)
    for points, offsets in zip(*generator.filled(0.5, 1.5), strict=True):
        rings = [_corners(points[start : end - 1] - 1) for start, end in pairwise(offsets)]
        contour = rings[0]
        for hole in rings[1:]:
            contour = _joined(contour, hole)
        yield contour


def _corners(ring: np.ndarray) -> np.ndarray:
    """Leave out the points of a ring at which it goes straight on."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _joined(contour: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Join a hole to a contour where they are nearest: there and back on the same line.

    The line meets no centre of a voxel if it can, since whoever fills the contour may count a centre on it as outside.
    """
    start, end = (np.rint(2 * ring).astype(np.int64) for ring in (contour, hole))  # a corner has one odd coordinate
    line = end[None] - start[:, None]
    parts = np.gcd(line[..., 0], line[..., 1])  # points of the lattice lie on the line after each of so many parts
    meets = (parts > 1) & ((line // parts[..., None].clip(1) - start[:, None]) % 2 == 0).all(axis=-1)
    apart = np.where(meets, np.inf, (line**2).sum(axis=-1)) if not meets.all() else (line**2).sum(axis=-1)
    at, of_hole = np.unravel_index(int(apart.argmin()), apart.shape)
    around = np.roll(hole, -int(of_hole), axis=0)
    return np.concatenate([contour[: at + 1], around, around[:1], contour[at:]])


def write_rtstruct(
    label: np.ndarray,
    affine: np.ndarray,
    series: Series,
    labels: Mapping[int, str],
    path: str | os.PathLike[str],
    description: str,
    colours: Mapping[int, tuple[int, int, int]] | None = None,
) -> Path:
    """Write a label map as an RTSTRUCT that refers to the slices it was made from.

    Every class is a region of interest, in the order of `labels`, also where the scan has none of it.

    Args:
        label: (D, H, W) integers, on the series' grid with its axes in any order and direction.
        affine: (4, 4), RAS mm, of label.
        series: the series that the label map was made from.
        labels: label value -> class name; 0 is background.
        path: the file to write.
        description: SeriesDescription, to which "research use only" is added.
        colours: label value -> red, green and blue, 0 to 255.

    Returns:
        path.

    Raises:
        ImportError: pydicom is not installed.
        ValueError: label has other values, does not lie on the grid of the series, or its slices have several frames
            of reference.
    """
    try:
        from pydicom import Dataset
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
    except ImportError as error:
        raise ImportError(INSTALL) from error

    require_known(label, labels)
    if len(frames := {header.frame_of_reference for header in series.slices}) > 1:
        raise ValueError(f"slices have {len(frames)} frames of reference, and must have one; restore their headers")
    on_grid = on_series_grid(np.asarray(label), np.asarray(affine, dtype=float), series)
    source = source_headers(series)[0]
    content = _head(source, description)
    content.SOPClassUID, content.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    slices = _slices(series)
    content.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source, series, [one[0] for one in slices])]
    content.StructureSetROISequence, content.ROIContourSequence, content.RTROIObservationsSequence = [], [], []
    for number, (value, name) in enumerate(labels.items(), start=1):
        region, contours, observation = Dataset(), Dataset(), Dataset()
        region.ROINumber, region.ReferencedFrameOfReferenceUID = number, source.FrameOfReferenceUID
        region.ROIName, region.ROIGenerationAlgorithm = name[:NAME_LENGTH], "AUTOMATIC"
        contours.ReferencedROINumber = number
        contours.ROIDisplayColor = list((colours or {}).get(int(value), GREY))
        if found := list(_contours(on_grid == int(value), slices)):
            contours.ContourSequence = found
        observation.ObservationNumber = observation.ReferencedROINumber = number
        observation.RTROIInterpretedType, observation.ROIInterpreter = ORGAN_OR_TUMOUR, ""
        content.StructureSetROISequence.append(region)
        content.ROIContourSequence.append(contours)
        content.RTROIObservationsSequence.append(observation)
    content.file_meta = FileMetaDataset()
    content.file_meta.MediaStorageSOPClassUID = content.SOPClassUID
    content.file_meta.MediaStorageSOPInstanceUID = content.SOPInstanceUID
    content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return atomic_write(path, lambda part: content.save_as(part, enforce_file_format=True))


def _head(source: Any, description: str) -> Any:
    """Return patient, study, series, equipment and structure set, without what was contoured."""
    import time

    from pydicom import Dataset
    from pydicom.uid import generate_uid

    from mambamim_nets import __version__

    head = Dataset()
    head.SpecificCharacterSet = "ISO_IR 192"
    for name in PATIENT_AND_STUDY:
        setattr(head, name, str(source.get(name) or ""))
    head.ReferringPhysicianName = str(source.get("ReferringPhysicianName") or "")
    head.StudyInstanceUID, head.SeriesInstanceUID = source.StudyInstanceUID, generate_uid()
    head.FrameOfReferenceUID, head.PositionReferenceIndicator = source.FrameOfReferenceUID, ""
    head.Modality, head.SeriesNumber, head.InstanceNumber, head.OperatorsName = "RTSTRUCT", SERIES_NUMBER, 1, ""
    head.SeriesDescription = description[: NAME_LENGTH - len(RESEARCH)] + RESEARCH
    head.Manufacturer = head.ManufacturerModelName = "mambamim_nets"
    head.SoftwareVersions = __version__
    head.StructureSetLabel, head.StructureSetName = "SEGMENTATION", description[:NAME_LENGTH]
    now = time.localtime()
    head.StructureSetDate, head.StructureSetTime = time.strftime("%Y%m%d", now), time.strftime("%H%M%S", now)
    head.ApprovalStatus = "UNAPPROVED"
    return head


def _frame_of_reference(source: Any, series: Series, references: list[Any]) -> Any:
    from pydicom import Dataset

    frame, study, of_series = Dataset(), Dataset(), Dataset()
    of_series.SeriesInstanceUID = series.uid
    of_series.ContourImageSequence = references
    study.ReferencedSOPClassUID = STUDY
    study.ReferencedSOPInstanceUID = source.StudyInstanceUID
    study.RTReferencedSeriesSequence = [of_series]
    frame.FrameOfReferenceUID = source.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _slices(series: Series) -> list[tuple[Any, np.ndarray, np.ndarray]]:
    """Return of each slice what refers to it, the centre of its first voxel, and its steps along i and j, LPS mm."""
    from pydicom import Dataset

    found = []
    for header in series.slices:
        for frame, origin in enumerate(header.origins):
            reference = Dataset()
            reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.sop_class, header.instance
            if len(header.origins) > 1:
                reference.ReferencedFrameNumber = frame + 1
            orientation, spacing = header.orientations[frame], header.spacings[frame]
            steps = np.stack([orientation[:3] * spacing[1], orientation[3:] * spacing[0]])
            found.append((reference, np.asarray(origin, dtype=float), steps))
    return found


def _contours(mask: np.ndarray, slices: list[tuple[Any, np.ndarray, np.ndarray]]) -> Iterator[Any]:
    from pydicom import Dataset

    for place, (reference, origin, steps) in enumerate(slices):
        for corners in slice_contours(mask[:, :, place]):
            contour = Dataset()
            contour.ContourImageSequence = [reference]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(corners)
            contour.ContourData = [f"{value:.3f}" for value in (origin + corners @ steps).ravel()]
            yield contour
