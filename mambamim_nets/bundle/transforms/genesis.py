"""The distortions that Models Genesis undoes."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.transforms import (
    Compose,
    CopyItemsd,
    EnsureTyped,
    Identityd,
    OneOf,
    RandCoarseDropoutd,
    RandCoarseShuffled,
    RandHistogramShiftd,
)

__all__ = ["distortions"]


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
