"""Intensities of a scan inside of what was segmented in it."""

from collections.abc import Iterator, Mapping, Sequence

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
    counts, total = np.zeros(256, np.int64), 0.0
    for labels, values in _planes(image, label):
        counts += np.bincount(labels, minlength=256)
        total += values.sum()
    centre = total / max(1, counts.sum())  # squares of small numbers: variances keep their digits
    sums, squares = np.zeros(256), np.zeros(256)
    for labels, values in _planes(image, label):
        values -= centre
        sums += np.bincount(labels, values, minlength=256)
        squares += np.bincount(labels, values * values, minlength=256)
    found = {}
    for name, wanted in structures.items():
        number = counts[list(wanted)].sum()
        if number:
            mean = sums[list(wanted)].sum() / number
            variance = max(0.0, squares[list(wanted)].sum() / number - mean * mean)
            found[name] = (float(centre + mean), float(np.sqrt(variance)))
    return found


def _planes(image: np.ndarray, label: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield labels and float64 intensities of what is labelled, by planes: at once they take 30 bytes a voxel."""
    for plane, intensities in zip(label, image, strict=True):
        inside = plane > 0
        yield plane[inside], intensities[inside].astype(np.float64)
