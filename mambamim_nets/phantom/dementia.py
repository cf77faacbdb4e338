"""The kind "dementia": T1-like brains of four diagnoses, which differ by atrophy.

Atrophy, 0 none and 1 severe, is drawn around the mean of a subject's diagnosis, so wide that neighbours overlap. It
widens ventricles and sulci, thins the cortex and shrinks the hippocampi, each with a spread of its own: like in people,
no single measure tells a subject's diagnosis, and sMCI is hard to tell from pMCI.
"""

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from mambamim_nets.phantom.anatomy import CEREBELLUM, DEEP, Part
from mambamim_nets.phantom.canvas import Axes, Canvas

__all__ = ["DIAGNOSES", "cortex", "dementia", "dementia_image", "diagnosis", "seed_of"]

DIAGNOSES = ("NC", "AD", "sMCI", "pMCI")
"""Normal control, Alzheimer's disease, stable and progressive mild cognitive impairment; of seeds 0, 1, 2, 3, 4, ..."""

ATROPHY = {"NC": 0.2, "sMCI": 0.4, "pMCI": 0.6, "AD": 0.8}  # mean
SPREAD = 0.2
T1 = {
    "outside": 0, "csf": 120, "grey matter": 330, "white matter": 500, "deep grey": 420, "ventricle": 110,
    "hippocampus": 335,
}  # fmt: skip
CISTERN = [[(24, 2, -20, 6.5), (26, -10, -16, 6), (26, -20, -10, 5.5), (23, -30, -2, 4.5)]]
HIPPOCAMPUS = [[(24, 2, -20, 5.5), (26, -10, -16, 5), (26, -20, -10, 4.5), (23, -30, -2, 3.6)]]


def diagnosis(seed: int) -> str:
    """Return the diagnosis of the subject of a seed."""
    return DIAGNOSES[seed % len(DIAGNOSES)]


def seed_of(seed: int, case: int) -> int:
    """Return the seed at or above a random one that gives a case its diagnosis: they take turns in a data set."""
    return seed + (case - seed) % len(DIAGNOSES)


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


def dementia(rng: Generator, axes: Axes, seed: int) -> Canvas:
    """Paint the tissues of the subject of a seed."""
    canvas = Canvas(rng, axes, tuple(T1), size=98, bend=2, scale=0.06)
    mean = ATROPHY[diagnosis(seed)] + rng.normal(0, SPREAD)
    sulci, thin, ventricles, hippocampi = np.clip(mean + rng.normal(0, 0.12, 4), -0.3, 1.4)
    cortex(canvas, gap=1.1 + 0.9 * sulci, thickness=3.2 - 0.6 * thin)
    canvas.paint(CEREBELLUM, shift=1)
    canvas.paint(DEEP[:2], shift=0.7, girth=0.15)  # corpus callosum, deep grey
    wide = [_scaled(part, "ventricle", 0.85 + 0.5 * ventricles) for part in DEEP[2:]]
    canvas.paint(wide, shift=0.7, girth=0.12)
    shift = rng.normal(0, 0.7, 3)  # of the hippocampi with the fluid around them
    for tissue, paths, factor in (("csf", CISTERN, 1.0), ("hippocampus", HIPPOCAMPUS, 1.02 - 0.28 * hippocampi)):
        moved = Part(tissue, [[(*(np.add(node[:3], shift)), node[3]) for node in path] for path in paths], mirror=True)
        canvas.paint([_scaled(moved, tissue, factor)], keep=("outside",), shift=0, girth=0.06)
    return canvas


def _scaled(part: Part, tissue: str, factor: float) -> Part:
    paths = [[(x, y, z, factor * radius) for x, y, z, radius in path] for path in part.paths]
    return part._replace(tissue=tissue, paths=paths)


def dementia_image(rng: Generator, canvas: Canvas) -> np.ndarray:
    """Return the T1-like image of painted tissues, (D, H, W), 0 outside, in arbitrary units."""
    values = np.array(list(T1.values()), np.float32) * rng.uniform(0.95, 1.05, len(T1))
    image = values.astype(np.float32)[canvas.tissue] * (1 + 0.03 * canvas.waves(48))
    image = gaussian_filter(image, 0.5) * (1 + 0.06 * canvas.waves(3))
    image += 15 * rng.standard_normal(image.shape, np.float32)
    return np.where(canvas.tissue > 0, np.maximum(image, 1) * rng.uniform(0.5, 2), 0)
