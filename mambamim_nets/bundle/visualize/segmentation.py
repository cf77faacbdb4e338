"""Pictures of label maps over their scan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mambamim_nets.bundle.visualize.planes import COLOURS, Panel, PlaneFigure, as_volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["label_colours", "overlay_figure"]


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

    Raises:
        ValueError: the shapes differ or are not 3-D.
    """
    from matplotlib.patches import Patch

    image = as_volume(image, "image")
    maps = {"prediction" if reference is not None else "": _label_map(label, "label", image)}
    if reference is not None:
        maps["reference"] = _label_map(reference, "reference", image)
    classes = {int(value): str(name) for value, name in sorted(labels.items(), key=lambda item: int(item[0]))}
    classes.pop(0, None)
    colours = _colours(classes)
    columns = 1 if len(classes) <= 4 else 2 if reference is not None else 3

    centre = _centre(list(maps.values()), list(classes), image.shape)
    legend = math.ceil(len(classes) / columns)
    picture = PlaneFigure(image, centre, spacing, title, views=len(maps), legend=legend, window=window)
    for view, (name, values) in enumerate(maps.items()):
        for panel in picture.panels(view):
            _outline(panel, panel.cut(values), colours)
        picture.caption(view, name)
    ml = float(np.prod(spacing)) / 1000
    lines = []
    for value, name in classes.items():
        volumes = (f"{np.count_nonzero(values == value) * ml:.2f} ml {kind}".rstrip() for kind, values in maps.items())
        lines.append(f"{name}   {' / '.join(volumes)}")
    patches = [Patch(facecolor=colour, edgecolor=colour) for colour in colours.values()]
    picture.legend(patches, lines, columns, squares=True)
    return picture.figure


def _label_map(values: Any, name: str, image: np.ndarray) -> np.ndarray:
    """Return label values as whole numbers; uint8 stays uint8, since other types of a large scan take gigabytes."""
    if str(getattr(values, "dtype", "")).endswith("uint8"):
        return as_volume(values, name, image, np.uint8)
    return np.rint(as_volume(values, name, image)).astype(np.int32)


def _colours(values: Iterable[int]) -> dict[int, str]:
    return {value: COLOURS[index % len(COLOURS)] for index, value in enumerate(values)}


def label_colours(labels: Iterable[int]) -> dict[int, tuple[int, int, int]]:
    """Return the colour in which pictures show each label: red, green and blue, 0 to 255.

    Args:
        labels: their values, without background.
    """
    channels = {value: bytes.fromhex(colour.lstrip("#")) for value, colour in _colours(sorted(labels)).items()}
    return {value: (red, green, blue) for value, (red, green, blue) in channels.items()}


def _outline(panel: Panel, values: np.ndarray, colours: Mapping[int, str]) -> None:
    """Fill and outline each class along voxel boundaries."""
    from contourpy import FillType, contour_generator
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_rgba
    from matplotlib.path import Path

    (rows, columns), extent = values.shape, panel.extent
    # one voxel of background around, so that a class at the border is closed
    x = (np.arange(-1, columns + 1) + 0.5) * extent[1] / columns
    y = extent[3] - (np.arange(-1, rows + 1) + 0.5) * extent[3] / rows
    for value, colour in colours.items():
        mask = np.pad(values == value, 1)
        if mask.any():
            # as axis.contourf and axis.contour do it, in a third of their time: these serve many levels
            outlines = contour_generator(x, y, mask, fill_type=FillType.OuterCode)
            paths = [Path(points, codes) for points, codes in zip(*outlines.filled(0.5, 1.5), strict=True)]
            within = to_rgba(colour, 0.3)
            panel.axis.add_collection(PathCollection(paths, facecolor=within, edgecolor=colour, linewidth=1.2))
    panel.axis.set_xlim(extent[:2])
    panel.axis.set_ylim(extent[2:])


def _centre(maps: Sequence[np.ndarray], values: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Return the voxel in the centre of mass of the first map that has any of the values, else of the image."""
    for label in maps:
        # a plane at a time: np.isin takes 8 bytes for each voxel that it looks up
        planes = [np.isin(plane, values) for plane in label]
        counts = np.array([np.count_nonzero(plane) for plane in planes])
        if counts.any():
            across, up = (np.sum([plane.sum(axis=axis) for plane in planes], axis=0) for axis in (1, 0))
            profiles = (counts, across, up)
            return [round(float(profile @ np.arange(len(profile)) / counts.sum())) for profile in profiles]
    return [n // 2 for n in shape]
