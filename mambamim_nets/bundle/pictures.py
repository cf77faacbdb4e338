"""Pictures of label maps and of masked reconstructions, as PNG files or arrays for TensorBoard.

Arrays are (D, H, W) in RAS orientation: d runs to the patient's right, h to anterior, w to superior. Planes are drawn
in the radiological convention, as a scan is read: the patient's right is on the left of axial and coronal pictures,
anterior is on the left of sagittal ones. Letters on every panel say so.

matplotlib is imported on first use, through its object interface: no global state, safe in threads and without a
display.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mambamim_nets.bundle.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figure_array", "overlay", "overlay_figure", "reconstruction", "reconstruction_figure"]

DPI = 150
BACKGROUND = "#101214"
TEXT = "#e8eaed"
MUTED = "#9aa0a6"
HIDDEN = "#5f6368"
WARNING = "#fdd663"
LETTERS_PER_INCH = 18  # of a note
CONVENTION = "radiological convention: the patient's right is on the left"
# Distinct on grey and for most colour-blind readers: Okabe and Ito's first, then others for maps with many classes.
COLOURS = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2",
    "#a6761d", "#7570b3", "#66c2a5", "#fb8072", "#b3de69", "#bc80bd", "#8dd3c7", "#e7298a",
)  # fmt: skip


class _Plane(NamedTuple):
    name: str
    through: int  # array axis that the plane cuts
    across: int  # array axis drawn left to right, reversed in index
    letters: tuple[str, str, str, str]  # left, right, top, bottom


# Every drawn axis is reversed: R, A and S are the ends of the axes, and each comes first (left or top).
PLANES = (
    _Plane("axial", 2, 0, ("R", "L", "A", "P")),
    _Plane("coronal", 1, 0, ("R", "L", "S", "I")),
    _Plane("sagittal", 0, 1, ("A", "P", "S", "I")),
)


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


def figure_array(figure: Figure, dpi: int = 100) -> np.ndarray:
    """Render a figure as RGB, uint8, shape (H, W, 3): what `SummaryWriter.add_image(..., dataformats="HWC")` takes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# --- drawing --------------------------------------------------------------------------------------


def lay_out(
    shape: Sequence[int], spacing: Sequence[float], rows_are_planes: bool, n_other: int, title: str | None, legend: int
) -> tuple[Figure, list[list[Axes]]]:
    """Lay out panels of one scale: planes along one direction, `n_other` pictures along the other. Sizes in inches.

    A second line of the title is a warning: smaller, in its colour, and cut where it is too long.
    """
    from matplotlib.figure import Figure

    mm = [n * edge for n, edge in zip(shape, spacing, strict=True)]
    widths_mm = [mm[plane.across] for plane in PLANES]
    heights_mm = [mm[vertical_axis(plane)] for plane in PLANES]
    if rows_are_planes:
        widths, heights = [max(widths_mm)] * n_other, heights_mm
    else:
        widths, heights = widths_mm, [max(heights_mm)] * n_other
    scale = min(8.0 / sum(widths), 8.0 / sum(heights), 3.2 / max(max(widths), max(heights)))
    widths, heights = [w * scale for w in widths], [h * scale for h in heights]
    gap, left, edge = 0.08, 0.42, 0.12
    head, _, note = (title or "").partition("\n")
    top = 0.34 + (0.3 if head else 0.0) + (0.16 if note else 0.0)
    below = 0.32 + (0.06 + 0.19 * legend if legend else 0.0)
    width = max(left + sum(widths) + gap * (len(widths) - 1) + edge, 4.2)
    height = top + sum(heights) + gap * (len(heights) - 1) + below
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND)
    inset = (width - left - edge - sum(widths) - gap * (len(widths) - 1)) / 2
    axes: list[list[Axes]] = []
    y = height - top
    for h in heights:
        y -= h
        x, row = left + inset, []
        for w in widths:
            row.append(figure.add_axes((x / width, y / height, w / width, h / height), facecolor="black"))
            x += w + gap
        axes.append(row)
        y -= gap
    if head:
        figure.text(0.5, 1 - 0.12 / height, head, color=TEXT, fontsize=11, ha="center", va="top", parse_math=False)
    if note:
        text = shorten(note, int(LETTERS_PER_INCH * width), placeholder=" ...")
        figure.text(0.5, 1 - 0.42 / height, text, color=WARNING, fontsize=7, ha="center", va="top", parse_math=False)
    figure.text(0.5, 0.1 / height, CONVENTION, color=MUTED, fontsize=6, ha="center", va="bottom")
    return figure, axes


def show_plane(
    axis: Axes,
    volume: np.ndarray,
    plane: _Plane,
    position: Sequence[int],
    spacing: Sequence[float],
    limits: tuple[float, float],
    smooth: bool = True,
) -> tuple[float, float, float, float]:
    """Draw one plane to scale, with its letters; return its extent in mm (left, right, bottom, top)."""
    picture = plane_slice(volume, plane, position)
    extent = (0.0, picture.shape[1] * spacing[plane.across], 0.0, picture.shape[0] * spacing[vertical_axis(plane)])
    interpolation = "bicubic" if smooth else "nearest"
    axis.imshow(
        picture, cmap="gray", vmin=limits[0], vmax=limits[1], extent=extent, interpolation=interpolation, aspect="equal"
    )
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    places = (
        (0.02, 0.5, "left", "center"),
        (0.98, 0.5, "right", "center"),
        (0.5, 0.98, "center", "top"),
        (0.5, 0.02, "center", "bottom"),
    )
    for letter, (x, y, ha, va) in zip(plane.letters, places, strict=True):
        text = axis.text(
            x, y, letter, transform=axis.transAxes, ha=ha, va=va, color=TEXT, fontsize=7, fontweight="bold"
        )
        text.set_path_effects(_halo())
    return extent


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


def _hide(axis: Axes, visible: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    from matplotlib.colors import to_rgb

    cover = np.zeros((*visible.shape, 4))
    cover[..., :3] = to_rgb(HIDDEN)
    cover[..., 3] = ~visible
    axis.imshow(cover, extent=extent, interpolation="nearest", aspect="equal")


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


def _halo() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=1.5, foreground="black")]


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    return atomic_write(
        path, lambda part: figure.savefig(part, dpi=DPI, format="png", facecolor=figure.get_facecolor())
    )


# --- arrays ---------------------------------------------------------------------------------------


def as_volume(values: Any, name: str) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor, of any float type and on any device
        values = values.detach().cpu().float().numpy()
    array = np.asarray(values, dtype=np.float32)
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or not array.size:
        raise ValueError(f"{name} {array.shape} must be (D, H, W); choose one sample and one channel")
    return array


def same_shape(array: np.ndarray, image: np.ndarray, name: str) -> np.ndarray:
    if array.shape != image.shape:
        raise ValueError(f"{name} {array.shape} must have the shape of image {image.shape}")
    return array


def vertical_axis(plane: _Plane) -> int:
    """Return the array axis that is drawn bottom to top."""
    return 3 - plane.through - plane.across


def plane_slice(volume: np.ndarray, plane: _Plane, position: Sequence[int]) -> np.ndarray:
    """Return one plane as a picture: rows from anterior or superior, columns from right or anterior."""
    picture = np.take(volume, position[plane.through], axis=plane.through)  # across < up for every plane
    return picture.T[::-1, ::-1]


def plane_title(plane: _Plane, position: Sequence[int], shape: Sequence[int]) -> str:
    return f"{plane.name} {position[plane.through] + 1}/{shape[plane.through]}"


def _centre(maps: Sequence[np.ndarray], classes: Mapping[int, str], shape: Sequence[int]) -> tuple[int, ...]:
    for values in maps:
        mask = np.isin(values, list(classes))
        total = np.count_nonzero(mask)
        if total:
            profiles = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
            return tuple(round(float(profile @ np.arange(len(profile)) / total)) for profile in profiles)
    return tuple(n // 2 for n in shape)


def grey_limits(image: np.ndarray, window: tuple[float, float] | None) -> tuple[float, float]:
    if window is not None:
        if not window[0] < window[1]:
            raise ValueError(f"window {window} must be (low, high) with low < high")
        return float(window[0]), float(window[1])
    sample = image.reshape(-1)[:: max(1, image.size // 2_000_000)]  # enough for a percentile of a large scan
    finite = sample[np.isfinite(sample)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0


def _colours(classes: Mapping[int, str]) -> dict[int, str]:
    return {value: COLOURS[index % len(COLOURS)] for index, value in enumerate(classes)}
