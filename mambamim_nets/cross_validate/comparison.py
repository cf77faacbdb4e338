"""Which of several numbers of the same cases is higher, and whether the cases can tell.

The paired bootstrap: the differences of two values of each case are drawn anew, with replacement, by subject, since two
scans of one person are no two observations. The interval holds the middle share of the means of these draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

__all__ = ["Choice", "Comparison", "Difference", "choose", "paired_bootstrap"]

DRAWS, LEVEL = 10_000, 0.95


class Difference(NamedTuple):
    """A mean difference over cases, its interval, and how many cases and subjects it rests on."""

    mean: float
    low: float
    high: float
    cases: int
    subjects: int

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


class Comparison(NamedTuple):
    """A candidate's mean Dice out of fold, and its difference to the first candidate; None of the first itself."""

    dice: float
    difference: Difference | None


class Choice(NamedTuple):
    """What is taken, why in one sentence, and the comparison of each candidate."""

    name: str
    why: str
    compared: dict[str, Comparison]


def paired_bootstrap(
    differences: Mapping[str, float], subject_of: Mapping[str, str], level: float = LEVEL, seed: int = 0
) -> Difference:
    """Return the mean difference of cases with its bootstrap interval, by subject.

    Args:
        differences: by case.
        subject_of: case -> the person scanned; a case that is not there is a person of its own.
        level: share of the draws that the interval holds, such as 0.95.
        seed: of the draws.

    Raises:
        ValueError: there is no case.
    """
    if not differences:
        raise ValueError("a difference needs at least one case")
    sums: dict[str, tuple[float, int]] = {}
    for case, value in differences.items():
        total, count = sums.get(subject_of.get(case, case), (0.0, 0))
        sums[subject_of.get(case, case)] = total + value, count + 1
    totals, counts = (np.array(part, dtype=float) for part in zip(*sums.values(), strict=True))
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(totals), np.full(len(totals), 1 / len(totals)), DRAWS)
    means = drawn @ totals / (drawn @ counts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(totals.sum() / counts.sum()), float(low), float(high), len(differences), len(totals))


def choose(scores: Mapping[str, Mapping[str, float]], subject_of: Mapping[str, str]) -> Choice:
    """Choose between candidates by their Dice out of fold.

    The first stays unless another is better by an interval that lies above 0; of several such, the one with the highest
    mean is taken. Where k candidates are compared with the first, each interval holds 1 - 0.05 / k of the draws, so
    that more candidates do not make a chance find more likely (Bonferroni).

    Args:
        scores: candidate -> case -> mean Dice of its structures; the same cases for each.
        subject_of: see `paired_bootstrap`.

    Raises:
        ValueError: two candidates have different cases.
    """
    first, *others = scores
    for name in others:
        if odd := sorted(scores[name].keys() ^ scores[first].keys()):
            raise ValueError(f"{name} and {first} must have the same cases to be compared; {odd[0]} is of one alone")
    level = 1 - (1 - LEVEL) / max(1, len(others))
    compared = {first: Comparison(_mean(scores[first]), None)}
    for name in others:
        differences = {case: scores[name][case] - scores[first][case] for case in scores[first]}
        compared[name] = Comparison(_mean(scores[name]), paired_bootstrap(differences, subject_of, level))
    better = [name for name in others if (found := compared[name].difference) is not None and found.low > 0]
    if better:
        best = max(better, key=lambda name: compared[name].dice)
        return Choice(best, f"{best} is better than {first}: {compared[best].difference}", compared)
    if not others:
        return Choice(first, "there is one candidate", compared)
    unclear = [name for name in others if (found := compared[name].difference) is not None and found.high >= 0]
    if unclear:
        return Choice(first, f"{first} stays: these cases cannot tell it apart from {', '.join(unclear)}", compared)
    return Choice(first, f"{first} is better than all others", compared)


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))
