"""Paint images of random contrast on label maps: domain randomisation, to train where there are labels but no scans.

SYNTHETIC: the shapes may come from a patient's label map, heavily deformed, but no voxel of an image does.

A label map is warped by a random affine map and a random smooth displacement, its structures get random HU (or, in
the random style, any grey value), hollow organs are filled with content and gas, whatever no label covers becomes fat
and loops of soft tissue, and blur, texture and noise follow. After Billot et al. 2023 (SynthSeg), with priors in HU.

Glossary
    anatomy   ids (D, H, W) on a RAS grid and the name of each id
    shells    layers of 4 mm around what is labelled: fat under the skin, then air, as thick as a sample draws
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.random import Generator
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial import Delaunay, QhullError

from mambamim_nets.phantom.kinds import KINDS

__all__ = ["NAMES", "TOTALSEGMENTATOR", "Anatomy", "paint", "read_anatomy", "with_surroundings"]

TOTALSEGMENTATOR = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "liver", 6: "stomach", 7: "pancreas",
    8: "right adrenal gland", 9: "left adrenal gland", 15: "oesophagus", 16: "trachea", 18: "bowel", 19: "duodenum",
    20: "colon", 21: "urinary bladder", 22: "prostate or uterus", 51: "heart", 52: "aorta", 53: "heart",
    63: "inferior vena cava", 64: "portal and splenic veins", 79: "cord", 90: "cord",
} | dict.fromkeys(range(10, 15), "lung") | dict.fromkeys(range(54, 63), "great vessel") \
  | dict.fromkeys(range(65, 69), "great vessel") | dict.fromkeys(range(80, 90), "muscle") \
  | dict.fromkeys([*range(25, 51), *range(69, 79), *range(91, 118)], "bone")  # fmt: skip
"""TotalSegmentator v2, task total: id to name; names of the AMOS and BTCV organs are those of the phantom."""
NAMES = {"btcv": KINDS["abdomen"].labels, "amos": KINDS["amos"].labels, "totalsegmentator": TOTALSEGMENTATOR}

# HU without contrast agent, HU that a full dose adds; unlisted structures are soft tissue
PRIOR = {
    "spleen": (48, 90), "right kidney": (32, 150), "left kidney": (32, 150), "gallbladder": (8, 0),
    "oesophagus": (40, 30), "liver": (55, 60), "stomach": (45, 40), "aorta": (40, 180),
    "inferior vena cava": (38, 120), "portal and splenic veins": (38, 140), "pancreas": (40, 65),
    "right adrenal gland": (25, 55), "left adrenal gland": (25, 55), "duodenum": (40, 40), "bowel": (40, 40),
    "colon": (40, 30), "urinary bladder": (8, 0), "prostate or uterus": (40, 50), "heart": (42, 120),
    "great vessel": (40, 150), "hepatic vessel": (40, 120), "lung": (-840, 20), "bone": (330, 0), "marrow": (170, 20),
    "disc": (80, 0), "cord": (35, 0), "muscle": (55, 10), "fat": (-105, 0), "skin": (10, 0), "air": (-1000, 0),
    "trachea": (-990, 0), "subcutaneous fat": (-105, 0), "renal sinus": (-30, 60),
    "bowel content": (25, 0), "bowel gas": (-800, 0), "gas": (-900, 0), "content": (25, 0),
    "lungs": (-840, 20), "kidneys": (32, 150), "bladder": (8, 0), "brain": (37, 8),
}  # fmt: skip
SOFT = (45, 25)
HOLLOW = {"stomach": 0.6, "duodenum": 0.3, "bowel": 0.4, "colon": 0.7}  # share that content and gas may take
FIXED = ("air", "gas", "bowel gas", "lung", "lungs", "trachea")  # keep their HU in any CT
SHELL, SHELLS = 4.0, 10  # mm, number


class Anatomy(NamedTuple):
    """ids uint8 (D, H, W) on a RAS grid of one spacing in mm, and names by id; id 0 is named "air"."""

    ids: np.ndarray
    names: dict[int, str]
    spacing: float


def read_anatomy(path: str | os.PathLike[str], names: Mapping[int, str], spacing: float) -> Anatomy:
    """Read a label map, resample it to isotropic voxels, and surround it by tissue.

    Args:
        path: NIfTI label map; values not in `names` count as unlabelled.
        names: label value -> name.
        spacing: edge of the voxels in mm.
    """
    image = nib.as_closest_canonical(nib.load(path))
    values = np.rint(np.asanyarray(image.dataobj)).astype(np.int64)
    known = sorted(set(names.values()))
    table = np.zeros(int(max(values.max(), *names)) + 1, np.uint8)
    for value, name in names.items():
        table[value] = 1 + known.index(name)
    shape = [round(n * edge / spacing) for n, edge in zip(values.shape, image.header.get_zooms(), strict=False)]
    index = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, values.shape, strict=True)]
    ids = table[values[np.ix_(*index)]]
    return with_surroundings(Anatomy(ids, {0: "air", **dict(enumerate(known, start=1))}, spacing))


def with_surroundings(anatomy: Anatomy) -> Anatomy:
    """Add what a map of organs leaves out: a body around and between them, shells of fat, a spine where none is.

    New names are "between" (within the convex hull of a slice), "shell 0" .. "shell 9" and, where no bone is labelled
    but an aorta is, "bone" behind it.
    """
    ids, spacing = anatomy.ids.astype(np.int32), anatomy.spacing
    names = dict(anatomy.names)
    number = {name: value for value, name in names.items()}
    for name in ("between", "bone", *(f"shell {k}" for k in range(SHELLS))):
        number.setdefault(name, len(number))
        names[number[name]] = name
    if number["bone"] not in ids and "aorta" in number:
        x, y = np.ogrid[: ids.shape[0], : ids.shape[1]]
        for z in range(ids.shape[2]):
            where = np.argwhere(ids[..., z] == number["aorta"])
            if len(where):
                cx, cy = where.mean(0) + np.array([12, -30]) / spacing
                disc = ((x - cx) ** 2 + (y - cy) ** 2 < (20 / spacing) ** 2) & (ids[..., z] == 0)
                ids[..., z][disc] = number["bone"]
    pad = round(SHELLS * SHELL / spacing)
    ids = np.pad(ids, ((pad, pad), (pad, pad), (0, 0)))
    body = np.zeros(ids.shape, bool)
    grid = np.argwhere(np.ones(ids.shape[:2], bool))
    for z in range(ids.shape[2]):
        points = np.argwhere(ids[..., z] > 0)
        try:
            body[..., z] = (Delaunay(points).find_simplex(grid) >= 0).reshape(body.shape[:2])
        except (QhullError, ValueError):  # fewer than three points, or on one line
            body[..., z] = ids[..., z] > 0
    outside = distance_transform_edt(~body, sampling=spacing)
    shell = np.minimum(outside // SHELL, SHELLS).astype(int)
    shells = np.array([*(number[f"shell {k}"] for k in range(SHELLS)), 0])
    ids = np.where(ids > 0, ids, np.where(body, number["between"], shells[shell]))
    return Anatomy(ids.astype(np.uint8), names, spacing)


def paint(
    anatomy: Anatomy,
    labels: Mapping[int, str],
    shape: Sequence[int],
    seed: int | Sequence[int],
    random_style: float = 0.3,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one crop.

    Args:
        anatomy: what to deform and paint.
        labels: target label value -> name.
        shape: (D, H, W) of the crop, in voxels of the anatomy's spacing.
        seed: the same seed, the same crop.
        random_style: probability of grey values without regard to HU.

    Returns:
        Image float32 in HU, label uint8, both (D, H, W).
    """
    rng = np.random.default_rng(seed)
    ids = _warp(anatomy, labels, shape, rng)
    wanted = {name: value for value, name in labels.items()}
    label = np.array([wanted.get(anatomy.names.get(i, ""), 0) for i in range(256)], np.uint8)[ids]
    names = dict(anatomy.names)
    wall = rng.integers(0, 4)  # shells of muscle, then of fat, then skin
    thickness = wall + rng.integers(0, SHELLS - wall - 1)
    for number, name in names.items():
        if name.startswith("shell"):
            shell = int(name.split()[1])
            inner = "wall" if shell < wall else "subcutaneous fat"
            names[number] = inner if shell < thickness else "skin" if shell == thickness else "air"
    waves = [_waves(rng, shape, cells) for cells in (6, 12)]
    parts: dict[str, np.ndarray] = {}
    for number, name in names.items():
        where = ids == number
        if name == "between":  # fat, crossed by loops of soft tissue, some with gas
            soft = where & (np.abs(waves[0]) < rng.uniform(0.2, 0.7))
            gas = soft & (waves[1] > rng.uniform(1.2, 3))
            _add(parts, "fat", where & ~soft)
            _add(parts, "muscle" if rng.random() < 0.5 else "bowel", soft & ~gas)
            _add(parts, "gas", gas)
        elif name == "wall":  # muscle with something like ribs
            rib = where & (waves[1] > 1)
            _add(parts, "bone", rib)
            _add(parts, "muscle", where & ~rib)
        elif name in HOLLOW:
            inner = where & (waves[0] > rng.uniform(-1, 2)) if rng.random() < HOLLOW[name] else where & False
            gas = inner & (waves[1] > rng.uniform(-0.5, 2.5))
            _add(parts, name, where & ~inner)
            _add(parts, "content", inner & ~gas)
            _add(parts, "gas", gas)
        else:
            _add(parts, name, where)
    image = np.full(shape, -1000.0, np.float32)
    dose = rng.uniform(0, 1) if rng.random() < 0.8 else 0.0
    free = rng.random() < random_style
    for name, where in parts.items():
        plain, agent = PRIOR.get(name, SOFT)
        value = plain + dose * agent * rng.uniform(0.4, 1.5) + rng.normal(0, 0.12 * abs(plain) + 8)
        if free and name not in FIXED:
            value = rng.uniform(-175, 250)
        image[where] = value
        if name in ("liver", "lung", "lungs") and rng.random() < 0.7:  # vessels
            image[where & (np.abs(waves[1]) < 0.12)] += rng.uniform(10, 70) if name == "liver" else 600
    image += rng.uniform(0, 12) * waves[1] * (image > -500)
    image = gaussian_filter(image, rng.uniform(0.25, 0.75, 3))
    noise = rng.standard_normal(tuple(shape), np.float32)
    if rng.random() < 0.5:
        noise = gaussian_filter(noise, 0.6) * 2.5
    image += rng.uniform(2, 28) * noise
    if rng.random() < 0.2:  # a scan of few slices
        thick = int(rng.integers(6, max(7, shape[2] // 2)))
        start = int(rng.integers(0, shape[2] - thick))
        keep = np.zeros(shape[2], bool)
        keep[start : start + thick] = True
        image[..., ~keep], label[..., ~keep] = -1000, 0
    return image, label


def _add(parts: dict[str, np.ndarray], name: str, where: np.ndarray) -> None:
    parts[name] = parts[name] | where if name in parts else where


def _warp(anatomy: Anatomy, labels: Mapping[int, str], shape: Sequence[int], rng: Generator) -> np.ndarray:
    """Return the ids of a deformed crop around a random organ, or around a random place in the body."""
    present = [number for number, name in anatomy.names.items() if name in set(labels.values())]
    target = int(rng.choice(present)) if rng.random() < 0.8 else -1
    where = np.flatnonzero(anatomy.ids == target if target >= 0 else anatomy.ids > 0)
    if not len(where):
        where = np.flatnonzero(anatomy.ids > 0)
    centre = np.array(np.unravel_index(rng.choice(where), anatomy.ids.shape), float)
    angles, scales = rng.uniform(-0.25, 0.25, 3), rng.uniform(0.78, 1.28, 3)
    matrix = np.diag(scales * rng.uniform(0.85, 1.18)) + rng.uniform(-0.08, 0.08, (3, 3))
    for axis, angle in enumerate(angles):
        i, j = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    offset = [np.arange(n) - rng.uniform(0.25, 0.75) * n for n in shape]
    grid = np.stack(np.meshgrid(*offset, indexing="ij"))
    place = np.tensordot(matrix, grid, 1) + centre[:, None, None, None]
    for cells, most in ((3, 14.0), (7, 4.0)):
        strength = rng.uniform(0, most) / anatomy.spacing
        place += strength * np.stack([_waves(rng, shape, cells) for _ in range(3)])
    return map_coordinates(anatomy.ids, place, order=0, mode="constant", cval=0, prefilter=False)


def _waves(rng: Generator, shape: Sequence[int], cells: int) -> np.ndarray:
    """Return a smooth random field of about unit variance, float32: linear between knots, then smoothed."""
    field = rng.standard_normal((cells + 1,) * 3).astype(np.float32)
    for n in shape:  # the axis done goes last, so three turns restore the order
        position = np.linspace(0, cells, n)
        t = np.clip(np.abs(position[:, None] - np.arange(cells + 1)), 0, 1)
        weight = (1 - t) ** 2 * (1 + 2 * t)  # smooth step
        weight /= np.sqrt((weight**2).sum(1, keepdims=True))
        field = np.tensordot(field, weight.astype(np.float32), axes=(0, 1))
    return field
