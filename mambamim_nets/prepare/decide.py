"""From a scan to a stored volume: its modality, its grid, its foreground, its type, and what is odd about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import CropForeground, Orientation, Spacing, SpatialResample

from mambamim_nets.bundle.data.duplicates import voxel_digest
from mambamim_nets.bundle.data.store import MASKS, QUANTILES, Recipe
from mambamim_nets.bundle.io.modalities import modality_objection
from mambamim_nets.bundle.transforms.normalisation import nonzero

__all__ = ["Prepared", "masks_on_grid", "modality", "prepared"]

COARSEST = 5.0  # mm
THINNEST = 40.0  # mm
EMPTIEST = 0.02  # of the voxels
FEWEST_VALUES = 128
HALF_RANGE = 32768.0  # largest value of a volume as float16, whose own limit is 65504


class Prepared(NamedTuple):
    """A volume as it is stored, and its line of the index as far as its voxels say it."""

    array: np.ndarray
    line: dict[str, Any]


def modality(stated: str | None, values: Any, recipe: Recipe) -> str:
    """Return what a volume is taken for, such as "CT": as the recipe says, as is stated, or else by the air of CT.

    Args:
        stated: by its header or a table; None: nowhere.
        values: array or tensor of its voxels.
        recipe: of the store.
    """
    if recipe.intensity != "ct_or_mr":
        return recipe.intensity.upper()
    return stated or ("CT" if float(values.min()) < recipe.air else "MR")


def prepared(image: MetaTensor, stated: str | None, recipe: Recipe) -> Prepared:
    """Bring a scan to the grid and the types of a store.

    Args:
        image: (1, D, H, W) float32 with its affine in RAS mm.
        stated: modality by its header or a table; None: by its values.
        recipe: of the store.

    Raises:
        ValueError: nothing of it is foreground.
    """
    kind, findings = modality(stated, image, recipe), dict[str, str]()
    if objection := modality_objection("ct" if kind == "CT" else "mr", image):
        findings["intensity"] = f"taken for {kind}: {objection}"
    if (count := len(np.unique(np.asarray(image)[0, ::2, ::2, ::2]))) < FEWEST_VALUES:
        findings["few_values"] = f"{count} different values"
    scan: Any = Orientation("RAS", labels=None)(image)
    spacing = [float(edge) for edge in np.linalg.norm(np.asarray(scan.affine)[:3, :3], axis=0)]
    if kind != "CT":
        scan = CropForeground(select_fn=nonzero, allow_smaller=True)(scan)
    scan = Spacing(pixdim=recipe.spacing, mode=recipe.interpolation)(scan)
    values = np.asarray(scan)[0]
    inside = values > recipe.air if kind == "CT" else values != 0
    share = float(inside.mean())
    if not share:
        what = f"above {recipe.air:g} HU" if kind == "CT" else "other than 0"
        raise ValueError(f"no voxel is {what}: must have foreground: leave the file out, or correct its modality")
    low, high = _box(inside)
    affine = np.asarray(scan.affine, dtype=float).copy()
    affine[:3, 3] += affine[:3, :3] @ low
    cropped = values[tuple(slice(first, last) for first, last in zip(low, high, strict=True))]
    array, scale = _stored(cropped, kind)
    if kind == "CT" and np.abs(cropped).max() > np.iinfo(np.int16).max:
        findings["clipped"] = f"values from {cropped.min():g} to {cropped.max():g} HU"
    findings |= _shape_findings(spacing, array.shape, recipe, share)
    nonzeros = values[values != 0]
    line = {
        "modality": kind,
        "spacing": [round(edge, 4) for edge in spacing],
        "shape": list(array.shape),
        "affine": affine.round(6).tolist(),
        "box": [low.tolist(), high.tolist()],
        "foreground": round(share, 4),
        "scale": scale,
        "quantiles": [float(value) for value in np.percentile(values, QUANTILES)],
        "mean": float(nonzeros.mean(dtype=np.float64)),
        "std": float(nonzeros.std(dtype=np.float64)),
        "findings": findings,
        "digest": voxel_digest(array),
    }
    return Prepared(array, line)


def masks_on_grid(masks: Mapping[str, MetaTensor], line: Mapping[str, Any]) -> np.ndarray:
    """Bring the masks of a scan to the grid of its volume in the store, by nearest neighbours.

    Args:
        masks: "face_mask" and "body_mask", as far as there are any, (1, D, H, W); what is above 0.5 is in it.
        line: of the volume, with its affine and shape.

    Returns:
        uint8 of the shape of the volume, a bit for each mask.
    """
    found = np.zeros(line["shape"], np.uint8)
    affine = torch.tensor(line["affine"], dtype=torch.float64)
    for name, mask in masks.items():
        inside = MetaTensor((mask.as_tensor() > 0.5).float(), affine=mask.affine)
        moved = SpatialResample(mode="nearest", padding_mode="zeros")(
            inside, dst_affine=affine, spatial_size=line["shape"]
        )
        found |= np.where(np.asarray(moved)[0] > 0.5, np.uint8(MASKS[name]), np.uint8(0))
    return found


def _box(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first voxel of the foreground on each axis, and the one after the last."""
    ends = []
    for axis in range(3):
        there = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        ends.append((there[0], there[-1] + 1))
    low, high = np.array(ends).T
    return low, high


def _stored(values: np.ndarray, kind: str) -> tuple[np.ndarray, float]:
    """Return values as int16 or float16, and what those are multiplied by: a power of two, which rounds nothing."""
    if kind == "CT":
        limits = np.iinfo(np.int16)
        return np.rint(values).clip(limits.min, limits.max).astype(np.int16), 1.0
    scale = 2.0 ** math.ceil(math.log2(float(np.abs(values).max()) / HALF_RANGE))
    return (values / scale).astype(np.float16), scale


def _shape_findings(spacing: list[float], shape: tuple[int, ...], recipe: Recipe, share: float) -> dict[str, str]:
    """Return what is odd about the grid of a volume.

    Args:
        spacing: of the scan, mm.
        shape: of the volume as it is stored, voxels.
        recipe: of the store.
        share: of the voxels that are foreground.
    """
    found = {}
    sides = [side * edge for side, edge in zip(shape, recipe.spacing, strict=True)]
    if max(spacing) > COARSEST:
        found["coarse"] = f"voxels of {' x '.join(f'{edge:.3g}' for edge in spacing)} mm"
    if min(sides) < THINNEST:
        found["thin"] = f"{' x '.join(f'{side:.0f}' for side in sides)} mm"
    if share < EMPTIEST:
        found["nearly_empty"] = f"{share:.1%} of its voxels are foreground"
    return found
