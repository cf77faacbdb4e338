"""Measure what training sees, for the record of its weights; `plausibility` compares new scans with it.

field of view   mm from right to left, from front to back and from foot to head; without a border of zeros, except
                of CT, where 0 is water. What `RandFieldOfViewd` adds and cuts off in training is included
spacing         mm, the shortest and the longest edge of a voxel
volumes         ml of every structure, where label maps are learnt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.transforms import Compose, RandFlipd

from mambamim_nets.bundle.data.plausibility import extent
from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.transforms.field_of_view import RandFieldOfViewd
from mambamim_nets.bundle.transforms.normalisation import scaling_of

__all__ = ["TrainingRanges", "mirrored_axes"]

WORKERS = 2  # each holds one case in memory


class _Case(NamedTuple):
    """What one training case has: its field of view in mm, its voxel edges in mm, and ml by structure."""

    extent: list[float]
    spacing: list[float]
    volumes: dict[str, float]


class TrainingRanges:
    """Measure what training sees; `record` returns it for the record of the weights.

    Args:
        cases: training cases, items with "image" (a path, or one per channel) and, where there are targets, "label" (a
            path); None where images are painted: then no ranges are known.
        preprocessing: of the images; where it scales HU, the whole image is the field of view.
        augmentation: random transforms of training, in which flips and fields of view are looked up.
        targets: of the task; None where no volumes are learnt, as with classes and landmarks.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]] | None,
        preprocessing: Compose,
        augmentation: Compose,
        targets: Targets | None = None,
    ) -> None:
        self.cases, self.augmentation = list(cases or ()), augmentation
        self.structures = targets.structures if targets is not None else {}
        self.intensity = scaling_of(preprocessing.flatten().transforms).get("intensity", "")

    def record(self) -> dict[str, Any]:
        """Return the axes that training mirrors ("mirrored"), and the ranges of what it sees ("seen")."""
        mirrored = {"mirrored": mirrored_axes(self.augmentation)}
        if not self.cases:
            return mirrored
        with ThreadPoolExecutor(WORKERS) as pool:
            found = list(pool.map(self._case, self.cases))
        extents, spacings = (np.array([getattr(case, name) for case in found]) for name in ("extent", "spacing"))
        low, high = extents.min(0), extents.max(0)
        for varied in _parts(self.augmentation, RandFieldOfViewd):
            low, high = low * (1 - 2 * varied.cut), high + 2 * np.array(varied.border) * spacings.max()
        seen: dict[str, Any] = {
            "field_of_view_mm": [_rounded(low), _rounded(high)],
            "spacing_mm": _rounded([spacings.min(), spacings.max()]),
        }
        if self.structures:
            volumes = {name: [case.volumes[name] for case in found] for name in self.structures}
            seen["volumes_ml"] = {name: _rounded([min(values), max(values)]) for name, values in volumes.items()}
        return {**mirrored, "seen": seen}

    def _case(self, item: Mapping[str, Any]) -> _Case:
        first = item["image"] if isinstance(item["image"], str) else item["image"][0]
        image: Any = nib.load(first)
        values = None
        if self.intensity != "ct":
            values = np.asarray(image.dataobj)
            values = values.reshape(*values.shape[:3], -1)[..., 0]
        edges = np.linalg.norm(image.affine[:3, :3], axis=0)
        axes = nib.io_orientation(image.affine)[:, 0].astype(int)  # of the world, for each axis of the voxels
        sides = np.zeros(3)
        sides[axes] = extent(image.shape[:3], edges, values)
        return _Case(sides.tolist(), edges.tolist(), self._volumes(item["label"]) if self.structures else {})

    def _volumes(self, path: str) -> dict[str, float]:
        label: Any = nib.load(path)
        ml = float(abs(np.linalg.det(label.affine[:3, :3]))) / 1000
        counts = np.bincount(np.asarray(label.dataobj).round().astype(np.int64).ravel(), minlength=256)
        return {name: float(counts[list(which)].sum()) * ml for name, which in self.structures.items()}


def mirrored_axes(augmentation: Compose) -> list[int]:
    """Return the spatial axes that random transforms of training mirror."""
    axes = [np.atleast_1d(flip.flipper.spatial_axis) for flip in _parts(augmentation, RandFlipd) if flip.prob > 0]
    return sorted({int(axis) for group in axes for axis in group})


def _parts(augmentation: Compose, kind: type) -> list[Any]:
    return [part for part in augmentation.flatten().transforms if isinstance(part, kind)]


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 3) for value in values]
