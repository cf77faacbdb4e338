"""Read label maps that were drawn on a DICOM series: DICOM-SEG by highdicom, RTSTRUCT by pydicom and matplotlib.

A label object says what it was drawn on by the series that it refers to and by its frame of reference. Its voxels are
placed by their positions in the patient, frame by frame or contour by contour, never by the order of frames or by
slice numbers. So frames may be sparse, in any order, and along any axes of the series' grid, such as sagittal frames
for an axial series. `highdicom.seg.Segmentation.get_volume` is not used: it needs even gaps between the frames, which
sparse frames have only by chance, and it holds a whole volume for each segment. Nothing is resampled: a frame whose
pixels are not voxels of the series is refused.

A contour holds the voxels whose centres lie inside of it. Of several contours of a structure in one slice the even-odd
rule makes holes, as most planning systems mean it; a hole that is joined to its contour (the keyhole of DICOM PS3.3
C.8.8.6.3) comes to the same. matplotlib fills: it takes corners between pixels, where PIL's polygons have whole pixels
and count their border in, and it is here already, where scikit-image would be one more package.

Glossary:
    structure: a segment of a DICOM-SEG or a region of interest of an RTSTRUCT, by its name.
    series' grid: voxels (i, j, k) of columns, rows and slices, as `dicom_series.Series` has it.
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mambamim_nets.bundle.io.dicom_files import INSTALL, frame_geometry
from mambamim_nets.bundle.io.dicom_series import GAP_TOLERANCE, LPS_TO_RAS, Series
from mambamim_nets.bundle.io.headers import AFFINE_ERROR

__all__ = ["LABEL_KINDS", "LabelObject", "labelled_voxels", "read_label_object"]

LABEL_KINDS = ("SEG", "RTSTRUCT")  # values of Modality
PLANE_ERROR = 0.25  # of the gap between slices: how far a contour may lie off the plane of its slice
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")  # the geometric types of contours that have an inside
SEG_TAGS = ["ReferencedSeriesSequence", "SegmentSequence", "SegmentationType"]
RTSTRUCT_TAGS = [
    "ReferencedFrameOfReferenceSequence",
    "StructureSetROISequence",
    "ROIContourSequence",
    "RTROIObservationsSequence",
]


class LabelObject(NamedTuple):
    """What the header of a DICOM-SEG or RTSTRUCT says.

    Attributes:
        file: its path.
        kind: one of `LABEL_KINDS`.
        series: SeriesInstanceUID of the series that it refers to; none where it names only a frame of reference.
        frames: FrameOfReferenceUID of what it was drawn in.
        structures: name -> numbers of the segments or regions of that name.
        left_out: names of regions that are points or open lines, which have no inside.
    """

    file: str
    kind: str
    series: tuple[str, ...]
    frames: tuple[str, ...]
    structures: Mapping[str, tuple[int, ...]]
    left_out: tuple[str, ...] = ()


def read_label_object(path: str | os.PathLike[str]) -> LabelObject:
    """Read the header of a DICOM-SEG or RTSTRUCT.

    Args:
        path: the file.

    Raises:
        ImportError: pydicom is not installed.
        ValueError: it is neither of the two, or its header is broken.
    """
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise ImportError(INSTALL) from error
    tags = ["Modality", "FrameOfReferenceUID", *SEG_TAGS, *RTSTRUCT_TAGS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of values that break a rule of form, and reads them
        try:
            content = dcmread(path, stop_before_pixels=True, specific_tags=tags)
            kind = str(content.get("Modality") or "")
            if kind in LABEL_KINDS:
                return (_seg_object if kind == "SEG" else _rtstruct_object)(str(path), content)
        except Exception as error:  # whatever pydicom raises on a broken file
            raise ValueError(f"{path}: its header cannot be read ({error}); copy or export the file again") from error
    raise ValueError(f"{path}: Modality {kind!r} must be one of {', '.join(LABEL_KINDS)}; leave the file out")


def labelled_voxels(found: LabelObject, series: Series, names: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the voxels of structures, one frame or slice at a time.

    Args:
        found: as from `read_label_object`.
        series: what it was drawn on; without an error.
        names: of the structures that are wanted.

    Yields:
        The name of a structure, and (3, N) indices i, j, k of its voxels in one plane, on the series' grid.

    Raises:
        ImportError: highdicom or pydicom is not installed.
        ValueError: its frames or contours do not lie on the series' grid, a segment has fractions, or the file cannot
            be decoded.
    """
    if series.affine is None:
        raise ValueError(series.error)
    to_voxel = np.linalg.inv(series.affine) @ LPS_TO_RAS
    numbers = {number: name for name in names for number in found.structures.get(name, ())}
    read = _segment_voxels if found.kind == "SEG" else _region_voxels
    for name, voxels in read(found.file, numbers, to_voxel, series.shape):
        if voxels.min() < 0 or (voxels.max(axis=1) >= series.shape).any():
            raise ValueError(
                f"{found.file}: {name!r} has voxels outside of the series of {series.files[0]} with {series.shape}"
                " columns, rows and slices; the series may lack slices: export it again"
            )
        yield name, voxels


def _name(said: Any, kind: str, number: int) -> str:
    return " ".join(str(said or "").split()) or f"{kind} {number}"


def _numbered(names: Sequence[tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    found: defaultdict[str, tuple[int, ...]] = defaultdict(tuple)
    for name, number in names:
        found[name] += (number,)
    return dict(found)


# --- DICOM-SEG ------------------------------------------------------------------------------------


def _seg_object(path: str, content: Any) -> LabelObject:
    numbered = [(int(item.SegmentNumber), item.get("SegmentLabel")) for item in content.SegmentSequence]
    named = [(_name(label, "segment", number), number) for number, label in numbered if number]  # 0: background
    series = tuple(str(item.SeriesInstanceUID) for item in content.get("ReferencedSeriesSequence") or ())
    return LabelObject(path, "SEG", series, _uids([content.get("FrameOfReferenceUID")]), _numbered(named))


def _uids(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(value) for value in values if value))


def _segment_voxels(
    path: str, names: Mapping[int, str], to_voxel: np.ndarray, shape: Sequence[int]
) -> Iterator[tuple[str, np.ndarray]]:
    try:
        import highdicom as hd
    except ImportError as error:
        raise ImportError(INSTALL) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # packed as in the file; lazy reading of highdicom 0.28 cuts frames whose pixels are no multiple of 8
            seg = hd.seg.segread(path)
        geometry = [np.array(values, dtype=float) for values in frame_geometry(seg)]
        label_map = seg.SegmentationType == "LABELMAP"
        numbers = [0] * len(geometry[0]) if label_map else _segment_numbers(seg)
    except Exception as error:  # whatever the reader raises on a broken file, or on frames without a position
        raise ValueError(f"{path} cannot be read as DICOM-SEG ({error}); copy or export it again") from error
    _require_gap(path, seg, geometry[1], to_voxel)
    full = 1 if seg.SegmentationType == "BINARY" else int(seg.get("MaximumFractionalValue") or 1)
    for place, number in enumerate(numbers):
        if not label_map and number not in names:
            continue
        try:
            frame = seg.get_stored_frame(place + 1)
        except Exception as error:
            raise ValueError(f"{path}: frame {place + 1} cannot be decoded ({error}); export it again") from error
        for value in np.unique(frame[frame != 0]).tolist():
            if label_map and value not in names:
                continue
            name = names[value if label_map else number]
            if not label_map and value != full:
                raise ValueError(
                    f"{path}: segment {name!r} has fractions, such as {value} of {full}, and must be there or not;"
                    " export it as a binary segmentation"
                )
            pixels = np.stack(np.nonzero(frame == value))
            yield name, _on_grid(path, name, pixels, [part[place] for part in geometry], to_voxel, frame.shape)


def _require_gap(path: str, seg: Any, orientations: np.ndarray, to_voxel: np.ndarray) -> None:
    """Refuse frames that say that they are further apart, or nearer, than the slices of the series."""
    measures = seg.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
    stated = float(measures[0].get("SpacingBetweenSlices") or 0) if measures else 0.0
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    gap = float(np.linalg.norm(to_voxel[:3, :3] @ normal)) * stated
    if stated and abs(gap - 1) > GAP_TOLERANCE:
        raise ValueError(
            f"{path}: is not on the grid of its series (its frames are {gap:.3g} slices apart); export it on the slices"
            " of the series"
        )


def _segment_numbers(seg: Any) -> list[int]:
    """Return the number of the segment of each frame."""
    shared = seg.SharedFunctionalGroupsSequence[0].get("SegmentIdentificationSequence")
    return [
        int((groups.get("SegmentIdentificationSequence") or shared)[0].ReferencedSegmentNumber)
        for groups in seg.PerFrameFunctionalGroupsSequence
    ]


def _on_grid(
    path: str,
    name: str,
    pixels: np.ndarray,
    geometry: Sequence[np.ndarray],
    to_voxel: np.ndarray,
    shape: Sequence[int],
) -> np.ndarray:
    """Return the voxels of pixels (rows and columns, N) of a frame of this shape at this place."""
    origin, orientation, spacing = geometry
    first = to_voxel[:3, :3] @ origin + to_voxel[:3, 3]
    down = to_voxel[:3, :3] @ orientation[3:] * spacing[0]  # from row to row
    right = to_voxel[:3, :3] @ orientation[:3] * spacing[1]
    exact = np.column_stack([down, right, first])
    whole = np.rint(exact)
    corners = np.array([[row, column, 1] for row in (0, shape[0] - 1) for column in (0, shape[1] - 1)]).T
    apart = float(np.abs((exact - whole) @ corners).max())
    if apart > AFFINE_ERROR or not (np.abs(whole[:, :2]).sum(axis=0) == 1).all():
        raise ValueError(
            f"{path}: segment {name!r} is not on the grid of its series (a pixel is {np.abs(exact[:, :2]).max():.3g}"
            f" voxels long, corners lie {apart:.3g} voxels off); export it on the slices of the series"
        )
    return (whole @ np.vstack([pixels, np.ones(pixels.shape[1])])).astype(np.int64)


# --- RTSTRUCT -------------------------------------------------------------------------------------


def _rtstruct_object(path: str, content: Any) -> LabelObject:
    if (
        "RTROIObservationsSequence" not in content
    ):  # which follows the contours: pydicom reads a cut file without a word
        raise ValueError("it ends before RTROIObservationsSequence, which every RTSTRUCT has: it was cut")
    kinds = {
        int(item.ReferencedROINumber): {str(c.ContourGeometricType) for c in item.get("ContourSequence") or ()}
        for item in content.get("ROIContourSequence") or ()
    }
    said = content.get("StructureSetROISequence") or ()
    numbered = [(int(item.ROINumber), item.get("ROIName")) for item in said]
    regions = [(_name(name, "region", number), number) for number, name in numbered]
    lines = {name for name, number in regions if kinds.get(number) and not kinds[number] & set(CLOSED)}
    frames = content.get("ReferencedFrameOfReferenceSequence") or ()
    series = [
        item.get("SeriesInstanceUID")
        for frame in frames
        for study in frame.get("RTReferencedStudySequence") or ()
        for item in study.get("RTReferencedSeriesSequence") or ()
    ]
    own = [item.get("ReferencedFrameOfReferenceUID") for item in said]
    drawn_in = _uids([*own, *(() if any(own) else (frame.get("FrameOfReferenceUID") for frame in frames))])
    closed = [(name, number) for name, number in regions if name not in lines]
    return LabelObject(path, "RTSTRUCT", _uids(series), drawn_in, _numbered(closed), tuple(sorted(lines)))


def _region_voxels(
    path: str, names: Mapping[int, str], to_voxel: np.ndarray, shape: Sequence[int]
) -> Iterator[tuple[str, np.ndarray]]:
    from pydicom import dcmread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = dcmread(path, specific_tags=["ROIContourSequence"])
    for region in content.get("ROIContourSequence") or ():
        name = names.get(int(region.ReferencedROINumber))
        if name is None:
            continue
        slices: defaultdict[int, dict[bytes, np.ndarray]] = defaultdict(dict)
        for contour in region.get("ContourSequence") or ():
            if str(contour.ContourGeometricType) not in CLOSED:
                continue
            try:
                points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            except Exception as error:  # no points, or no three numbers for each
                raise ValueError(f"{path}: a contour of {name!r} cannot be read ({error}); export it again") from error
            voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
            place = _slice_of(path, name, voxels[:, 2], shape[2])
            if len(points) > 2:  # what is there twice is one contour, and no hole
                slices[place][points.tobytes()] = voxels[:, :2]
        for place, contours in sorted(slices.items()):
            mask = np.zeros(shape[:2], dtype=bool)
            for corners in contours.values():
                _fill(mask, corners)
            rows = np.stack(np.nonzero(mask))
            if rows.size:
                yield name, np.vstack([rows, np.full(rows.shape[1], place)])


def _slice_of(path: str, name: str, places: np.ndarray, slices: int) -> int:
    """Return the slice in whose plane a contour lies, by the places of its corners along the slices."""
    nearest = round(float(places.mean()))
    off = float(np.abs(places - nearest).max())
    if off > PLANE_ERROR:
        raise ValueError(
            f"{path}: a contour of {name!r} lies {off:.3g} of a gap off the plane of slice {nearest + 1}, and must lie"
            " in the planes of the slices; export it for this series"
        )
    if not 0 <= nearest < slices:
        raise ValueError(
            f"{path}: a contour of {name!r} lies outside of the {slices} slices of the series, which may lack some:"
            " export the series again"
        )
    return nearest


def _fill(mask: np.ndarray, corners: np.ndarray) -> None:
    """Turn over the voxels of a slice whose centres are inside of a contour: the even-odd rule."""
    from matplotlib.path import Path as Polygon

    low = np.maximum(np.ceil(corners.min(axis=0)), 0).astype(int)
    high = np.minimum(np.floor(corners.max(axis=0)) + 1, mask.shape).astype(int)
    if (high <= low).any():
        return
    axes = [np.arange(first, end) for first, end in zip(low, high, strict=True)]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    inside = Polygon(np.concatenate([corners, corners[:1]])).contains_points(centres)
    mask[low[0] : high[0], low[1] : high[1]] ^= inside.reshape(high - low)
