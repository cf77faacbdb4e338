"""Transforms that the configurations share: channel order, intensity rules, augmentation."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

from monai.transforms import (
    Compose,
    MapTransform,
    NormalizeIntensityd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Transform,
)

from mambamim_nets.bundle.channels import channel_of

__all__ = ["SelectChannelsd", "augmentations", "intensity", "nonzero", "stored_order"]

AIR = -500.0  # HU
MR_PERCENTILES = (0.5, 99.5)


def intensity(
    keys: Sequence[str], kind: Literal["ct", "mr", "ct_or_mr", "zscore"], low: float = 0.0, high: float = 0.0
) -> Transform:
    """Return the transform that normalises intensities.

    Args:
        keys: dictionary keys.
        kind: "ct": [low, high] HU to [0, 1], the same for every scan (the paper: -175, 250); "mr": percentiles low to
            high of the scan itself to [0, 1], per channel, since MR intensities have no unit; "ct_or_mr", for data
            sets of both: as "ct" where the scan holds values below -500, which only air in CT does, else as "mr"
            with the percentiles of ``MR_PERCENTILES``; "zscore": mean 0 and deviation 1 over the voxels that are not
            0, per channel, for skull-stripped MR (the recipe of BraTS).
        low, high: see kind; values outside are clipped.
    """
    if kind == "ct":
        return ScaleIntensityRanged(keys, a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
    if kind == "mr":
        return ScaleIntensityRangePercentilesd(keys, low, high, b_min=0.0, b_max=1.0, clip=True, channel_wise=True)
    if kind == "ct_or_mr":
        return _CTOrMR(keys, intensity(keys, "ct", low, high), intensity(keys, "mr", *MR_PERCENTILES))
    if kind == "zscore":
        return NormalizeIntensityd(keys, nonzero=True, channel_wise=True)
    raise ValueError(f"intensity kind {kind!r} must be 'ct', 'mr', 'ct_or_mr' or 'zscore'")


class _CTOrMR(MapTransform):
    """Apply one transform to scans with values below ``AIR``, another to the rest."""

    def __init__(self, keys: Sequence[str], ct: Transform, mr: Transform) -> None:
        super().__init__(keys)
        self.ct, self.mr = ct, mr

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        return (self.ct if float(data[self.keys[0]].min()) < AIR else self.mr)(data)


class SelectChannelsd(MapTransform):
    """Bring the channels of an image (C, D, H, W) into the network's order.

    Args:
        keys: dictionary keys.
        order: for each channel of the network its position in the file.
    """

    def __init__(self, keys: Sequence[str], order: Sequence[int]) -> None:
        super().__init__(keys)
        self.order = list(order)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.keys:
            if self.order != list(range(len(data[key]))):
                out[key] = data[key][self.order]
        return out


def stored_order(channels: Sequence[str], stored: Sequence[str] | None) -> list[int] | None:
    """Return for each channel of the task its position among those stored in the files; None for None, as they are.

    Raises:
        ValueError: if the two are not the same channels.
    """
    if stored is None:
        return None
    names = [channel_of(name) for name in stored]
    wanted = [channel_of(name) for name in channels]
    if sorted(names) != sorted(wanted):
        raise ValueError(f"channel_order {list(stored)} must hold each of the task's channels {list(channels)} once")
    return [names.index(name) for name in wanted]


def nonzero(image: Any) -> Any:
    """Select what is not background after ``intensity``: the foreground of CropForegroundd."""
    return image != 0


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
