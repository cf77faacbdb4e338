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
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

from mambamim_nets.bundle.files import write_csv, write_text
from mambamim_nets.bundle.metrics.table import cell, statistics

__all__ = ["MetricsTable", "case_metrics"]


METRICS = {"dice": "dice", "hd95": "hd95_mm", "surface_dice": "surface_dice"}  # key of case_metrics -> column
MEAN = "mean"


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
        structure name -> {"dice", "hd95" (mm), "surface_dice", "missing"}; for absent structures see the module.

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
    metrics = {}
    for name, values in _checked(structures).items():
        found, true = torch.isin(pred, torch.tensor(values)), torch.isin(label, torch.tensor(values))
        if found.any() and true.any():
            one_hot: dict[str, Any] = {"y_pred": found[None, None], "y": true[None, None], "include_background": True}
            with warnings.catch_warnings():  # MONAI 1.6 warns of an argument that its own functions pass
                warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
                row = {
                    "dice": compute_dice(**one_hot).item(),
                    "hd95": compute_hausdorff_distance(**one_hot, percentile=95, spacing=spacing).item(),
                    "surface_dice": compute_surface_dice(
                        **one_hot, class_thresholds=[tolerance_mm], spacing=spacing
                    ).item(),
                    "missing": 0.0,
                }
        elif found.any() or true.any():
            row = {"dice": 0.0, "hd95": math.nan, "surface_dice": 0.0, "missing": 1.0}
        else:
            row = {"dice": math.nan, "hd95": math.nan, "surface_dice": math.nan, "missing": 0.0}
        metrics[name] = row
    return metrics


class MetricsTable:
    """Collect the metrics of many cases, from one process or several, and write them as tables.

    Args:
        structures: name -> label values, as given to `case_metrics`.
        tolerance_mm: tolerance of the surface Dice, for the heading.
    """

    def __init__(self, structures: Mapping[str, Sequence[int]], tolerance_mm: float = 1.0) -> None:
        self.structures = _checked(structures)
        self.tolerance_mm = tolerance_mm
        self.rows: dict[str, dict[str, dict[str, float]]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, case: str, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Add the metrics of one case; a repeated one (from a padded distributed sampler) is ignored."""
        if set(metrics) != set(self.structures):
            raise ValueError(f"case {case!r}: classes {sorted(metrics)} must be {sorted(self.structures)}")
        self.rows.setdefault(str(case), {name: dict(row) for name, row in metrics.items()})

    def write(self, folder: str | os.PathLike[str]) -> str:
        """Write metrics.csv, summary.csv and summary.md.

        With torch.distributed initialised every rank must call it; the rows of all ranks are joined and rank 0 writes.

        Args:
            folder: made where it does not exist.

        Returns:
            The Markdown summary, the same on every rank.

        Raises:
            ValueError: no case was added on any rank.
        """
        rows = self._gather()
        if not rows:
            raise ValueError("no case was added to the table; evaluate at least one case before writing it")
        summary = self._summarise(rows)
        text = self._markdown(summary, len(rows))
        if not _distributed() or dist.get_rank() == 0:
            folder = Path(folder)
            self._write_rows(folder / "metrics.csv", rows)
            self._write_summary(folder / "summary.csv", summary)
            write_text(folder / "summary.md", text)
        return text

    def mean_dice(self) -> float:
        """Return the mean Dice over cases, each by the mean of its structures; on every rank the same."""
        return self._summarise(self._gather())[MEAN]["dice"]["mean"]

    def _gather(self) -> dict[str, dict[str, dict[str, float]]]:
        if not _distributed():
            return dict(sorted(self.rows.items()))
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self.rows)
        joined: dict[str, dict[str, dict[str, float]]] = {}
        for part in parts:
            for case, metrics in part.items():
                joined.setdefault(case, metrics)
        return dict(sorted(joined.items()))

    def _summarise(
        self, rows: Mapping[str, Mapping[str, Mapping[str, float]]]
    ) -> dict[str, dict[str, dict[str, float]]]:
        """Return class name or "mean" -> metric -> {mean, std, median, n}, and {n} under "missing"."""
        values = {
            name: {key: [case[name][key] for case in rows.values()] for key in METRICS} for name in self.structures
        }
        values[MEAN] = {
            key: [statistics([row[key] for row in case.values()])["mean"] for case in rows.values()] for key in METRICS
        }
        summary = {name: {key: statistics(series) for key, series in by_key.items()} for name, by_key in values.items()}
        for name in self.structures:
            summary[name]["missing"] = {"n": sum(int(case[name]["missing"]) for case in rows.values())}
        summary[MEAN]["missing"] = {"n": sum(summary[name]["missing"]["n"] for name in self.structures)}
        return summary

    def _write_rows(self, path: Path, rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        cells: list[list[Any]] = [["case", "label", "name", *METRICS.values(), "missing"]]
        for case, metrics in rows.items():
            for name, values in self.structures.items():
                row, label = metrics[name], "+".join(map(str, values))
                cells.append([case, label, name, *(_number(row[key], 6) for key in METRICS), int(row["missing"])])
        write_csv(path, cells)

    def _write_summary(self, path: Path, summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
        cells: list[list[Any]] = [["name", "metric", "mean", "std", "median", "n", "missing"]]
        for name, by_key in summary.items():
            for key, column in METRICS.items():
                stats = by_key[key]
                numbers = [_number(stats[part], 6) for part in ("mean", "std", "median")]
                cells.append([name, column, *numbers, stats["n"], by_key["missing"]["n"]])
        write_csv(path, cells)

    def _markdown(self, summary: Mapping[str, Mapping[str, Mapping[str, float]]], n_cases: int) -> str:
        lines = [
            (
                f"{n_cases} case{'s' if n_cases > 1 else ''}; mean ± standard deviation (median; n), n = values"
                " counted; missing = found in only one of prediction and reference, not counted in HD95."
            ),
            "",
            f"| class | Dice | HD95 (mm) | surface Dice at {self.tolerance_mm:g} mm | missing |",
            "|---|---|---|---|---:|",
        ]
        for name, by_key in summary.items():
            cells = [cell(by_key["dice"], 4), cell(by_key["hd95"], 2), cell(by_key["surface_dice"], 4)]
            title = f"**{name}**" if name == MEAN else name.replace("|", "\\|")
            lines.append(f"| {title} | {' | '.join(cells)} | {by_key['missing']['n']} |")
        return "\n".join(lines) + "\n"


def _checked(structures: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    checked = {str(name): [int(value) for value in values] for name, values in structures.items()}
    if not checked or MEAN in checked or any(not values or 0 in values for values in checked.values()):
        raise ValueError(
            f"structures {dict(structures)} must name at least one, each with label values other than 0, none {MEAN!r}"
        )
    return checked


def _label_map(values: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    tensor = (
        values.detach().cpu() if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    )
    tensor = torch.as_tensor(tensor).as_subclass(
        torch.Tensor
    )  # a MetaTensor would carry its affine through every comparison
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


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _number(value: float, digits: int) -> str:
    return "nan" if math.isnan(value) else f"{value:.{digits}f}"
