"""List new scans, and check them.

A scan is one image to segment: a file, a DICOM series, or for tasks of several channels a set of files, one for each. A
scan that is broken, incomplete or irregular keeps its place in the list with an "error"; the others are segmented. A
scan that can be segmented, but should be looked at, has "warnings", which the log, its row in the report and its
preview show. How files of a format are read is in `mambamim_nets.bundle.io.scan_formats`.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mambamim_nets.bundle.data.inspection import Volume, image_problems, inspect_image
from mambamim_nets.bundle.data.memory import ScanMemory
from mambamim_nets.bundle.errors import first_line
from mambamim_nets.bundle.files import first_lines, some, stem
from mambamim_nets.bundle.io.dicom_files import dicom_among, probed_folders
from mambamim_nets.bundle.io.dicom_series import Series, series_of
from mambamim_nets.bundle.io.headers import assumed, checked_axes
from mambamim_nets.bundle.io.modalities import channel_of, modality_of
from mambamim_nets.bundle.io.scan_formats import (
    ENDINGS,
    NIBABEL,
    VOLUMES,
    format_of,
    read_header,
    read_scan,
    scan_header,
)

__all__ = ["scans", "source_files"]

logger = logging.getLogger("mambamim_nets")

SEGMENTATION = ("_seg", "-seg", "_label")
WORKERS = 2  # each holds one scan in memory
_NNUNET = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")

Item = dict[str, Any]


def scans(
    path: str,
    output_dir: str,
    channels: Sequence[str] = ("image",),
    postfix: str = "_seg",
    assume_axes: str | None = None,
    memory: ScanMemory | None = None,
) -> list[dict[str, Any]]:
    """List the scans to segment, and check each by reading it (of DICOM series the headers).

    Args:
        path: one of
            - a file (.nii, .nii.gz, .mgz, .nrrd, .mha), or a folder of them without DICOM series, not searched below;
            - a folder with DICOM files of one or more image series, or one whose sub-folders are such folders;
            - for several channels: a folder of sets of files, one for each channel, named as in BraTS (case_t1ce or
              case-t1c, ...) or nnU-Net (case_0000, case_0001, ...); one file of a set, which the others in its folder
              complete; a folder of such folders; or NIfTI files with the channels on their last axis;
            - a pattern for files, such as "case01_*.nii.gz".
        output_dir: where results will go; must not hold the inputs under the results' names.
        channels: names of the task's image channels, in the network's order.
        postfix: what is appended to the names of results.
        assume_axes: where the axes of files point that do not say so, such as "RAS"; None: those cannot be segmented.
        memory: what the work on a scan takes, compared with what is free; None: it is not.

    Returns:
        One dict per scan, sorted by name: "image" (file, list of files in channel order, or folder of a DICOM series),
        "name" (of its results, unique), "series" (a DICOM `Series`, else None); and only where there is cause: "error"
        (why it cannot be segmented), "warnings" (what is doubtful about it), "axes" (those assumed of it).

    Raises:
        FileNotFoundError: the path does not exist or holds no scan.
        ValueError: not one scan is sound, two results would share a name, a result would replace a file of the input,
            a folder holds volumes and a DICOM series, DICOM is given for several channels, or `assume_axes` names none.
    """
    axes = checked_axes(assume_axes)
    source, searched = Path(path).expanduser(), list[Path]()
    items, ignored = _find(source, list(channels), postfix, searched)
    items.sort(key=lambda item: item["name"])
    _refuse_collisions(path, items, ignored, output_dir, postfix)
    if ignored:
        logger.info("left out, segmentations by their names: %s", some([str(file) for file in ignored]))
    if passed_over := _passed_over(source, searched, len(channels) > 1, output_dir, postfix):
        logger.warning(
            "not among the scans, though they look like some, one of each folder: %s; single volumes are read from the"
            " folder itself, DICOM from it or from folders directly below, and names must end in %s: give them by an"
            " --input of their own",
            some(passed_over, 5),
            ", ".join(ENDINGS),
        )
    with ThreadPoolExecutor(WORKERS) as pool:
        done = pool.map(lambda item: _judge(item, len(channels), axes, memory), items)
        for _ in tqdm(done, desc="check scans", total=len(items), disable=None):
            pass
    bad = [f"{item['name']}: {item['error']}" for item in items if "error" in item]
    if len(bad) == len(items):
        raise ValueError(
            f"0 of {len(items)} scans from {path} can be segmented; repair or replace them:\n" + first_lines(bad)
        )
    for item in items:
        for warning in item.get("warnings", []) if "error" not in item else []:
            logger.warning("%s: %s", item["name"], warning)
    if bad:
        logger.warning("%d of %d scans cannot be segmented:\n%s", len(bad), len(items), first_lines(bad))
    logger.info("%d scan(s) from %s, results to %s", len(items) - len(bad), path, output_dir)
    return items


def _refuse_collisions(
    path: str, items: Sequence[Item], ignored: Sequence[Path], output_dir: str, postfix: str
) -> None:
    twice = sorted(name for name, count in Counter(item["name"] for item in items).items() if count > 1)
    if twice:
        raise ValueError(
            f"input {path} holds several files or series named {twice}; their results would have the same name: rename"
            " them, or segment them one by one"
        )
    files = {os.path.realpath(file) for item in items for file in _files(item)}
    files |= {os.path.realpath(file) for file in ignored}
    results = {item["name"]: os.path.realpath(Path(output_dir, f"{item['name']}{postfix}.nii.gz")) for item in items}
    inside = [name for name, result in results.items() if result in files]
    if inside:
        raise ValueError(
            f"results of {some(inside)} in {output_dir} would replace other inputs; give another --output_dir"
        )


def source_files(item: Mapping[str, Any]) -> list[str]:
    """Return the files that an item of `scans` is read from, those of a DICOM series in the order of its slices."""
    return item["series"].files if item["series"] else _files(item)


def _files(item: Mapping[str, Any]) -> list[str]:
    return [item["image"]] if isinstance(item["image"], str) else list(item["image"])


# --- finding scans --------------------------------------------------------------------------------


def _item(image: str | list[str], name: str, error: str = "", series: Series | None = None) -> Item:
    item: Item = {"image": image, "name": name, "series": series}
    if error:
        item["error"] = error
    if series is not None and series.warnings:
        item["warnings"] = list(series.warnings)
    return item


def _find(source: Path, channels: list[str], postfix: str, searched: list[Path]) -> tuple[list[Item], list[Path]]:
    """Return the scans of a path, and the segmentation files among them; add folders searched for DICOM to a list."""
    if source.is_dir():
        return _in_folder(source, channels, postfix, searched)
    if source.is_file():
        return _of_file(source, channels), []
    if glob.has_magic(str(source)):
        files = [file for file in map(Path, sorted(glob.glob(str(source)))) if _is_volume(file)]
        if files:
            return _by_case(files, channels, postfix)
    raise FileNotFoundError(
        f"input {source} does not exist and matches no file; give a file ({', '.join(ENDINGS)}), a folder of them, a"
        " DICOM folder, or a pattern such as 'case01_*.nii.gz'"
    )


def _is_volume(path: Path) -> bool:
    return path.is_file() and path.name.endswith(ENDINGS) and not path.name.startswith(".")


def _volumes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_volume(path))


def _in_folder(folder: Path, channels: list[str], postfix: str, searched: list[Path]) -> tuple[list[Item], list[Path]]:
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    left_out: list[str] = []
    items, ignored = _of_one_folder(folder, channels, postfix, left_out, volumes=True)
    searched.append(folder)
    if items and below:
        logger.info("%s: %d sub-folder(s) are not searched", folder, len(below))
    if not items:
        for path in below:
            # single volumes are not searched for below; the sets of a multi-channel task have folders of their own
            more, segmentations = _of_one_folder(path, channels, postfix, left_out, volumes=len(channels) > 1)
            items += more
            ignored += segmentations
            searched.append(path)
    if left_out:
        logger.info("left out, no volumes:\n%s", first_lines(left_out))
    if not items:
        reasons = "; left out: " + "; ".join(left_out[:5]) if left_out else ""
        raise FileNotFoundError(
            f"input folder {folder} holds no scan: no file of {', '.join(ENDINGS)}, and no DICOM image series in it or"
            f" in a folder directly below{reasons}"
        )
    return items, ignored


def _of_one_folder(
    folder: Path, channels: list[str], postfix: str, left_out: list[str], volumes: bool
) -> tuple[list[Item], list[Path]]:
    if volumes and (files := _volumes(folder)):
        if series := _series_beside(folder):
            raise ValueError(
                f"input folder {folder} holds volumes, such as {files[0].name}, and a DICOM series, such as"
                f" {Path(series[0].files[0]).name}, and only one of them can be meant: move one kind into a folder of"
                " its own, or give a file"
            )
        return _by_case(files, channels, postfix)
    return _of_dicom(folder, folder.resolve().name, channels, left_out), []


def _series_beside(folder: Path) -> list[Series]:
    """Return the DICOM series in a folder of volumes; none where pydicom is not installed."""
    with contextlib.suppress(ImportError):
        return [series for series in series_of(folder)[0] if series.files]
    return []


def _passed_over(source: Path, searched: Sequence[Path], several: bool, output_dir: str, postfix: str) -> list[str]:
    """Return of each folder, from a source on, a file that looks like a scan by its name or first bytes, and is none.

    Args:
        source: file, folder or pattern; only a folder has anything to pass over.
        searched: folders that were searched for DICOM series; the log says what else is in them.
        several: whether volumes were looked for in all of these, and not only in the source.
        output_dir: folder of results, where it lies below the source.
        postfix: of label maps, which are no scans.
    """
    labels, results, found = (*SEGMENTATION, postfix.lower()), Path(output_dir).resolve(), []
    for folder, files in probed_folders(source) if source.is_dir() else ():
        if results in (folder.resolve(), *folder.resolve().parents) and source.resolve() in results.parents:
            continue
        named = [name for name in files if name.lower().endswith(VOLUMES)]
        if folder == source or (several and folder in searched):
            named = [name for name in named if not name.endswith(ENDINGS)]
        named = [name for name in named if not stem(name.lower(), VOLUMES).endswith(labels)]
        dicom = dicom_among(folder, files) if folder not in searched else None
        found += [str(file) for file in (*(folder / name for name in named[:1]), dicom) if file]
    return found


def _of_file(file: Path, channels: list[str]) -> list[Item]:
    if _is_volume(file):
        case = _case_of(file) if len(channels) > 1 else None
        if case is None:
            return [_item(str(file), stem(file, ENDINGS))]
        return _by_case([other for other in _volumes(file.parent) if _case_of(other, case) == case], channels, "")[0]
    left_out: list[str] = []
    items = _of_dicom(file, file.stem, channels, left_out)
    if left_out and not items:
        raise ValueError(f"input {file} is a single DICOM slice or no image; give the folder of its series")
    if not items:
        raise FileNotFoundError(f"input {file} is no scan: none of {', '.join(ENDINGS)}, and no DICOM file")
    return items


def _of_dicom(path: Path, name: str, channels: list[str], left_out: list[str]) -> list[Item]:
    found, lines = series_of(path)
    left_out += lines
    if found and len(channels) > 1:
        raise ValueError(
            f"input {path} is DICOM, the task has {len(channels)} channels {channels}; convert the series to NIfTI on"
            " one grid and name them case_0000.nii.gz, case_0001.nii.gz, ..."
        )
    numbers = [series.number for series in found]
    distinct = None not in numbers and len(set(numbers)) == len(numbers)
    items = []
    for place, series in enumerate(found, start=1):
        image = series.files[0] if len(series.files) == 1 else str(path)
        suffix = f"_{series.number if distinct else place}" if len(found) > 1 else ""
        items.append(_item(image, f"{name or 'scan'}{suffix}", series.error, series))
    return items


def _case_of(file: Path, like: tuple[str, str] | None = None) -> tuple[str, str] | None:
    """Return (case, kind of naming) if a file's name says that it is one channel of a case."""
    channel = _channel_of_file(file)
    if channel is None or (like is not None and channel[:2] != like) or _has_channels(file):
        return None
    return channel[:2]


def _channel_of_file(file: Path) -> tuple[str, str, str] | None:
    """Return (case, kind of naming, channel) from a file's name."""
    name = stem(file, ENDINGS)
    if (known := modality_of(name)) is not None:
        return known[0], "name", known[1]
    match = _NNUNET.match(name)
    return None if match is None else (match["case"], "number", match["channel"])


def _has_channels(file: Path) -> bool:
    """Return whether a file holds several channels by its header, whatever its name."""
    try:
        return format_of(file.name) is NIBABEL and len(read_header(file).shape) > 3
    except Exception:  # a broken header is found, and named, by the check
        return False


def _by_case(files: Sequence[Path], channels: list[str], postfix: str) -> tuple[list[Item], list[Path]]:
    if len(channels) == 1:
        return [_item(str(file), stem(file, ENDINGS)) for file in files], []
    items, ignored = [], []
    sets: defaultdict[tuple[str, str], defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        name = stem(file, ENDINGS)
        channel = _channel_of_file(file)
        if name.lower().endswith((*SEGMENTATION, postfix.lower()) if postfix else SEGMENTATION):
            ignored.append(file)
        elif channel is None or _has_channels(file):
            items.append(_item(str(file), name))
        else:
            sets[channel[:2]][channel[2]].append(str(file))
    for (case, kind), found in sets.items():
        numbered = [f"{number:04d}" for number in range(len(channels))]
        wanted = numbered if kind == "number" else [channel_of(channel) for channel in channels]
        missing = [name for name in wanted if name not in found]
        double = [name for name in found if len(found[name]) > 1]
        unused = sorted(set(found) - set(wanted))
        error = ""
        if missing:
            error = f"no file for {missing}, only for {sorted(found)}: add one file for each of {wanted}"
        elif double:
            error = f"several files for {double}: keep one for each of {wanted}"
        elif unused and kind == "number":
            error = f"files {unused} too many for the channels {channels}: give the task's channels only"
        elif unused:
            logger.info("%s: channels %s are not used", case, unused)
        present = [file for name in (found if error else wanted) for file in found[name]]
        items.append(_item(present, case, error=error))
    return items, ignored


# --- reading scans --------------------------------------------------------------------------------


def _judge(item: Item, in_channels: int, axes: str | None, memory: ScanMemory | None) -> None:
    """Read a scan, of DICOM the headers; add what keeps it from being segmented, or what to look at, to its item."""
    if "error" in item:
        return
    try:
        error, warnings, oriented = _findings(item, in_channels, axes, memory)
    except ImportError:
        raise
    except Exception as broken:  # whatever a reader raises on a broken file is the finding
        error, warnings, oriented = first_line(broken), [], True
    if error:
        item["error"] = error
    if warnings:
        item["warnings"] = [*item.get("warnings", ()), *warnings]
    if not oriented:
        item["axes"] = axes


def _findings(item: Item, in_channels: int, axes: str | None, memory: ScanMemory | None) -> tuple[str, list[str], bool]:
    """Return what keeps a scan from being segmented, or "", what to look at, and whether it says where it points.

    A rule that compares a scan with what its weights know, by their record, would have its place among these.
    """
    image, series, paths = item["image"], item["series"], _files(item)
    by_nibabel = series is None and all(format_of(path) is NIBABEL for path in paths)
    headers = [] if by_nibabel else [scan_header(image, series)]
    if by_nibabel:
        for path in paths:
            with contextlib.suppress(Exception):  # named when its voxels are read
                headers.append(read_header(path))
    if memory is not None and headers and not headers[0].problems:
        refusal = memory.refusal(headers[0], in_channels)
        if refusal:
            return refusal, [], True
    oriented = all(header.oriented for header in headers)
    if by_nibabel:
        _, problems, warnings, _ = inspect_image(image, in_channels, axes)
        return "; ".join(problems), warnings, oriented
    header, path = headers[0], paths[0]
    if header.problems:
        return f"{path}: {'; '.join(header.problems)}", [], True
    if series is not None:
        return "", [], True  # the headers of all slices have been read
    scan = read_scan(image, axes=axes)
    data = scan.numpy()
    volume = Volume(data[0] if data.shape[0] == 1 else np.moveaxis(data, 0, -1), np.asarray(scan.affine))
    warnings = [] if oriented else [f"{path}: {assumed(str(axes), header)}"]
    return "; ".join(image_problems(path, volume, in_channels, alone=True)), warnings, oriented
