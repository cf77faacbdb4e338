"""The planes of a scan that every picture shows: where they are cut, how they are drawn, and how a figure is kept.

Arrays are (D, H, W) in RAS orientation: d runs to the patient's right, h to anterior, w to superior. Planes are drawn
in the radiological convention, as a scan is read: the patient's right is on the left of axial and coronal pictures,
anterior is on the left of sagittal ones. Letters on every panel say so.

matplotlib is imported on first use, through its object interface: no global state, safe in threads and without a
display.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mambamim_nets.bundle.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "as_volume",
    "figure_array",
    "grey_limits",
    "lay_out",
    "plane_slice",
    "plane_title",
    "save_figure",
    "show_plane",
]

DPI = 150
BACKGROUND = "#101214"
TEXT = "#e8eaed"
MUTED = "#9aa0a6"
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


def grey_limits(image: np.ndarray, window: tuple[float, float] | None) -> tuple[float, float]:
    if window is not None:
        if not window[0] < window[1]:
            raise ValueError(f"window {window} must be (low, high) with low < high")
        return float(window[0]), float(window[1])
    sample = image.reshape(-1)[:: max(1, image.size // 2_000_000)]  # enough for a percentile of a large scan
    finite = sample[np.isfinite(sample)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0
