"""Read every file of a datalist once, before a run starts, and name what is wrong with it.

A labelled list must be right as a whole: all problems are collected and raised together. An unlabelled list may lose
files: those with a problem are named in one warning and left out. A problem is one line: file, value, rule, remedy.

Affines of an image and its label are compared by the largest distance between the places where they put a corner of
the volume, in units of the smallest voxel edge: up to AFFINE_SILENT is rounding, up to AFFINE_ERROR is logged, more is
a problem.

A file that does not say where its axes point is a problem, but in a labelled list, where image and label agree, a
warning: what is learnt is right within the image, and nibabel's guess (LAS) is the same in training and evaluation.
New scans of that kind then need `--assume_axes LAS`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from mambamim_nets.bundle.data.duplicates import copies, two_cases
from mambamim_nets.bundle.data.inspection import AS_READ, Volume, inspect_image, read_volume
from mambamim_nets.bundle.data.memory import ScanMemory
from mambamim_nets.bundle.data.verification_cache import cache_key, read_cache, signature_of, write_cache
from mambamim_nets.bundle.files import first_lines, some
from mambamim_nets.bundle.io.headers import AFFINE_ERROR, corners_apart
from mambamim_nets.bundle.io.modalities import modality_objection
from mambamim_nets.bundle.io.scan_formats import read_header

__all__ = [
    "Findings",
    "check_cases",
    "check_images",
    "check_labelled",
    "check_unlabelled",
    "inspect_pair",
]

logger = logging.getLogger("mambamim_nets")

AFFINE_SILENT = 1e-3


class Findings(NamedTuple):
    """What is wrong with a case, what to look at, and the digests of its image's files."""

    problems: list[str]
    warnings: list[str]
    digests: list[str]


def check_labelled(
    cases: Sequence[Mapping[str, Any]],
    in_channels: int,
    labels: Mapping[int, str],
    cache_file: str | os.PathLike[str] | None = None,
    workers: int = 2,
    memory: ScanMemory | None = None,
) -> None:
    """Check every image with its label.

    Args:
        cases: items with "image" (path, or one path per channel) and "label" (path).
        in_channels: channels of the network. One file with several channels holds them on its last axis.
        labels: label value -> class name; 0 is background whether named or not.
        cache_file: JSON file in which cases without a finding are remembered by path, size and time of change; None
            remembers nothing.
        workers: threads; each holds one case in memory.
        memory: what the work on a case takes, compared with what is free; None: it is not.

    Raises:
        ValueError: one or more problems, up to 20 of them listed: a file is missing or unreadable, its header says what
            cannot be (see `headers`), it is not 3-D (or, with several channels, 4-D with another number of channels),
            too large for the memory, has NaN or infinite voxels, some beyond float32, or one single value; image and
            label differ in shape or affine; a label value is no integer or not in `labels`; two cases have one image,
            by path or by voxels.
    """
    known = {0, *(int(value) for value in labels)}
    rule = f"labelled, in_channels {in_channels}, labels {sorted(known)}"

    def inspect(item: Mapping[str, Any]) -> Findings:
        return inspect_pair(item, in_channels, known)

    title, too_large = "check images and labels", _size_check(memory, in_channels)
    _refuse(cases, _run(cases, ("image", "label"), inspect, rule, cache_file, workers, title, too_large))


def check_cases(
    cases: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    inspect: Callable[[Mapping[str, Any]], Findings],
    rule: str,
    cache_file: str | os.PathLike[str] | None = None,
    workers: int = 2,
    title: str = "check cases",
    memory: ScanMemory | None = None,
) -> None:
    """Check cases of another kind than images with label maps.

    Args:
        cases: items with file names.
        keys: under which an item has the files that decide about it.
        inspect: returns what it finds in an item.
        rule: says what `inspect` depends on beside the files; a cache knows a case for one rule.
        cache_file: as in `check_labelled`.
        workers: as in `check_labelled`.
        memory: as in `check_labelled`; each item has one channel under "image".
        title: of the progress bar.

    Raises:
        ValueError: one or more problems, up to 20 of them listed; two cases with one image are a problem.
    """
    _refuse(cases, _run(cases, keys, inspect, rule, cache_file, workers, title, _size_check(memory, 1)))


def check_images(
    cases: Sequence[Mapping[str, Any]],
    in_channels: int = 1,
    cache_file: str | os.PathLike[str] | None = None,
    workers: int = 2,
    memory: ScanMemory | None = None,
) -> None:
    """Check images that must all be right and all be different; arguments and errors as of `check_labelled`."""
    inspect = partial(_inspect_alone, in_channels=in_channels)
    rule, too_large = _image_rule(in_channels), _size_check(memory, in_channels)
    _refuse(cases, _run(cases, ("image",), inspect, rule, cache_file, workers, "check images", too_large))


def _image_rule(in_channels: int) -> str:
    return f"image, in_channels {in_channels}"


def _inspect_alone(item: Mapping[str, Any], in_channels: int, intensity: str = "") -> Findings:
    objections: list[str] = []

    def judge(volume: Volume) -> None:
        objections.append(modality_objection(intensity, volume.data))

    _, problems, warnings, digests = inspect_image(item["image"], in_channels, digest=True, visit=judge)
    if not problems and (objection := next(filter(None, objections), "")):
        first = item["image"] if isinstance(item["image"], str) else item["image"][0]
        problems, digests = [f"{first}: {objection}; or give another --intensity, such as ct_or_mr"], []
    return Findings(problems, warnings, digests)


def _refuse(cases: Sequence[Mapping[str, Any]], findings: Sequence[Findings]) -> None:
    """Raise one error that lists all problems, repeated images among them."""
    problems = [line for finding in findings for line in finding.problems]
    bad = sum(bool(finding.problems) for finding in findings)
    repeated = copies(cases, [finding.digests for finding in findings])
    if repeated:
        bad += sum(not findings[place].problems for place in {copy.second for copy in repeated})
        problems += [two_cases(copy, cases) for copy in repeated]
    if problems:
        raise ValueError(f"{len(problems)} problems in {bad} of {len(findings)} cases:\n{first_lines(problems)}")


def check_unlabelled(
    items: Sequence[Mapping[str, Any]],
    in_channels: int = 1,
    cache_file: str | os.PathLike[str] | None = None,
    workers: int = 2,
    min_keep: int = 1,
    unseen: Sequence[Mapping[str, Any]] = (),
    memory: ScanMemory | None = None,
    intensity: str = "",
) -> list[dict[str, Any]]:
    """Check every image and leave out those with a problem, naming each in one logged warning.

    Images that are there twice are kept and named in another: they are drawn twice as often.

    Args:
        items: items with "image" (path, or one path per channel).
        in_channels: channels of the network; with 1, a 4-D file is a problem, with more its last axis must have this
            length.
        cache_file: as in `check_labelled`.
        workers: threads; each holds one image in memory.
        min_keep: fewest images that a run needs.
        unseen: items that are held out for evaluation later, so that none of them may be among `items`.
        memory: as in `check_labelled`.
        intensity: how intensities are scaled; an image that is certainly of another modality is a problem, see
            `modality_objection`.

    Returns:
        The items without a problem, in their order.

    Raises:
        ValueError: fewer than `min_keep` images remain, or one of them is also `unseen`, by path or by voxels.
    """
    every = [*unseen, *items]
    inspect = partial(_inspect_alone, in_channels=in_channels, intensity=intensity)
    rule, too_large = f"{_image_rule(in_channels)}, intensity {intensity}", _size_check(memory, in_channels)
    found = _run(every, ("image",), inspect, rule, cache_file, workers, "check images", too_large)
    repeated = copies(every, [finding.digests for finding in found])
    if leaks := [str(copy) for copy in repeated if copy.first < len(unseen) <= copy.second]:
        raise ValueError(
            f"{len(leaks)} images of the held-out fold are in the sources under another name: {some(leaks)}; what "
            "evaluates later must not be trained on: take these files out of the sources"
        )
    if twice := [str(copy) for copy in repeated if copy.first >= len(unseen)]:
        logger.warning("%d images are in the sources more than once, and drawn more often: %s", len(twice), some(twice))
    findings = found[len(unseen) :]
    kept = [dict(item) for item, finding in zip(items, findings, strict=True) if not finding.problems]
    problems = [line for finding in findings for line in finding.problems]
    if len(kept) < min_keep:
        reasons = f":\n{first_lines(problems)}" if problems else ""
        raise ValueError(
            f"{len(kept)} of {len(items)} images can be used, at least {min_keep} needed; repair or add files{reasons}"
        )
    if problems:
        logger.warning("%d of %d images left out:\n%s", len(items) - len(kept), len(items), "\n".join(problems))
    return kept


def _run(
    items: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    inspect: Callable[[Mapping[str, Any]], Findings],
    rule: str,
    cache_file: str | os.PathLike[str] | None,
    workers: int,
    title: str,
    too_large: Callable[[Mapping[str, Any]], list[str]],
) -> list[Findings]:
    """Inspect what the cache does not know as clean, in threads: reading and decompressing release the GIL.

    How large an item is, is judged at every start, since the memory that is free changes, and before its voxels are
    read.
    """
    cache = {} if cache_file is None else read_cache(Path(cache_file))
    signatures = [signature_of(item, keys) for item in items]
    # signed before reading: a file that changes meanwhile is read again next time
    known = [None if s is None else cache.get(cache_key(s, rule)) for s in signatures]
    todo = [i for i, (s, entry) in enumerate(zip(signatures, known, strict=True)) if entry is None or entry[0] != s]
    findings = [Findings([], [], [] if entry is None else entry[1]) for entry in known]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for i, lines in enumerate(pool.map(too_large, items)):
            findings[i].problems.extend(lines)
        todo = [i for i in todo if not findings[i].problems]
        done = pool.map(lambda i: inspect(items[i]), todo)
        for i, finding in zip(
            todo, tqdm(done, desc=title, total=len(todo), disable=None if todo else True), strict=True
        ):
            findings[i] = finding
            signature = signatures[i]
            if signature is not None and not finding.problems and not finding.warnings:
                cache[cache_key(signature, rule)] = (signature, finding.digests)
    warnings = [line for finding in findings for line in finding.warnings]
    if warnings:
        logger.warning("%s: to look at:\n%s", title, first_lines(warnings))
    logger.info("%s: %d read, %d known from an earlier start", title, len(todo), len(items) - len(todo))
    if cache_file is not None and todo:
        write_cache(Path(cache_file), cache)
    return findings


def _size_check(memory: ScanMemory | None, in_channels: int) -> Callable[[Mapping[str, Any]], list[str]]:
    """Return a function that says if an item is too large for the memory that is free."""

    def too_large(item: Mapping[str, Any]) -> list[str]:
        if memory is None:
            return []
        image = item["image"]
        path = image if isinstance(image, (str, os.PathLike)) else image[0]
        try:
            header = read_header(path)
        except Exception:  # named when its voxels are read
            return []
        refusal = "" if header.problems else memory.refusal(header, in_channels)
        return [f"{path}: {refusal}"] if refusal else []

    return too_large


# --- one file, one case ---------------------------------------------------------------------------


def inspect_pair(
    item: Mapping[str, Any],
    in_channels: int,
    known: Collection[int],
    visit: Callable[[str, Volume], object] = lambda key, volume: None,
) -> Findings:
    """Read an image and its label, all of both, and judge them.

    Args:
        item: "image" (path, or one path per channel) and "label" (path).
        in_channels: channels of the network.
        known: values that the label map may have, 0 among them.
        visit: is called with "image" or "label" and the volume of each file as it was read, the label last.
    """
    grid, problems, warnings, digests = inspect_image(
        item["image"], in_channels, AS_READ, digest=True, visit=lambda volume: visit("image", volume)
    )
    path = item["label"]
    volume, found, _ = read_volume(path, AS_READ)
    if volume is None:
        return Findings([*problems, *found], warnings, digests)
    data, affine = volume
    if data.ndim != 3 or not data.size:
        problems.append(f"{path}: shape {data.shape} of a label map must be 3-D; store one value per voxel")
    elif grid is not None and data.shape != grid[0]:
        problems.append(
            f"{path}: shape {data.shape} must equal the image's, {grid[0]}; resample the label to its image"
        )
    elif grid is not None:
        distance = corners_apart(grid[1], affine, data.shape)
        line = f"{path}: corners lie {distance:.3g} voxels from the image's"
        if not distance <= AFFINE_ERROR:  # NaN too
            problems.append(
                f"{line}, but affines must agree; resample the label to its image, or copy the image's affine if only "
                "the header is wrong"
            )
        elif distance > AFFINE_SILENT:
            warnings.append(f"{line}; up to {AFFINE_ERROR} are tolerated")
    if data.dtype.kind not in "biuf":
        line = f"{path}: label values must be integers and are of type {data.dtype}; export the label map again"
        return Findings([*problems, line], warnings, digests)
    # slice by slice: sorting a whole volume would need several copies of it
    values = sorted({value for index in range(data.shape[-1]) for value in np.unique(data[..., index]).tolist()})
    fractional = [value for value in values if not float(value).is_integer()]
    unknown = [int(value) for value in values if float(value).is_integer() and int(value) not in known]
    if fractional:
        shown = some(list(dict.fromkeys(f"{value:g}" for value in fractional)), 5)
        problems.append(
            f"{path}: label values {shown} must be integers; if the map was resampled, do it by nearest neighbour"
        )
    if unknown:
        shown = some([str(value) for value in unknown], 5)
        allowed = known if isinstance(known, range) else sorted(known)
        problems.append(
            f"{path}: label values {shown} must be among {allowed}; add their classes to labels, or remap them"
        )
    if values == [0]:
        warnings.append(f"{path}: the whole map is background; remove the case if that is an error")
    if not problems:
        visit("label", volume)
    return Findings(problems, warnings, digests)
