"""Pictures of masked reconstructions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mambamim_nets.bundle.visualize.planes import (
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

__all__ = ["reconstruction", "reconstruction_figure"]

HIDDEN = "#5f6368"


def reconstruction(
    image: Any,
    visible: Any,
    rebuilt: Any,
    path: str | os.PathLike[str],
    title: str | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    window: tuple[float, float] | None = None,
    given: Any | None = None,
) -> Path:
    """Write `reconstruction_figure` as a PNG file and return its path."""
    return save_figure(reconstruction_figure(image, visible, rebuilt, title, spacing, window, given), path)


def reconstruction_figure(
    image: Any,
    visible: Any,
    rebuilt: Any,
    title: str | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    window: tuple[float, float] | None = None,
    given: Any | None = None,
) -> Figure:
    """Draw input, visible part and reconstruction side by side, one row per plane through the centre.

    Args:
        image: (D, H, W) array or tensor, RAS; leading axes of length 1 are dropped.
        visible: bool, same shape, True = kept; hidden voxels are drawn grey.
        rebuilt: reconstruction, same shape and intensity scale as `image`.
        title: printed above.
        spacing: voxel edges along d, h, w in mm.
        window: intensities shown as black and white, for all panels; by default the percentiles 0.5 and 99.5 of
            `image`.
        given: what the network saw, same shape, if not the visible part of `image`.

    Returns:
        The figure.

    Raises:
        ValueError: the shapes differ or are not 3-D.
    """
    image = as_volume(image, "image")
    seen = image if given is None else same_shape(as_volume(given, "given"), image, "given")
    visible = same_shape(as_volume(visible, "visible"), image, "visible") > 0.5
    rebuilt = same_shape(as_volume(rebuilt, "rebuilt"), image, "rebuilt")
    position = tuple(n // 2 for n in image.shape)
    limits = grey_limits(image, window)
    figure, axes = lay_out(image.shape, spacing, rows_are_planes=True, n_other=3, title=title, legend=0)
    headings = ("input", f"visible ({100 * visible.mean():.0f} %)" if given is None else "distorted", "rebuilt")
    for row, plane in enumerate(PLANES):
        for column, values in enumerate((image, seen, rebuilt)):
            axis = axes[row][column]
            extent = show_plane(axis, values, plane, position, spacing, limits, smooth=False)
            if column == 1:
                _hide(axis, plane_slice(visible, plane, position), extent)
            if row == 0:
                axis.set_title(headings[column], color=TEXT, fontsize=9, pad=5)
        axes[row][0].set_ylabel(plane_title(plane, position, image.shape), color=MUTED, fontsize=8, labelpad=6)
    return figure


def _hide(axis: Axes, visible: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    from matplotlib.colors import to_rgb

    cover = np.zeros((*visible.shape, 4))
    cover[..., :3] = to_rgb(HIDDEN)
    cover[..., 3] = ~visible
    axis.imshow(cover, extent=extent, interpolation="nearest", aspect="equal")
