"""What a fine-tuning was evaluated to: per case and structure, in a small file, and the numbers made from such files.

Glossary:
    values: an array over seeds of pre-training, seeds of fine-tuning and cases (P, S, C), NaN where nothing is
        measured. A row from scratch has P = 1. Cases of several folds lie side by side.
    two-level bootstrap: both kinds of seeds and the cases are drawn anew, with replacement, and the mean is taken; the
        standard error is the standard deviation of such means. Along an axis with a single member it sees no spread,
        and with n seeds it is low by about sqrt(1 - 1 / n).
"""

import csv
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mambamim_nets.reproduce.plan import Kept, replacing

__all__ = ["METRICS", "Estimate", "effect_size", "estimate", "keep"]

METRICS = ("dice", "hd95_mm")
DRAWS = 2000

# seed of pre-training, seed of fine-tuning, (fold, case) -> value
Measured = Mapping[tuple[int | None, int, tuple[int | str, str]], float]


class Estimate(NamedTuple):
    """A mean and its standard error; None where a single value shows no spread."""

    mean: float
    error: float | None


def keep(metrics: Path, kept: Kept, facts: Mapping[str, Any]) -> None:
    """Write the file of a run's results.

    Args:
        metrics: metrics.csv of its evaluation.
        kept: the file, and the settings that go into it.
        facts: more that is to be on record, such as date and machine.

    Raises:
        ValueError: the evaluation measured no case.
    """
    cases: dict[str, dict[str, list[float | None]]] = {}
    with metrics.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            numbers = [float(row[name]) for name in METRICS]
            cases.setdefault(row["case"], {})[row["name"]] = [None if math.isnan(x) else x for x in numbers]
    if not cases:
        raise ValueError(f"{metrics} has no case; remove its folder and start again")
    lines = ",\n".join(f"  {json.dumps(case)}: {json.dumps(of)}" for case, of in cases.items())
    head = json.dumps({**facts, "settings": kept.settings, "metrics": METRICS}, indent=1).removesuffix("\n}")
    kept.path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(kept.path) as part:
        part.write_text(f'{head},\n "cases": {{\n{lines}\n }}\n}}\n', encoding="utf-8")


def _array(measured: Measured) -> np.ndarray:
    """Return measured values as (P, S, C), in an order that is theirs, so that the same draws meet the same values."""
    axes = [
        {key: place for place, key in enumerate(sorted(set(keys), key=repr))} for keys in zip(*measured, strict=True)
    ]
    values = np.full([len(axis) for axis in axes], np.nan)
    for keys, value in measured.items():
        values[tuple(axis[key] for axis, key in zip(axes, keys, strict=True))] = value
    return values


def estimate(measured: Measured, seed: int = 0) -> Estimate | None:
    """Return the mean of values and its standard error by the two-level bootstrap; None where there is no value.

    Args:
        measured: values by seeds and case; NaN counts as not measured.
        seed: of the draws.
    """
    values = _array(measured) if measured else np.full((1, 1, 1), np.nan)
    if np.isnan(values).all():
        return None
    if values.size == 1:
        return Estimate(float(values.item()), None)
    generator = np.random.default_rng(seed)
    means = np.empty(DRAWS)
    with warnings.catch_warnings():  # a draw of a partial table may hold no value at all
        warnings.simplefilter("ignore", RuntimeWarning)
        for draw in range(DRAWS):
            means[draw] = np.nanmean(values[np.ix_(*(generator.integers(size, size=size) for size in values.shape))])
        return Estimate(float(np.nanmean(values)), float(np.nanstd(means, ddof=1)))


def effect_size(measured: Measured) -> float | None:
    """Return the mean of paired differences over their standard deviation over cases, each the mean of its seeds.

    This is Cohen's d of paired samples (d_z). None with fewer than two cases, or without spread.
    """
    if not measured:
        return None
    cases = np.nanmean(_array(measured), axis=(0, 1))
    spread = float(np.nanstd(cases, ddof=1)) if len(cases) > 1 else 0.0
    return float(np.nanmean(cases)) / spread if spread > 0 else None
