"""Find the DICOM image series of a folder and their geometry, from headers alone.

Geometry is taken from the slices' own ImagePositionPatient and ImageOrientationPatient, never from SliceThickness,
slice numbers or file names; files are recognised by content. A series whose slices do not form one regular grid is
refused, since every affine would be wrong for some of its slices.

A slice that cannot be read must not vanish, since a series without its first or last slice is regular still. So a file
that is DICOM by its content or its name, and cannot be read, fails the series it belongs to; and numbers in the headers
that disagree with what was found are warnings.

Glossary:
    origin: centre of a frame's first voxel, in LPS mm as DICOM states it; affines are in RAS mm.
    normal: cross product of the direction of rows and that of columns; slices are sorted along it.
    axes: i counts columns, j rows, k slices, as in the NIfTI files that other tools make of a series.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mambamim_nets.bundle.files import some
from mambamim_nets.bundle.io.dicom_slices import (
    CutError,
    Folder,
    Header,
    Unreadable,
    made_uid,
    read_folder,
    read_header,
)

__all__ = [
    "Series",
    "series_files",
    "series_geometry",
    "series_of",
]

GAP_TOLERANCE = 0.05  # of the median gap between slices
SHIFT_TOLERANCE = 0.5  # of a pixel's edge: how far the last slice may lie off the first one's normal
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Series(NamedTuple):
    """Files of one image series, in the order of their slices.

    Args:
        uid: SeriesInstanceUID; if de-identification emptied it, one made from the first slice's SOPInstanceUID.
        number: SeriesNumber.
        files: sorted along the normal; one file if it is multi-frame.
        affine: of the voxels (i, j, k), RAS mm; None if the slices form no regular grid, or one cannot be read.
        error: why not, else "".
        warnings: what in the headers says that slices may be missing.
    """

    uid: str
    number: int | None
    files: list[str]
    affine: np.ndarray | None
    error: str
    warnings: tuple[str, ...] = ()


def series_of(path: str | os.PathLike[str]) -> tuple[list[Series], list[str]]:
    """Return the image series of a folder or file, and a line for each thing in it that is no volume.

    Args:
        path: folder, not searched below, or one file.

    Returns:
        Series with at least two slices, those without a regular grid and those with slices that cannot be read too;
        and what was left out, for the log.

    Raises:
        ImportError: pydicom is not installed.
    """
    folder = read_folder(Path(path))
    groups: defaultdict[str, list[Header]] = defaultdict(list)
    left_out: defaultdict[tuple[str, str], int] = defaultdict(int)
    for header in folder.headers:
        groups[header.uid].append(header)
    uids = {uid for uid, headers in groups.items() if any(not header.kind for header in headers)}
    unreadable, lost = _by_series(folder, uids)
    found = []
    for uid, headers in groups.items():
        for header in headers:
            if header.kind:
                left_out[uid, header.kind] += 1
        images = [header for header in headers if not header.kind]
        slices = [header for header in images if len(header.origins) == 1]
        volumes = [[header] for header in images if len(header.origins) > 1]
        if len(slices) > 1 or (slices and unreadable[uid]):
            volumes.append(slices)
        elif slices:
            left_out[uid, "single slice"] += 1
        for volume in volumes:
            found.append(_series(uid, volume, headers, unreadable[uid]))
    if lost and not found:
        files = [slice_.file for slice_ in lost]
        found.append(Series("", None, files, None, _cannot_be_read(lost)))
    elif lost:
        note = f"of no series that is known, {_what(lost)}"
        found = [series._replace(warnings=(*series.warnings, note)) for series in found]
    lines = [f"{path}: {n} file(s) of {kind}, series {uid or 'without UID'}" for (uid, kind), n in left_out.items()]
    if folder.others:
        lines.append(f"{path}: {len(folder.others)} file(s) that are no DICOM: {some(folder.others)}")
    return sorted(found, key=lambda series: (series.number is None, series.number, series.uid, series.files)), lines


def _series(uid: str, volume: list[Header], headers: list[Header], unreadable: list[Unreadable]) -> Series:
    """Return the series of some slices, or of a multi-frame file, among all headers of its UID."""
    ordered = _sorted_slices(volume)
    affine, error = None, _cannot_be_read(unreadable)
    if not error:
        try:
            affine = _affine(ordered)
        except ValueError as refused:
            error = str(refused)
    several = len(ordered[0].origins) > 1
    return Series(
        uid or made_uid("SeriesInstanceUID", ordered[0].instance),
        ordered[0].number,
        [header.file for header in ordered],
        affine,
        error,
        () if several else tuple(_disagreements(ordered, headers)),
    )


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


def series_geometry(files: Sequence[str]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return affine (4, 4), RAS mm, and shape of the voxels (i, j, k) of a series' files in the given order.

    Raises:
        ImportError: pydicom is not installed.
        ValueError: the slices form no regular grid.
    """
    headers = []
    for file in files:
        try:
            headers.append(read_header(Path(file)))
        except CutError as error:
            raise ValueError(f"{file} cannot be read ({error}): copy or export the series again") from error
    affine = _affine(headers)
    rows, columns = headers[0].shape
    return affine, (columns, rows, sum(len(header.origins) for header in headers))


# --- slices that cannot be read -------------------------------------------------------------------


def _by_series(folder: Folder, images: set[str]) -> tuple[defaultdict[str, list[Unreadable]], list[Unreadable]]:
    """Return the unreadable files by the series of images they belong to, and those of no such series.

    Where a header does not say it, a file belongs to the series of the files before and after it, in the order of
    their names.
    """
    uids = {header.file: header.uid for header in folder.headers}
    order = sorted([*uids, *(slice_.file for slice_ in folder.unreadable)], key=_natural)
    found: defaultdict[str, list[Unreadable]] = defaultdict(list)
    lost = []
    for slice_ in folder.unreadable:
        place = order.index(slice_.file)
        before = next((uids[file] for file in reversed(order[:place]) if file in uids), None)
        after = next((uids[file] for file in order[place:] if file in uids), None)
        known = slice_.uid is not None and slice_.uid in uids.values()
        belongs = {slice_.uid} if known else {before, after}
        for uid in images.intersection(belongs):
            found[uid].append(slice_)
        if not images.intersection(belongs):
            lost.append(slice_)
    return found, lost


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names by their value."""
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _cannot_be_read(slices: Sequence[Unreadable]) -> str:
    if not slices:
        return ""
    return (
        f"{_what(slices)}: every slice of a series must be readable; copy or export the series again, or take away a"
        " file that is no slice of it"
    )


def _what(slices: Sequence[Unreadable]) -> str:
    what = ", ".join(f"{Path(slice_.file).name} cannot be read ({slice_.why})" for slice_ in slices[:3])
    return what + (f" and {len(slices) - 3} more" if len(slices) > 3 else "")


# --- numbers --------------------------------------------------------------------------------------


def _disagreements(slices: Sequence[Header], headers: Sequence[Header]) -> list[str]:
    """Return what the numbers in the slices' headers say against their being all; headers: all of their UID."""
    found = []
    numbers = sorted({header.instance_number for header in headers if header.instance_number is not None})
    if numbers and numbers[0] > 1:
        found.append(f"the first InstanceNumber is {numbers[0]}: slices before it may be missing")
    gaps = [(low, high) for low, high in pairwise(numbers) if high > low + 1]
    if gaps:
        missing = sum(high - low - 1 for low, high in gaps)
        low, high = gaps[0]
        which = f"{low + 1}" if high == low + 2 else f"{low + 1} to {high - 1}"
        more = f" and {len(gaps) - 1} more gap(s)" if len(gaps) > 1 else ""
        found.append(f"InstanceNumber {which}{more} missing, {missing} in all: slices may be missing")
    counts = Counter(header.instance_number for header in slices if header.instance_number is not None)
    twice = sorted(number for number, count in counts.items() if count > 1)
    if twice:
        found.append(f"InstanceNumber {some([str(number) for number in twice])} on more than one slice")
    for acquisition in sorted({header.acquisition for header in slices}):
        here = [header for header in headers if header.acquisition == acquisition]
        said = {header.in_acquisition for header in here} - {None, len(here)}
        if said:
            found.append(f"ImagesInAcquisition is {_any(said)}, found are {len(here)}")
    said = {header.in_series for header in headers} - {None, len(headers)}
    if said:
        found.append(f"NumberOfSeriesRelatedInstances is {_any(said)}, found are {len(headers)}")
    return found


def _any(values: set[int | None]) -> str:
    return " or ".join(str(value) for value in sorted(value for value in values if value is not None))


# --- geometry -------------------------------------------------------------------------------------


def _normal(orientation: np.ndarray) -> np.ndarray:
    return np.cross(orientation[:3], orientation[3:])


def _sorted_slices(headers: Sequence[Header]) -> list[Header]:
    normal = _normal(headers[0].orientations[0])
    return sorted(headers, key=lambda header: (float(header.origins[0] @ normal), header.file))


def _affine(headers: Sequence[Header]) -> np.ndarray:
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
