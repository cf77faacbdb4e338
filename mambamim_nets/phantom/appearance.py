"""How tissues look in CT: HU by phase of contrast agent, and what scanners add.

Native means, and textures, are medians and deviations inside TotalSegmentator's labels of its test case at 3 mm; those
of the portal-venous phase were read in regions of CRLM-CT-1004 (TCIA, CC BY 4.0): liver 118, spleen 112, kidney 223,
muscle 71, heart 135, fat -99, vertebra 244 HU. Both belong to one patient each: a sample draws a body's own values
around them. The arterial phase, lungs, and tissues that neither scan shows well have values usual in radiology.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter, gaussian_filter1d

__all__ = ["TISSUES", "Tissue", "bowel_filling", "draw_values", "scanned", "table_and_arms"]


class Tissue(NamedTuple):
    """HU of a tissue without contrast agent, in the arterial and in the portal-venous phase.

    `patients` and `texture` are standard deviations between patients and within one.
    """

    native: float
    arterial: float
    portal: float
    patients: float = 8
    texture: float = 6


TISSUES = {
    "air": Tissue(-1000, -1000, -1000, 5, 0), "gas": Tissue(-960, -960, -960, 40, 10),
    "liver": Tissue(52, 65, 115, 12), "spleen": Tissue(46, 110, 116, 8, 4), "pancreas": Tissue(28, 85, 88, 14, 14),
    "right kidney": Tissue(30, 110, 185, 8, 8), "left kidney": Tissue(30, 110, 185, 8, 8),
    "kidneys": Tissue(30, 110, 185, 8, 8), "cortex": Tissue(32, 165, 195, 8),
    "renal sinus": Tissue(-40, -20, 20, 40, 20),
    "gallbladder": Tissue(8, 8, 10, 8, 4), "oesophagus": Tissue(36, 60, 70, 8, 10),
    "stomach": Tissue(40, 65, 80), "duodenum": Tissue(35, 60, 80), "stomach or duodenum": Tissue(40, 65, 80),
    "bowel": Tissue(35, 60, 85, 10, 12), "colon": Tissue(35, 50, 70, 10, 10),
    "aorta": Tissue(43, 290, 150, 8, 3), "great vessel": Tissue(43, 220, 145, 10, 4),
    "inferior vena cava": Tissue(41, 60, 135, 8, 5), "portal and splenic veins": Tissue(40, 100, 160, 8, 5),
    "hepatic vessel": Tissue(40, 80, 165, 8), "heart": Tissue(42, 190, 130, 10, 8),
    "right adrenal gland": Tissue(15, 55, 70, 12, 10), "left adrenal gland": Tissue(15, 55, 70, 12, 10),
    "urinary bladder": Tissue(8, 8, 15, 8, 3), "bladder": Tissue(8, 8, 15, 8, 3),
    "prostate or uterus": Tissue(35, 60, 85, 10, 10),
    "lung": Tissue(-845, -835, -830, 50, 25), "lungs": Tissue(-845, -835, -830, 50, 25),
    "trachea": Tissue(-985, -985, -985, 8),
    "bone": Tissue(330, 340, 345, 80, 60), "marrow": Tissue(150, 160, 175, 60, 35),
    "cartilage": Tissue(95, 98, 105, 20, 20),
    "disc": Tissue(80, 82, 85, 12, 10), "cord": Tissue(30, 32, 36, 6, 8),
    "muscle": Tissue(50, 56, 66, 9, 12), "fat": Tissue(-103, -103, -100, 7, 9), "skin": Tissue(-10, 0, 15, 20, 10),
    "brain": Tissue(37, 40, 45, 4, 4), "tumour": Tissue(36, 70, 75, 18, 12), "cyst": Tissue(8, 8, 9, 8, 3),
}  # fmt: skip
SOFT = Tissue(42, 55, 70, 12, 10)  # what is not listed
LIKE = {"left kidney": "right kidney", "cortex": "right kidney", "left adrenal gland": "right adrenal gland"}
"""Tissues that differ from another's HU as their means do, not from patient to patient."""
KEPT = ("air", "gas", "lung", "lungs", "trachea")  # look alike at any grey values of the rest
ENHANCED = (
    "liver", "spleen", "pancreas", "right kidney", "left kidney", "kidneys", "gallbladder", "aorta", "great vessel",
    "inferior vena cava", "portal and splenic veins", "heart", "right adrenal gland", "left adrenal gland",
    "urinary bladder", "bladder", "prostate or uterus",
)  # fmt: skip
"""Tissues of one HU in a scan, which contrast agent moves as a whole."""
HOLLOW = ("stomach", "duodenum", "bowel", "colon", "stomach or duodenum")
TABLE = {"shell": 40.0, "core": -940.0}


def draw_values(rng: Generator, names: list[str], free: bool) -> dict[str, tuple[float, float]]:
    """Draw the HU and the texture (HU) of every tissue of one scan.

    Args:
        rng: source of randomness.
        names: tissues.
        free: whether grey values follow no rule, as in MR.
    """
    own = {name: float(rng.normal()) for name in sorted({LIKE.get(name, name) for name in names})}
    grey = {name: float(rng.uniform(-175, 250)) for name in own}
    phase = rng.dirichlet((0.35, 0.35, 0.5))  # mostly near one of the three phases, at times between them
    agent, fat = rng.uniform(0.7, 1.3), rng.uniform() < 0.2  # dose and tube voltage; a fatty liver
    values: dict[str, tuple[float, float]] = {}
    for name in names:
        tissue = TISSUES.get(name) or TISSUES.get(name.rsplit(" ", 1)[-1], SOFT)  # "liver tumour" is a tumour
        of_phase = float(phase @ tissue[:3])
        mean = tissue.native + agent * (of_phase - tissue.native) + own[LIKE.get(name, name)] * tissue.patients
        if fat and name == "liver":
            mean -= rng.uniform(10, 60)
        if free and name not in KEPT:
            mean = grey[LIKE.get(name, name)] + rng.normal(0, 10)
        values[name] = mean, tissue.texture * rng.uniform(0.5, 1.5)
    return values


def bowel_filling(
    name: str, where: np.ndarray, inner: np.ndarray, waves: np.ndarray, rng: Generator
) -> list[tuple[np.ndarray, float, float]]:
    """Fill stomach or gut with what may be in it.

    Args:
        name: one of HOLLOW.
        where: the organ, bool (D, H, W).
        inner: the organ without its wall.
        waves: a smooth field of unit variance.
        rng: source of randomness.

    Returns:
        (mask, HU, texture) of each content, in the order to paint them.
    """
    if not inner.any():
        return []
    filled = []
    kinds = {"stomach": (0.45, 0.3, 0.25), "colon": (0.3, 0.5, 0.2)}.get(name, (0.65, 0.15, 0.2))
    kind = rng.choice(("fluid", "food", "contrast"), p=kinds)
    full = inner if name in ("stomach", "colon") else inner & (waves > rng.uniform(-1.5, 1))
    if kind == "contrast":
        filled.append((full, rng.uniform(90, 500), 15.0))
    elif kind == "food":
        filled.append((full, rng.uniform(-60, 70), rng.uniform(10, 100)))
    else:
        filled.append((full, rng.uniform(-5, 40), 5.0))
    if rng.random() < {"stomach": 0.75, "colon": 0.7}.get(name, 0.5):  # gas, at the front of a lying patient
        front = np.argwhere(where)[:, 1]
        level = np.quantile(front, rng.uniform(0.3, 1)) if name != "colon" else np.quantile(front, rng.uniform(0, 0.7))
        y = np.arange(where.shape[1])[None, :, None] + 0.06 * where.shape[1] * waves * (name != "stomach")
        gas = inner & (y > level)
        if name != "stomach":
            gas &= waves > (rng.uniform(-1.2, 0.3) if name == "colon" else rng.uniform(0, 1.5))
        filled.append((gas, -950.0, 10.0))
    return filled


def table_and_arms(
    image: np.ndarray, air: np.ndarray, place: np.ndarray, body: Sequence[tuple[float, float]], rng: Generator
) -> None:
    """Paint a table under the patient, and at times arms beside, into the air of an image, in place.

    Args:
        image: HU (D, H, W).
        air: what is outside the patient, bool (D, H, W).
        place: where each voxel lies from right to left and from back to front, mm (2, D, H, W), of the body's axes.
        body: mm: ends of the body on these axes, ((low, high), (low, high)).
        rng: source of randomness.
    """
    x, y = place
    (left, right), (back, front) = body
    middle, half = (left + right) / 2, (right - left) / 2
    bend, gap, thick = rng.uniform(0, 0.0012), rng.uniform(-4, 14), rng.uniform(6, 35)
    surface = back - gap + bend * (x - middle) ** 2
    reach = np.abs(x - middle) < rng.uniform(190, 270)
    table = air & reach & (y < surface) & (y > surface - thick)
    rim = table & ((y > surface - 4) | (y < surface - thick + 4))
    image[table], image[rim] = TABLE["core"] + rng.normal(0, 20), rng.uniform(-500, TABLE["shell"])
    if rng.random() < 0.15:
        radius, height = rng.uniform(32, 52), back + rng.uniform(0.3, 0.7) * (front - back)
        for side in (-1, 1):
            away = np.hypot(x - middle - side * (half + radius + rng.uniform(0, 25)), y - height)
            for edge, value in ((radius, rng.normal(0, 20)), (radius - 3, -100), (radius - 12, 55), (12, 500)):
                image[air & (away < edge)] = value


def scanned(image: np.ndarray, spacing: float, rng: Generator) -> np.ndarray:
    """Return what a scanner makes of an image: slices of some thickness, a kernel, noise, at times metal.

    Args:
        image: HU (D, H, W); the last axis is the patient's.
        spacing: mm of a voxel.
        rng: source of randomness.
    """
    depth = image.shape[2]
    thickness = rng.choice((1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 5.0, 7.5))
    image = gaussian_filter(image, (*rng.uniform(0.15, 0.65, 2), 0))
    image = gaussian_filter1d(image, max(0.15, 0.29 * thickness / spacing), axis=2)
    noise = rng.standard_normal(image.shape, np.float32)
    if rng.random() < 0.4:  # a soft kernel: blotches
        noise = gaussian_filter(noise, (0.6, 0.6, 0.2)) * 1.8
    image = image + rng.uniform(2, 22) * noise * np.where(image < -700, 0.6, 1)
    if rng.random() < 0.03:
        at = [int(rng.integers(n)) for n in image.shape]
        x, y = np.ogrid[: image.shape[0], : image.shape[1]]
        away, angle = np.hypot(x - at[0], y - at[1]) + 0.5, np.arctan2(y - at[1], x - at[0])
        streaks = rng.uniform(100, 500) * np.cos(rng.integers(2, 7) * angle + rng.uniform(0, 6)) / away**0.7
        z = slice(max(0, at[2] - 1), at[2] + 2)
        image[..., z] += np.where(away < 1.5, 2500, streaks)[..., None]
    if thickness > spacing:  # slices that far apart, interpolated, as a loaded scan is
        step = thickness / spacing
        at = np.clip((np.arange(depth) + rng.uniform(0, step)) / step, 0, None)
        centres = np.clip(np.arange(int(at[-1]) + 2) * step - rng.uniform(0, 1e-6), 0, depth - 1).round().astype(int)
        low, share = at.astype(int), (at % 1).astype(np.float32)
        offset = at[0] * step
        known = np.clip((centres - offset).round().astype(int), 0, depth - 1)
        image = image[..., known[low]] * (1 - share) + image[..., known[low + 1]] * share
    return image.astype(np.float32)
