"""The kind "hippocampus": crops of an MR-like temporal lobe, as in Decathlon Task04."""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from mambamim_nets.phantom.anatomy import Part
from mambamim_nets.phantom.canvas import Axes, Canvas

SHAPE = (36, 51, 36)
"""Voxels of 1 mm of the mean crop."""

TISSUES = {"white matter": 1.0, "grey matter": 0.72, "csf": 0.28, "anterior": 0.72, "posterior": 0.72}
TEMPORAL = (
    Part("grey matter", [
        [(-6, 25, -20, 7), (-9, 0, -14, 7), (-12, -25, -4, 7)], [(-15, 8, 14, 10), (-14, -14, 22, 10)],
    ], wobble=0.2),
    Part("csf", [
        [(-19, 25, -10, 8), (-17, 5, -5, 5), (-18, -25, 6, 6)], [(14, 26, -18, 3), (13, 4, -17, 3), (10, -26, -10, 3)],
    ], wobble=0.3),
    Part("csf", [[(10, 21, -9, 4), (8, 10, -5, 4), (5, -4, 2, 4), (1, -15, 10, 5), (-1, -24, 16, 6)]]),
    Part("anterior", [
        [(-8, -18, 13, 2.8), (-5, -9, 4, 4.2), (-2, 0, -1, 4.6), (0, 8, -5, 5.4), (2, 13, -7, 5.5), (6, 18, -8.5, 3.4)],
    ], squash=(1.25, 1, 0.85)),
)  # fmt: skip


def draw_shape(rng: Generator, spacing: Sequence[float]) -> tuple[int, ...]:
    """Draw the shape of a crop, (D, H, W) in voxels of a spacing in mm: crops differ as in Decathlon Task04."""
    wanted = rng.normal(SHAPE, (2, 3, 3)) / spacing
    least, most = np.array((31, 40, 26)) / spacing, np.array((43, 59, 47)) / spacing
    return tuple(int(n) for n in np.rint(np.clip(wanted, least, most)))


def paint(rng: Generator, axes: Axes, seed: int) -> Canvas:
    """Paint the tissues of one crop."""
    canvas = Canvas(rng, axes, tuple(TISSUES), size=30, bend=0.9, scale=0.08)
    canvas.fill("grey matter", np.abs(canvas.waves(6)) < 0.25)
    canvas.paint(TEMPORAL, shift=0.8, girth=0.08)
    behind = (axes[1] < rng.normal(4, 1))[None, :, None]  # a coronal plane, as raters cut it
    canvas.fill("posterior", canvas.where("anterior") & behind)
    return canvas


def image(rng: Generator, canvas: Canvas, seed: int) -> np.ndarray:
    """Return the MR-like image of painted tissues, (D, H, W), from 0 up, in arbitrary units."""
    values = np.array(list(TISSUES.values()), np.float32) * rng.uniform(0.95, 1.05, len(TISSUES))
    values[-1] = values[-2]  # the two labels are one tissue
    image = values[canvas.tissue] * (1 + 0.06 * canvas.waves(3)) + 0.06 * canvas.waves(14)
    image = gaussian_filter(image, 0.6) + rng.normal(0, 0.04, image.shape)
    return np.maximum(image, 0) * 10 ** rng.uniform(2, 3.1)
