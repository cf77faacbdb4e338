"""Random changes of training crops: augmentation, and the distortions that Models Genesis undoes."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.transforms import (
    Compose,
    CopyItemsd,
    EnsureTyped,
    Identityd,
    OneOf,
    RandAdjustContrastd,
    RandAffined,
    RandCoarseDropoutd,
    RandCoarseShuffled,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandHistogramShiftd,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
    Transform,
)

__all__ = ["augmentations", "distortions"]


def augmentations(
    keys: Sequence[str],
    flip_axes: Sequence[int] = (0, 1, 2),
    rotate90: bool = False,
    affine_prob: float = 0.0,
    rotate: float = 0.0,
    scale: float = 0.0,
    intensity_prob: float = 0.1,
    texture_prob: float = 0.0,
) -> Compose:
    """Return the random transforms of training; ``keys[0]`` is the image, a second key its label.

    Args:
        keys: dictionary keys, image first.
        flip_axes: spatial axes that may be mirrored, each with probability 0.2; leave out axes along which the anatomy
            has a side.
        rotate90: quarter turns in the first two axes, probability 0.2; needs a crop that is square there.
        affine_prob: probability of a rotation by up to ``rotate`` radians about every axis and scaling by
            1 +- ``scale``.
        rotate: see affine_prob.
        scale: see affine_prob.
        intensity_prob: probability each of scaling and shifting intensities by up to 0.1.
        texture_prob: probability each of noise, smoothing and gamma.
    """
    image, modes = keys[0], ("bilinear", "nearest")[: len(keys)]
    transforms: list[Transform] = [RandFlipd(keys, prob=0.2, spatial_axis=axis) for axis in flip_axes]
    if rotate90:
        transforms.append(RandRotate90d(keys, prob=0.2, max_k=3))
    if affine_prob:
        transforms.append(
            RandAffined(
                keys,
                prob=affine_prob,
                rotate_range=(rotate,) * 3,
                scale_range=(scale,) * 3,
                mode=modes,
                padding_mode="border",
            )
        )
    transforms.append(RandScaleIntensityd(image, factors=0.1, prob=intensity_prob))
    transforms.append(RandShiftIntensityd(image, offsets=0.1, prob=intensity_prob))
    if texture_prob:
        transforms.append(RandAdjustContrastd(image, prob=texture_prob, gamma=(0.7, 1.5)))
        transforms.append(RandGaussianNoised(image, prob=texture_prob, std=0.05))
        transforms.append(RandGaussianSmoothd(image, (0.3, 0.8), (0.3, 0.8), (0.3, 0.8), prob=texture_prob))
    return Compose(transforms)


def distortions(
    roi_size: Sequence[int],
    shuffle_prob: float = 0.5,
    intensity_prob: float = 0.9,
    paint_prob: float = 0.9,
    outpaint: float = 0.8,
    windows: int = 1000,
) -> Compose:
    """Return what Models Genesis does to its input: ``image`` stays as it is, a copy under ``distorted`` is distorted.

    Rates are the published ones. MONAI's histogram shift stands for the published Bezier curve: it always rises, where
    half of the published curves fall and so invert the image, and is made of straight pieces. Numbers and sizes of
    windows are ours.

    Args:
        roi_size: (D, H, W) of the crop.
        shuffle_prob: probability that voxels are shuffled within each of ``windows`` windows, up to a tenth of a side.
        intensity_prob: probability of a random non-linear map of intensities.
        paint_prob: probability of painting with uniform noise, in or out.
        outpaint: share of it that keeps 1 to 5 windows of three to four sevenths of a side and paints the rest; else
            1 to 5 windows of a sixth to a third of a side are painted.
        windows: see shuffle_prob.
    """

    def sizes(low: float, high: float, least: int = 1) -> dict[str, Any]:
        smallest, largest = ([max(least, int(side * share)) for side in roi_size] for share in (low, high))
        return {"spatial_size": smallest, "max_spatial_size": largest}

    key = "distorted"
    shuffle = RandCoarseShuffled(key, holes=windows, prob=shuffle_prob, **sizes(0, 1 / 10, least=2))
    out = RandCoarseDropoutd(key, holes=1, max_holes=5, dropout_holes=False, prob=1.0, **sizes(3 / 7, 4 / 7))
    inside = RandCoarseDropoutd(key, holes=1, max_holes=5, prob=1.0, **sizes(1 / 6, 1 / 3))
    weights = (paint_prob * outpaint, paint_prob * (1 - outpaint), 1 - paint_prob)
    return Compose(
        [
            CopyItemsd("image", names=key),  # the transforms write into their input
            shuffle,
            RandHistogramShiftd(key, num_control_points=4, prob=intensity_prob),
            OneOf([out, inside, Identityd(key)], weights=weights),
            EnsureTyped(["image", key], dtype=torch.float32, track_meta=False),
        ]
    )
