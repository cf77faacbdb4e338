"""What all pictures share: the planes of a scan and how they are drawn, captions, legends, and where a figure goes.

Arrays are (D, H, W) in RAS orientation: d runs to the patient's right, h to anterior, w to superior. Planes are drawn
in the radiological convention, as a scan is read: the patient's right is on the left of axial and coronal pictures,
anterior is on the left of sagittal ones. Letters on every panel say so.

matplotlib is imported on first use, through its object interface: no global state, safe in threads and without a
display. A picture is a function `<what>_figure` from arrays to a figure, in the module of its task; who shows it
calls `save_figure` or `log_figure`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mambamim_nets.bundle.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "PlaneFigure", "as_volume", "dark_figure", "figure_array", "log_figure", "save_figure"]

logger = logging.getLogger("mambamim_nets")
DPI, TENSORBOARD_DPI = 150, 100  # dots per inch of files, and of what TensorBoard shows
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


class Plane(NamedTuple):
    """One of the three planes. Every drawn axis is reversed: R, A and S are the ends of the axes, and come first."""

    name: str
    through: int  # array axis that the plane cuts
    across: int  # array axis drawn left to right
    up: int  # array axis drawn bottom to top
    letters: tuple[str, str, str, str]  # left, right, top, bottom


PLANES = (
    Plane("axial", 2, 0, 1, ("R", "L", "A", "P")),
    Plane("coronal", 1, 0, 2, ("R", "L", "S", "I")),
    Plane("sagittal", 0, 1, 2, ("A", "P", "S", "I")),
)
LETTERS_AT = (  # x, y and alignments
    (0.02, 0.5, "left", "center"),
    (0.98, 0.5, "right", "center"),
    (0.5, 0.98, "center", "top"),
    (0.5, 0.02, "center", "bottom"),
)


class Panel(NamedTuple):
    """A plane of a volume as it is drawn, with its extent (left, right, bottom, top) in mm."""

    plane: Plane
    axis: Axes
    extent: tuple[float, float, float, float]
    position: Sequence[int]
    spacing: Sequence[float]

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """Return the plane of a volume (D, H, W): rows from anterior or superior, columns from right or anterior."""
        picture = np.take(volume, self.position[self.plane.through], axis=self.plane.through)  # across < up
        return picture.T[::-1, ::-1]

    def place(self, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where array positions (..., 3) lie in the panel: mm from the left and from the bottom."""
        across, up = self.plane.across, self.plane.up
        return (
            self.extent[1] - (voxels[..., across] + 0.5) * self.spacing[across],
            (voxels[..., up] + 0.5) * self.spacing[up],
        )

    def cover(self, colours: np.ndarray, interpolation: Literal["nearest", "bilinear"]) -> None:
        """Draw colours with opacity (rows, columns, 4), as `cut` lays them out, over the panel."""
        self.axis.imshow(colours, extent=self.extent, interpolation=interpolation, aspect="equal")


class PlaneFigure:
    """A figure of panels of one scale: the three planes through one voxel of a scan, in one view of it or several.

    The planes lie side by side, each view in a row; or below one another, each view in a column. Beside the scan stand
    the name and index of every plane and the convention of the sides.

    Args:
        image: (D, H, W), RAS.
        position: the voxel.
        spacing: voxel edges along d, h, w in mm.
        title: printed above; a second line is a warning: smaller, in its colour, and cut where it is too long.
        views: how many there are.
        legend: lines of the legend, for which room is left.
        window: intensities shown as black and white; None: the percentiles 0.5 and 99.5 of the image.
        planes_are_rows: whether the planes lie below one another.

    Raises:
        ValueError: the window is empty.
    """

    def __init__(
        self,
        image: np.ndarray,
        position: Sequence[int],
        spacing: Sequence[float],
        title: str | None = None,
        views: int = 1,
        legend: int = 0,
        window: tuple[float, float] | None = None,
        planes_are_rows: bool = False,
    ) -> None:
        self.image, self.position, self.spacing = image, position, spacing
        self.limits, self.planes_are_rows = _grey_limits(image, window), planes_are_rows
        self.figure, axes = _lay_out(image.shape, spacing, planes_are_rows, views, title, legend)
        self.axes: list[tuple[Axes, ...]] = list(zip(*axes, strict=True)) if planes_are_rows else list(map(tuple, axes))
        for plane, axis in zip(PLANES, self.axes[0], strict=True):
            name = f"{plane.name} {position[plane.through] + 1}/{image.shape[plane.through]}"
            if planes_are_rows:
                axis.set_ylabel(name, color=MUTED, fontsize=8, labelpad=6)
            else:
                axis.set_title(name, color=MUTED, fontsize=8, pad=4)

    def panels(
        self,
        view: int = 0,
        volume: np.ndarray | None = None,
        interpolation: Literal["nearest", "bicubic"] = "bicubic",
    ) -> list[Panel]:
        """Draw the planes of a volume, by default the image, in grey with the letters of their sides.

        Args:
            view: in which to draw them.
            volume: (D, H, W), of the shape and the intensity scale of the image.
            interpolation: between voxels.

        Returns:
            The panels, in the order of `PLANES`.
        """
        return [
            self._panel(plane, axis, self.image if volume is None else volume, interpolation)
            for plane, axis in zip(PLANES, self.axes[view], strict=True)
        ]

    def _panel(self, plane: Plane, axis: Axes, volume: np.ndarray, interpolation: str) -> Panel:
        mm = [n * edge for n, edge in zip(volume.shape, self.spacing, strict=True)]
        panel = Panel(plane, axis, (0.0, mm[plane.across], 0.0, mm[plane.up]), self.position, self.spacing)
        low, high = self.limits
        axis.imshow(
            panel.cut(volume), cmap="gray", vmin=low, vmax=high, extent=panel.extent, interpolation=interpolation,
            aspect="equal",
        )  # fmt: skip
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
        for letter, (x, y, ha, va) in zip(plane.letters, LETTERS_AT, strict=True):
            text = axis.text(
                x, y, letter, transform=axis.transAxes, ha=ha, va=va, color=TEXT, fontsize=7, fontweight="bold"
            )
            text.set_path_effects(_halo())
        return panel

    def caption(self, view: int, text: str, size: int = 9) -> None:
        """Print what a view shows: beside its row, or above its column."""
        axis = self.axes[view][0]
        if self.planes_are_rows:
            axis.set_title(text, color=TEXT, fontsize=size, pad=5, parse_math=False)
        else:
            axis.set_ylabel(text, color=TEXT, fontsize=size, labelpad=6, parse_math=False)

    def legend(self, handles: Sequence[Artist], lines: Sequence[str], columns: int = 1, squares: bool = False) -> None:
        """Print the legend below the panels.

        Args:
            handles: what stands before each line.
            lines: its texts.
            columns: in how many to print them.
            squares: whether the handles are patches, drawn as squares.
        """
        legend = self.figure.legend(
            handles, lines, loc="lower center", bbox_to_anchor=(0.5, 0.24 / self.figure.get_figheight()), ncols=columns,
            frameon=False, fontsize=8, labelcolor=TEXT, labelspacing=0.35, borderaxespad=0.0,
            handlelength=1.0 if squares else None, handleheight=0.9 if squares else None,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)


def _lay_out(
    shape: Sequence[int], spacing: Sequence[float], planes_are_rows: bool, views: int, title: str | None, legend: int
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with the rows of its panels. Sizes are in inches."""
    mm = [n * edge for n, edge in zip(shape, spacing, strict=True)]
    widths_mm, heights_mm = [mm[plane.across] for plane in PLANES], [mm[plane.up] for plane in PLANES]
    if planes_are_rows:
        widths, heights = [max(widths_mm)] * views, heights_mm
    else:
        widths, heights = widths_mm, [max(heights_mm)] * views
    scale = min(8.0 / sum(widths), 8.0 / sum(heights), 3.2 / max(max(widths), max(heights)))
    widths, heights = [w * scale for w in widths], [h * scale for h in heights]
    gap, left, edge = 0.08, 0.42, 0.12
    head, _, note = (title or "").partition("\n")
    top = 0.34 + (0.3 if head else 0.0) + (0.16 if note else 0.0)
    below = 0.32 + (0.06 + 0.19 * legend if legend else 0.0)
    width = max(left + sum(widths) + gap * (len(widths) - 1) + edge, 4.2)
    height = top + sum(heights) + gap * (len(heights) - 1) + below
    figure = dark_figure(width, height)
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


def _halo() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=1.5, foreground="black")]


def _grey_limits(image: np.ndarray, window: tuple[float, float] | None) -> tuple[float, float]:
    if window is not None:
        if not window[0] < window[1]:
            raise ValueError(f"window {window} must be (low, high) with low < high")
        return float(window[0]), float(window[1])
    sample = image.reshape(-1)[:: max(1, image.size // 2_000_000)]  # enough for a percentile of a large scan
    finite = sample[np.isfinite(sample)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1.0


def as_volume(values: Any, name: str, image: np.ndarray | None = None, dtype: Any = np.float32) -> np.ndarray:
    """Return an array or tensor, of any type and on any device, as (D, H, W).

    Args:
        values: leading axes of length 1 are dropped.
        name: of the argument.
        image: whose shape it must have.
        dtype: of the result.

    Raises:
        ValueError: it is not 3-D, or of another shape than the image.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    array = np.asarray(values, dtype=dtype)
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3 or not array.size:
        raise ValueError(f"{name} {array.shape} must be (D, H, W); choose one sample and one channel")
    if image is not None and array.shape != image.shape:
        raise ValueError(f"{name} {array.shape} must have the shape of image {image.shape}")
    return array


# --- figures --------------------------------------------------------------------------------------


def dark_figure(width: float, height: float, layout: Literal["tight"] | None = None) -> Figure:
    """Return an empty figure of this many inches on the background of all pictures."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND, layout=layout)


def save_figure(figure: Figure, path: str | os.PathLike[str], announced: bool = True) -> Path:
    """Write a figure as a PNG file, whole or not at all, and return its path.

    Args:
        figure: as the functions of this room make it.
        path: of the file.
        announced: whether the log says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    written = atomic_write(
        path, lambda part: figure.savefig(part, dpi=DPI, format="png", facecolor=figure.get_facecolor())
    )
    if announced:
        logger.info("picture: %s", written)
    return written


def log_figure(writer: Any, tag: str, figure: Figure, epoch: int) -> None:
    """Show a figure in TensorBoard.

    MONAI's `TensorBoardImageHandler` shows something else: image, label and prediction as three grey animations.
    `SummaryWriter.add_figure` would import pyplot, with its global state.

    Args:
        writer: a TensorBoard SummaryWriter.
        tag: name of the picture.
        figure: as the functions of this room make it.
        epoch: under which it is shown.
    """
    writer.add_image(tag, figure_array(figure), epoch, dataformats="HWC")


def figure_array(figure: Figure) -> np.ndarray:
    """Render a figure for TensorBoard as RGB: (H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(TENSORBOARD_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
