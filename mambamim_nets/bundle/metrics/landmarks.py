"""Radial errors, detection rates and errors of lengths of each case, and the tables made of them.

    MRE   mean radial error: distance in mm between a point and its reference
    SDR   success detection rate: share of the points within a distance, here 0 to 6 mm in steps of 0.1

The row "mean" is over cases, each by the mean of its points. std is the sample's (n - 1). Points that are missing in
the reference are counted nowhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist

from mambamim_nets.bundle.files import write_csv, write_text
from mambamim_nets.bundle.io.landmarks import write_table
from mambamim_nets.bundle.metrics.table import cell, statistics

__all__ = ["THRESHOLDS", "LandmarkCase", "LandmarkTable", "length_mm"]

MEAN = "mean"
THRESHOLDS = np.linspace(0, 6, 61)  # mm
SHOWN = (1, 2, 3, 4, 6)  # mm, in the Markdown summary


class LandmarkCase(NamedTuple):
    """One case: predicted and true points (N, 3) in RAS mm, true ones NaN where missing, and confidence (N,)."""

    points: np.ndarray
    truth: np.ndarray
    confidence: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        return np.linalg.norm(self.points - self.truth, axis=1)


def length_mm(points: np.ndarray, names: Sequence[str], ends: Sequence[str]) -> float:
    """Return the distance in mm between two of the points (N, 3); NaN if one is missing."""
    first, second = (points[names.index(end)] for end in ends)
    return float(np.linalg.norm(first - second))


class LandmarkTable:
    """Collect the points of many cases, from one process or several, and write what follows from them.

    Args:
        names: of the points.
        lengths: name -> its two ends.
    """

    def __init__(self, names: Sequence[str], lengths: Mapping[str, Sequence[str]]) -> None:
        self.names, self.lengths = list(names), {name: list(ends) for name, ends in lengths.items()}
        self.cases: dict[str, LandmarkCase] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def add(self, case: str, found: LandmarkCase) -> None:
        """Add a case; a repeated one (from a padded distributed sampler) is ignored."""
        shape = (len(self.names), 3)
        if found.points.shape != shape or found.truth.shape != shape:
            raise ValueError(f"case {case!r}: points {found.points.shape}, {found.truth.shape} must be {shape}")
        self.cases.setdefault(str(case), found)

    def gather(self) -> dict[str, LandmarkCase]:
        """Return the cases of all processes, sorted; on every rank the same."""
        parts: list[Any] = [self.cases]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, self.cases)
        joined: dict[str, LandmarkCase] = {}
        for part in parts:
            for case, found in part.items():
                joined.setdefault(case, found)
        return dict(sorted(joined.items()))

    def mean_error(self) -> float:
        """Return the mean radial error in mm over cases, each by the mean of its points; on every rank the same."""
        return self._errors(self.gather())[MEAN]["mean"]

    def detection_rates(self) -> dict[str, np.ndarray]:
        """Return point name, and "mean" over all points, -> share of points within each of THRESHOLDS mm."""
        return self._rates(self.gather())

    def write(self, folder: str | os.PathLike[str]) -> str:
        """Write metrics.csv, lengths.csv, landmarks.csv (predicted points), sdr.csv, summary.csv and summary.md.

        With torch.distributed initialised every rank must call it; rank 0 writes.

        Args:
            folder: made where it does not exist.

        Returns:
            The Markdown summary, the same on every rank.

        Raises:
            ValueError: no case was added on any rank.
        """
        cases = self.gather()
        if not cases:
            raise ValueError("no case was added to the table; evaluate at least one case before writing it")
        errors, lengths, rates = self._errors(cases), self._lengths(cases), self._rates(cases)
        text = self._markdown(errors, lengths, rates, len(cases))
        if not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0:
            folder = Path(folder)
            folder.mkdir(parents=True, exist_ok=True)
            found = {case: dict(zip(self.names, row.points, strict=True)) for case, row in cases.items()}
            sure = {case: dict(zip(self.names, row.confidence, strict=True)) for case, row in cases.items()}
            write_table(folder / "landmarks.csv", found, "RAS", sure)
            _write(folder / "metrics.csv", ["case", "name", "error_mm", "confidence"], (
                [case, name, f"{error:.4f}", f"{row.confidence[i]:.3f}"]
                for case, row in cases.items()
                for i, (name, error) in enumerate(zip(self.names, row.errors, strict=True))
            ))  # fmt: skip
            _write(folder / "lengths.csv", ["case", "name", "predicted_mm", "reference_mm", "error_mm"], (
                [case, name, *(f"{value:.4f}" for value in self._length(row, ends))]
                for case, row in cases.items() for name, ends in self.lengths.items()
            ))  # fmt: skip
            _write(folder / "sdr.csv", ["threshold_mm", *rates], (
                [f"{mm:.1f}", *(f"{rate[i]:.4f}" for rate in rates.values())] for i, mm in enumerate(THRESHOLDS)
            ))  # fmt: skip
            _write(folder / "summary.csv", ["name", "metric", "mean", "std", "median", "n"], (
                [name, metric, *(f"{stats[part]:.6f}" for part in ("mean", "std", "median")), stats["n"]]
                for metric, rows in (("radial_error_mm", errors), ("length_error_mm", lengths))
                for name, stats in rows.items()
            ))  # fmt: skip
            write_text(folder / "summary.md", text)
        return text

    def _length(self, row: LandmarkCase, ends: Sequence[str]) -> tuple[float, float, float]:
        found, true = (length_mm(points, self.names, ends) for points in (row.points, row.truth))
        return found, true, abs(found - true)

    def _errors(self, cases: Mapping[str, LandmarkCase]) -> dict[str, dict[str, float]]:
        errors = np.array([row.errors for row in cases.values()])
        by_name = {name: statistics(column.tolist()) for name, column in zip(self.names, errors.T, strict=True)}
        return by_name | {MEAN: statistics([statistics(row.tolist())["mean"] for row in errors])}

    def _lengths(self, cases: Mapping[str, LandmarkCase]) -> dict[str, dict[str, float]]:
        return {
            name: statistics([self._length(row, ends)[2] for row in cases.values()])
            for name, ends in self.lengths.items()
        }

    def _rates(self, cases: Mapping[str, LandmarkCase]) -> dict[str, np.ndarray]:
        errors = np.array([row.errors for row in cases.values()])
        columns = dict(zip(self.names, errors.T, strict=True)) | {MEAN: errors.ravel()}
        return {name: _rate(column[np.isfinite(column)]) for name, column in columns.items()}

    def _markdown(
        self,
        errors: Mapping[str, Mapping[str, float]],
        lengths: Mapping[str, Mapping[str, float]],
        rates: Mapping[str, np.ndarray],
        n_cases: int,
    ) -> str:
        heads = " | ".join(f"within {mm} mm" for mm in SHOWN)
        lines = [
            f"{n_cases} case{'s' if n_cases > 1 else ''}; mean ± standard deviation (median; n), n = values counted.",
            "",
            f"| point | radial error (mm) | {heads} |",
            f"|---|---|{'---:|' * len(SHOWN)}",
        ]
        for name, stats in errors.items():
            shares = [rates[name][int(np.argmin(np.abs(THRESHOLDS - mm)))] for mm in SHOWN]
            share = " | ".join("-" if math.isnan(s) else f"{100 * s:.0f} %" for s in shares)
            lines.append(f"| {f'**{name}**' if name == MEAN else name} | {cell(stats, 2)} | {share} |")
        lines += ["", "| length | error (mm) |", "|---|---|"]
        lines += [f"| {name} | {cell(stats, 2)} |" for name, stats in lengths.items()]
        return "\n".join(lines) + "\n"


def _rate(errors: np.ndarray) -> np.ndarray:
    if not errors.size:
        return np.full(len(THRESHOLDS), np.nan)
    return (errors[:, None] <= THRESHOLDS + 1e-9).mean(0)


def _write(path: Path, columns: Sequence[str], rows: Any) -> None:
    write_csv(path, [columns, *rows])
