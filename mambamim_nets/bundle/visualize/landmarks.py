"""Pictures of points on their scan, and of detection rates, as PNG files or figures for TensorBoard.

Conventions are those of `visualize.planes`: arrays in RAS, radiological convention, matplotlib on first use and without
global state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation

from mambamim_nets.bundle.metrics.landmarks import MEAN, THRESHOLDS, length_mm
from mambamim_nets.bundle.visualize.planes import (
    BACKGROUND,
    COLOURS,
    DPI,
    MUTED,
    PLANES,
    TEXT,
    as_volume,
    grey_limits,
    lay_out,
    plane_title,
    save_figure,
    show_plane,
    vertical_axis,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["landmark_figure", "landmark_overlay", "sdr_curve"]

MARGIN = 15.0  # mm around the points in the lower row


def landmark_overlay(
    image: MetaTensor,
    points: np.ndarray,
    names: Sequence[str],
    lengths: Mapping[str, Sequence[str]],
    path: str | os.PathLike[str],
    title: str | None = None,
    truth: np.ndarray | None = None,
) -> Path:
    """Write `landmark_figure` as a PNG file and return its path."""
    return save_figure(landmark_figure(image, points, names, lengths, title, truth), path)


def landmark_figure(
    image: MetaTensor,
    points: np.ndarray,
    names: Sequence[str],
    lengths: Mapping[str, Sequence[str]],
    title: str | None = None,
    truth: np.ndarray | None = None,
) -> Figure:
    """Draw points over their scan in three planes through their middle: the whole scan, and below it the part around.

    Points are projected onto the planes. Predicted ones are crosses joined by a line for each length, true ones circles
    joined by dots; the legend has the lengths.

    Args:
        image: (1, D, H, W), any orientation.
        points: (N, 3) in RAS mm.
        names: of the points.
        lengths: name -> its two ends.
        title: printed above.
        truth: (N, 3) in RAS mm, NaN where missing.
    """
    upright: Any = Orientation("RAS", labels=None)(image[:1])
    volume = as_volume(upright, "image")
    spacing = [float(edge) for edge in upright.pixdim]
    inverse = np.linalg.inv(np.asarray(upright.affine, dtype=float))
    sets = {"predicted": nib.affines.apply_affine(inverse, points)}
    if truth is not None:
        sets["true"] = nib.affines.apply_affine(inverse, truth)
    middle = np.nanmean(sets["predicted"], axis=0)
    position = [int(np.clip(round(float(m)), 0, n - 1)) for m, n in zip(middle, volume.shape, strict=True)]
    limits = grey_limits(volume, None)
    figure, axes = lay_out(volume.shape, spacing, False, 2, title, legend=len(lengths))
    reach = [np.nanmax(np.abs(np.concatenate(list(sets.values())) - middle) * spacing, axis=0).max() + MARGIN]
    for row in range(2):
        for plane, axis in zip(PLANES, axes[row], strict=True):
            extent = show_plane(axis, volume, plane, position, spacing, limits)
            across, up = plane.across, vertical_axis(plane)
            for kind, voxels in sets.items():
                x = extent[1] - (voxels[:, across] + 0.5) * spacing[across]
                y = (voxels[:, up] + 0.5) * spacing[up]
                for ends, colour in zip(lengths.values(), COLOURS, strict=False):
                    pair = [list(names).index(end) for end in ends]
                    line, mark = ("-", "+") if kind == "predicted" else (":", "o")
                    axis.plot(x[pair], y[pair], line, color=colour, linewidth=0.9, marker=mark, markersize=5,
                              markerfacecolor="none", markeredgewidth=0.9)  # fmt: skip
            if row == 0:
                axis.set_title(plane_title(plane, position, volume.shape), color=MUTED, fontsize=8, pad=4)
                axis.set_xlim(extent[:2])
                axis.set_ylim(extent[2:])
            else:
                cx = extent[1] - (middle[across] + 0.5) * spacing[across]
                cy = (middle[up] + 0.5) * spacing[up]
                ratio = extent[1] / extent[3]
                half = (reach[0] * max(1.0, ratio), reach[0] * max(1.0, 1 / ratio))
                axis.set_xlim(cx - half[0], cx + half[0])
                axis.set_ylim(cy - half[1], cy + half[1])
    axes[1][0].set_ylabel("around the points", color=TEXT, fontsize=8, labelpad=6)
    _legend(figure, names, lengths, points, truth)
    return figure


def sdr_curve(rates: Mapping[str, np.ndarray], path: str | os.PathLike[str], title: str | None = None) -> Path:
    """Write a curve of the share of points that lie within each distance, and return its path.

    Args:
        rates: point name -> share at each of THRESHOLDS mm, and "mean" over all points, drawn bold.
        path: PNG file.
        title: printed above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), dpi=DPI, facecolor=BACKGROUND)
    axis = figure.add_axes((0.12, 0.14, 0.84, 0.76), facecolor=BACKGROUND)
    for (name, rate), colour in zip(rates.items(), (*COLOURS, *COLOURS), strict=False):
        bold = name == MEAN
        axis.plot(THRESHOLDS, 100 * rate, label="all points" if bold else name, color=TEXT if bold else colour,
                  linewidth=2.2 if bold else 1.0)  # fmt: skip
    axis.set(xlim=(0, THRESHOLDS[-1]), ylim=(0, 101), xlabel="distance (mm)", ylabel="points within it (%)")
    for text in (axis.xaxis.label, axis.yaxis.label, *axis.get_xticklabels(), *axis.get_yticklabels()):
        text.set(color=MUTED, fontsize=8)
    axis.tick_params(colors=MUTED)
    axis.grid(color=MUTED, alpha=0.2)
    axis.legend(loc="lower right", frameon=False, fontsize=7, labelcolor=TEXT)
    if title:
        figure.text(0.5, 0.97, title, color=TEXT, fontsize=10, ha="center", va="top", parse_math=False)
    return save_figure(figure, path)


def _legend(
    figure: Figure,
    names: Sequence[str],
    lengths: Mapping[str, Sequence[str]],
    points: np.ndarray,
    truth: np.ndarray | None,
) -> None:
    from matplotlib.lines import Line2D

    lines, handles = [], []
    for (name, ends), colour in zip(lengths.items(), COLOURS, strict=False):
        text = f"{name}   {length_mm(points, list(names), ends):.1f} mm"
        if truth is not None:
            text += f" predicted (cross) / {length_mm(truth, list(names), ends):.1f} mm true (circle)"
        lines.append(text)
        handles.append(Line2D([], [], color=colour, marker="+"))
    legend = figure.legend(
        handles,
        lines,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.24 / figure.get_figheight()),
        frameon=False,
        fontsize=8,
        labelcolor=TEXT,
        labelspacing=0.35,
        borderaxespad=0.0,
    )
    for entry in legend.get_texts():
        entry.set_parse_math(False)
