"""Transforms that the configurations share: channel order, intensity rules, augmentation."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from monai.transforms import (
    Compose,
    CopyItemsd,
    EnsureTyped,
    Identityd,
    MapTransform,
    NormalizeIntensityd,
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
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Transform,
)

from mambamim_nets.bundle.channels import channel_of

__all__ = ["SelectChannelsd", "augmentations", "distortions", "intensity", "nonzero", "stored_order"]

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

    The transform refuses images that are not finite after it, see ``RequireFinited``.
    """
    return Compose([_normalised(keys, kind, low, high), RequireFinited(keys)])


def _normalised(keys: Sequence[str], kind: str, low: float, high: float) -> Transform:
    if kind == "ct":
        return ScaleIntensityRanged(keys, a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)
    if kind == "mr":
        return ScaleIntensityRangePercentilesd(keys, low, high, b_min=0.0, b_max=1.0, clip=True, channel_wise=True)
    if kind == "ct_or_mr":
        return _CTOrMR(keys, _normalised(keys, "ct", low, high), _normalised(keys, "mr", *MR_PERCENTILES))
    if kind == "zscore":
        return NormalizeIntensityd(keys, nonzero=True, channel_wise=True)
    raise ValueError(f"intensity kind {kind!r} must be 'ct', 'mr', 'ct_or_mr' or 'zscore'")


class RequireFinited(MapTransform):
    """Refuse an image with voxels that are NaN or infinite, such as intensities too large for their own deviation."""

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        for key in self.key_iterator(data):
            count = int((~torch.isfinite(torch.as_tensor(data[key]))).sum())
            if count:
                file = getattr(data[key], "meta", {}).get("filename_or_obj", "image")
                raise ValueError(
                    f"{file}: {count} voxels are NaN or infinite after preprocessing: must be finite: rescale its"
                    " intensities, or choose another --intensity"
                )
        return data


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
