"""Read every file of a datalist once, before a run starts, and name what is wrong with it.

A labelled list must be right as a whole: all problems are collected and raised together. An unlabelled list may lose
files: those with a problem are named in one warning and left out. A problem reads `file: value: rule: remedy`.

Affines of an image and its label are compared by how far they put a corner of the volume apart, in units of the
smallest voxel edge: up to AFFINE_SILENT is rounding, up to AFFINE_ERROR is logged, more is a problem.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from tqdm import tqdm

__all__ = [
    "Volume",
    "check_cases",
    "check_labelled",
    "check_unlabelled",
    "corners_apart",
    "image_problems",
    "inspect_image",
]

logger = logging.getLogger(__name__)

AFFINE_SILENT = 1e-3
AFFINE_ERROR = 0.1
MAX_LINES = 20
CACHE_VERSION = 1


class Volume(NamedTuple):
    data: np.ndarray
    affine: np.ndarray


class _Findings(NamedTuple):
    problems: list[str]
    warnings: list[str]


def check_labelled(
    cases: Sequence[Mapping[str, Any]],
    in_channels: int,
    labels: Mapping[int, str],
    cache_file: str | os.PathLike[str] | None = None,
    workers: int = 2,
) -> None:
    """Check every image with its label.

    Args:
        cases: items with "image" (path, or one path per channel) and "label" (path).
        in_channels: channels of the network. One file with several channels holds them on its last axis.
        labels: label value -> class name; 0 is background whether named or not.
        cache_file: JSON file in which cases without a finding are remembered by path, size and time of change; None
            remembers nothing.
        workers: threads; each holds one case in memory.

    Raises:
        ValueError: one or more problems, up to 20 of them listed: a file is missing or unreadable, not 3-D (or, with
            several channels, 4-D with another number of channels), has NaN or infinite voxels, one single value or a
            singular affine; image and label differ in shape or affine; a label value is no integer or not in `labels`.
    """
    known = {0, *(int(value) for value in labels)}
    rule = f"labelled, in_channels {in_channels}, labels {sorted(known)}"

    def inspect(item: Mapping[str, Any]) -> _Findings:
        return _inspect_pair(item, in_channels, known)

    _refuse(_run(cases, ("image", "label"), inspect, rule, cache_file, workers, "check images and labels"))


def check_cases(
    cases: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    problems: Callable[[Mapping[str, Any]], list[str]],
    rule: str,
    cache_file: str | os.PathLike[str] | None = None,
    workers: int = 2,
    title: str = "check cases",
) -> None:
    """Check cases of another kind than images with label maps.

    Args:
        cases: items with file names.
        keys: under which an item has the files that decide about it.
        problems: returns what is wrong with an item.
        rule: says what `problems` depends on beside the files; a cache knows a case for one rule.
        cache_file, workers: as in `check_labelled`.
        title: of the progress bar.

    Raises:
        ValueError: one or more problems, up to 20 of them listed.
    """

    def inspect(item: Mapping[str, Any]) -> _Findings:
        return _Findings(problems(item), [])

    _refuse(_run(cases, keys, inspect, rule, cache_file, workers, title))


def _refuse(findings: Sequence[_Findings]) -> None:
    problems = [line for finding in findings for line in finding.problems]
    if problems:
        bad = sum(bool(finding.problems) for finding in findings)
        raise ValueError(f"{len(problems)} problems in {bad} of {len(findings)} cases:\n{_lines(problems)}")


def check_unlabelled(
    items: Sequence[Mapping[str, Any]],
    in_channels: int = 1,
    cache_file: str | os.PathLike[str] | None = None,
    workers: int = 2,
    min_keep: int = 1,
) -> list[dict[str, Any]]:
    """Check every image and leave out those with a problem, naming each in one logged warning.

    Args:
        items: items with "image" (path, or one path per channel).
        in_channels: channels of the network; with 1, a 4-D file is a problem, with more its last axis must have this
            length.
        cache_file: as in `check_labelled`.
        workers: threads; each holds one image in memory.
        min_keep: fewest images that a run needs.

    Returns:
        The items without a problem, in their order.

    Raises:
        ValueError: fewer than `min_keep` images remain.
    """

    def inspect(item: Mapping[str, Any]) -> _Findings:
        return _Findings(inspect_image(item["image"], in_channels)[1], [])

    findings = _run(
        items, ("image",), inspect, f"image, in_channels {in_channels}", cache_file, workers, "check images"
    )
    kept = [dict(item) for item, finding in zip(items, findings, strict=True) if not finding.problems]
    problems = [line for finding in findings for line in finding.problems]
    if len(kept) < min_keep:
        reasons = f":\n{_lines(problems)}" if problems else ""
        raise ValueError(
            f"{len(kept)} of {len(items)} images can be used, at least {min_keep} needed; repair or add files{reasons}"
        )
    if problems:
        logger.warning("%d of %d images left out:\n%s", len(items) - len(kept), len(items), "\n".join(problems))
    return kept


def _run(
    items: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    inspect: Callable[[Mapping[str, Any]], _Findings],
    rule: str,
    cache_file: str | os.PathLike[str] | None,
    workers: int,
    title: str,
) -> list[_Findings]:
    """Inspect what the cache does not know as clean, in threads: reading and decompressing release the GIL."""
    cache = {} if cache_file is None else _read_cache(Path(cache_file))
    signatures = [_signature(item, keys) for item in items]
    findings = [_Findings([], []) for _ in items]
    # signed before reading: a file that changes meanwhile is read again next time
    todo = [i for i, s in enumerate(signatures) if s is None or cache.get(_cache_key(s, rule)) != s]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        done = pool.map(lambda i: inspect(items[i]), todo)
        for i, finding in zip(
            todo, tqdm(done, desc=title, total=len(todo), disable=None if todo else True), strict=True
        ):
            findings[i] = finding
            signature = signatures[i]
            if signature is not None and not any(finding):
                cache[_cache_key(signature, rule)] = signature
    warnings = [line for finding in findings for line in finding.warnings]
    if warnings:
        logger.warning("%s: to look at:\n%s", title, _lines(warnings))
    logger.info("%s: %d read, %d known from an earlier start", title, len(todo), len(items) - len(todo))
    if cache_file is not None and todo:
        _write_cache(Path(cache_file), cache)
    return findings


# --- one file, one case ---------------------------------------------------------------------------


def _inspect_pair(item: Mapping[str, Any], in_channels: int, known: set[int]) -> _Findings:
    grid, problems = inspect_image(item["image"], in_channels)
    warnings: list[str] = []
    path = item["label"]
    volume, problem = _read(path)
    if volume is None:
        return _Findings([*problems, problem], warnings)
    data, affine = volume
    if data.ndim != 3 or not data.size:
        problems.append(f"{path}: shape {data.shape}: a label map must be 3-D: store one value per voxel on three axes")
    elif grid is not None and data.shape != grid[0]:
        problems.append(
            f"{path}: shape {data.shape}: must equal the image's {grid[0]}: resample the label to its image"
        )
    elif grid is not None:
        apart = corners_apart(grid[1], affine, data.shape)
        line = f"{path}: corners {apart:.3g} voxels from the image's: affines must agree"
        if not apart <= AFFINE_ERROR:  # NaN too
            problems.append(
                f"{line}: resample the label to its image, or copy the image's affine if only the header is wrong"
            )
        elif apart > AFFINE_SILENT:
            warnings.append(f"{line}: tolerated up to {AFFINE_ERROR} voxels")
    if data.dtype.kind not in "biuf":
        line = f"{path}: voxel type {data.dtype}: label values must be integers: export the label map again"
        return _Findings([*problems, line], warnings)
    # slice by slice: sorting a whole volume would need several copies of it
    values = sorted({value for index in range(data.shape[-1]) for value in np.unique(data[..., index]).tolist()})
    fractional = [value for value in values if not float(value).is_integer()]
    unknown = [int(value) for value in values if float(value).is_integer() and int(value) not in known]
    if fractional:
        some = ", ".join(list(dict.fromkeys(f"{value:g}" for value in fractional))[:5])
        problems.append(
            f"{path}: values {some}: label values must be integers: was it interpolated? use nearest neighbour"
        )
    if unknown:
        some = ", ".join(map(str, unknown[:5]))
        problems.append(
            f"{path}: values {some}: must be among {sorted(known)}: add the class to labels, or remap the file"
        )
    if values == [0]:
        warnings.append(f"{path}: all background: no class to learn from: remove the case if that is an error")
    return _Findings(problems, warnings)


def inspect_image(
    image: str | Sequence[str], in_channels: int
) -> tuple[tuple[tuple[int, ...], np.ndarray] | None, list[str]]:
    """Return the spatial shape and affine (None where unknown) and the problems of one image."""
    paths = [image] if isinstance(image, (str, os.PathLike)) else list(image)
    if len(paths) > 1 and len(paths) != in_channels:
        line = (
            f"{paths[0]}: {len(paths)} files: must be in_channels {in_channels}: list one file per channel, or set"
            " in_channels"
        )
        return None, [line]
    problems: list[str] = []
    grid = None
    for path in paths:
        volume, problem = _read(path)
        if volume is None:
            problems.append(problem)
            continue
        found = image_problems(path, volume, in_channels, alone=len(paths) == 1)
        problems += found
        if found:
            continue
        shape = volume.data.shape[:3]
        if grid is None:
            grid = (shape, volume.affine)
        elif shape != grid[0]:
            problems.append(
                f"{path}: shape {shape}: must equal the first channel's {grid[0]}: resample the channels to one grid"
            )
        elif (apart := corners_apart(grid[1], volume.affine, shape)) > AFFINE_ERROR:
            problems.append(
                f"{path}: corners {apart:.3g} voxels from the first channel's: affines must agree: resample to one grid"
            )
    return grid, problems


def image_problems(path: str, volume: Volume, in_channels: int, alone: bool) -> list[str]:
    data, affine = volume
    shape = data.shape
    if in_channels > 1 and alone:
        if len(shape) != 4:
            rule = f"must be 4-D with in_channels {in_channels} as its last axis"
            return [f"{path}: shape {shape}: {rule}: give one file per channel, or set in_channels 1"]
        if shape[3] != in_channels:
            rule = f"must be in_channels {in_channels}"
            return [f"{path}: {shape[3]} channels: {rule}: choose the channels, or set in_channels"]
    elif len(shape) != 3:
        return [f"{path}: shape {shape}: must be 3-D: extract one volume from it"]
    if not data.size:
        return [f"{path}: shape {shape}: must have voxels on every axis: export it again"]
    if data.dtype.kind not in "biuf":
        return [f"{path}: voxel type {data.dtype}: must be a real number: convert it to grey values"]
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        return [f"{path}: affine {affine[:3].round(3).tolist()}: must be finite and invertible: repair the header"]
    with np.errstate(invalid="ignore"):
        lowest, highest = (
            data.min(axis=(0, 1, 2)),
            data.max(axis=(0, 1, 2)),
        )  # NaN and infinity pass through to one of them
    if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
        count = int(data.size - np.isfinite(data).sum())
        return [f"{path}: {count} NaN or infinite voxels: must be finite: replace them, or leave the file out"]
    constant = np.flatnonzero(lowest == highest)
    if constant.size:
        where = f" in channel {constant.tolist()}" if len(shape) == 4 else ""
        return [
            f"{path}: every voxel is {np.ravel(lowest)[constant[0]]:g}{where}: must vary: an empty image, leave it out"
        ]
    return []


def _read(path: str) -> tuple[Volume | None, str]:
    if not os.path.isfile(path):
        return None, f"{path}: missing: must be a file: complete the download or correct the list"
    try:
        image = nib.load(path)
        if not isinstance(image, SpatialImage):
            return None, f"{path}: {type(image).__name__}: must be a volume: convert it to NIfTI"
        return Volume(np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=float)), ""
    except Exception as error:  # whatever a reader raises on a broken file is the finding
        reason = " ".join(str(error).split()) or "no reason given"
        return (
            None,
            f"{path}: {type(error).__name__}, {reason[:200]}: must be readable NIfTI: copy or download it again",
        )


def corners_apart(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest distance of a volume corner under two affines, in units of the smallest voxel edge."""
    corners = np.array([(*corner, 1.0) for corner in product(*((0, n - 1) for n in shape[:3]))])
    distance = np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max()
    return float(distance / np.linalg.norm(first[:3, :3], axis=0).min())


def _lines(lines: Sequence[str]) -> str:
    more = [f"... and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
    return "\n".join([*lines[:MAX_LINES], *more])


# --- cache ----------------------------------------------------------------------------------------


def _signature(item: Mapping[str, Any], keys: Iterable[str]) -> list[list[Any]] | None:
    """Return [path, size, mtime_ns] of each file of an item; None where one is missing."""
    files: list[list[Any]] = []
    for key in keys:
        value = item[key]
        for path in [value] if isinstance(value, (str, os.PathLike)) else value:
            try:
                stat = os.stat(path)
            except OSError:
                return None
            files.append([os.path.abspath(path), stat.st_size, stat.st_mtime_ns])
    return files


def _cache_key(signature: list[list[Any]], rule: str) -> str:
    return " + ".join([rule, *(entry[0] for entry in signature)])


def _read_cache(path: Path) -> dict[str, list[list[Any]]]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] == CACHE_VERSION:
            return dict(content["clean"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: %s: not a cache of this check: every file is read again", path, error)
    return {}


def _write_cache(path: Path, clean: Mapping[str, list[list[Any]]]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # several processes may write; each replaces a whole file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"version": CACHE_VERSION, "clean": dict(clean)}), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next start reads every file again", path, error)
