"""Find the DICOM image series of a folder: their slices in order, their geometry, and what is wrong with them.

A slice is opened for three things. Its header is read here, once, and `Series` keeps what anything later needs of it:
the series of a whole queue are judged before hours of work on the first, and a header is a few kB, where the voxels of
a queue would not fit in memory. ITK decodes its voxels in `scan_formats`, once, from the file, since it reads no bytes
from memory; `Series.require_unchanged` makes sure that it is still the file of that header. And inference reads its
bytes for the SHA-256 in report.json, right after the scan is done, when they are mostly in the system's cache.

Geometry is taken from the slices' own ImagePositionPatient and ImageOrientationPatient, never from
SliceThickness, slice numbers or file names. A series whose slices do not form one regular grid is refused, since every
affine would be wrong for some of its slices.

A slice that cannot be read must not vanish, since a series without its first or last slice is regular still. So a file
that is DICOM by its content or its name, and cannot be read, fails the series it belongs to. Numbers in the headers
that disagree with what was found are warnings.

highdicom has a geometry of series too (`highdicom.spatial.get_volume_positions`, `highdicom.get_volume_from_series`).
It is not used here: it answers yes or no, where a person needs to know which slices are missing or which position is
taken twice; it knows neither unreadable slices nor series without a frame of reference; and it decodes by pydicom,
which lacks JPEG Lossless without further packages, where ITK reads all that scanners write. On an even series both give
the same volume; tests/bundle/io/test_dicom_series.py compares them.

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
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mambamim_nets.bundle.files import some
from mambamim_nets.bundle.io.dicom_files import (
    Folder,
    SliceHeader,
    Unreadable,
    frame_rescaling,
    made_uid,
    read_folder,
)

__all__ = ["LPS_TO_RAS", "Series", "series_among", "series_of"]

GAP_TOLERANCE = 0.05  # of the median gap between slices
SHIFT_TOLERANCE = 0.5  # of a pixel's edge: how far the last slice may lie off the first one's normal
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Series:
    """One image series of a folder, from the headers of its slices.

    Attributes:
        uid: SeriesInstanceUID; if de-identification emptied it, one made from the first slice's SOPInstanceUID.
        slices: headers of its files, sorted along the normal; one if the file is multi-frame; none if none can be read.
        affine: (4, 4) of the voxels (i, j, k), RAS mm; None if there is an error.
        error: why the series cannot be read: its slices form no regular grid, or one is unreadable; else "".
        warnings: what in the headers says that slices may be missing.
        dataset: the whole header of one of its files (a pydicom Dataset), with patient and study; None without slices.
    """

    uid: str
    slices: tuple[SliceHeader, ...]
    affine: np.ndarray | None
    error: str = ""
    warnings: tuple[str, ...] = ()
    dataset: Any = None

    @property
    def number(self) -> int | None:
        """SeriesNumber, None without one."""
        return self.slices[0].number if self.slices else None

    @property
    def files(self) -> list[str]:
        """Paths of the files, in the order of the slices."""
        return [header.file for header in self.slices]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of columns, rows and slices: the shape of the voxels (i, j, k)."""
        rows, columns = self.slices[0].shape
        return columns, rows, sum(len(header.origins) for header in self.slices)

    def require_unchanged(self) -> None:
        """Check that the files are those whose headers were read, by size and time of change.

        Raises:
            ValueError: the series has an error, or a file is another now.
        """
        if self.error:
            raise ValueError(self.error)
        for header in self.slices:
            try:
                at = os.stat(header.file)
            except OSError as error:
                raise ValueError(f"{header.file} cannot be read any more ({error.strerror}): start again") from error
            if (at.st_size, at.st_mtime_ns) != header.state:
                raise ValueError(f"{header.file} has changed since the series was listed: start again")


def series_of(path: str | os.PathLike[str]) -> tuple[list[Series], list[str]]:
    """Return the image series of a folder or file, and a line for each thing in it that is no volume.

    Args:
        path: folder, not searched below, or one file.

    Returns:
        Series with at least two slices, also those with an error; and what was left out, for the log.

    Raises:
        ImportError: pydicom is not installed.
    """
    return series_among(read_folder(Path(path)), path)


def series_among(folder: Folder, path: str | os.PathLike[str]) -> tuple[list[Series], list[str]]:
    """Return the image series among the headers of a folder; see `series_of`.

    Args:
        folder: as from `read_folder`.
        path: of the folder, for the log.
    """
    groups: defaultdict[str, list[SliceHeader]] = defaultdict(list)
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
        found += [_series(volume, headers, unreadable[uid]) for volume in volumes]
    if lost and not found:
        found.append(Series("", (), None, _cannot_be_read(lost)))
    elif lost:
        note = f"of no series that is known, {_what(lost)}"
        found = [replace(series, warnings=(*series.warnings, note)) for series in found]
    lines = [f"{path}: {n} file(s) of {kind}, series {uid or 'without UID'}" for (uid, kind), n in left_out.items()]
    if folder.others:
        lines.append(f"{path}: {len(folder.others)} file(s) that are no DICOM: {some(folder.others)}")
    return sorted(found, key=lambda series: (series.number is None, series.number, series.uid, series.files)), lines


def _series(volume: list[SliceHeader], headers: list[SliceHeader], unreadable: list[Unreadable]) -> Series:
    """Return the series of some slices, or of a multi-frame file, among all headers of its UID."""
    slices = _sorted_slices(volume)
    first = slices[0]
    dataset = next(header.dataset for header in slices if header.dataset is not None)
    affine, error = None, _cannot_be_read(unreadable) or _misread(dataset)
    if not error:
        try:
            affine = _affine(slices)
        except ValueError as refused:
            error = str(refused)
    return Series(
        first.uid or made_uid("SeriesInstanceUID", first.instance or first.file),
        tuple(header._replace(dataset=None) for header in slices),
        affine,
        error,
        tuple(_disagreements(slices, headers)) if len(first.origins) == 1 else (),
        dataset,
    )


def _misread(dataset: Any) -> str:
    """Return why the values that ITK would read of a series are not those of its headers, or ""."""
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        return (
            "its PhotometricInterpretation is MONOCHROME1, where high values are dark, and programs disagree on whether"
            " HU are to be turned round: must be MONOCHROME2; export it anew, or convert it to NIfTI and look at its"
            " values"
        )
    if len(rescalings := frame_rescaling(dataset)) > 1:
        return (
            f"its frames have {len(rescalings)} different rescale slopes and intercepts, and the first would be taken"
            " for all: must have one; export it as a series of single slices, or convert it to NIfTI"
        )
    return ""


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
        f"{_what(slices)}: every slice of a series must be readable; copy or export the series again, or remove a"
        " file that is no slice of it"
    )


def _what(slices: Sequence[Unreadable]) -> str:
    return some([f"{Path(slice_.file).name} cannot be read ({slice_.why})" for slice_ in slices], 3)


# --- numbers --------------------------------------------------------------------------------------


def _disagreements(slices: Sequence[SliceHeader], headers: Sequence[SliceHeader]) -> list[str]:
    """Return which numbers in the headers say that slices are missing or doubled.

    Args:
        slices: of the series.
        headers: all of its SeriesInstanceUID, localisers too, which InstanceNumber counts.
    """
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


def _sorted_slices(headers: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Return the headers along the normal of the first one."""
    normal = _normal(headers[0].orientations[0])
    return sorted(headers, key=lambda header: (float(header.origins[0] @ normal), header.file))


def _affine(headers: Sequence[SliceHeader]) -> np.ndarray:
    """Return the affine (4, 4), RAS mm, of sorted slices.

    The step from slice to slice goes from the first origin to the last, so that both lie where their headers say.

    Raises:
        ValueError: the slices form no regular grid.
    """
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
    along_row, along_column = orientations[0, :3] * spacings[0, 1], orientations[0, 3:] * spacings[0, 0]
    return LPS_TO_RAS @ np.vstack([np.column_stack([along_row, along_column, step, origins[0]]), [0, 0, 0, 1]])
