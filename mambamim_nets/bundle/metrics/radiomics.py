"""Radiomics of what was segmented, by pyradiomics with its own defaults: original image, all its classes of features.

The package is old and not part of the installation; it has no wheel for present versions of Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

__all__ = ["radiomics_table", "require_radiomics"]

INSTALL = (
    "--radiomics true needs pyradiomics, which is not installed; build it by pip install numpy setuptools wheel"
    " versioneer cython, then pip install --no-build-isolation pyradiomics==3.0.1, or leave --radiomics out"
)


def require_radiomics() -> Any:
    """Return pyradiomics' module of extractors.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from radiomics import featureextractor
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return featureextractor


def radiomics_table(
    image: np.ndarray, label: np.ndarray, spacing: Sequence[float], structures: Mapping[str, Sequence[int]]
) -> tuple[list[list[str]], dict[str, str]]:
    """Return the features of every structure, and why structures that were found have none.

    Args:
        image: (D, H, W), in the units of its file, such as HU.
        label: (D, H, W) label map, uint8, on the same grid; 0 is background.
        spacing: voxel edges along the three axes, mm.
        structures: name -> label values.

    Returns:
        A heading, "structure" and the names of pyradiomics such as "original_shape_Sphericity", and a row for each
        structure that has voxels; then structure -> reason, such as a single voxel, which pyradiomics refuses.

    Raises:
        ImportError: pyradiomics is not installed.
    """
    extractor = require_radiomics().RadiomicsFeatureExtractor()
    rows: list[tuple[str, dict[str, float]]] = []
    refused: dict[str, str] = {}
    for name, values in structures.items():
        try:
            found = _features(extractor, image, label, spacing, values)
        except ValueError as error:
            refused[name] = str(error)
            continue
        if found:
            rows.append((name, found))
    features = list(rows[0][1]) if rows else []
    lines = [[name, *(f"{found[feature]:.6g}" for feature in features)] for name, found in rows]
    return [["structure", *features], *lines], refused


def _features(
    extractor: Any, image: np.ndarray, label: np.ndarray, spacing: Sequence[float], values: Sequence[int]
) -> dict[str, float]:
    """Return name -> value of one structure; nothing if it has no voxel. Only its box is copied."""
    from SimpleITK import GetImageFromArray

    inside = np.isin(label, list(values))
    boxes = ndimage.find_objects(inside.view(np.uint8))
    if not boxes:
        return {}
    parts = (image[boxes[0]], inside[boxes[0]].view(np.uint8))
    images = [GetImageFromArray(np.pad(part, 1)) for part in parts]  # a mask without a 0 is refused
    for one in images:
        one.SetSpacing([float(edge) for edge in reversed(spacing)])  # SimpleITK has x, y, z where arrays have d, h, w
    found = extractor.execute(*images)
    return {key: float(value) for key, value in found.items() if not key.startswith("diagnostics")}
