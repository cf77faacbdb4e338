"""Read a data set once, scan after scan, and sum up what it holds.

Each case is read, checked by the rules of every run (`inspect_pair`), measured and forgotten; what was measured is
kept as one line of a JSON-lines file, so a stopped program goes on where it was. Axes are those of the network: right,
anterior, superior.

Glossary
    statistics    what is kept of a case, a table of numbers
    cropped       the part of an image that holds something: above -500 HU in CT, other than 0 elsewhere
    foreground    the voxels of all labels; intensities are drawn there, at most `SAMPLE` voxels of a case
    oversized     a scan so much larger than the others that only its header is read
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.orientations import io_orientation
from scipy import ndimage
from tqdm import tqdm

from mambamim_nets.bundle.data.duplicates import copies, two_cases
from mambamim_nets.bundle.data.inspection import Volume
from mambamim_nets.bundle.data.memory import GIB, free_memory
from mambamim_nets.bundle.data.verification import Findings, inspect_pair
from mambamim_nets.bundle.data.verification_cache import signature_of
from mambamim_nets.bundle.files import first_lines
from mambamim_nets.bundle.io.headers import Header
from mambamim_nets.bundle.io.scan_formats import read_header

__all__ = ["CaseReading", "channels_of", "read_cases", "read_headers", "summarise"]

logger = logging.getLogger("mambamim_nets")

VERSION = 1  # one more when statistics change
SAMPLE = 10_000  # voxels
QUANTILES = np.concatenate([[0.0, 0.5], np.arange(1, 100), [99.5, 100.0]])  # kept of the foreground of a case
BODY = -500.0  # HU, between air and fat
OVERSIZED = (20, GIB)  # times the median number of voxels, and bytes before compression


class CaseReading(NamedTuple):
    """What reading a case gave: its statistics, {} where only its header was read, and what to look at."""

    statistics: dict[str, Any]
    warnings: list[str]


# --- headers --------------------------------------------------------------------------------------


def read_headers(cases: Sequence[Mapping[str, Any]]) -> list[Header]:
    """Read the headers of all images (of their first channels).

    Raises:
        ValueError: that lists what cannot be read or contradicts itself.
    """
    headers, problems = [], []
    for item in tqdm(cases, desc="read headers", disable=None):
        path = item["image"] if isinstance(item["image"], str) else item["image"][0]
        try:
            header = read_header(path)
        except Exception as error:  # whatever a reader raises on a broken file is the finding
            header = Header(problems=(f"cannot be read ({type(error).__name__}, {error}): copy or download it again",))
        headers.append(header)
        problems += [f"{path}: {line}" for line in header.problems]
    if problems:
        raise ValueError(f"{len(problems)} of {len(cases)} images have a problem:\n{first_lines(problems)}")
    return headers


def channels_of(cases: Sequence[Mapping[str, Any]], headers: Sequence[Header]) -> int:
    """Return how many channels the images have.

    Raises:
        ValueError: they differ in it.
    """
    counts: dict[int, str] = {}
    for item, header in zip(cases, headers, strict=True):
        files = 1 if isinstance(item["image"], str) else len(item["image"])
        counts.setdefault(files if files > 1 or len(header.shape) < 4 else header.shape[3], item["case"])
    if len(counts) > 1:
        shown = ", ".join(f"{count} ({case})" for count, case in sorted(counts.items()))
        raise ValueError(f"images have different numbers of channels: {shown}; take those of another number out")
    return next(iter(counts))


def _oversized(cases: Sequence[Mapping[str, Any]], headers: Sequence[Header]) -> dict[str, str]:
    """Return why scans are not read beyond their headers, by case."""
    voxels = [math.prod(header.shape[:3]) for header in headers]
    usual = float(np.median(voxels))
    return {
        item["case"]: (
            f"case {item['case']}: {' x '.join(map(str, header.shape[:3]))} voxels ({size / GIB:.1f} GiB) are"
            f" {count / usual:.0f} times the median of the data set; only its header was read: crop it, or take it out"
            " of the data set"
        )
        for item, header, count in zip(cases, headers, voxels, strict=True)
        if (size := count * header.itemsize) > OVERSIZED[1] and count > OVERSIZED[0] * usual
    }


# --- one case -------------------------------------------------------------------------------------


def case_statistics(item: Mapping[str, Any], in_channels: int, known: Sequence[int]) -> tuple[Findings, dict[str, Any]]:
    """Read a case; return what is wrong with it and, if nothing is, its statistics.

    Args:
        item: "case", "image" and "label".
        in_channels: of the images.
        known: label values that may be there.
    """
    images: list[Volume] = []
    statistics: dict[str, Any] = {}

    def visit(key: str, volume: Volume) -> None:
        if key == "image":
            images.append(volume)
        else:
            statistics.update(_measured(item["case"], images, volume))

    findings = inspect_pair(item, in_channels, known, visit)
    return findings, {} if findings.problems else statistics


def _measured(case: str, images: Sequence[Volume], label: Volume) -> dict[str, Any]:
    """Return the statistics of a case: spacing in mm, volumes in ml, axes as of the network."""
    order = [int(axis) for axis in np.argsort(io_orientation(label.affine)[:, 0])]
    edges = np.linalg.norm(label.affine[:3, :3], axis=0)
    values = np.asarray(label.data).astype(np.uint8)
    if images[0].data.ndim == 4:
        channels = [volume.data[..., channel] for volume in images for channel in range(volume.data.shape[3])]
    else:
        channels = [volume.data for volume in images]
    lowest = [float(channel.min()) for channel in channels]
    box = _box(channels, lowest)
    foreground = np.flatnonzero(values)
    if len(foreground) > SAMPLE:
        # the same draw at every start, whatever the order of the cases
        foreground = np.sort(np.random.default_rng(zlib.crc32(case.encode())).choice(foreground, SAMPLE, replace=False))
    return {
        "shape": [int(values.shape[axis]) for axis in order],
        "spacing": [round(float(edges[axis]), 5) for axis in order],
        "cropped": [int(box[axis].stop - box[axis].start) for axis in order],
        "channels": [
            _intensities(channel, low, box, foreground) for channel, low in zip(channels, lowest, strict=True)
        ],
        "classes": _classes(values, float(np.prod(edges)) / 1000),
    }


def _box(channels: Sequence[np.ndarray], lowest: Sequence[float]) -> tuple[slice, ...]:
    """Return the box around what any channel shows; the whole image where none shows anything."""
    inside = np.zeros(channels[0].shape, bool)
    for channel, low in zip(channels, lowest, strict=True):
        inside |= np.asarray(channel) > BODY if low < BODY else np.asarray(channel) != 0
    return ndimage.find_objects(inside.view(np.uint8), max_label=1)[0] or (slice(None),) * 3


def _intensities(channel: np.ndarray, lowest: float, box: tuple[slice, ...], foreground: np.ndarray) -> dict[str, Any]:
    """Return the range of a channel, the share of zeros in the box, and quantiles of the foreground's voxels."""
    drawn = np.asarray(channel)[np.unravel_index(foreground, channel.shape)].astype(float)
    return {
        "lowest": lowest,
        "highest": float(channel.max()),
        "zeros": round(float((np.asarray(channel[box]) == 0).mean()), 4),
        "foreground": [float(f"{q:.6g}") for q in np.percentile(drawn, QUANTILES)] if len(drawn) else [],
    }


def _classes(values: np.ndarray, ml: float) -> dict[str, dict[str, float]]:
    """Return volume, number of parts (faces touch) and share of the largest part, by label value."""
    found = {}
    for value, box in enumerate(ndimage.find_objects(values), start=1):
        if box is not None:
            parts, number = ndimage.label(values[box] == value)
            sizes = np.bincount(parts.ravel())[1:]
            found[str(value)] = {
                "voxels": int(sizes.sum()),
                "ml": float(f"{sizes.sum() * ml:.5g}"),
                "parts": int(number),
                "largest": round(float(sizes.max() / sizes.sum()), 4),
            }
    return found


# --- all cases ------------------------------------------------------------------------------------


def read_cases(
    cases: Sequence[Mapping[str, Any]],
    headers: Sequence[Header],
    in_channels: int,
    known: Sequence[int],
    workers: int = 1,
    cache_file: Path | None = None,
) -> list[CaseReading]:
    """Read all cases, in processes, and go on from what an earlier start has read.

    Args:
        cases: as from `labelled_cases`.
        headers: of their images.
        in_channels: of the images.
        known: label values that may be there.
        workers: processes; each holds one case in memory, so fewer are used where that would not fit.
        cache_file: JSON lines, one for each case without a problem; None: nothing is kept.

    Raises:
        ValueError: that lists up to 20 problems of the cases, two that have one image among them.
    """
    oversized = _oversized(cases, headers)
    rule = f"version {VERSION}, in_channels {in_channels}, labels {known}"
    held = _cached(cache_file, rule)
    signatures = [json.dumps(signature_of(item, ("image", "label"))) for item in cases]
    todo = [n for n, item in enumerate(cases) if signatures[n] not in held and item["case"] not in oversized]
    workers = _affordable(workers, [headers[n] for n in todo], in_channels)
    results: dict[int, tuple[Findings, dict[str, Any]]] = {
        n: (Findings([], line["warnings"], line["digests"]), line["statistics"])
        for n, signature in enumerate(signatures)
        if (line := held.get(signature)) is not None
    }
    if held and todo:
        logger.info("%d cases known from an earlier start, %d to read", len(cases) - len(todo), len(todo))
    jobs = [(cases[n], in_channels, known) for n in todo]
    for n, (findings, statistics) in zip(
        todo, tqdm(_each(jobs, workers), desc="read cases", total=len(todo), disable=None), strict=True
    ):
        results[n] = findings, statistics
        if not findings.problems and cache_file is not None:
            line = {"rule": rule, "signature": signatures[n], "statistics": statistics}
            _append(cache_file, {**line, "warnings": findings.warnings, "digests": findings.digests})
    problems = [line for findings, _ in results.values() for line in findings.problems]
    read = sorted(results)
    digests = [results[n][0].digests for n in read]
    problems += [two_cases(copy, [cases[n] for n in read]) for copy in copies([cases[n] for n in read], digests)]
    if problems:
        raise ValueError(f"{len(problems)} problems in {len(cases)} cases:\n{first_lines(problems)}")
    return [
        CaseReading({}, [oversized[item["case"]]])
        if item["case"] in oversized
        else CaseReading(results[n][1], results[n][0].warnings)
        for n, item in enumerate(cases)
    ]


def _statistics(job: tuple[Mapping[str, Any], int, Sequence[int]]) -> tuple[Findings, dict[str, Any]]:
    return case_statistics(*job)


def _each(jobs: Sequence[tuple[Mapping[str, Any], int, Sequence[int]]], workers: int) -> Iterator[Any]:
    """Yield what `case_statistics` says of each job, in their order."""
    if workers < 2 or len(jobs) < 2:
        yield from map(_statistics, jobs)
        return
    # not fork, which copies the threads' locks of what is imported; a server imports it once for all workers
    posix = os.name == "posix"
    context = multiprocessing.get_context("forkserver" if posix else "spawn")
    if posix:
        context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield from pool.map(_statistics, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _affordable(workers: int, headers: Sequence[Header], in_channels: int) -> int:
    """Return how many processes may read at a time, so that as many of the largest scans fit in the free memory."""
    free = free_memory()
    if free is None or not headers:
        return max(1, workers)
    most = max(math.prod(header.shape[:3]) * (in_channels * header.itemsize + 16) for header in headers)
    return max(1, min(workers, free // max(1, most)))


def _cached(path: Path | None, rule: str) -> dict[str, dict[str, Any]]:
    """Return the lines of a cache that were written by the same rule; a last one that a kill cut off is left out."""
    found: dict[str, dict[str, Any]] = {}
    if path is None or not path.is_file():
        return found
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and line.get("rule") == rule:
            found[line["signature"]] = line
    return found


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line to a cache; one that a kill cut off before is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        if file.tell() and not _ends_with_newline(path):
            file.write("\n")
        file.write(json.dumps(line) + "\n")


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


# --- summary --------------------------------------------------------------------------------------


def summarise(
    cases: Sequence[Mapping[str, Any]],
    readings: Sequence[CaseReading],
    channels: Sequence[str],
    labels: Mapping[str, int],
) -> dict[str, Any]:
    """Sum up what was read, as `configs/fingerprint.json` has it.

    Args:
        cases: as from `labelled_cases`.
        readings: of the cases, in their order.
        channels: names of the channels.
        labels: name -> label value.
    """
    known = [(item["case"], reading.statistics) for item, reading in zip(cases, readings, strict=True)]
    read = [(case, statistics) for case, statistics in known if statistics]
    ct = [s for _, s in read if _is_ct(s)]
    pooled = ct if len(ct) >= len(read) / 10 else [s for _, s in read]  # HU and arbitrary units are not one scale
    spacing, shape, cropped = (np.array([s[key] for _, s in read], float) for key in ("spacing", "shape", "cropped"))
    return {
        "cases": len(cases),
        "subjects": len({str(item.get("subject", item["case"])) for item in cases}),
        "header_only": [case for case, statistics in known if not statistics],
        "spacing_mm": _spread(spacing),
        "shape": _spread(shape),
        "cropped_shape": _spread(cropped),
        "cropped_mm": _spread(cropped * spacing),
        "modality": {"CT": sum(_is_ct(s) for _, s in read), "other": sum(not _is_ct(s) for _, s in read)},
        "hu": [case for case, s in read if _is_ct(s)],
        "not_hu": [case for case, s in read if not _is_ct(s)],
        "channels": {name: _channel([s["channels"][n] for s in pooled]) for n, name in enumerate(channels)},
        "classes": {name: _class(value, read) for name, value in labels.items()},
        "per_case": {case: {key: s[key] for key in ("shape", "spacing", "cropped")} for case, s in read},
    }


def _is_ct(statistics: Mapping[str, Any]) -> bool:
    """Return whether a scan is CT in HU: its lowest value is below -500, which only air is; so every run decides."""
    return statistics["channels"][0]["lowest"] < BODY


def _spread(values: np.ndarray) -> dict[str, list[float]]:
    """Return median and limits of values (cases, 3), per axis."""
    rows = {"median": 50, "tenth_percentile": 10, "lowest": 0, "highest": 100}
    return {name: [float(f"{v:.6g}") for v in np.percentile(values, q, axis=0)] for name, q in rows.items()}


def _channel(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up the intensities of a channel over cases."""
    drawn = [part["foreground"] for part in parts if part["foreground"]]
    # each case counts the same: its quantiles stand for its voxels
    pooled = np.concatenate(drawn) if drawn else np.array([0.0, 1.0])
    quantiles = {f"percentile_{q:g}": float(f"{np.percentile(pooled, q):.6g}") for q in (0.5, 50, 99.5)}
    return {
        "lowest": min(part["lowest"] for part in parts),
        "highest": max(part["highest"] for part in parts),
        "zeros": float(f"{np.median([part['zeros'] for part in parts]):.4g}"),
        "foreground": {**quantiles, "mean": float(f"{pooled.mean():.6g}"), "std": float(f"{pooled.std():.6g}")},
    }


def _class(value: int, read: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Sum up a class over cases: where it is missing, its volumes in ml, its parts."""
    there = [s["classes"][str(value)] for _, s in read if str(value) in s["classes"]]
    missing = [case for case, s in read if str(value) not in s["classes"]]
    found: dict[str, Any] = {"value": value, "cases": len(there), "missing_in": missing}
    if there:
        ml = [part["ml"] for part in there]
        found |= {"median_ml": float(f"{np.median(ml):.4g}"), "lowest_ml": min(ml), "highest_ml": max(ml)}
        found |= {"median_parts": float(np.median([part["parts"] for part in there]))}
        found |= {"one_part_share": round(float(np.mean([part["largest"] >= 0.99 for part in there])), 4)}
    return found
