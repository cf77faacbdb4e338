"""Pictures of points on their scan, and of detection rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation

from mambamim_nets.bundle.metrics.landmarks import THRESHOLDS, length_mm
from mambamim_nets.bundle.metrics.table import MEAN
from mambamim_nets.bundle.visualize.planes import COLOURS, MUTED, TEXT, Panel, PlaneFigure, as_volume, dark_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["landmark_figure", "sdr_figure"]

MARGIN = 15.0  # mm around the points in the lower row


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
    from matplotlib.lines import Line2D

    upright: Any = Orientation("RAS", labels=None)(image[:1])
    volume, spacing = as_volume(upright, "image"), [float(edge) for edge in upright.pixdim]
    inverse = np.linalg.inv(np.asarray(upright.affine, dtype=float))
    sets = {("-", "+"): nib.affines.apply_affine(inverse, points)}  # line and mark of each -> voxels
    if truth is not None:
        sets[":", "o"] = nib.affines.apply_affine(inverse, truth)
    middle = np.nanmean(sets["-", "+"], axis=0)
    reach = np.nanmax(np.abs(np.concatenate(list(sets.values())) - middle) * spacing) + MARGIN
    position = [int(np.clip(round(float(m)), 0, n - 1)) for m, n in zip(middle, volume.shape, strict=True)]
    picture = PlaneFigure(volume, position, spacing, title, views=2, legend=len(lengths))
    for view in range(2):
        for panel in picture.panels(view):
            for (line, mark), voxels in sets.items():
                x, y = panel.place(voxels)
                for ends, colour in zip(lengths.values(), COLOURS, strict=False):
                    pair = [list(names).index(end) for end in ends]
                    panel.axis.plot(x[pair], y[pair], line, color=colour, linewidth=0.9, marker=mark, markersize=5,
                                    markerfacecolor="none", markeredgewidth=0.9)  # fmt: skip
            _set_limits(panel, None if view == 0 else middle, reach)
    picture.caption(1, "around the points", size=8)
    lines = []
    for name, ends in lengths.items():
        text = f"{name}   {length_mm(points, names, ends):.1f} mm"
        if truth is not None:
            text += f" predicted (cross) / {length_mm(truth, names, ends):.1f} mm true (circle)"
        lines.append(text)
    crosses = [Line2D([], [], color=colour, marker="+") for _, colour in zip(lengths, COLOURS, strict=False)]
    picture.legend(crosses, lines)
    return picture.figure


def _set_limits(panel: Panel, middle: np.ndarray | None, reach: float) -> None:
    """Show all of a panel, or the part of its shape with at least `reach` mm around a voxel."""
    _, width, _, height = panel.extent
    if middle is None:
        limits = panel.extent
    else:
        x, y = map(float, panel.place(middle))
        across, up = reach * max(1.0, width / height), reach * max(1.0, 1 / (width / height))
        limits = (x - across, x + across, y - up, y + up)
    panel.axis.set_xlim(limits[:2])
    panel.axis.set_ylim(limits[2:])


def sdr_figure(rates: Mapping[str, np.ndarray], title: str | None = None) -> Figure:
    """Draw curves of the share of points that lie within each distance.

    Args:
        rates: point name -> share at each of THRESHOLDS mm, and "mean" over all points, drawn bold.
        title: printed above.
    """
    figure = dark_figure(5.2, 3.6)
    axis = figure.add_axes((0.12, 0.14, 0.84, 0.76), facecolor=figure.get_facecolor())
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
    return figure
