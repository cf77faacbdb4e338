"""How well probabilities of a positive class tell it from the negative one, with intervals, and where to cut.

    AUC          area under the receiver operating characteristic: the share of pairs of a positive and a negative scan
                 in which the positive one has the higher probability, ties counting half
    sensitivity  share of positive scans called positive; specificity: of negative scans called negative
    F1           2 TP / (2 TP + FP + FN)
    threshold    a scan is called positive if its probability is at least this

Intervals are percentile bootstraps: subjects, each with all scans, are drawn with replacement. Draws in which a measure
is not defined, such as AUC with scans of one class only, do not count for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mambamim_nets.bundle.metrics.table import MetricTable, Tables, markdown_table

__all__ = [
    "MEASURES",
    "PREDICTIONS",
    "ClassificationTable",
    "ClassifiedScan",
    "Interval",
    "curve",
    "measures",
    "scores",
    "youden",
]

PREDICTIONS = "predictions.csv"

MEASURES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}


class Interval(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def measures(
    probability: np.ndarray, label: np.ndarray, threshold: float, counts: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Measure probabilities against labels, for any number of weightings of the scans at once.

    Args:
        probability: (N,) of the positive class.
        label: (N,) 0 or 1.
        threshold: see the module.
        counts: (B, N), how often each scan counts; None: once, B = 1.

    Returns:
        name in MEASURES -> (B,), NaN where not defined.

    Raises:
        ValueError: the shapes differ, a label is not 0 or 1, or a probability is no finite number.
    """
    probability, label = np.asarray(probability, float), np.asarray(label)
    if probability.ndim != 1 or probability.shape != label.shape or not probability.size:
        raise ValueError(f"probability {probability.shape} and label {label.shape} must be of one length, at least 1")
    if not np.isin(label, (0, 1)).all() or not np.isfinite(probability).all():
        raise ValueError(f"labels {np.unique(label).tolist()[:5]} must be 0 or 1, and probabilities finite")
    counts = np.ones((1, len(label))) if counts is None else np.asarray(counts, float)
    true, called = label == 1, probability >= threshold
    higher = probability[true][:, None] - probability[~true][None]
    pairs = (higher > 0) + 0.5 * (higher == 0)
    positive, negative = counts[:, true], counts[:, ~true]
    tp, fn = (counts[:, true & which].sum(1) for which in (called, ~called))
    fp, tn = (counts[:, ~true & which].sum(1) for which in (called, ~called))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "auc": ((positive @ pairs) * negative).sum(1) / (positive.sum(1) * negative.sum(1)),
            "accuracy": (tp + tn) / counts.sum(1),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
        }


def scores(
    probability: np.ndarray,
    label: np.ndarray,
    subjects: Sequence[str],
    threshold: float,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Measure probabilities against labels, with 95 % intervals over subjects.

    Args:
        probability: (N,) of the positive class.
        label: (N,) 0 or 1.
        subjects: (N,) whose scan each is.
        threshold: see the module.
        resamples: bootstrap draws.
        seed: of the draws.

    Returns:
        name in MEASURES -> value with the 2.5th and the 97.5th percentile of its draws.
    """
    names, owner = np.unique(np.asarray(subjects), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    values = measures(probability, label, threshold)
    spread = measures(probability, label, threshold, drawn[:, owner])
    found = {}
    for name, (value,) in values.items():
        defined = spread[name][np.isfinite(spread[name])]
        low, high = np.percentile(defined, (2.5, 97.5)) if defined.size else (math.nan, math.nan)
        found[name] = Interval(float(value), float(low), float(high))
    return found


def curve(probability: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the receiver operating characteristic.

    Returns:
        Shares of negative and of positive scans called positive, both (T,), from (0, 0) to (1, 1).
    """
    probability, label = np.asarray(probability, float), np.asarray(label)
    thresholds = np.append(np.inf, np.unique(probability)[::-1])
    called = probability[None] >= thresholds[:, None]
    return called[:, label == 0].mean(1), called[:, label == 1].mean(1)


def youden(probability: np.ndarray, label: np.ndarray) -> float:
    """Return the threshold with the highest sensitivity + specificity.

    It lies half way between two neighbouring probabilities, 0.5 where all are equal; of equally good ones, the nearest
    to 0.5 is taken.

    Raises:
        ValueError: if there are scans of one class only.
    """
    label = np.asarray(label)
    if len(np.unique(label)) < 2:
        raise ValueError("a threshold needs scans of both classes; choose another validation part")
    probability = np.asarray(probability, float)
    values = np.unique(probability)
    if len(values) == 1:
        return 0.5
    between = (values[1:] + values[:-1]) / 2
    called = probability[None] >= between[:, None]
    quality = called[:, label == 1].mean(1) - called[:, label == 0].mean(1)
    good = between[np.isclose(quality, quality.max())]
    return float(good[np.abs(good - 0.5).argmin()])


class ClassifiedScan(NamedTuple):
    """What is known of one scan: whose it is, its label (0 or 1), and the probability of the positive class."""

    subject: str
    session: str
    diagnosis: str
    label: int
    probability: float


class ClassificationTable(MetricTable[ClassifiedScan]):
    """Collect the probability of every scan; write predictions.csv, summary.csv and summary.md.

    Args:
        classes: of the task, negative and positive.
        threshold: see the module.
        resamples: bootstrap draws.
    """

    def __init__(self, classes: Sequence[str], threshold: float = 0.5, resamples: int = 2000) -> None:
        super().__init__()
        self.classes, self.threshold, self.resamples = list(classes), threshold, resamples

    @property
    def probability(self) -> np.ndarray:
        """Probabilities of the positive class, (N,)."""
        return np.array([row.probability for row in self.rows.values()])

    @property
    def label(self) -> np.ndarray:
        """Labels, (N,), 0 or 1."""
        return np.array([row.label for row in self.rows.values()])

    def scores(self) -> dict[str, Interval]:
        """Return name in MEASURES -> value with its interval over subjects."""
        subjects = [row.subject for row in self.rows.values()]
        return scores(self.probability, self.label, subjects, self.threshold, self.resamples)

    def tabulate(self) -> Tables:
        """Return predictions.csv (a row for each scan), summary.csv and the table of summary.md."""
        found, n = self.scores(), len(self.rows)
        subjects = len({row.subject for row in self.rows.values()})
        predictions = (
            [*row[:3], f"{row.probability:.6f}", self.classes[int(row.probability >= self.threshold)]]
            for row in self.rows.values()
        )
        summary = (
            [name, *(f"{x:.6f}" for x in interval), n, subjects, f"{self.threshold:.6f}"]
            for name, interval in found.items()
        )
        shown = ([MEASURES[name], f"{x.value:.3f}", f"{x.low:.3f} to {x.high:.3f}"] for name, x in found.items())
        (negative, positive), n_positive = self.classes, int(self.label.sum())
        return Tables(
            {
                PREDICTIONS: (["subject", "session", "diagnosis", "probability", "prediction"], predictions),
                "summary.csv": (["measure", *Interval._fields, "scans", "subjects", "threshold"], summary),
            },
            [
                f"{n} scans of {subjects} subjects: {n - n_positive} {negative}, {n_positive} {positive}. {positive} is"
                f" called at a probability of at least {self.threshold:.3f}. Intervals: 95 %, bootstrap over subjects.",
                markdown_table(["measure", "value", "95 % interval"], shown),
            ],
        )
