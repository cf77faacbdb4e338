"""What a crop of a prepared store needs before it is augmented: the scaling of its whole volume, and its mask."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import (
    MapTransform,
    NormalizeIntensityd,
    ScaleIntensityRange,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
)
from torch.nn.functional import max_pool3d

from mambamim_nets.bundle.transforms.normalisation import ScaleCTOrMRd
from mambamim_nets.masking import STRIDE, random_visible, token_grid

__all__ = ["DrawVisibled", "ScaleStoredd"]


class ScaleStoredd(MapTransform):
    """Scale a crop as its whole volume would be scaled: by the percentiles, or mean and deviation, of the volume.

    Args:
        keys: of the crop.
        scaling: of whole images: ScaleIntensityRanged, ScaleIntensityRangePercentilesd, NormalizeIntensityd with
            `nonzero`, or ScaleCTOrMRd.

    Raises:
        ValueError: it is another transform, or asks for a percentile that stores do not hold.
    """

    def __init__(self, keys: KeysCollection, scaling: Any) -> None:
        super().__init__(keys)
        known = (ScaleIntensityRanged, ScaleIntensityRangePercentilesd, NormalizeIntensityd, ScaleCTOrMRd)
        if not isinstance(scaling, known):
            raise ValueError(
                f"intensity {type(scaling).__name__} cannot be worked out for a crop of a store; use one of"
                f" {', '.join(kind.__name__ for kind in known)}"
            )
        self.scaling = scaling

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the crop, and take "stored", the volume that it is of, out of the dictionary."""
        out = dict(data)
        volume = out.pop("stored")
        scaling = self.scaling
        if isinstance(scaling, ScaleCTOrMRd):
            scaling = scaling.ct if volume.modality == "CT" else scaling.mr
        for key in self.key_iterator(out):
            if isinstance(scaling, ScaleIntensityRangePercentilesd):
                out[key] = _by_percentiles(scaling.scaler, volume)(out[key])
            elif isinstance(scaling, NormalizeIntensityd):
                inside = out[key] != 0
                out[key] = torch.where(inside, (out[key] - volume.mean) / (volume.std or 1.0), out[key])
            else:
                out[key] = scaling({**out, key: out[key]})[key]
        return out


def _by_percentiles(scaler: Any, volume: Any) -> ScaleIntensityRange:
    ends = [volume.quantiles.get(float(percentile)) for percentile in (scaler.lower, scaler.upper)]
    if None in ends:
        raise ValueError(
            f"percentiles {scaler.lower:g} and {scaler.upper:g} of the intensity must be among those that a store"
            f" holds: {', '.join(f'{percentile:g}' for percentile in volume.quantiles)}"
        )
    return ScaleIntensityRange(a_min=ends[0], a_max=ends[1], b_min=scaler.b_min, b_max=scaler.b_max, clip=scaler.clip)


class DrawVisibled(MapTransform):
    """Draw which blocks of 16^3 voxels of a crop stay visible, by the seed under "mask_seed".

    Blocks in which a voxel of "face" is set, where a face was removed, are kept only where there are too few others,
    and have no part in the loss.

    Args:
        keys: of the crop, whose sides must be multiples of 16.
        mask_ratio: share of hidden blocks.
    """

    def __init__(self, keys: KeysCollection, mask_ratio: float) -> None:
        super().__init__(keys)
        self.mask_ratio = mask_ratio

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add "visible", and of a crop with "face" "ignored", both (1, d, h, w) bool, to the dictionary."""
        out = dict(data)
        generator = torch.Generator().manual_seed(int(out["mask_seed"]))
        grid = token_grid(out[self.keys[0]].shape[1:], "roi_size")
        ignored = None
        if "face" in out:
            ignored = max_pool3d(torch.as_tensor(out.pop("face")).float(), STRIDE) > 0
            out["ignored"] = ignored
        out["visible"] = random_visible(1, grid, self.mask_ratio, generator, avoid=ignored)[0]
        return out
