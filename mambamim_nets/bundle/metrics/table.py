"""What the tables of metrics share: statistics of a column, and how a cell shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["cell", "statistics"]


def statistics(values: Sequence[float]) -> dict[str, float]:
    counted = np.array([value for value in values if math.isfinite(value)], dtype=float)
    if not counted.size:
        return {"mean": math.nan, "std": math.nan, "median": math.nan, "n": 0}
    std = float(counted.std(ddof=1)) if counted.size > 1 else math.nan
    return {"mean": float(counted.mean()), "std": std, "median": float(np.median(counted)), "n": counted.size}


def cell(stats: Mapping[str, float], digits: int) -> str:
    if not stats["n"]:
        return "- (n 0)"
    spread = "" if math.isnan(stats["std"]) else f" ± {stats['std']:.{digits}f}"
    return f"{stats['mean']:.{digits}f}{spread} ({stats['median']:.{digits}f}; {stats['n']})"
