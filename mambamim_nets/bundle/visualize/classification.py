"""Pictures of classification: where a network looked, and receiver operating characteristics."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mambamim_nets.bundle.metrics.classification import Interval, curve
from mambamim_nets.bundle.visualize.planes import (
    BACKGROUND,
    DPI,
    MUTED,
    PLANES,
    TEXT,
    as_volume,
    grey_limits,
    lay_out,
    plane_slice,
    plane_title,
    same_shape,
    save_figure,
    show_plane,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["roc", "saliency", "saliency_figure"]

COLOUR = "#e69f00"


def saliency(
    image: Any,
    heat: Any,
    path: str | os.PathLike[str],
    title: str | None = None,
    meaning: str = "",
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> Path:
    """Write `saliency_figure` as a PNG file and return its path."""
    return save_figure(saliency_figure(image, heat, title, meaning, spacing), path)


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
    heat = np.clip(same_shape(as_volume(heat, "heat"), image, "heat"), 0, 1)
    position = np.unravel_index(int(heat.argmax()), heat.shape) if heat.any() else [n // 2 for n in heat.shape]
    position = [int(index) for index in position]
    figure, axes = lay_out(image.shape, spacing, rows_are_planes=False, n_other=1, title=title, legend=0)
    limits = grey_limits(image, None)
    for axis, plane in zip(axes[0], PLANES, strict=True):
        extent = show_plane(axis, image, plane, position, spacing, limits)
        values = plane_slice(heat, plane, position)
        colours = colormaps["inferno"](values)
        colours[..., 3] = 0.6 * values**1.5  # faint below half of the highest
        axis.imshow(colours, extent=extent, interpolation="bilinear", aspect="equal")
        axis.set_title(plane_title(plane, position, image.shape), color=MUTED, fontsize=8, pad=4)
    if meaning:
        axes[0][0].set_ylabel(meaning, color=TEXT, fontsize=9, labelpad=6, parse_math=False)
    return figure


def roc(
    probability: np.ndarray,
    label: np.ndarray,
    threshold: float,
    auc: Interval,
    classes: Sequence[str],
    path: str | os.PathLike[str],
) -> Path:
    """Draw the receiver operating characteristic with the point of the threshold as a PNG file; return its path.

    Args:
        probability: (N,) of the positive class.
        label: (N,) 0 or 1.
        threshold: a scan is called positive from it on.
        auc: with its 95 % interval.
        classes: negative and positive.
        path: of the file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.6), dpi=DPI, facecolor=BACKGROUND, layout="tight")
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
    return save_figure(figure, path)
