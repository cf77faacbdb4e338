"""Radial errors, detection rates and errors of lengths of each case, and the tables made of them.

    MRE   mean radial error: distance in mm between a point and its reference
    SDR   success detection rate: share of the points within a distance, here 0 to 6 mm in steps of 0.1

The row "mean" is over cases, each by the mean of its points. std is the sample's (n - 1). Points that are missing in
the reference are counted nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mambamim_nets.bundle.metrics.table import COUNTED, MEAN, MetricTable, Statistics, Tables, markdown_table

__all__ = ["THRESHOLDS", "LandmarkCase", "LandmarkTable", "length_mm"]

THRESHOLDS = np.linspace(0, 6, 61)  # mm
SHOWN = (1, 2, 3, 4, 6)  # mm, in summary.md


class LandmarkCase(NamedTuple):
    """One case: predicted and true points (N, 3) in RAS mm, true ones NaN where missing, and confidence (N,)."""

    points: np.ndarray
    truth: np.ndarray
    confidence: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """Radial errors in mm, (N,), NaN where the true point is missing."""
        return np.linalg.norm(self.points - self.truth, axis=1)


def length_mm(points: np.ndarray, names: Sequence[str], ends: Sequence[str]) -> float:
    """Return the distance in mm between two of the points (N, 3); NaN if one is missing."""
    first, second = (points[names.index(end)] for end in ends)
    return float(np.linalg.norm(first - second))


class LandmarkTable(MetricTable[LandmarkCase]):
    """Collect the points of each case; write metrics.csv, lengths.csv, sdr.csv, summary.csv and summary.md.

    Args:
        names: of the points.
        lengths: name -> its two ends.
    """

    def __init__(self, names: Sequence[str], lengths: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.names, self.lengths = list(names), {name: list(ends) for name, ends in lengths.items()}

    def add(self, case: str, row: LandmarkCase) -> None:
        """Add the points of a case; a repeated case is ignored.

        Raises:
            ValueError: their number is not that of the names.
        """
        shape = (len(self.names), 3)
        if row.points.shape != shape or row.truth.shape != shape:
            raise ValueError(f"case {case!r}: points {row.points.shape}, {row.truth.shape} must be {shape}")
        super().add(case, row)

    def detection_rates(self) -> dict[str, np.ndarray]:
        """Return point name, and "mean" over all points, -> share of points within each of THRESHOLDS mm."""
        errors = self._errors()
        columns = dict(zip(self.names, errors.T, strict=True)) | {MEAN: errors.ravel()}
        return {name: _rate(column[np.isfinite(column)]) for name, column in columns.items()}

    def _errors(self) -> np.ndarray:
        """Return radial errors in mm, (cases, points), NaN where a true point is missing."""
        return np.array([row.errors for row in self.rows.values()])

    def _length(self, row: LandmarkCase, ends: Sequence[str]) -> tuple[float, float, float]:
        """Return a length in mm as predicted, as it is in the reference, and the difference's absolute value."""
        found, true = (length_mm(points, self.names, ends) for points in (row.points, row.truth))
        return found, true, abs(found - true)

    def tabulate(self) -> Tables:
        """Return metrics.csv (a row for each case and point), the other CSV files and the tables of summary.md."""
        errors, rates = self._errors(), self.detection_rates()
        radial = {name: Statistics.of(column) for name, column in zip(self.names, errors.T, strict=True)}
        radial[MEAN] = Statistics.of(Statistics.of(row).mean for row in errors)
        measured = {
            name: [self._length(row, ends) for row in self.rows.values()] for name, ends in self.lengths.items()
        }
        length_errors = {name: Statistics.of(error for *_, error in found) for name, found in measured.items()}
        metrics = (
            [case, name, f"{error:.4f}", f"{confidence:.3f}"]
            for case, row in self.rows.items()
            for name, error, confidence in zip(self.names, row.errors, row.confidence, strict=True)
        )
        lengths = (
            [case, name, *(f"{mm:.4f}" for mm in measured[name][index])]
            for index, case in enumerate(self.rows) for name in self.lengths
        )  # fmt: skip
        within = ([f"{mm:.1f}", *(f"{rate[i]:.4f}" for rate in rates.values())] for i, mm in enumerate(THRESHOLDS))
        summary = (
            [name, metric, *stats.cells]
            for metric, found in (("radial_error_mm", radial), ("length_error_mm", length_errors))
            for name, stats in found.items()
        )
        at = [int(np.argmin(np.abs(THRESHOLDS - mm))) for mm in SHOWN]
        shown = (
            [name, stats.text(2), *("-" if math.isnan(share) else f"{100 * share:.0f} %" for share in rates[name][at])]
            for name, stats in radial.items()
        )
        columns = ["point", "radial error (mm)", *(f"within {mm} mm" for mm in SHOWN)]
        length_rows = ([name, stats.text(2)] for name, stats in length_errors.items())
        return Tables(
            {
                "metrics.csv": (["case", "name", "error_mm", "confidence"], metrics),
                "lengths.csv": (["case", "name", "predicted_mm", "reference_mm", "error_mm"], lengths),
                "sdr.csv": (["threshold_mm", *rates], within),
                "summary.csv": (["name", "metric", *Statistics._fields], summary),
            },
            [
                f"{self.count}; {COUNTED}.",
                markdown_table(columns, shown, right=len(SHOWN)),
                markdown_table(["length", "error (mm)"], length_rows),
            ],
        )


def _rate(errors: np.ndarray) -> np.ndarray:
    if not errors.size:
        return np.full(len(THRESHOLDS), np.nan)
    return (errors[:, None] <= THRESHOLDS + 1e-9).mean(0)
