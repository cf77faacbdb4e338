"""Intensities of a scan inside of what was segmented in it."""

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["structure_intensities"]


def structure_intensities(
    image: np.ndarray, label: np.ndarray, structures: Mapping[str, Sequence[int]]
) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation (of all voxels, not of a sample) of an image in each structure.

    Args:
        image: (D, H, W), in the units of its file, such as HU.
        label: (D, H, W) label map, uint8, on the same grid; 0 is background.
        structures: name -> label values.

    Returns:
        structure -> mean and s.d.; a structure without a voxel is left out.

    Raises:
        ValueError: the shapes differ.
    """
    if image.shape != label.shape:
        raise ValueError(f"image {image.shape} must have the shape of label {label.shape}")
    inside = label > 0
    labels, values = label[inside], image[inside].astype(np.float64)
    centre = values.mean() if values.size else 0.0
    values -= centre  # squares of small numbers: variances keep their digits
    counts = np.bincount(labels, minlength=256)
    sums, squares = (np.bincount(labels, weights, minlength=256) for weights in (values, values * values))
    found = {}
    for name, wanted in structures.items():
        number = counts[list(wanted)].sum()
        if number:
            mean = sums[list(wanted)].sum() / number
            variance = max(0.0, squares[list(wanted)].sum() / number - mean * mean)
            found[name] = (float(centre + mean), float(np.sqrt(variance)))
    return found
