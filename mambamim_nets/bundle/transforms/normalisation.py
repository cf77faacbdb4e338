"""Intensities of a scan on the scale that a network expects."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import (
    MapTransform,
    NormalizeIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Transform,
)

__all__ = ["RequireFinited", "ScaleCTOrMRd", "nonzero", "scaling_of"]

AIR = -500.0  # HU


def scaling_of(transforms: Sequence[Any]) -> dict[str, Any]:
    """Return how transforms scale intensities, in the words of a record of weights.

    Args:
        transforms: of a preprocessing; those that do something else are passed over.

    Returns:
        "intensity" ("ct", "mr", "ct_or_mr", "zscore", or the name of another class of MONAI that scales) and
        "intensity_range" (what becomes 0 and 1: HU, or percentiles of the scan); empty where nothing scales.
    """
    for part in transforms:
        scaler: Any = getattr(part, "scaler", None)
        if isinstance(part, ScaleCTOrMRd):
            return {"intensity": "ct_or_mr", "intensity_range": part.hu}
        if isinstance(part, ScaleIntensityRanged):
            return {"intensity": "ct", "intensity_range": [scaler.a_min, scaler.a_max]}
        if isinstance(part, ScaleIntensityRangePercentilesd):
            return {"intensity": "mr", "intensity_range": [scaler.lower, scaler.upper]}
        if isinstance(part, NormalizeIntensityd):
            return {"intensity": "zscore", "intensity_range": []}
        if isinstance(part, Transform) and type(part).__name__.startswith(("ScaleIntensity", "NormalizeIntensity")):
            return {"intensity": type(part).__name__, "intensity_range": []}
    return {}


class RequireFinited(MapTransform):
    """Refuse an image with voxels that are NaN or infinite, such as intensities too large for their own deviation."""

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        """Return the dictionary as it is; raises ValueError where a voxel is not finite."""
        for key in self.key_iterator(data):
            count = int((~torch.isfinite(torch.as_tensor(data[key]))).sum())
            if count:
                file = getattr(data[key], "meta", {}).get("filename_or_obj", "image")
                raise ValueError(
                    f"{file}: {count} voxels are NaN or infinite after preprocessing, and must be finite; rescale its"
                    " intensities, or choose another --intensity"
                )
        return data


class ScaleCTOrMRd(MapTransform):
    """Scale CT by HU and MR by its own percentiles to [0, 1], for data sets that have both.

    A scan that holds values below -500, which only air in CT does, is CT. Values outside are clipped.

    Args:
        keys: dictionary keys.
        hu: what becomes 0 and 1 in CT, the same for every scan.
        percentiles: what becomes 0 and 1 in MR, of each channel of each scan, since its intensities have no unit.
    """

    def __init__(self, keys: KeysCollection, hu: Sequence[float], percentiles: Sequence[float]) -> None:
        super().__init__(keys)
        self.hu = list(hu)
        self.ct = ScaleIntensityRanged(keys, a_min=hu[0], a_max=hu[1], b_min=0.0, b_max=1.0, clip=True)
        self.mr = ScaleIntensityRangePercentilesd(
            keys, lower=percentiles[0], upper=percentiles[1], b_min=0.0, b_max=1.0, clip=True, channel_wise=True
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        """Scale the image of a dictionary."""
        return (self.ct if float(data[self.keys[0]].min()) < AIR else self.mr)(data)


def nonzero(image: Any) -> Any:
    """Select what is not background after ``intensity``: the foreground of CropForegroundd."""
    return image != 0
