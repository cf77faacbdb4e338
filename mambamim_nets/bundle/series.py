"""Find the DICOM image series of a folder and their geometry, from headers alone.

Geometry is taken from the slices' own ImagePositionPatient and ImageOrientationPatient, never from SliceThickness,
slice numbers or file names; files are recognised by content. A series whose slices do not form one regular grid is
refused, since every affine would be wrong for some of its slices.

Glossary:
    origin: centre of a frame's first voxel, in LPS mm as DICOM states it; affines are in RAS mm.
    normal: cross product of the direction of rows and that of columns; slices are sorted along it.
    axes: i counts columns, j rows, k slices, as in the NIfTI files that other tools make of a series.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "INSTALL",
    "Series",
    "instance_of",
    "is_dicom",
    "made_uid",
    "open_header",
    "series_files",
    "series_geometry",
    "series_of",
]

logger = logging.getLogger(__name__)

INSTALL = 'DICOM needs further packages; pip install "mambamim-nets[dicom]"'
GAP_TOLERANCE = 0.05  # of the median gap between slices
SHIFT_TOLERANCE = 0.5  # of a pixel's edge: how far the last slice may lie off the first one's normal
NO_VOLUME = frozenset({"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTIMAGE", "SR", "PR", "KO", "REG", "DOC"})
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Series(NamedTuple):
    """Files of one image series, in the order of their slices.

    Args:
        uid: SeriesInstanceUID; if de-identification emptied it, one made from the first slice's SOPInstanceUID.
        number: SeriesNumber.
        files: sorted along the normal; one file if it is multi-frame.
        affine: of the voxels (i, j, k), RAS mm; None if the slices form no regular grid.
        error: why not, else "".
    """

    uid: str
    number: int | None
    files: list[str]
    affine: np.ndarray | None
    error: str


class _Header(NamedTuple):
    file: str
    uid: str
    instance: str
    number: int | None
    kind: str  # what it is, where it cannot be part of a volume, else ""
    shape: tuple[int, int]  # rows, columns
    origins: np.ndarray  # (frames, 3)
    orientations: np.ndarray  # (frames, 6)
    spacings: np.ndarray  # (frames, 2): between rows, between columns


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as DICOM files do: 128 bytes and "DICM"."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_of(path: str | os.PathLike[str]) -> tuple[list[Series], list[str]]:
    """Return the image series of a folder or file, and a line for each thing in it that is no volume.

    Args:
        path: folder, not searched below, or one file.

    Returns:
        Series with at least two slices, those without a regular grid too; and what was left out, for the log.

    Raises:
        ImportError: pydicom is not installed.
    """
    groups: defaultdict[str, list[_Header]] = defaultdict(list)
    left_out: defaultdict[tuple[str, str], int] = defaultdict(int)
    for header in _headers(Path(path)):
        if header.kind:
            left_out[header.uid, header.kind] += 1
        else:
            groups[header.uid].append(header)
    found = []
    for uid, headers in groups.items():
        volumes = [[header] for header in headers if len(header.origins) > 1]
        slices = [header for header in headers if len(header.origins) == 1]
        if len(slices) > 1:
            volumes.append(slices)
        elif slices:
            left_out[uid, "single slice"] += 1
        for volume in volumes:
            ordered = _sorted_slices(volume)
            try:
                affine, error = _affine(ordered), ""
            except ValueError as refused:
                affine, error = None, str(refused)
            found.append(
                Series(
                    uid or made_uid("SeriesInstanceUID", ordered[0].instance),
                    ordered[0].number,
                    [header.file for header in ordered],
                    affine,
                    error,
                )
            )
    lines = [f"{path}: {n} file(s) of {kind}, series {uid or 'without UID'}" for (uid, kind), n in left_out.items()]
    return sorted(found, key=lambda series: (series.number is None, series.number, series.uid, series.files)), lines


def series_files(folder: str, uid: str) -> list[str]:
    """Return the files of a series, sorted along its normal.

    Args:
        folder: the series' folder, or its one multi-frame file.
        uid: of `Series`.

    Raises:
        FileNotFoundError: there is no such series.
    """
    found = [series.files for series in series_of(folder)[0] if series.uid == uid]
    if found:
        return max(found, key=len)  # multi-frame files of the same series are series of their own, named by file
    raise FileNotFoundError(f"{folder} holds no image series {uid} of two or more slices")


def made_uid(kind: str, instance: str) -> str:
    """Return a UID that is always the same for one instance, to stand for one that is missing."""
    _pydicom()
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[kind, instance]))


def instance_of(dataset: Any) -> str:
    """Return the SOPInstanceUID of a header, or the one in its file meta group; "" if there is none."""
    return str(dataset.get("SOPInstanceUID") or dataset.file_meta.get("MediaStorageSOPInstanceUID") or "")


def series_geometry(files: Sequence[str]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return affine (4, 4), RAS mm, and shape of the voxels (i, j, k) of a series' files in the given order.

    Raises:
        ImportError: pydicom is not installed.
        ValueError: the slices form no regular grid.
    """
    headers = list(_read_headers(map(Path, files)))
    affine = _affine(headers)
    rows, columns = headers[0].shape
    return affine, (columns, rows, sum(len(header.origins) for header in headers))


# --- headers --------------------------------------------------------------------------------------


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return pydicom


def _headers(path: Path) -> list[_Header]:
    """Read the headers of a file, or of a folder's DICOM files; those without the preamble only if none has it."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".")
    with_preamble = [file for file in files if is_dicom(file)]
    if with_preamble:
        return list(_read_headers(with_preamble))
    # a data set without preamble begins with group 0008, or with a file meta group that lost its preamble
    return list(_read_headers(f for f in files if _first_bytes(f) in (b"\x08\x00", b"\x02\x00")))


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(2)
    except OSError:
        return b""


def open_header(path: str | os.PathLike[str]) -> Any:
    """Read a DICOM file up to its pixels; a file without preamble too."""
    return _pydicom().dcmread(path, stop_before_pixels=True, force=not is_dicom(path))


def _read_headers(files: Iterable[Path]) -> Iterable[_Header]:
    for path in files:
        # pydicom warns of values that break a rule of form, such as decimal strings above 16 characters, and reads them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                header = _header(path, open_header(path))
            except ImportError:
                raise
            except Exception as error:  # whatever pydicom raises on a broken file
                logger.warning("%s cannot be read (%s): left out of its series", path, error)
                continue
        yield header


def _header(path: Path, dataset: Any) -> _Header:
    origins, orientations, spacings = [], [], []
    if "PerFrameFunctionalGroupsSequence" in dataset:
        shared = dataset.get("SharedFunctionalGroupsSequence") or [_pydicom().Dataset()]
        frames = [(group, shared[0]) for group in dataset.PerFrameFunctionalGroupsSequence]
        for groups in frames:
            origins.append(_of_group(groups, "PlanePositionSequence", "ImagePositionPatient"))
            orientations.append(_of_group(groups, "PlaneOrientationSequence", "ImageOrientationPatient"))
            spacings.append(_of_group(groups, "PixelMeasuresSequence", "PixelSpacing"))
    else:
        origins.append(dataset.get("ImagePositionPatient"))
        orientations.append(dataset.get("ImageOrientationPatient"))
        spacings.append(dataset.get("PixelSpacing"))
    modality = str(dataset.get("Modality") or "")
    kind = ""
    if modality in NO_VOLUME or "Rows" not in dataset or "Columns" not in dataset:
        kind = f"no image ({modality or 'no modality'})"
    elif "LOCALIZER" in (dataset.get("ImageType") or ()):
        kind = "a localiser"
    elif int(dataset.get("SamplesPerPixel") or 1) != 1:
        kind = "colour images"
    elif len(origins) == 1 and int(dataset.get("NumberOfFrames") or 1) > 1:
        kind = "frames without a position each"
    elif not all(value is not None and len(value) for value in (*origins, *orientations, *spacings)):
        kind = "images without a position in the patient"
    number = dataset.get("SeriesNumber")
    return _Header(
        str(path),
        str(dataset.get("SeriesInstanceUID") or ""),
        instance_of(dataset) or str(path),
        None if number is None else int(number),
        kind,
        (0, 0) if kind else (int(dataset.Rows), int(dataset.Columns)),
        *(np.array([] if kind else values, dtype=float) for values in (origins, orientations, spacings)),
    )


def _of_group(groups: Iterable[Any], sequence: str, name: str) -> Any | None:
    """Return a value of a frame's own group, or else of the group shared by all frames."""
    return next((group[sequence][0].get(name) for group in groups if group.get(sequence)), None)


# --- geometry -------------------------------------------------------------------------------------


def _normal(orientation: np.ndarray) -> np.ndarray:
    return np.cross(orientation[:3], orientation[3:])


def _sorted_slices(headers: Sequence[_Header]) -> list[_Header]:
    normal = _normal(headers[0].orientations[0])
    return sorted(headers, key=lambda header: (float(header.origins[0] @ normal), header.file))


def _affine(headers: Sequence[_Header]) -> np.ndarray:
    if not headers:
        raise ValueError("no slice can be read")
    if len({header.shape for header in headers}) > 1:
        sizes = sorted({header.shape for header in headers})
        raise ValueError(f"slices differ in rows and columns: {sizes}; keep the slices of one scan")
    origins = np.concatenate([header.origins for header in headers])
    orientations = np.concatenate([header.orientations for header in headers])
    spacings = np.concatenate([header.spacings for header in headers])
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        raise ValueError("slices differ in orientation; keep the slices of one stack")
    if np.abs(spacings - spacings[0]).max() > 1e-3 * spacings[0].min():
        raise ValueError("slices differ in pixel spacing; keep the slices of one scan")
    normal = _normal(orientations[0])
    places = origins @ normal
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    if np.abs(gaps).min() < 1e-3:
        at = int(np.abs(gaps).argmin())
        raise ValueError(f"several slices lie at {places[at]:g} mm: several acquisitions; keep the files of one")
    uneven = np.flatnonzero(np.abs(gaps - usual) > GAP_TOLERANCE * abs(usual))
    if uneven.size:
        at = int(uneven[np.abs(gaps[uneven] - usual).argmax()])
        raise ValueError(
            f"gap of {gaps[at]:.4g} mm, usually {usual:.4g} mm, between the slices at {places[at]:g} and"
            f" {places[at + 1]:g} mm: slices are missing, or not in order; add them, or resample to even spacing"
        )
    step = (origins[-1] - origins[0]) / (len(origins) - 1)
    shift = float(np.linalg.norm(step - (step @ normal) * normal) * (len(origins) - 1))
    if shift > SHIFT_TOLERANCE * spacings[0].min():
        raise ValueError(
            f"slices are shifted by {shift:.4g} mm from the first to the last (tilted gantry); resample to a straight"
            " grid first"
        )
    lps = np.eye(4)
    lps[:3, 0] = orientations[0, :3] * spacings[0, 1]  # along a row: from column to column
    lps[:3, 1] = orientations[0, 3:] * spacings[0, 0]
    lps[:3, 2], lps[:3, 3] = step, origins[0]
    return LPS_TO_RAS @ lps
