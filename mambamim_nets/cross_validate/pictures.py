"""Pictures of a cross-validation: Dice as box plots, the learning curves of all folds, and the worst cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai.transforms import LoadImage, Orientation

from mambamim_nets.bundle.handlers.epoch_log import read_progress
from mambamim_nets.bundle.visualize.planes import BACKGROUND, COLOURS, MUTED, TEXT, dark_figure
from mambamim_nets.bundle.visualize.segmentation import overlay_figure
from mambamim_nets.bundle.visualize.training import curves_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["box_figure", "case_figure", "folds_figure"]

OF_EVERY_RUN = ("train_loss", "val_mean_dice")


def box_figure(dice: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Draw the Dice of the cases of each structure as a box: quartiles, median, whiskers to 1.5 ranges, single cases.

    Args:
        dice: structure -> Dice of its cases; those that are not finite are left out.
        title: printed above.
    """
    figure = dark_figure(max(5.0, 1.0 + 0.8 * len(dice)), 4.5, layout="tight")
    axes = figure.add_subplot(facecolor=BACKGROUND)
    values = [[value for value in column if math.isfinite(value)] for column in dice.values()]
    boxes = axes.boxplot(values, patch_artist=True, widths=0.6, flierprops={"marker": ".", "markeredgecolor": MUTED})
    for number, box in enumerate(boxes["boxes"]):
        box.set(facecolor=COLOURS[number % len(COLOURS)], alpha=0.7)
    for part in ("whiskers", "caps"):
        for line in boxes[part]:
            line.set_color(MUTED)
    for line in boxes["medians"]:
        line.set_color(TEXT)
    axes.set_xticks(
        range(1, len(dice) + 1),
        list(dice),
        rotation=30 if len(dice) > 3 else 0,
        ha="right" if len(dice) > 3 else "center",
    )
    axes.set_title(title, color=TEXT, fontsize=10, parse_math=False)
    axes.set_ylabel("Dice", color=MUTED)
    axes.tick_params(colors=MUTED, labelsize=8)
    axes.grid(axis="y", color=MUTED, alpha=0.2)
    for spine in axes.spines.values():
        spine.set_color(MUTED)
    return figure


def folds_figure(folders: Mapping[str, Path], title: str) -> Figure:
    """Draw loss and validation Dice of several trainings over one another.

    Args:
        folders: name -> folder of a training, with its `progress.csv`.
        title: printed above.
    """
    rows = {name: read_progress(folder / "progress.csv") for name, folder in folders.items()}
    panels = {
        column: {name: [(row["epoch"], row[column]) for row in run if column in row] for name, run in rows.items()}
        for column in OF_EVERY_RUN
    }
    return curves_figure(panels, title)


def case_figure(image: str, prediction: Path, reference: str, labels: Mapping[int, str], title: str) -> Figure:
    """Draw prediction and reference of a case over its image, all turned to RAS.

    Args:
        image: file of the image, of which the first channel is shown.
        prediction: file of the predicted label map.
        reference: file of the expert's label map.
        labels: label value -> name.
        title: printed above.
    """
    load, to_ras = LoadImage(image_only=True, ensure_channel_first=True), Orientation("RAS", labels=None)
    scan: Any
    scan, found, true = (to_ras(load(str(path))[:1]) for path in (image, prediction, reference))
    return overlay_figure(scan, found, labels, title, true, [float(edge) for edge in scan.pixdim])
