"""Which parts of predicted label maps are better left out, judged out of fold.

The rule: a step is taken only if it raises the mean Dice over the cases by at least `MARGIN`, and the interval of the
paired bootstrap, by subject, lies above 0. A step for one label is judged by that label's Dice, a step for all labels
taken together by the mean over labels. Dice is 1 where neither map has a label, and 0 where one has it: so a
false find that is removed counts. Volumes are tried at fixed shares of the smallest reference of a label. What is
measured here is done by `KeepPartsd`, as in inference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from monai.data import MetaTensor

from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.transforms.labels import KeepPartsd
from mambamim_nets.cross_validate.comparison import Difference, paired_bootstrap

__all__ = ["MARGIN", "Maps", "PostProcessing", "Step", "find_postprocessing"]

MARGIN = 0.001  # of Dice
SHARES = (0.01, 0.03, 0.1)  # of the smallest reference volume of a label


class Maps(NamedTuple):
    """The label maps of a case on its own grid, prediction and reference, both (1, D, H, W) with an affine in mm."""

    prediction: MetaTensor
    reference: MetaTensor


class Step(NamedTuple):
    """A step that was tried: in words, what it did to the Dice, and whether it is taken."""

    name: str
    difference: Difference
    taken: bool


class PostProcessing(NamedTuple):
    """The options that were chosen, as configurations have them, and every step that was tried."""

    keep_largest: bool | str | list[str]
    min_volume_ml: dict[str, float]
    steps: list[Step]

    @property
    def options(self) -> dict[str, Any]:
        """The options for inference and evaluation; null where there is no smallest volume."""
        return {"keep_largest": self.keep_largest, "min_volume_ml": self.min_volume_ml or None}


def find_postprocessing(
    cases: Sequence[str],
    load: Callable[[str], Maps],
    targets: Targets,
    subject_of: Mapping[str, str],
    watched: Callable[[Iterable[str], str], Iterable[str]] = lambda cases, _: cases,
) -> PostProcessing:
    """Find the post-processing that helps out of fold, by the rule of this module.

    Args:
        cases: names.
        load: returns the maps of a case; called twice for each, so that one case at a time is in memory.
        targets: of the task; with regions nothing is tried.
        subject_of: case -> the person scanned.
        watched: wraps a pass over the cases, such as with a progress bar that has a title.
    """
    if targets.regions:
        return PostProcessing(False, {}, [])
    labels = {name: value for value, name in targets.labels.items()}
    whole = {
        "as predicted": KeepPartsd("pred", targets),
        "each": KeepPartsd("pred", targets, True),
        "together": KeepPartsd("pred", targets, "together"),
    }
    smallest: dict[str, float] = {}
    found: dict[str, dict[str, dict[str, float]]] = {way: {} for way in whole}
    for case in watched(cases, "largest parts"):
        maps = load(case)
        for name, volume in _volumes(maps.reference, labels).items():
            smallest[name] = min(volume, smallest.get(name, np.inf))
        for way, transform in whole.items():
            found[way][case] = _dice(transform, maps, labels)

    def judged(title: str, after: Mapping[str, Any], before: Mapping[str, Any], names: Sequence[str]) -> Step:
        change = {case: np.mean([after[case][n] - before[case][n] for n in names]) for case in before}
        difference = paired_bootstrap(change, subject_of)
        return Step(title, difference, difference.mean >= MARGIN and difference.low > 0)

    raw = found["as predicted"]
    together = judged("largest part of all labels together", found["together"], raw, list(labels))
    each = {name: judged(f"largest part of {name}", found["each"], raw, [name]) for name in labels}
    taken = [name for name, step in each.items() if step.taken]
    gained = sum(each[name].difference.mean for name in taken) / len(labels)
    keep: bool | str | list[str] = taken or False
    if together.taken and together.difference.mean > gained:
        keep = "together"
        each = {name: step._replace(taken=False) for name, step in each.items()}
    elif taken:
        together = together._replace(taken=False)
        keep = True if len(taken) == len(labels) else taken
    volumes, tried = _smallest_volumes(cases, load, targets, keep, smallest, judged, watched)
    return PostProcessing(keep, volumes, [together, *each.values(), *tried])


def _smallest_volumes(
    cases: Sequence[str],
    load: Callable[[str], Maps],
    targets: Targets,
    keep: bool | str | list[str],
    smallest: Mapping[str, float],
    judged: Callable[..., Step],
    watched: Callable[[Iterable[str], str], Iterable[str]],
) -> tuple[dict[str, float], list[Step]]:
    """Return the smallest volume (ml) of a part for each label where one helps, on top of the parts that are kept."""
    labels = {name: value for value, name in targets.labels.items()}
    tables = {share: {name: float(f"{share * least:.2g}") for name, least in smallest.items()} for share in SHARES}
    ways: dict[float, KeepPartsd] = {0.0: KeepPartsd("pred", targets, keep)}
    ways |= {share: KeepPartsd("pred", targets, keep, table) for share, table in tables.items() if table}
    found: dict[float, dict[str, dict[str, float]]] = {share: {} for share in ways}
    for case in watched(cases, "smallest volumes"):
        maps = load(case)
        for share, transform in ways.items():
            found[share][case] = _dice(transform, maps, labels)
    chosen: dict[str, float] = {}
    steps: list[Step] = []
    for name in smallest:
        tried = {
            share: judged(f"{name}: parts below {tables[share][name]:g} ml", found[share], found[0.0], [name])
            for share in SHARES
        }
        taken = [share for share, step in tried.items() if step.taken]
        best = max(taken, key=lambda share: tried[share].difference.mean, default=None)
        if best is not None:
            chosen[name] = tables[best][name]
        steps += [step._replace(taken=share == best) for share, step in tried.items()]
    return chosen, steps


def _dice(transform: KeepPartsd, maps: Maps, labels: Mapping[str, int]) -> dict[str, float]:
    """Return the Dice of each label; 1 where neither map has it."""
    prediction = np.asarray(transform({"pred": maps.prediction})["pred"])
    reference = np.asarray(maps.reference)
    values = {}
    for name, value in labels.items():
        predicted, true = prediction == value, reference == value
        both = int(predicted.sum()) + int(true.sum())
        values[name] = 2 * int((predicted & true).sum()) / both if both else 1.0
    return values


def _volumes(reference: MetaTensor, labels: Mapping[str, int]) -> dict[str, float]:
    """Return the volume (ml) of each label that is there."""
    ml = float(np.prod([float(edge) for edge in reference.pixdim])) / 1000
    counts = {name: int((np.asarray(reference) == value).sum()) for name, value in labels.items()}
    return {name: count * ml for name, count in counts.items() if count}
