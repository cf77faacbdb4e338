"""Organs from maps of one organ, to be placed into bodies in the place of their own: more shapes than there are bodies.

A new organ is brought to the centre and to the size, axis by axis, of the one that it replaces. It displaces soft
surroundings, never bones, vessels or other organs; what it leaves free is filled from the nearest surroundings.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy.ndimage import distance_transform_edt, map_coordinates

from mambamim_nets.phantom.anatomies import Anatomy, file_names, resampled

__all__ = ["Organ", "read_organs", "replace_organ"]

MARGIN = 2  # voxels around an organ
SURROUNDINGS = ("between", "visceral fat", "flank", "lung", "bowel", "colon", "duodenum", "muscle", "soft tissue")
FILLING = ("between", "visceral fat", "lung", "bowel")
SPREAD = (0.6, 1.7)  # of the scale of an organ, against organs of other ages and against cut ones


class Organ(NamedTuple):
    """One organ, cut out of a label map.

    Attributes:
        name: of the organ.
        ids: (D, H, W) uint8: 0 outside, 1 the organ, 2 and more what lies in it.
        parts: id -> name, of the organ and of what lies in it.
    """

    name: str
    ids: np.ndarray
    parts: dict[int, str]


def read_organs(
    folder: str | os.PathLike[str], spacing: float, cache: str | os.PathLike[str] | None = None
) -> list[Organ]:
    """Read a folder of maps of one organ, or of a pair of kidneys.

    Args:
        folder: label maps, and a manifest.json whose "label_names" say what 1 is, "liver" for instance, and what lies
            in it, "tumour" for instance. Kidneys become two organs: right and left.
        spacing: edge of the voxels in mm.
        cache: folder for the resampled maps, written once; None: they are read anew.

    Raises:
        ValueError: if the folder holds no label map.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.nii*"))
    if not paths:
        raise ValueError(f"{folder} must hold label maps (NIfTI) of an organ, has none")
    names = {value: name.replace("tumor", "tumour") for value, name in file_names(folder).items()}
    state = "".join(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns} " for path in paths)
    key = f"{folder.name}_{spacing:g}mm_{zlib.crc32(state.encode()):08x}.npz"
    stored = Path(cache) / key if cache is not None else None
    if stored is not None and stored.exists():
        with np.load(stored) as boxes:
            arrays = [boxes[key] for key in boxes.files]
    else:
        arrays = [_box(resampled(path, spacing).astype(np.uint8)) for path in paths]
        if stored is not None:
            stored.parent.mkdir(parents=True, exist_ok=True)
            partial = stored.with_name(f"{os.getpid()}_{stored.name}")
            np.savez_compressed(partial, *arrays)
            partial.replace(stored)
    return [organ for ids in arrays for organ in _named(ids, names)]


def replace_organ(anatomy: Anatomy, organ: Organ, rng: Generator) -> Anatomy:
    """Place an organ into a body in the place of its own.

    Args:
        anatomy: left as it is.
        organ: to place.
        rng: draws how much it differs in size from the one that it replaces.

    Returns:
        The new body; the same where it has no such organ.
    """
    was_there = anatomy.where(organ.name)
    if not was_there.any():
        return anatomy
    number = {name: value for value, name in anatomy.names.items()}
    new, old = np.argwhere(organ.ids > 0), np.argwhere(was_there)
    scale = np.clip(old.std(0) / np.maximum(new.std(0), 0.5) * rng.uniform(0.9, 1.15), *SPREAD)
    reach = np.ceil(np.abs(new - new.mean(0)).max(0) * scale).astype(int) + MARGIN
    centre = old.mean(0)
    low = np.maximum(np.minimum(old.min(0) - MARGIN, np.floor(centre).astype(int) - reach), 0)
    high = np.minimum(np.maximum(old.max(0) + MARGIN, np.ceil(centre).astype(int) + reach) + 1, anatomy.ids.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    place = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"))
    offset = (centre / scale - new.mean(0))[:, None, None, None]
    placed = map_coordinates(organ.ids, place / scale[:, None, None, None] - offset, order=0, cval=0, prefilter=False)

    names, ids = dict(anatomy.names), anatomy.ids.copy()
    inside, was_inside = ids[box], was_there[box]  # views: what is set below is set in the body
    soft = np.isin(inside, [number[name] for name in SURROUNDINGS if name in number]) | was_inside
    placed[~soft] = 0
    holes = was_inside & (placed == 0)
    fill = np.isin(inside, [number[name] for name in FILLING if name in number]) & (placed == 0)
    if fill.any():
        nearest = distance_transform_edt(~fill, return_distances=False, return_indices=True)
        inside[holes] = inside[tuple(nearest)][holes]
    for value, part in organ.parts.items():
        if part not in number:
            number[part] = max(names) + 1
            names[number[part]] = part
        inside[placed == value] = number[part]
    return anatomy._replace(ids=ids, names=names)


def _box(ids: np.ndarray) -> np.ndarray:
    """Cut a map to what is not 0, with `MARGIN` voxels around it."""
    where = np.argwhere(ids > 0)
    if not len(where):
        return np.zeros((1, 1, 1), np.uint8)
    return np.pad(ids[tuple(slice(a, b + 1) for a, b in zip(where.min(0), where.max(0), strict=True))], MARGIN)


def _named(ids: np.ndarray, names: Mapping[int, str]) -> list[Organ]:
    """Return the organ of a map, or its kidneys: what lies right (higher index) and left of their middle."""
    if not ids.any():
        return []
    sides = {names[1]: ids}
    if names[1] == "kidney":
        x = np.arange(ids.shape[0])[:, None, None]
        right = x > np.argwhere(ids > 0)[:, 0].mean()
        sides = {"right kidney": _box(np.where(right, ids, 0)), "left kidney": _box(np.where(right, 0, ids))}
    return [
        Organ(name, part, {1: name} | {value: f"{name} {inner}" for value, inner in names.items() if value > 1})
        for name, part in sides.items()
        if (part == 1).sum() > 8
    ]
