"""Pictures of classification: where a network looked, and receiver operating characteristics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mambamim_nets.bundle.metrics.classification import Interval, curve
from mambamim_nets.bundle.visualize.planes import MUTED, TEXT, PlaneFigure, as_volume, dark_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["roc_figure", "saliency_figure"]

COLOUR = "#e69f00"


def saliency_figure(
    image: Any,
    heat: Any,
    title: str | None = None,
    meaning: str = "",
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> Figure:
    """Draw a heat map over its image in the three planes through its highest value.

    Args:
        image: (D, H, W) array or tensor, RAS.
        heat: same shape, 0 (not drawn) to 1.
        title: printed above.
        meaning: of the heat, printed beside it.
        spacing: voxel edges along d, h, w in mm.

    Raises:
        ValueError: the shapes differ or are not 3-D.
    """
    from matplotlib import colormaps

    image = as_volume(image, "image")
    heat = np.clip(as_volume(heat, "heat", image), 0, 1)
    position = np.unravel_index(int(heat.argmax()), heat.shape) if heat.any() else [n // 2 for n in heat.shape]
    picture = PlaneFigure(image, [int(index) for index in position], spacing, title)
    for panel in picture.panels():
        values = panel.cut(heat)
        colours = colormaps["inferno"](values)
        colours[..., 3] = 0.6 * values**1.5  # faint below half of the highest
        panel.cover(colours, interpolation="bilinear")
    picture.caption(0, meaning)
    return picture.figure


def roc_figure(
    probability: np.ndarray,
    label: np.ndarray,
    threshold: float,
    auc: Interval,
    classes: Sequence[str],
) -> Figure:
    """Draw the receiver operating characteristic with the point of the threshold.

    Args:
        probability: (N,) of the positive class.
        label: (N,) 0 or 1.
        threshold: a scan is called positive from it on.
        auc: with its 95 % interval.
        classes: negative and positive.
    """
    figure = dark_figure(4.6, 4.6, layout="tight")
    axis = figure.add_subplot(facecolor="black")
    axis.plot((0, 1), (0, 1), color=MUTED, linewidth=0.8, linestyle=":")
    axis.plot(*curve(probability, label), color=COLOUR, linewidth=1.6)
    called = np.asarray(probability) >= threshold
    point = (called[np.asarray(label) == 0].mean(), called[np.asarray(label) == 1].mean())
    axis.plot(*point, "o", color=TEXT, markersize=5)
    axis.annotate(f"at {threshold:.2f}", point, (8, -12), textcoords="offset points", color=TEXT, fontsize=8)
    title = f"{classes[0]} or {classes[1]}: AUC {auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})"
    axis.set_title(title, color=TEXT, fontsize=9, parse_math=False)
    axis.set_xlabel("1 - specificity", color=TEXT, fontsize=9)
    axis.set_ylabel("sensitivity", color=TEXT, fontsize=9)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_aspect("equal")
    axis.tick_params(colors=MUTED, labelsize=8)
    for spine in axis.spines.values():
        spine.set_color(MUTED)
    return figure
