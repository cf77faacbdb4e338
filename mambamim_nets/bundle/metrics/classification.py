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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mambamim_nets.bundle.files import write_csv, write_text

__all__ = ["MEASURES", "Interval", "curve", "measures", "scores", "write_scores", "youden"]

MEASURES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}


class Interval(NamedTuple):
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
        probability, label, threshold: as in `measures`.
        subjects: (N,) whose scan each is.
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


def write_scores(
    folder: Path, found: Mapping[str, Interval], n: Mapping[str, int], subjects: int, threshold: float
) -> str:
    """Write summary.csv and summary.md.

    Args:
        folder: exists.
        found: as from `scores`.
        n: scans by class name, negative first.
        subjects: how many there are.
        threshold: of the decisions.

    Returns:
        The Markdown summary.
    """
    rows = [
        [name, *(f"{x:.6f}" for x in interval), sum(n.values()), subjects, f"{threshold:.6f}"]
        for name, interval in found.items()
    ]
    columns = ["measure", "value", "low", "high", "scans", "subjects", "threshold"]
    write_csv(folder / "summary.csv", [columns, *rows])
    negative, positive = n
    lines = [
        f"{sum(n.values())} scans of {subjects} subjects: {n[negative]} {negative}, {n[positive]} {positive}. "
        f"{positive} is called at a probability of at least {threshold:.3f}. Intervals: 95 %, bootstrap over subjects.",
        "",
        "| measure | value | 95 % interval |",
        "|---|---|---|",
    ]
    lines += [f"| {MEASURES[name]} | {x.value:.3f} | {x.low:.3f} to {x.high:.3f} |" for name, x in found.items()]
    text = "\n".join(lines) + "\n"
    write_text(folder / "summary.md", text)
    return text
