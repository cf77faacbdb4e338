"""Pictures of label maps over their scan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mambamim_nets.bundle.visualize.planes import (
    COLOURS,
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["overlay", "overlay_figure"]


def overlay(
    image: Any,
    label: Any,
    labels: Mapping[int, str],
    path: str | os.PathLike[str],
    title: str | None = None,
    reference: Any | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    window: tuple[float, float] | None = None,
) -> Path:
    """Write `overlay_figure` as a PNG file and return its path."""
    return save_figure(overlay_figure(image, label, labels, title, reference, spacing, window), path)


def overlay_figure(
    image: Any,
    label: Any,
    labels: Mapping[int, str],
    title: str | None = None,
    reference: Any | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    window: tuple[float, float] | None = None,
) -> Figure:
    """Draw a label map over its image in three planes, and below it the reference where there is one.

    Args:
        image: (D, H, W) array or tensor, RAS; leading axes of length 1 are dropped.
        label: label values, same shape. The planes cut its centre of mass; where it is empty, the reference's or the
            image's centre.
        labels: label value -> class name; 0 is not drawn.
        title: printed above.
        reference: expert label values, same shape, for a second row.
        spacing: voxel edges along d, h, w in mm.
        window: intensities shown as black and white; by default the percentiles 0.5 and 99.5 of the image.

    Returns:
        The figure.

    Raises:
        ValueError: the shapes differ or are not 3-D.
    """
    image = as_volume(image, "image")
    maps = {"prediction" if reference is not None else "": same_shape(as_volume(label, "label"), image, "label")}
    if reference is not None:
        maps["reference"] = same_shape(as_volume(reference, "reference"), image, "reference")
    maps = {name: np.rint(values).astype(np.int32) for name, values in maps.items()}
    classes = {
        int(value): str(name) for value, name in sorted(labels.items(), key=lambda item: int(item[0])) if int(value)
    }
    position = _centre(list(maps.values()), classes, image.shape)
    limits = grey_limits(image, window)

    columns = 1 if len(classes) <= 4 else 2 if reference is not None else 3
    figure, axes = lay_out(
        image.shape, spacing, rows_are_planes=False, n_other=len(maps), title=title, legend=-(-len(classes) // columns)
    )
    for row, (name, values) in enumerate(maps.items()):
        for column, plane in enumerate(PLANES):
            axis = axes[row][column]
            extent = show_plane(axis, image, plane, position, spacing, limits)
            _outline(axis, plane_slice(values, plane, position), classes, extent)
            if row == 0:
                axis.set_title(plane_title(plane, position, image.shape), color=MUTED, fontsize=8, pad=4)
        if name:
            axes[row][0].set_ylabel(name, color=TEXT, fontsize=9, labelpad=6)
    _legend(figure, classes, maps, float(np.prod(spacing)) / 1000, columns)
    return figure


def _outline(
    axis: Axes, values: np.ndarray, classes: Mapping[int, str], extent: tuple[float, float, float, float]
) -> None:
    """Fill and outline each class along voxel boundaries."""
    rows, columns = values.shape
    # one voxel of background around, so that a class at the border is closed
    x = (np.arange(-1, columns + 1) + 0.5) * extent[1] / columns
    y = extent[3] - (np.arange(-1, rows + 1) + 0.5) * extent[3] / rows
    for value, colour in _colours(classes).items():
        mask = np.pad(values == value, 1).astype(float)
        if mask.any():
            axis.contourf(x, y, mask, levels=[0.5, 1.5], colors=[colour], alpha=0.3)
            axis.contour(x, y, mask, levels=[0.5], colors=[colour], linewidths=1.2)
    axis.set_xlim(extent[:2])
    axis.set_ylim(extent[2:])


def _legend(
    figure: Figure, classes: Mapping[int, str], maps: Mapping[str, np.ndarray], ml: float, columns: int
) -> None:
    from matplotlib.patches import Patch

    lines = []
    for value, name in classes.items():
        volumes = [
            f"{np.count_nonzero(values == value) * ml:.2f} ml{f' {kind}' if kind else ''}"
            for kind, values in maps.items()
        ]
        lines.append(f"{name}   {' / '.join(volumes)}")
    handles = [Patch(facecolor=colour, edgecolor=colour) for colour in _colours(classes).values()]
    legend = figure.legend(handles, lines, loc="lower center", ncols=columns, frameon=False, fontsize=8,
                           labelcolor=TEXT, bbox_to_anchor=(0.5, 0.24 / figure.get_figheight()), handlelength=1.0,
                           handleheight=0.9, labelspacing=0.35, borderaxespad=0.0)  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _centre(maps: Sequence[np.ndarray], classes: Mapping[int, str], shape: Sequence[int]) -> tuple[int, ...]:
    for values in maps:
        mask = np.isin(values, list(classes))
        total = np.count_nonzero(mask)
        if total:
            profiles = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
            return tuple(round(float(profile @ np.arange(len(profile)) / total)) for profile in profiles)
    return tuple(n // 2 for n in shape)


def _colours(classes: Mapping[int, str]) -> dict[int, str]:
    return {value: COLOURS[index % len(COLOURS)] for index, value in enumerate(classes)}
