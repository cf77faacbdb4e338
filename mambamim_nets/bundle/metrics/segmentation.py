"""Dice, HD95 and surface Dice of each case and class, and the tables made of them.

The numbers are MONAI's (`compute_dice`, `compute_hausdorff_distance`, `compute_surface_dice` on voxel surfaces). What
MONAI leaves to the caller is decided here:

    structure in            dice    hd95    surface dice    missing
    neither map             nan     nan     nan             0           nothing to measure, not counted
    one of the two maps     0       nan     0               1           counted in `missing`, not in HD95
    both maps               ...     ...     ...             0

A mean HD95 therefore speaks only of the classes that were found; read it beside the `missing` count. The row "mean" of
a summary is over cases, each by the mean of its counted structures. std is the sample's (n - 1).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

from mambamim_nets.bundle.metrics.table import COUNTED, MEAN, MetricTable, Statistics, Tables, markdown_table

__all__ = ["METRICS", "Metric", "SegmentationTable", "case_metrics"]


class Metric(NamedTuple):
    """One number about a structure, in every table.

    Attributes:
        column: its name in metrics.csv and summary.csv.
        title: in summary.md; `{tolerance}` stands for the tolerance in mm.
        digits: decimals in summary.md.
        one_missing: its value where only one of the two maps has the structure.
        measure: gives its value where both have it, from `y_pred` and `y` (1, 1, D, H, W) bool as MONAI takes them,
            the voxel edges in mm and the tolerance in mm.
    """

    column: str
    title: str
    digits: int
    one_missing: float
    measure: Callable[[Mapping[str, Any], list[float], float], torch.Tensor]


def _dice(maps: Mapping[str, Any], spacing: list[float], tolerance: float) -> torch.Tensor:
    return compute_dice(**maps)


def _hd95(maps: Mapping[str, Any], spacing: list[float], tolerance: float) -> torch.Tensor:
    return compute_hausdorff_distance(**maps, percentile=95, spacing=spacing)


def _surface_dice(maps: Mapping[str, Any], spacing: list[float], tolerance: float) -> torch.Tensor:
    return compute_surface_dice(**maps, class_thresholds=[tolerance], spacing=spacing)


METRICS = {  # a new metric of label maps is one more entry: all tables follow from it
    "dice": Metric("dice", "Dice", 4, 0.0, _dice),
    "hd95": Metric("hd95_mm", "HD95 (mm)", 2, math.nan, _hd95),
    "surface_dice": Metric("surface_dice", "surface Dice at {tolerance:g} mm", 4, 0.0, _surface_dice),
}


def case_metrics(
    pred: np.ndarray | torch.Tensor,
    label: np.ndarray | torch.Tensor,
    structures: Mapping[str, Sequence[int]],
    spacing: Sequence[float],
    tolerance_mm: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Measure one predicted label map against the reference.

    Args:
        pred: (D, H, W) label values, or (1, D, H, W).
        label: the reference, same shape.
        structures: name -> the label values that belong to it (one for a class, several for a region).
        spacing: voxel edges along d, h, w in mm.
        tolerance_mm: distance in mm up to which a surface voxel counts as right in the surface Dice.

    Returns:
        structure name -> key of `METRICS` and "missing" -> value; for absent structures see the module.

    Raises:
        ValueError: the shapes differ or are not 3-D, the spacing is not three positive numbers, or the tolerance is
            negative.
    """
    pred, label = _label_map(pred, "pred"), _label_map(label, "label")
    if pred.shape != label.shape:
        raise ValueError(
            f"pred {tuple(pred.shape)} and label {tuple(label.shape)} must have one shape; invert the prediction first"
        )
    spacing = [float(edge) for edge in spacing]
    if len(spacing) != 3 or not all(0 < edge < math.inf for edge in spacing):
        raise ValueError(f"spacing {spacing} must be three positive voxel edges in mm")
    if not 0 <= tolerance_mm < math.inf:
        raise ValueError(f"tolerance_mm {tolerance_mm} must be a finite distance of at least 0 mm")
    pred, label = _crop(pred, label)
    measured = {}
    for name, values in _checked(structures).items():
        found, true = torch.isin(pred, torch.tensor(values)), torch.isin(label, torch.tensor(values))
        if found.any() and true.any():
            maps = {"y_pred": found[None, None], "y": true[None, None], "include_background": True}
            with warnings.catch_warnings():  # MONAI 1.6 warns of an argument that its own functions pass
                warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
                row = {key: metric.measure(maps, spacing, tolerance_mm).item() for key, metric in METRICS.items()}
            missing = 0.0
        elif found.any() or true.any():
            row, missing = {key: metric.one_missing for key, metric in METRICS.items()}, 1.0
        else:
            row, missing = dict.fromkeys(METRICS, math.nan), 0.0
        measured[name] = row | {"missing": missing}
    return measured


class SegmentationTable(MetricTable[Mapping[str, Mapping[str, float]]]):
    """Collect what `case_metrics` found in each case; write metrics.csv, summary.csv and summary.md.

    Args:
        structures: name -> label values, as given to `case_metrics`.
        tolerance_mm: tolerance of the surface Dice in mm, for the heading.
    """

    def __init__(self, structures: Mapping[str, Sequence[int]], tolerance_mm: float = 1.0) -> None:
        super().__init__()
        self.structures, self.tolerance_mm = _checked(structures), tolerance_mm

    def add(self, case: str, row: Mapping[str, Mapping[str, float]]) -> None:
        """Add the metrics of a case, structure name -> metric -> value; a repeated case is ignored.

        Raises:
            ValueError: its structures are not those of the table.
        """
        if set(row) != set(self.structures):
            raise ValueError(f"case {case!r}: classes {sorted(row)} must be {sorted(self.structures)}")
        super().add(case, row)

    def mean_dice(self) -> float:
        """Return the mean Dice over the cases of all processes, each by the mean of its structures."""
        self.gather()
        return self._statistics()[MEAN]["dice"].mean

    def _statistics(self) -> dict[str, dict[str, Statistics]]:
        """Return structure name, and "mean" over cases, -> key of METRICS -> its statistics."""
        cases = list(self.rows.values())
        found = {
            name: {key: Statistics.of(case[name][key] for case in cases) for key in METRICS} for name in self.structures
        }
        means = {
            key: Statistics.of(Statistics.of(row[key] for row in case.values()).mean for case in cases)
            for key in METRICS
        }
        return found | {MEAN: means}

    def tabulate(self) -> Tables:
        """Return metrics.csv (a row for each case and structure), summary.csv and the table of summary.md."""
        statistics = self._statistics()
        missing = {name: sum(int(case[name]["missing"]) for case in self.rows.values()) for name in self.structures}
        missing[MEAN] = sum(missing.values())
        metrics = (
            [case, "+".join(map(str, values)), name, *(f"{row[name][key]:.6f}" for key in METRICS),
             int(row[name]["missing"])]
            for case, row in self.rows.items() for name, values in self.structures.items()
        )  # fmt: skip
        summary = (
            [name, METRICS[key].column, *stats.cells, missing[name]]
            for name, by_key in statistics.items() for key, stats in by_key.items()
        )  # fmt: skip
        shown = (
            [name, *(stats.text(METRICS[key].digits) for key, stats in by_key.items()), missing[name]]
            for name, by_key in statistics.items()
        )
        columns = [metric.column for metric in METRICS.values()]
        titles = [metric.title.format(tolerance=self.tolerance_mm) for metric in METRICS.values()]
        return Tables(
            {
                "metrics.csv": (["case", "label", "name", *columns, "missing"], metrics),
                "summary.csv": (["name", "metric", *Statistics._fields, "missing"], summary),
            },
            [
                f"{self.count}; {COUNTED}; missing = found in only one of prediction and reference, not counted in"
                " HD95.",
                markdown_table(["class", *titles, "missing"], shown, right=1),
            ],
        )


def _checked(structures: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    checked = {str(name): [int(value) for value in values] for name, values in structures.items()}
    if not checked or MEAN in checked or any(not values or 0 in values for values in checked.values()):
        raise ValueError(
            f"structures {dict(structures)} must name at least one, each with label values other than 0, none {MEAN!r}"
        )
    return checked


def _label_map(values: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    if not isinstance(values, torch.Tensor):
        values = torch.from_numpy(np.ascontiguousarray(values))
    tensor = values.detach().cpu().as_subclass(torch.Tensor)  # a MetaTensor would compare its affine again and again
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3:
        raise ValueError(
            f"{name} {tuple(tensor.shape)} must be (D, H, W) or (1, D, H, W) of label values; take the argmax first"
        )
    return tensor


def _crop(pred: torch.Tensor, label: torch.Tensor, margin: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop both to the bounding box of what either calls foreground; no surface lies outside it."""
    foreground = (pred != 0) | (label != 0)
    box = []
    for axis in range(3):
        hit = foreground.any(dim=tuple(other for other in range(3) if other != axis)).nonzero()
        if not len(hit):
            return pred[:1, :1, :1], label[:1, :1, :1]
        box.append(slice(max(0, int(hit[0]) - margin), int(hit[-1]) + 1 + margin))
    return pred[tuple(box)], label[tuple(box)]
