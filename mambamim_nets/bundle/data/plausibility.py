"""What of a new scan lies outside of what its weights saw in training, by their record.

A network gives some answer to every scan, also to one that it knows nothing of: a whole head where it was trained on
crops, a spacing at which a structure is one voxel thick. `TrainingRanges` of handlers measures what training saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["extent", "range_objections", "volume_objections"]

EXTENT_TOLERANCE = 1.25  # times the range of training, both ways
SPACING_TOLERANCE = 1.5  # times the longest edge; finer voxels are resampled, and lose nothing
VOLUME_TOLERANCE = 5.0  # times the range of training, both ways
AXES = ("right to left", "front to back", "foot to head")


def extent(shape: Sequence[int], spacing: Sequence[float], values: Any = None) -> np.ndarray:
    """Return the lengths (mm) of a volume along its three axes.

    Args:
        shape: of the volume, in voxels.
        spacing: edges of a voxel, mm.
        values: (D, H, W) array or tensor; only the box of what is not 0 is measured. None: all of the volume is.
    """
    sides = list(shape)
    if values is not None:
        inside = np.asarray(values != 0)
        for axis in range(3):
            there = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
            sides[axis] = int(there[-1] - there[0] + 1) if there.size else 0
    return np.asarray(sides, dtype=float) * np.asarray(spacing, dtype=float)


def range_objections(seen: Mapping[str, Any], lengths: Sequence[float], spacing: Sequence[float]) -> list[str]:
    """Return what of a scan's field of view and spacing its weights have not seen; nothing where they do not say.

    Args:
        seen: ranges of the record of the weights.
        lengths: mm from right to left, from front to back and from foot to head, see `extent`.
        spacing: edges of a voxel, mm.
    """
    found = []
    if "field_of_view_mm" in seen:
        low, high = seen["field_of_view_mm"]
        for name, length, least, most in zip(AXES, lengths, low, high, strict=True):
            if not least / EXTENT_TOLERANCE <= length <= most * EXTENT_TOLERANCE:
                found.append(f"{length:.0f} mm from {name}, in training {least:.0f} to {most:.0f} mm")
    if "spacing_mm" in seen and max(spacing) > SPACING_TOLERANCE * seen["spacing_mm"][1]:
        found.append(f"voxels of up to {max(spacing):.3g} mm, in training {seen['spacing_mm'][1]:.3g} mm")
    return found


def volume_objections(seen: Mapping[str, Any], volumes: Mapping[str, float]) -> list[str]:
    """Return which structures are far larger or smaller (ml) than any of training; nothing where weights do not say."""
    found = []
    for name, (least, most) in seen.get("volumes_ml", {}).items():
        volume = volumes.get(name)
        if volume is not None and not least / VOLUME_TOLERANCE <= volume <= most * VOLUME_TOLERANCE:
            found.append(f"{name} of {volume:.4g} ml is not plausible: in training {least:.4g} to {most:.4g} ml")
    return found
