"""The kind "dementia": T1-like brains of four diagnoses, which differ by atrophy.

Atrophy, 0 none and 1 severe, is drawn around the mean of a subject's diagnosis, so wide that neighbours overlap. It
widens ventricles and sulci, thins the cortex and shrinks the hippocampi, each with a spread of its own: like in people,
no single measure tells a subject's diagnosis, and sMCI is hard to tell from pMCI.
"""

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from mambamim_nets.phantom.anatomy import Part
from mambamim_nets.phantom.brain import CEREBELLUM, DEEP, cortex
from mambamim_nets.phantom.canvas import Axes, Canvas

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


def paint(rng: Generator, axes: Axes, seed: int) -> Canvas:
    """Paint the tissues of the subject of a seed."""
    canvas = Canvas(rng, axes, tuple(T1), size=98, bend=2, scale=0.06)
    mean = ATROPHY[DIAGNOSES[seed % len(DIAGNOSES)]] + rng.normal(0, SPREAD)
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


def image(rng: Generator, canvas: Canvas, seed: int) -> np.ndarray:
    """Return the T1-like image of painted tissues, (D, H, W), 0 outside, in arbitrary units."""
    values = np.array(list(T1.values()), np.float32) * rng.uniform(0.95, 1.05, len(T1))
    image = values.astype(np.float32)[canvas.tissue] * (1 + 0.03 * canvas.waves(48))
    image = gaussian_filter(image, 0.5) * (1 + 0.06 * canvas.waves(3))
    image += 15 * rng.standard_normal(image.shape, np.float32)
    return np.where(canvas.tissue > 0, np.maximum(image, 1) * rng.uniform(0.5, 2), 0)
