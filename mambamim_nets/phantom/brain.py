"""The kind "brain": skull-stripped brains with a tumour, in the four channels of BraTS."""

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from mambamim_nets.phantom.anatomy import Part
from mambamim_nets.phantom.canvas import Axes, Canvas

TISSUES = {  # flair, t1ce, t1, t2 in arbitrary units
    "outside": (0, 0, 0, 0),
    "csf": (70, 130, 120, 900),
    "grey matter": (490, 360, 330, 590),
    "white matter": (390, 510, 500, 390),
    "deep grey": (440, 430, 420, 450),
    "oedema": (840, 390, 350, 760),
    "enhancing tumour": (640, 950, 390, 600),
    "necrotic core": (360, 260, 240, 800),
}
CEREBELLUM = (
    Part("white matter", [[(0, -8, 0, 12), (0, -14, -22, 13), (0, -20, -68, 9)]]),
    Part("csf", [[(24, -42, -38, 29)], [(0, -48, -38, 22)]], squash=(1.05, 1, 0.8), mirror=True, wobble=0),
    Part("grey matter", [[(24, -42, -38, 27)], [(0, -48, -38, 20)]], squash=(1.05, 1, 0.8), mirror=True, wobble=0.12),
    Part("white matter", [[(4, -34, -38, 10), (24, -42, -38, 14)]], squash=(1.1, 1, 0.7), mirror=True, wobble=0.4),
)
DEEP = (
    Part("white matter", [[(0, 36, 6, 6), (0, 22, 27, 5), (0, -18, 30, 5), (0, -38, 16, 6)]], squash=(2.5, 1, 1)),
    Part("deep grey", [
        [(12, -2, 9, 9), (14, -18, 10, 10)], [(15, 26, 10, 7), (16, 6, 22, 5)], [(25, 14, 4, 8), (27, -6, 5, 7)],
    ], mirror=True),
    Part("csf", [
        [(8, 32, 12, 5), (8, 12, 20, 6), (13, -18, 21, 6), (23, -34, 12, 7), (30, -18, -8, 4), (30, 0, -18, 3)],
        [(23, -34, 12, 6), (19, -56, 9, 3)],
    ], mirror=True),
    Part("csf", [[(0, 4, 6, 7), (0, -18, 4, 7)]], squash=(0.35, 1, 1)),
    Part("csf", [[(0, -30, -14, 3), (0, -30, -34, 7)]], squash=(1.3, 0.7, 1)),
)  # fmt: skip


def cortex(canvas: Canvas, gap: float = 1.2, thickness: float = 3.0) -> None:
    """Fill brain, folded cortex and the fluid around it.

    Args:
        canvas: with the tissues csf, grey matter and white matter.
        gap: of sulci, roughly half their width in mm.
        thickness: of the cortex, roughly mm.
    """
    x, y, z = canvas.body
    depth = (1 - np.sqrt((x / 66) ** 2 + (y / 83) ** 2 + ((z - 6) / 62) ** 2)) * 66  # mm below the surface
    base = z + 38 - 0.45 * np.maximum(y - 20, 0) - 0.3 * np.maximum(-20 - y, 0)  # mm above the base of the skull
    depth = -5 * np.logaddexp(-depth / 5, -base / 5)  # the smaller one, rounded
    canvas.fill("csf", depth > 0)
    fold = np.abs(canvas.waves(24))
    bridge = np.maximum(1 - (y / 46) ** 2 - ((z - 2) / 30) ** 2, 0)  # corpus callosum and below join the hemispheres
    middle = np.abs(x) + 60 * bridge  # mm from the fissure between them
    sulcus = np.minimum(depth - 1.5, middle - 1.5)
    sulcus = np.where(depth < 20, np.minimum(sulcus, 9 * fold - gap), sulcus)  # roughly mm from the nearest fluid
    canvas.fill("grey matter", sulcus > 0)
    canvas.fill("white matter", sulcus > thickness)


def paint(rng: Generator, axes: Axes, seed: int) -> Canvas:
    """Paint the tissues of one subject: a brain with one tumour in the white matter of either side."""
    canvas = Canvas(rng, axes, tuple(TISSUES), size=98, bend=2, scale=0.06)
    cortex(canvas)
    canvas.paint(CEREBELLUM, shift=1)
    canvas.paint(DEEP, shift=0.7, girth=0.25)
    side = rng.choice((-1, 1))
    centre, radius = (side * rng.uniform(24, 36), rng.uniform(-40, 40), rng.uniform(8, 32)), rng.uniform(12, 18)
    tumour = [
        Part("oedema", [[(*centre, 1.75 * radius)]], only=("white matter",), wobble=0.2),
        Part("enhancing tumour", [[(*centre, radius)]], wobble=0.2),
        Part("necrotic core", [[(*centre, 0.65 * radius)]], only=("enhancing tumour",), wobble=0.2),
    ]
    canvas.paint(tumour, keep=("outside",), shift=0, girth=0)
    return canvas


def image(rng: Generator, canvas: Canvas, seed: int) -> np.ndarray:
    """Return the image of painted tissues, (D, H, W, 4), 0 outside the brain, in arbitrary units."""
    means = np.array(list(TISSUES.values()), np.float32)
    values = means * rng.uniform(0.94, 1.06, means.shape) * rng.uniform(0.5, 2, 4)
    bias, texture, brain = 1 + 0.06 * canvas.waves(3), 1 + 0.03 * canvas.waves(48), canvas.tissue > 0
    channels = []
    for value in values.astype(np.float32).T:
        channel = gaussian_filter(value[canvas.tissue] * texture, 0.5) * bias
        channel += 0.025 * value.max() * rng.standard_normal(channel.shape, np.float32)
        channels.append(np.where(brain, np.maximum(channel, 1), 0))
    return np.stack(channels, -1)
