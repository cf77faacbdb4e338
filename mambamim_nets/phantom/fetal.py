"""The kind "fetal": T2-like brains of unborn children with the six points that fetal biometry measures.

A head has its own age, proportions and pose (turned by up to 30 degrees about any axis), but no random displacement, so
that the points are known exactly: the ends of axes of the ellipsoids that are painted as cerebellum and vermis.

Glossary
    TCD   transcerebellar diameter: between the lateral ends of the two cerebellar hemispheres; it starts at the right
    HDV   height of the vermis; it starts at the top
    ADV   antero-posterior diameter of the vermis; it starts in front
    head millimetres   x to the patient's right, y to the front, z upwards, for a head of 33 weeks that is not turned
"""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from mambamim_nets.phantom.anatomy import Part
from mambamim_nets.phantom.canvas import Axes, Canvas

POINTS = ("TCD_start", "TCD_end", "HDV_start", "HDV_end", "ADV_start", "ADV_end")
TISSUES = {  # T2-like, arbitrary units; early white matter holds much water
    "outside": 0, "csf": 1000, "grey matter": 430, "white matter": 720, "deep grey": 520, "brainstem": 600,
    "cerebellar hemispheres": 480, "vermis": 300,
}  # fmt: skip
INNER = (
    Part("deep grey", [[(9, 2, 4, 8), (10, -10, 3, 7)], [(15, 12, 8, 7), (16, -2, 8, 6)]], mirror=True),
    Part("csf", [
        [(7, 22, 12, 4), (8, 6, 15, 5), (11, -14, 14, 6), (15, -24, 6, 6.5), (20, -10, -3, 3)],
    ], mirror=True),
    Part("csf", [[(0, 8, 2, 5), (0, -8, 0, 5)]], squash=(0.35, 1, 1)),
)  # fmt: skip
STEM = (Part("brainstem", [[(0, -4, -4, 9), (0, -9, -20, 9), (0, -14, -38, 6), (0, -18, -60, 5)]], wobble=0.02),)


class Head(NamedTuple):
    """Geometry of one subject: pose and size of the head, then cerebellum and vermis in head millimetres."""

    rotation: np.ndarray  # (3, 3), head to world
    shift: np.ndarray  # (3,) mm
    size: float
    centre: np.ndarray  # (3,), of the vermis
    tilt: np.ndarray  # (3, 3), about x
    distance: float  # mm, from the middle to the centre of a hemisphere
    hemisphere: np.ndarray  # half axes (3,)
    vermis: np.ndarray  # half axes (3,)


def draw(rng: Generator) -> Head:
    """Draw a subject's geometry."""
    axis = rng.normal(size=3)
    rotation = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.deg2rad(rng.uniform(0, 30))).as_matrix()
    shift, size = rng.uniform(-5, 5, 3), rng.uniform(0.74, 1.08)
    tilt = Rotation.from_euler("x", rng.uniform(-12, 12), degrees=True).as_matrix()
    centre = np.array((0, *rng.normal((-27, -24), 1)))
    growth = rng.normal(1, 0.06)
    hemisphere = growth * np.array((10, 8.5, 8)) * rng.uniform(0.92, 1.08, 3)
    vermis = growth * np.array((4.5, 6.5, 9.5)) * rng.uniform(0.9, 1.1, 3)
    return Head(rotation, shift, size, centre, tilt, growth * rng.uniform(6.5, 7.5), hemisphere, vermis)


def points(rng: Generator) -> dict[str, np.ndarray]:
    """Return the six points of the head that `paint` paints from the same source: name to (3,) in RAS mm."""
    head = draw(rng)
    lateral, (_, front, height) = head.distance + head.hemisphere[0], head.vermis
    local = ((lateral, 0, 0), (-lateral, 0, 0), (0, 0, height), (0, 0, -height), (0, front, 0), (0, -front, 0))
    inside = head.centre + np.array(local) @ head.tilt.T
    return dict(zip(POINTS, head.size * inside @ head.rotation.T + head.shift, strict=True))


def paint(rng: Generator, axes: Axes, seed: int) -> Canvas:
    """Paint the tissues of one subject; its geometry is the first thing drawn."""
    head = draw(rng)
    canvas = Canvas(rng, axes, tuple(TISSUES), size=65, bend=0, scale=0)
    grid = np.stack(np.meshgrid(*axes, indexing="ij")) - head.shift[:, None, None, None]
    canvas.body = np.tensordot(head.rotation.T / head.size, grid, 1).astype(np.float32)
    x, y, z = canvas.body
    fossa = ((y + 26) / 24) ** 2 + ((z + 26) / 19) ** 2
    canvas.fill("csf", ((x / 44) ** 2 + ((y + 1) / 53) ** 2 + ((z - 8) / 43) ** 2 < 1) | ((x / 31) ** 2 + fossa < 1))
    depth = (1 - np.sqrt((x / 39) ** 2 + (y / 48) ** 2 + ((z - 9) / 38) ** 2)) * 39  # mm below the brain's surface
    base = z + 11 + 0.45 * np.maximum(y + 8, 0)  # mm above tentorium and base of the skull
    depth = -3 * np.logaddexp(-depth / 3, -base / 3)  # the smaller one, rounded
    middle = np.abs(x) + 40 * np.maximum(1 - (y / 30) ** 2 - ((z - 4) / 18) ** 2, 0)  # mm from the fissure
    cortex = np.minimum(depth, middle - 1.5) + 1.6 * canvas.waves(20)
    canvas.fill("grey matter", cortex > 0)
    canvas.fill("white matter", cortex > 3)
    canvas.paint(INNER, keep=("outside",), shift=0.6, girth=0.2)
    canvas.paint(STEM, shift=0.4)
    u, v, w = np.tensordot(head.tilt.T, canvas.body - head.centre.astype(np.float32)[:, None, None, None], 1)
    canvas.fill("csf", ((u / 6) ** 2 + ((v - head.vermis[1]) / 3.5) ** 2 + (w / 7) ** 2) < 1)  # the fourth ventricle
    for tissue, offset, half in (
        ("cerebellar hemispheres", head.distance, head.hemisphere),
        ("vermis", 0.0, head.vermis),
    ):
        inside = ((np.abs(u) - offset) / half[0]) ** 2 + (v / half[1]) ** 2 + (w / half[2]) ** 2 < 1
        canvas.fill(tissue, inside)
    return canvas


def image(rng: Generator, canvas: Canvas, seed: int) -> np.ndarray:
    """Return the T2-like image of a painted subject, 0 outside the head."""
    values = np.array(list(TISSUES.values()), np.float32) * rng.uniform(0.9, 1.1, len(TISSUES))
    picture = gaussian_filter(values.astype(np.float32)[canvas.tissue] * (1 + 0.04 * canvas.waves(40)), 0.5)
    picture *= np.exp(0.12 * canvas.waves(2))  # bias field
    noise = rng.uniform(15, 45) * rng.standard_normal((2, *picture.shape), np.float32)
    picture = np.hypot(picture + noise[0], noise[1]) * 2 ** rng.uniform(-2, 1)
    return np.where(canvas.tissue > 0, np.maximum(picture, 1), 0)
