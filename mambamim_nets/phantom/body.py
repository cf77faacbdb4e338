"""Paint the trunk of a body and make its CT-like and MR-like images; the kinds differ in how far they reach.

Every kind shows the abdomen. "amos" reaches down to the hips as well (`pelvis`), and "ctorg" also up to the crown
(`upper_body`); the kinds of a Decathlon task and "kits" have lesions in the abdomen.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter

from mambamim_nets.phantom.anatomy import (
    BELLY,
    BOWEL,
    COLON_PATH,
    FRAME,
    HU,
    LIVER_PATH,
    PANCREAS_PATH,
    VESSELS,
    Nodes,
    Part,
)
from mambamim_nets.phantom.canvas import Axes, Canvas
from mambamim_nets.phantom.pelvis import JOINTS, LIMBS, LOOPS, MR, TRUNKS, organs
from mambamim_nets.phantom.upper_body import (
    AIRWAYS,
    APEX,
    ARCH,
    CHEST,
    HEAD,
    JAW,
    SHOULDERS,
    first_branches,
    narrowing,
)

__all__ = ["ct_image", "ct_or_mr_image", "is_mr", "liver_tumours", "paint", "pancreatic_tumour"]


def paint(
    rng: Generator,
    axes: Axes,
    seed: int,
    *,
    values: Mapping[str, float] = HU,
    half_side: float = 157,
    centre: float = 0,
    hips: bool = False,
    head: bool = False,
    lesions: Callable[[Generator], list[Part]] | None = None,
) -> Canvas:
    """Paint the tissues of one subject.

    Args:
        rng: source of everything random about the subject.
        axes: world coordinates along each axis, mm.
        seed: not used; every kind is painted with these three arguments.
        values: HU by the name of the tissue, for all tissues that occur.
        half_side: half the longest side of the field of view, mm.
        centre: height of the volume's centre in the body, mm.
        hips: whether the field of view reaches down to the hips.
        head: whether it reaches up to the crown; then `hips` is true too.
        lesions: makes what is painted into the finished organs of the abdomen.

    Returns:
        The canvas, with the tissues of `values`.
    """
    canvas = Canvas(rng, axes, tuple(values), size=half_side, bend=3.5, scale=0.05)
    x, y, z = canvas.body
    z += centre
    z += rng.uniform(-8, 8)  # in place: where the scan starts
    # Trunk: distance in mm outside the abdominal cavity, a superellipse of half axes 122 and 86 mm around (0, -8),
    # wider and further back at the hips, narrow at the neck.
    hip = np.clip((-70 - z) / 120, 0, 1) ** 2 if hips else 0
    neck = narrowing(z) if head else 0
    width, girth = (122 + 30 * hip) * (1 - 0.6 * neck), (86 + 16 * hip) * (1 - 0.4 * neck)
    depth = np.abs(x / width) ** 2.3 + np.abs((y + 8 + 20 * hip) / girth) ** 2.3
    depth = (depth ** (1 / 2.3) - 1) * 95
    if head:
        depth = np.maximum(depth * (1 - 0.5 * neck), z - JAW)
    wall, fat = rng.uniform(8, 12), rng.uniform(4, 16)
    canvas.fill("skin", depth < wall + fat + 3)
    canvas.fill("subcutaneous fat", depth < wall + fat)
    canvas.fill("muscle", depth < wall)
    rib = (np.abs((z + 0.7 * y) / 27 % 1 - 0.5) < 0.22) & (z > 0.7 * y - 20) & (y < 50)
    canvas.fill("bone", rib & (depth > 1) & (depth < wall - 1) & (not head or z < APEX))
    # At the hips, muscle reaches deeper on the sides and behind.
    canvas.fill("fat", depth < -24 * hip * np.clip((x / 115) ** 2 + np.maximum(-(y + 30) / 70, 0), 0, 1))
    if head:
        canvas.fill("muscle", (depth < 0) & (z > APEX))
    dome = 96 - 30 * ((np.abs(x) - 58) / 60) ** 2 - 30 * (y / 86) ** 2
    lung = (depth < -1) & (z > dome) & (np.abs(x + 6) > 22 + 0.1 * y)
    canvas.fill("lung", lung & (not head or z < APEX - 90 * (np.abs(x) / 122) ** 4))
    shell = ("air", "skin", "subcutaneous fat")
    canvas.paint(FRAME, keep=shell, shift=1)
    if head:
        canvas.paint(CHEST, keep=shell, shift=1)
        canvas.paint((*SHOULDERS, *HEAD), shift=0, girth=0.02)
    canvas.fill("disc", canvas.where("marrow") & (np.abs(z / 34 % 1 - 0.5) < 0.1))
    frame: tuple[str, ...] = (*shell, "muscle", "bone", "marrow", "cord", "disc", "lung")
    if hips:
        canvas.paint(LIMBS, shell, shift=1)
        canvas.paint(JOINTS, shell, shift=0, girth=0)
        frame += ("cartilage",)
    _paint_organs(rng, canvas, frame, hips)
    if lesions is not None:
        canvas.paint(lesions(rng))
    trunk = (*shell, "bone", "marrow")
    canvas.paint(TRUNKS if hips else VESSELS, trunk, shift=1)
    if head:
        branches = [path for start, heading in first_branches(rng) for path in _tree(rng, start, heading, 45, 7, 3)]
        canvas.paint([Part("lung vessel", branches, only=("lung",))], girth=0)
        canvas.paint((*ARCH, *AIRWAYS), trunk, shift=1)
    return canvas


def _paint_organs(rng: Generator, canvas: Canvas, frame: tuple[str, ...], hips: bool) -> None:
    """Paint bowel, organs and the vessels of the liver, never over the tissues `frame`."""
    # Small bowel: loops wandering in the lower middle, with content and gas.
    low, high, loops = LOOPS if hips else (np.array((-62, -5, -140)), np.array((62, 58, -58)), 5)
    for _ in range(loops):
        loop = np.clip(rng.uniform(low, high) + np.cumsum(rng.normal(0, 22, (9, 3)), 0), low, high)
        for tissue, radius in (("bowel", 12), ("bowel content", 8)):
            canvas.paint([Part(tissue, [[(*point, radius) for point in loop]])], frame)
    gas = [[(*rng.uniform(low, high), rng.uniform(8, 15))] for _ in range(8)]
    canvas.paint([Part("bowel gas", gas, only=("bowel", "bowel content"))])
    if hips:
        canvas.paint(organs(rng), frame)
    belly = BELLY if hips else [part._replace(tissue=BOWEL.get(part.tissue, part.tissue)) for part in BELLY]
    canvas.paint(belly, frame)
    content = [(x, y, z, radius - 4) for x, y, z, radius in COLON_PATH]
    canvas.paint([Part("bowel content", [content], only=("bowel",), wobble=0.3)])
    hilum, roots = np.array((44, 6, 36)), np.array((27, -12, 80))
    vessels = _tree(rng, hilum, (1, -0.3, 0.4), 28, 6, 3) + _tree(rng, hilum, (-0.6, 0.7, 0.8), 26, 5, 2)
    for heading in ((1, -0.3, -0.5), (0.5, 0.9, -0.5), (-0.6, 1, -0.3)):
        vessels += _tree(rng, roots, heading, 32, 5, 2)
    canvas.paint([Part("hepatic vessel", vessels, only=("liver",))], girth=0)


def _tree(
    rng: Generator, start: np.ndarray, heading: ArrayLike, length: float, radius: float, forks: int
) -> list[Nodes]:
    """Return the paths of a vessel that forks `forks` times, each branch shorter and thinner."""
    unit = np.asarray(heading) / np.linalg.norm(heading)
    stop = start + length * unit
    paths: list[Nodes] = [[(*start, radius), (*stop, 0.8 * radius)]]
    for _ in range(2 if forks else 0):
        paths += _tree(rng, stop, unit + rng.normal(0, 0.5, 3), 0.75 * length, 0.75 * radius, forks - 1)
    return paths


def pancreatic_tumour(rng: Generator) -> list[Part]:
    """Return one tumour of 9 to 14 mm radius in the pancreas, as in Decathlon Task07."""
    lesion = [(*_along(rng, PANCREAS_PATH[:-1], 0.3), rng.uniform(9, 14))]
    return [Part("pancreatic tumour", [lesion], only=("pancreas", "fat"), wobble=0.15)]


def liver_tumours(rng: Generator) -> list[Part]:
    """Return one to three tumours of 9 to 20 mm radius in the liver, as in Decathlon Task08."""
    lesions = [[(*_along(rng, LIVER_PATH[:-1], 0.5), rng.uniform(9, 20))] for _ in range(rng.integers(1, 4))]
    return [Part("liver tumour", lesions, only=("liver", "hepatic vessel"), wobble=0.15)]


def _along(rng: Generator, path: Nodes, spread: float) -> np.ndarray:
    """Return a random point (x, y, z) near the inner nodes of a path, off its axis by up to `spread` radii."""
    nodes = np.asarray(path, float)
    start = rng.integers(0, len(nodes) - 1)
    node = nodes[start] + rng.uniform() * (nodes[start + 1] - nodes[start])
    return node[:3] + rng.uniform(-spread, spread, 3) * node[3]


def ct_image(rng: Generator, canvas: Canvas, seed: int, *, values: Mapping[str, float] = HU) -> np.ndarray:
    """Return the CT-like image of painted tissues, (D, H, W), whole HU from -1024 to 3071.

    Args:
        rng: source of everything random about the image.
        canvas: painted by `paint` with the same values.
        seed: not used; the image of every kind is made with these three arguments.
        values: HU by the name of the tissue.
    """
    hu = np.array(list(values.values()), np.float32)
    hu += (np.abs(hu) < 300) * rng.normal(0, 6, len(hu))  # contrast phase; not air, lung and bone
    image = hu[canvas.tissue] + 6 * canvas.waves(40) * (canvas.tissue > 0)
    image = gaussian_filter(image, 0.5) + rng.normal(0, 12, image.shape)
    return np.rint(np.clip(image, -1024, 3071))


def is_mr(seed: int) -> bool:
    """Return whether this subject of the kind "amos", as every fifth, has MR-like intensities instead of HU."""
    return seed % 5 == 4


def ct_or_mr_image(rng: Generator, canvas: Canvas, seed: int, *, values: Mapping[str, float]) -> np.ndarray:
    """Return the image of `ct_image`, or for every fifth seed an MR-like one: (D, H, W), arbitrary units from 0 up."""
    if not is_mr(seed):
        return ct_image(rng, canvas, seed, values=values)
    signal = np.array([MR[name] for name in canvas.index], np.float32) * rng.uniform(0.85, 1.15, len(canvas.index))
    image = signal.astype(np.float32)[canvas.tissue] * (1 + 0.05 * canvas.waves(40))
    image = gaussian_filter(image, 0.5) * np.exp(0.2 * canvas.waves(2))  # bias field
    noise = rng.uniform(10, 30) * rng.standard_normal((2, *image.shape), np.float32)
    return np.rint(np.hypot(image + noise[0], noise[1]) * 2 ** rng.uniform(-2, 2))  # magnitude: Rician noise
