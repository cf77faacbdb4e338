"""Pictures of masked reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mambamim_nets.bundle.visualize.planes import PlaneFigure, as_volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["reconstruction_figure"]

HIDDEN = (0x5F / 255, 0x63 / 255, 0x68 / 255)  # grey


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

    Raises:
        ValueError: the shapes differ or are not 3-D.
    """
    image = as_volume(image, "image")
    seen = image if given is None else as_volume(given, "given", image)
    visible = as_volume(visible, "visible", image) > 0.5
    rebuilt = as_volume(rebuilt, "rebuilt", image)
    centre = [n // 2 for n in image.shape]
    picture = PlaneFigure(image, centre, spacing, title, views=3, window=window, planes_are_rows=True)
    seen_as = f"visible ({100 * visible.mean():.0f} %)" if given is None else "distorted"
    for view, (name, volume) in enumerate((("input", image), (seen_as, seen), ("rebuilt", rebuilt))):
        picture.caption(view, name)
        for panel in picture.panels(view, volume, interpolation="nearest"):
            if view == 1:
                hidden = ~panel.cut(visible)
                panel.cover(np.dstack([np.full((*hidden.shape, 3), HIDDEN), hidden]), interpolation="nearest")
    return picture.figure
