"""The way back from the network's grid to the scan's own, a slab of planes at a time.

MONAI's `Invertd` resamples a whole volume at once. For a scan of 512 x 512 x 900 voxels the coordinates alone take
13 GB, and all classes in float64 twice that. Here the inverse of `Spacingd` is worked out for a few planes of the scan,
what is wanted of them is kept, such as their label map, and the next planes follow. Every value is computed as MONAI
computes it, from the same coordinates in float64; on CPUs the results are equal bit for bit, which a test asserts.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL, to_affine_nd
from monai.networks.utils import to_norm_affine
from monai.transforms import (
    Compose,
    Cropd,
    Flipd,
    Invertd,
    InvertibleTransform,
    MapTransform,
    Orientationd,
    Padd,
    Rotate90d,
    Spacingd,
)
from monai.transforms.utils import resolves_modes
from monai.utils import TraceKeys
from torch import Tensor
from torch.nn.functional import grid_sample

__all__ = ["by_parts", "invert"]

SLAB = 2**19  # voxels of a slab, about: of 14 classes it takes 130 MB
PART = 2**19  # voxels of a part; a multiple of what a CPU's vectors hold, so that no voxel is computed as a remainder
MOVING = (Orientationd, Flipd, Rotate90d, Cropd, Padd)  # their inverses move voxels, and put 0 where there are none
REVERSED = [2, 1, 0, 3]  # grid_sample has x, y, z where arrays have d, h, w


def invert(
    keys: KeysCollection, preprocessing: Compose, orig_keys: str, nearest: bool, decide: Callable[[Tensor], Tensor]
) -> Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Any]]:
    """Return a transform that brings results back to the scan's own grid, and decides there what is kept of them.

    Args:
        keys: of the results (C, d, h, w), each a MetaTensor.
        preprocessing: the transforms to invert.
        orig_keys: of the image that they were applied to.
        nearest: whether to interpolate by nearest neighbour; else as the preprocessing did.
        decide: from voxels (C, ...) of the scan's grid to what is kept of each of them; 0 where all its channels are 0.
    """
    parts = list(preprocessing.flatten().transforms)
    inverted: list[Any] = [part for part in parts if isinstance(part, InvertibleTransform)]
    first = next((n for n, part in enumerate(inverted) if isinstance(part, Spacingd)), len(inverted))
    known = [isinstance(part, MOVING) for part in inverted[:first]]
    if first < len(inverted) and all([*known, *(isinstance(mode, str) for mode in inverted[first].mode)]):
        slabs = _SpacingBySlabs(inverted[first], decide)
        way_back = Compose([slabs if part is inverted[first] else part for part in parts])
        return Invertd(keys, way_back, orig_keys, nearest_interp=nearest, to_tensor=True)
    whole = Invertd(keys, preprocessing, orig_keys, nearest_interp=nearest, to_tensor=True)

    def inverted_whole(data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(whole(data))
        return out | {key: decide(out[key]) for key in whole.keys}

    return inverted_whole


def by_parts(function: Callable[[Tensor], Tensor], values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Apply a function of each voxel to (C, D, H, W) a part of the voxels at a time.

    Args:
        function: of (C, voxels); what comes back may have other channels.
        values: the volume.
        dtype: of the result; None: that of the function's.
    """
    flat = values.reshape(len(values), -1)
    out: Tensor | None = None
    for start in range(0, flat.shape[1], PART):
        part = function(flat[:, start : start + PART].contiguous())
        if out is None:
            out = part.new_empty((len(part), flat.shape[1]), dtype=dtype or part.dtype)
        out[:, start : start + PART] = part
    assert out is not None
    return out.view(len(out), *values.shape[1:])


class _SpacingBySlabs(MapTransform, InvertibleTransform):
    """Stand for a `Spacingd` that was applied: its inverse, a slab at a time."""

    def __init__(self, spacing: Any, decide: Callable[[Tensor], Tensor]) -> None:
        super().__init__(spacing.keys)
        self.resample, self.decide = spacing.spacing_transform.sp_resample, decide

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        raise NotImplementedError("this is the way back alone")

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self._back(out[key])
        return out

    def _back(self, values: MetaTensor) -> MetaTensor:
        record = self.resample.pop_transform(values)
        info, shape = record[TraceKeys.EXTRA_INFO], [int(side) for side in record[TraceKeys.ORIG_SIZE]]
        source, wanted = (to_affine_nd(3, np.asarray(affine, float)) for affine in (values.affine, info["src_affine"]))
        to_source = np.linalg.solve(source, wanted)
        same = np.allclose(source, wanted, atol=AFFINE_TOL) or np.allclose(to_source, np.eye(4), atol=AFFINE_TOL)
        if same and list(values.shape[1:]) == shape:
            kept, affine = by_parts(lambda part: self.decide(part.float()), values.as_tensor()), values.affine
        else:
            kept = self._resampled(values.as_tensor(), to_source, shape, info)
            affine = torch.as_tensor(source) @ torch.as_tensor(to_source)
        return MetaTensor(kept, meta={**values.meta, "affine": affine}, applied_operations=values.applied_operations)

    def _resampled(
        self, values: Tensor, to_source: np.ndarray, shape: Sequence[int], info: Mapping[str, Any]
    ) -> Tensor:
        """Resample as MONAI's `spatial_resample` and `AffineTransform` do, and decide."""
        dtype = getattr(torch, info["dtype"])
        aligned = info["align_corners"] is True
        _, mode, padding, _ = resolves_modes(info["mode"], info["padding_mode"])
        affine = torch.as_tensor(to_source).to(values.device, dtype)
        theta = to_norm_affine(affine[None], values.shape[1:], shape, aligned)[:, REVERSED][:, :, REVERSED][:, :3]
        volume = values.to(dtype)[None].contiguous()
        ranges = [_range(side, aligned).to(volume) for side in shape]
        kept: Tensor | None = None
        for start, stop in _slabs(shape):
            grid = _grid(theta, ranges[0][start:stop], *ranges[1:])
            slab = grid_sample(volume, grid, mode=mode, padding_mode=padding, align_corners=aligned)
            decided = self.decide(slab[0].float())
            if kept is None:
                kept = decided.new_empty((len(decided), *shape))
            kept[:, start:stop] = decided
        assert kept is not None
        return kept


def _slabs(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Return first and last plane of each slab of a volume (D, H, W)."""
    planes = max(1, SLAB // (shape[1] * shape[2]))
    return [(start, min(start + planes, shape[0])) for start in range(0, shape[0], planes)]


def _range(side: int, aligned: bool) -> Tensor:
    """Return the normalised coordinates of the voxels along an axis, as torch's affine_grid has them."""
    if side == 1:
        return torch.zeros(1, dtype=torch.float64)
    steps = torch.linspace(-1, 1, side, dtype=torch.float64)
    return steps if aligned else steps * (side - 1) / side


def _grid(theta: Tensor, depth: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Return the part of affine_grid(theta (1, 3, 4)) that has these normalised coordinates, (1, D, H, W, 3)."""
    shape = (len(depth), len(height), len(width))
    places = depth.new_ones((*shape, 4))
    places[..., 0], places[..., 1], places[..., 2] = width, height[:, None], depth[:, None, None]
    return places.view(1, -1, 4).bmm(theta.transpose(1, 2)).view(1, *shape, 3)
