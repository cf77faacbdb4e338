"""Intensities of a scan on the scale that a network expects."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from monai.transforms import (
    Compose,
    MapTransform,
    NormalizeIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Transform,
)

__all__ = ["intensity", "nonzero"]

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


def nonzero(image: Any) -> Any:
    """Select what is not background after ``intensity``: the foreground of CropForegroundd."""
    return image != 0
