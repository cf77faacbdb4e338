"""Pictures of a training: what was measured after every epoch."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mambamim_nets.bundle.visualize.planes import BACKGROUND, COLOURS, MUTED, TEXT, dark_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves_figure"]

Curves = Mapping[str, Sequence[tuple[float, float]]]  # name -> points (epoch, value)
MOST_CURVES = 15  # in one panel; of more structures the mean alone is drawn
NAME_WIDTH = 30  # letters of a curve's name on a line, beside the panel


def curves_figure(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], title: str | None = None
) -> Figure:
    """Draw curves over the epochs of a training, in panels below one another.

    Args:
        panels: title of each panel -> name of each of its curves -> points (epoch, value). Values that are not finite
            are left out, and so are panels without a point.
        title: printed above.
    """
    finite = {
        panel: {name: [point for point in points if math.isfinite(point[1])] for name, points in curves.items()}
        for panel, curves in panels.items()
    }
    shown = {panel: curves for panel, curves in finite.items() if any(curves.values())}
    height = 0.9 + 1.6 * max(1, len(shown))
    figure = dark_figure(8.0, height)
    if title:
        figure.suptitle(title, color=TEXT, fontsize=11, parse_math=False)
    figure.subplots_adjust(left=0.09, right=0.8, bottom=0.4 / height, top=1 - 0.5 / height, hspace=0.4)
    axes = None
    for number, (panel, curves) in enumerate(shown.items()):
        last = number == len(shown) - 1
        axes = figure.add_subplot(len(shown), 1, number + 1, sharex=axes)  # all have the same epochs
        _draw(axes, panel, curves, last)
    return figure


def _draw(axes: Axes, title: str, curves: Curves, last: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_facecolor(BACKGROUND)
    axes.set_title(title, color=TEXT, fontsize=9, loc="left", parse_math=False)
    for number, (name, points) in enumerate(list(curves.items())[:MOST_CURVES]):
        if points:
            epochs, values = zip(*points, strict=True)
            marker = "." if len(points) < 40 else ""
            label = textwrap.fill(name, NAME_WIDTH)
            axes.plot(epochs, values, color=COLOURS[number], linewidth=1.2, marker=marker, markersize=4, label=label)
    if len(curves) > 1:
        legend = axes.legend(
            fontsize=6, frameon=False, labelcolor=TEXT, loc="center left", bbox_to_anchor=(1.0, 0.5), borderaxespad=0.3
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    axes.tick_params(colors=MUTED, labelsize=7, labelbottom=last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=MUTED, alpha=0.2, linewidth=0.5)
    for spine in axes.spines.values():
        spine.set_color(MUTED)
    if last:
        axes.set_xlabel("epoch", color=MUTED, fontsize=8)
