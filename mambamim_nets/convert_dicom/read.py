"""Which image series and label objects a folder holds, and which belong together, from their headers."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from mambamim_nets.bundle.files import some
from mambamim_nets.bundle.io.dicom_files import SliceHeader, read_folder
from mambamim_nets.bundle.io.dicom_labels import LABEL_KINDS, LabelObject, read_label_object
from mambamim_nets.bundle.io.dicom_series import Series, series_among

__all__ = ["Folder", "FoundSeries", "Job", "digest", "found_in", "jobs_of", "state_of", "with_series"]


class FoundSeries(NamedTuple):
    """An image series of the folder, without its headers, which would fill the memory.

    Attributes:
        uid: SeriesInstanceUID.
        folder: of its files, relative.
        frame: FrameOfReferenceUID; "" where de-identification emptied it.
        modality: such as CT.
        person: value of the attribute that says who was scanned; "" where de-identification emptied it.
        study: StudyInstanceUID.
        error: why the series cannot be read, "" if it can.
        state: hash of names, sizes and times of change of its files.
    """

    uid: str
    folder: str
    frame: str
    modality: str
    person: str
    study: str
    error: str
    state: str

    @property
    def subject(self) -> str:
        """A hash of the person, or else of the study."""
        return digest(self.person or self.study or self.uid)

    def __str__(self) -> str:
        return f"series {self.uid or 'without UID'} in {self.folder}"


class Folder(NamedTuple):
    """What a folder holds.

    Attributes:
        series: image series.
        labels: DICOM-SEG and RTSTRUCT objects, each once.
        problems: label objects that cannot be read, a line each.
        left_out: other files that are no volume, a line each.
    """

    series: list[FoundSeries]
    labels: list[LabelObject]
    problems: list[str]
    left_out: list[str]


class Job(NamedTuple):
    """A series with its labels.

    Attributes:
        case: name of the case: a hash of its SeriesInstanceUID.
        series: the image.
        labels: what was drawn on it.
        names: structure -> label, of what is taken.
    """

    case: str
    series: FoundSeries
    labels: tuple[LabelObject, ...]
    names: Mapping[str, str]


def digest(content: Any) -> str:
    """Return a hash of plain values, 16 characters."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def state_of(series: Series) -> str:
    """Return a hash of names, sizes and times of change of the files of a series."""
    return digest([[os.path.basename(header.file), *header.state] for header in series.slices])


def found_in(root: Path, kind: str | None, subject: str) -> Folder:
    """Read the headers of all files in a folder and below it.

    Args:
        root: the folder; links to folders are not followed.
        kind: SEG or RTSTRUCT, to leave label objects of the other kind out; None: both.
        subject: DICOM attribute that says who was scanned.
    """
    kinds = [f"no image ({one})" for one in LABEL_KINDS]
    wanted = [f"no image ({one})" for one in LABEL_KINDS if kind in (None, one)]
    folder = Folder([], [], [], [])
    first: dict[str, str] = {}  # SOPInstanceUID -> file
    for path in tqdm(list(_folders(root)), desc="read headers", disable=None):
        content = read_folder(path)
        series, lines = series_among(content, path)
        folder.series.extend(_found(one, path.relative_to(root), subject) for one in series)
        folder.left_out.extend(line for line in lines if not any(one in line for one in kinds))
        for header in content.headers:
            if header.kind not in wanted:
                continue
            if (original := first.setdefault(header.instance or header.file, header.file)) != header.file:
                folder.left_out.append(f"{header.file}: a copy of {original}")
            else:
                _add_label(folder, header)
    return folder


def _folders(root: Path) -> Iterator[Path]:
    for path, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(path)


def _found(series: Series, folder: Path, subject: str) -> FoundSeries:
    frames = {header.frame_of_reference for header in series.slices}
    said = {} if series.dataset is None else series.dataset
    return FoundSeries(
        uid=series.uid,
        folder=str(folder),
        frame=series.slices[0].frame_of_reference if series.slices else "",
        modality=str(said.get("Modality") or ""),
        person=str(said.get(subject) or ""),
        study=series.slices[0].study if series.slices else "",
        error=series.error or ("its slices have several frames of reference" if len(frames) > 1 else ""),
        state=state_of(series),
    )


def _add_label(folder: Folder, header: SliceHeader) -> None:
    try:
        label = read_label_object(header.file)
    except ValueError as error:
        folder.problems.append(str(error))
        return
    folder.labels.append(label)
    folder.left_out.extend(
        f"{label.file}: {name!r} is points or open lines, without an area" for name in label.left_out
    )


def with_series(root: Path, jobs: Sequence[Job]) -> Iterator[tuple[Job, Series | None]]:
    """Yield jobs with their series, whose headers are read again, a folder at a time; None where it has changed.

    Args:
        root: folder of the DICOM files.
        jobs: in the order of their folders.
    """
    for folder, group in groupby(jobs, key=lambda job: job.series.folder):
        path = root / folder
        known = {one.uid: one for one in (series_among(read_folder(path), path)[0] if path.is_dir() else ())}
        for job in group:
            series = known.get(job.series.uid)
            yield job, series if series is not None and state_of(series) == job.series.state else None


# --- which belong together ------------------------------------------------------------------------


def jobs_of(folder: Folder, wanted: Mapping[str, str]) -> tuple[list[Job], list[str], list[str]]:
    """Join series and labels.

    Args:
        folder: as from `found_in`.
        wanted: structure -> label; {}: all of them under their own names.

    Returns:
        A job for each series with labels, in the order of their folders; what is refused, and what is left out, a line
        each.
    """
    by_uid, by_frame = defaultdict(list), defaultdict(list)
    for series in folder.series:
        by_uid[series.uid].append(series)
        by_frame[series.frame].append(series)
    problems, left_out = list(folder.problems), list(folder.left_out)
    drawn: defaultdict[FoundSeries, list[LabelObject]] = defaultdict(list)
    refused: set[str] = set()  # series of which some label object is refused
    for label in folder.labels:
        try:
            drawn[_series_of(label, by_uid, by_frame)].append(label)
        except ValueError as error:
            if any(name in wanted or not wanted for name in label.structures):
                problems.append(str(error))
                refused.update(label.series)
            else:
                left_out.append(str(error))
    jobs = []
    for series in folder.series:
        labels = tuple(sorted(drawn.get(series, ()), key=lambda one: one.file))
        held = [name for label in labels for name in label.structures]
        names = {name: wanted.get(name, name) for name in held if name in wanted or not wanted}
        if not series.uid:
            problems.append(f"{series}: {series.error}")
        elif series.uid in refused:  # it would count as background what the refused object has
            left_out.append(f"{series}: a label object of it is refused")
        elif objection := _repeated(labels, names):
            problems.append(objection)
        elif names:
            jobs.append(Job(f"series_{digest(series.uid)}", series, labels, names))
        elif labels:
            left_out.append(f"{series}: has none of the labels, but {some(sorted(held)) or 'none'}")
        else:
            left_out.append(f"{series}: {series.error or 'no label object refers to it'}")
    return jobs, problems, left_out


def _series_of(
    label: LabelObject, by_uid: Mapping[str, Sequence[FoundSeries]], by_frame: Mapping[str, Sequence[FoundSeries]]
) -> FoundSeries:
    """Return the series that a label object was drawn on, by its references."""
    named = [one for uid in label.series for one in by_uid.get(uid, ())]
    if label.series and not named:
        raise ValueError(
            f"{label.file}: refers to series {some(label.series)}, which is not in the folder; add it, or leave the"
            " label object out"
        )
    if not label.series:
        named = [one for frame in label.frames for one in by_frame.get(frame, ())]
    if len(named) == 1 and named[0].error:
        raise ValueError(f"{label.file}: its {named[0]} cannot be used: {named[0].error}")
    fitting = [one for one in named if not one.frame or not label.frames or one.frame in label.frames]
    if named and not fitting:
        raise ValueError(
            f"{label.file}: frame of reference {some(label.frames)} must be that of its {named[0]}, {named[0].frame};"
            " export the labels in the frame of the series"
        )
    if len(fitting) != 1:
        which = some([str(one) for one in fitting], 3, ";") or "none"
        raise ValueError(
            f"{label.file}: must belong to exactly one series, by the series or the frame of reference that it names,"
            f" and belongs to {which}; keep one copy of each series, or leave the label object out"
        )
    return fitting[0]


def _repeated(labels: Sequence[LabelObject], names: Mapping[str, str]) -> str:
    """Return why label objects of one series cannot be merged: several hold one structure; "" if they can."""
    files = {name: [label for label in labels if name in label.structures] for name in names}
    twice = {name: found for name, found in files.items() if len(found) > 1}
    if not twice:
        return ""
    found = next(iter(twice.values()))
    kinds = {label.kind for label in found}
    remedy = "choose one kind by --kind SEG or --kind RTSTRUCT" if len(kinds) > 1 else "keep one of them"
    return f"{' and '.join(label.file for label in found)}: both hold {some(sorted(twice))} of one series; {remedy}"
