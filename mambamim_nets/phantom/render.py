"""Paint one synthetic subject and look its image and label up in the painted tissues."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter

from mambamim_nets.phantom import fetal
from mambamim_nets.phantom.anatomy import (
    BELLY,
    BOWEL,
    BRAIN,
    CEREBELLUM,
    COLON_PATH,
    DEEP,
    FRAME,
    GRIDS,
    HIPPOCAMPUS,
    HU,
    KINDS,
    LABELS,
    LIVER_PATH,
    PANCREAS_PATH,
    SAME_LABEL,
    STREAMS,
    TEMPORAL,
    VESSELS,
    Nodes,
    Part,
)
from mambamim_nets.phantom.canvas import Axes, Canvas
from mambamim_nets.phantom.dementia import cortex, dementia, dementia_image
from mambamim_nets.phantom.kidneys import KITS_HU, KITS_SAME, masses
from mambamim_nets.phantom.pelvis import AMOS_HU, JOINTS, LIMBS, LOOPS, MR, TRUNKS, organs
from mambamim_nets.phantom.torso import (
    AIRWAYS,
    APEX,
    ARCH,
    CENTRE,
    CHEST,
    CTORG_HU,
    CTORG_SAME,
    HEAD,
    JAW,
    SHOULDERS,
    first_branches,
    narrowing,
)

Shape = Sequence[int] | None
Spacing = Sequence[float] | float | None

TISSUE_HU = {"amos": AMOS_HU, "ctorg": CTORG_HU, "kits": KITS_HU}  # else HU
EVERY_HU = AMOS_HU | CTORG_HU | KITS_HU
HALF_SIDES = {"amos": 206, "ctorg": 472}  # of the field of view, the longest, mm; else 157


class Subject(NamedTuple):
    """Image float32 (D, H, W) or (D, H, W, 4), label uint8 (D, H, W), affine float64 (4, 4) to RAS mm."""

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray


class Tissues(NamedTuple):
    """Tissue uint8 (D, H, W), name -> its value there, label uint8 (D, H, W), affine float64 (4, 4) to RAS mm."""

    tissue: np.ndarray
    names: dict[str, int]
    label: np.ndarray
    affine: np.ndarray


def _along(rng: Generator, path: Nodes, spread: float) -> np.ndarray:
    """Return a random point (x, y, z) near the inner nodes of a path, off its axis by up to `spread` radii."""
    nodes = np.asarray(path, float)
    start = rng.integers(0, len(nodes) - 1)
    node = nodes[start] + rng.uniform() * (nodes[start + 1] - nodes[start])
    return node[:3] + rng.uniform(-spread, spread, 3) * node[3]


def _tree(
    rng: Generator, start: np.ndarray, heading: ArrayLike, length: float, radius: float, depth: int
) -> list[Nodes]:
    """Return the paths of a vessel that forks `depth` times, each branch shorter and thinner."""
    unit = np.asarray(heading) / np.linalg.norm(heading)
    stop = start + length * unit
    paths: list[Nodes] = [[(*start, radius), (*stop, 0.8 * radius)]]
    for _ in range(2 if depth else 0):
        paths += _tree(rng, stop, unit + rng.normal(0, 0.5, 3), 0.75 * length, 0.75 * radius, depth - 1)
    return paths


def _abdomen(rng: Generator, axes: Axes, kind: str) -> Canvas:
    ctorg = kind == "ctorg"
    hip = ctorg or kind == "amos"  # reaches down to the hips
    canvas = Canvas(rng, axes, tuple(TISSUE_HU.get(kind, HU)), size=HALF_SIDES.get(kind, 157), bend=3.5, scale=0.05)
    x, y, z = canvas.body
    z += CENTRE if ctorg else -64 if hip else 0  # the volume's centre lies in the chest, or between abdomen and pelvis
    z += rng.uniform(-8, 8)  # in place: where the scan starts
    # Trunk: distance in mm outside the abdominal cavity, a superellipse of half axes 122 and 86 mm around (0, -8),
    # wider and further back at the hips, narrow at the neck.
    hips = np.clip((-70 - z) / 120, 0, 1) ** 2 if hip else 0
    neck = narrowing(z) if ctorg else 0
    width, girth = (122 + 30 * hips) * (1 - 0.6 * neck), (86 + 16 * hips) * (1 - 0.4 * neck)
    depth = np.abs(x / width) ** 2.3 + np.abs((y + 8 + 20 * hips) / girth) ** 2.3
    depth = (depth ** (1 / 2.3) - 1) * 95
    if ctorg:
        depth = np.maximum(depth * (1 - 0.5 * neck), z - JAW)
    wall, fat = rng.uniform(8, 12), rng.uniform(4, 16)
    canvas.fill("skin", depth < wall + fat + 3)
    canvas.fill("subcutaneous fat", depth < wall + fat)
    canvas.fill("muscle", depth < wall)
    rib = (np.abs((z + 0.7 * y) / 27 % 1 - 0.5) < 0.22) & (z > 0.7 * y - 20) & (y < 50)
    canvas.fill("bone", rib & (depth > 1) & (depth < wall - 1) & (not ctorg or z < APEX))
    # At the hips, muscle reaches deeper on the sides and behind.
    canvas.fill("fat", depth < -24 * hips * np.clip((x / 115) ** 2 + np.maximum(-(y + 30) / 70, 0), 0, 1))
    if ctorg:
        canvas.fill("muscle", (depth < 0) & (z > APEX))
    dome = 96 - 30 * ((np.abs(x) - 58) / 60) ** 2 - 30 * (y / 86) ** 2
    lung = (depth < -1) & (z > dome) & (np.abs(x + 6) > 22 + 0.1 * y)
    canvas.fill("lung", lung & (not ctorg or z < APEX - 90 * (np.abs(x) / 122) ** 4))
    shell = ("air", "skin", "subcutaneous fat")
    canvas.paint(FRAME, keep=shell, shift=1)
    if ctorg:
        canvas.paint(CHEST, keep=shell, shift=1)
        canvas.paint((*SHOULDERS, *HEAD), shift=0, girth=0.02)
    canvas.fill("disc", canvas.where("marrow") & (np.abs(z / 34 % 1 - 0.5) < 0.1))
    frame: tuple[str, ...] = (*shell, "muscle", "bone", "marrow", "cord", "disc", "lung")
    if hip:
        canvas.paint(LIMBS, shell, shift=1)
        canvas.paint(JOINTS, shell, shift=0, girth=0)
        frame += ("cartilage",)
    # Small bowel: loops wandering in the lower middle, with content and gas.
    low, high, loops = LOOPS if hip else (np.array((-62, -5, -140)), np.array((62, 58, -58)), 5)
    for _ in range(loops):
        loop = np.clip(rng.uniform(low, high) + np.cumsum(rng.normal(0, 22, (9, 3)), 0), low, high)
        for tissue, radius in (("bowel", 12), ("bowel content", 8)):
            canvas.paint([Part(tissue, [[(*point, radius) for point in loop]])], frame)
    gas = [[(*rng.uniform(low, high), rng.uniform(8, 15))] for _ in range(8)]
    canvas.paint([Part("bowel gas", gas, only=("bowel", "bowel content"))])
    if hip:
        canvas.paint(organs(rng), frame)
    canvas.paint(BELLY if hip else [part._replace(tissue=BOWEL.get(part.tissue, part.tissue)) for part in BELLY], frame)
    canvas.paint(
        [Part("bowel content", [[(x, y, z, r - 4) for x, y, z, r in COLON_PATH]], only=("bowel",), wobble=0.3)]
    )
    hilum, roots = np.array((44, 6, 36)), np.array((27, -12, 80))
    vessels = _tree(rng, hilum, (1, -0.3, 0.4), 28, 6, 3) + _tree(rng, hilum, (-0.6, 0.7, 0.8), 26, 5, 2)
    for heading in ((1, -0.3, -0.5), (0.5, 0.9, -0.5), (-0.6, 1, -0.3)):
        vessels += _tree(rng, roots, heading, 32, 5, 2)
    canvas.paint([Part("hepatic vessel", vessels, only=("liver",))], girth=0)
    if kind == "pancreas":
        lesion = [(*_along(rng, PANCREAS_PATH[:-1], 0.3), rng.uniform(9, 14))]
        canvas.paint([Part("pancreatic tumour", [lesion], only=("pancreas", "fat"), wobble=0.15)])
    if kind == "hepatic_vessel":
        lesions = [[(*_along(rng, LIVER_PATH[:-1], 0.5), rng.uniform(9, 20))] for _ in range(rng.integers(1, 4))]
        canvas.paint([Part("liver tumour", lesions, only=("liver", "hepatic vessel"), wobble=0.15)])
    if kind == "kits":
        canvas.paint(masses(rng))
    canvas.paint(TRUNKS if hip else VESSELS, (*shell, "bone", "marrow"), shift=1)
    if ctorg:
        branches = [path for start, heading in first_branches(rng) for path in _tree(rng, start, heading, 45, 7, 3)]
        canvas.paint([Part("lung vessel", branches, only=("lung",))], girth=0)
        canvas.paint((*ARCH, *AIRWAYS), (*shell, "bone", "marrow"), shift=1)
    return canvas


def _abdomen_image(rng: Generator, canvas: Canvas) -> np.ndarray:
    values = np.array([EVERY_HU[name] for name in canvas.index], np.float32)
    values += (np.abs(values) < 300) * rng.normal(0, 6, len(values))  # contrast phase; not air, lung and bone
    image = values[canvas.tissue] + 6 * canvas.waves(40) * (canvas.tissue > 0)
    image = gaussian_filter(image, 0.5) + rng.normal(0, 12, image.shape)
    return np.rint(np.clip(image, -1024, 3071))


def _mr_image(rng: Generator, canvas: Canvas) -> np.ndarray:
    values = np.array([MR[name] for name in canvas.index], np.float32) * rng.uniform(0.85, 1.15, len(canvas.index))
    image = values.astype(np.float32)[canvas.tissue] * (1 + 0.05 * canvas.waves(40))
    image = gaussian_filter(image, 0.5) * np.exp(0.2 * canvas.waves(2))  # bias field
    noise = rng.uniform(10, 30) * rng.standard_normal((2, *image.shape), np.float32)
    return np.rint(np.hypot(image + noise[0], noise[1]) * 2 ** rng.uniform(-2, 2))  # magnitude: Rician noise


def _brain(rng: Generator, axes: Axes, kind: str) -> Canvas:
    canvas = Canvas(rng, axes, tuple(BRAIN), size=98, bend=2, scale=0.06)
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


def _brain_image(rng: Generator, canvas: Canvas) -> np.ndarray:
    means = np.array(list(BRAIN.values()), np.float32)
    values = means * rng.uniform(0.94, 1.06, means.shape) * rng.uniform(0.5, 2, 4)
    bias, texture, brain = 1 + 0.06 * canvas.waves(3), 1 + 0.03 * canvas.waves(48), canvas.tissue > 0
    channels = []
    for value in values.astype(np.float32).T:
        channel = gaussian_filter(value[canvas.tissue] * texture, 0.5) * bias
        channel += 0.025 * value.max() * rng.standard_normal(channel.shape, np.float32)
        channels.append(np.where(brain, np.maximum(channel, 1), 0))
    return np.stack(channels, -1)


def _hippocampus(rng: Generator, axes: Axes, kind: str) -> Canvas:
    canvas = Canvas(rng, axes, tuple(HIPPOCAMPUS), size=30, bend=0.9, scale=0.08)
    canvas.fill("grey matter", np.abs(canvas.waves(6)) < 0.25)
    canvas.paint(TEMPORAL, shift=0.8, girth=0.08)
    behind = (axes[1] < rng.normal(4, 1))[None, :, None]  # a coronal plane, as raters cut it
    canvas.fill("posterior", canvas.where("anterior") & behind)
    return canvas


def _hippocampus_image(rng: Generator, canvas: Canvas) -> np.ndarray:
    values = np.array(list(HIPPOCAMPUS.values()), np.float32) * rng.uniform(0.95, 1.05, len(HIPPOCAMPUS))
    values[-1] = values[-2]  # the two labels are one tissue
    image = values[canvas.tissue] * (1 + 0.06 * canvas.waves(3)) + 0.06 * canvas.waves(14)
    image = gaussian_filter(image, 0.6) + rng.normal(0, 0.04, image.shape)
    return np.maximum(image, 0) * 10 ** rng.uniform(2, 3.1)


def _labels(canvas: Canvas, kind: str) -> np.ndarray:
    """Look the label of every voxel up by the name of its tissue."""
    values = {name: value for value, name in LABELS[kind].items()}
    same = SAME_LABEL | ({} if "hepatic vessel" in values else {"hepatic vessel": "liver"})
    same |= {"ctorg": CTORG_SAME, "kits": KITS_SAME}.get(kind, {})
    return np.array([values.get(same.get(name, name), 0) for name in canvas.index], np.uint8)[canvas.tissue]


def complete_grid(kind: str, shape: Shape, spacing: Spacing) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Check and complete shape and spacing: what is not given follows from the field of view."""
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    default, side, least = GRIDS[kind]
    view = np.array(default) * side
    if spacing is not None:
        spacing = tuple(float(s) for s in np.atleast_1d(spacing))
        spacing = spacing * 3 if len(spacing) == 1 else spacing
        if len(spacing) != 3 or not all(0.3 <= s <= 12 for s in spacing):
            raise ValueError(f"spacing {spacing} must be 1 or 3 lengths of 0.3 to 12 mm; leave it out for {side} mm")
    if shape is None:
        shape = default if spacing is None else tuple(int(n) for n in np.rint(view / spacing))
    shape = tuple(int(n) for n in shape)
    if len(shape) != 3 or not all(least <= n <= 512 for n in shape):
        raise ValueError(
            f"shape {shape} of a {kind!r} subject must have three axes of {least} to 512 voxels; try {default}"
        )
    return shape, spacing or tuple(float(s) for s in view / shape)


def make(kind: str, seed: int, shape: Shape = None, spacing: Spacing = None) -> Subject:
    """Make one synthetic subject; the same arguments give the same arrays.

    Args:
        kind: one of KINDS. "abdomen" carries the 13 BTCV labels; "spleen", "pancreas" and "hepatic_vessel" are other
            subjects of the same body with the Decathlon labels of those tasks, "kits" with tumours and cysts in the
            kidneys; "amos" reaches down to the hips and carries the 15 AMOS22 labels; "ctorg" reaches from the hips to
            the crown, with the 6 CT-ORG labels; "brain" is skull-stripped, with BraTS labels and the channels flair,
            t1ce, t1, t2 last; "hippocampus" is a crop of varying shape and scale; "dementia" is a skull-stripped
            T1-like brain with atrophy as in its diagnosis; "fetal" is a skull-stripped brain before birth, turned
            anyhow by up to 30 degrees, whose points `landmarks` returns.
        seed: 0 or above. Of "amos", seeds 4, 9, 14, ... are MR-like, all others CT-like. Of "dementia", seeds 0, 1,
            2, 3, 4, ... have the diagnoses NC, AD, sMCI, pMCI, NC, ...
        shape: (D, H, W) in voxels. Alone it keeps the field of view and changes the spacing; on coarse grids small
            organs may vanish.
        spacing: mm per axis or one number. Alone it keeps the field of view and changes the shape.

    Returns:
        Subject: image float32 (D, H, W) or (D, H, W, 4), in HU or arbitrary MR units; label uint8; affine to RAS mm.

    Raises:
        ValueError: on an unknown kind, a negative seed, or a shape or spacing out of range.
    """
    rng, canvas, affine = _subject(kind, seed, shape, spacing)
    images = {
        "brain": _brain_image,
        "hippocampus": _hippocampus_image,
        "dementia": dementia_image,
        "fetal": fetal.image,
    }
    image = (_mr_image if is_mr(kind, seed) else images.get(kind, _abdomen_image))(rng, canvas)
    return Subject(image.astype(np.float32), _labels(canvas, kind), affine)


def landmarks(kind: str, seed: int) -> dict[str, np.ndarray]:
    """Return the points of the subject that `make` makes of these arguments, on any grid.

    Args:
        kind: "fetal"; other kinds have no points, {}.
        seed: as in `make`.

    Returns:
        Name to (3,) float64, exact, in RAS mm.
    """
    return fetal.points(fetal.draw(_random(kind, seed))) if kind == "fetal" else {}


def _random(kind: str, seed: int) -> Generator:
    return np.random.default_rng([STREAMS[kind], seed])


def is_mr(kind: str, seed: int) -> bool:
    """Return whether this subject of the kind "amos", as every fifth, has MR-like intensities instead of HU."""
    return kind == "amos" and seed % 5 == 4


def tissues(kind: str, seed: int, spacing: Spacing = None) -> Tissues:
    """Return the tissues of one synthetic subject, on which `make` with the same arguments looks its intensities up.

    Args:
        kind, seed, spacing: as in `make`.

    Returns:
        Tissues: the map, the value of each tissue's name in it, the label and the affine of the same subject.

    Raises:
        ValueError: as in `make`.
    """
    _, canvas, affine = _subject(kind, seed, None, spacing)
    return Tissues(canvas.tissue, dict(canvas.index), _labels(canvas, kind), affine)


def _subject(kind: str, seed: int, shape: Shape, spacing: Spacing) -> tuple[Generator, Canvas, np.ndarray]:
    """Paint the tissues of a subject; return its source of randomness, where painting left it, canvas and affine."""
    chosen, spaced = complete_grid(kind, shape, spacing)
    if seed < 0:
        raise ValueError(f"seed {seed} must be 0 or above")
    rng = _random(kind, seed)
    if kind == "hippocampus" and shape is None:  # crops differ in shape, as in Decathlon Task04
        wanted = rng.normal(GRIDS[kind][0], (2, 3, 3)) / spaced
        least, most = np.array((31, 40, 26)) / spaced, np.array((43, 59, 47)) / spaced
        chosen = tuple(int(n) for n in np.rint(np.clip(wanted, least, most)))
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(chosen, spaced, strict=True)]
    painters = {"brain": _brain, "hippocampus": _hippocampus, "fetal": fetal.paint}
    canvas = dementia(rng, axes, seed) if kind == "dementia" else painters.get(kind, _abdomen)(rng, axes, kind)
    affine = np.diag((*spaced, 1.0))
    affine[:3, 3] = [axis[0] for axis in axes]
    return rng, canvas, affine
