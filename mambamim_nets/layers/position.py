"""Fixed 3-D sine-cosine position embedding for token grids of any size."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["sincos_position"]


def sincos_position(grid: Sequence[int], channels: int, device: torch.device | None = None) -> Tensor:
    """Embed every position of a grid: a third of the channels for each axis, half sines and half cosines.

    Args:
        grid: (d, h, w).
        channels: width C; what 6 does not divide is left zero at the end.
        device: where to build it.

    Returns:
        (d h w, C) float32 in raster order; frequencies 10000^(-k / (C // 6)), k = 0 .. C // 6 - 1.
    """
    count = channels // 6
    frequency = 10000 ** (-torch.arange(count, device=device, dtype=torch.float32) / max(count, 1))
    axes = torch.meshgrid(*(torch.arange(n, device=device, dtype=torch.float32) for n in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in axes]
    parts = [part for angle in angles for part in (angle.sin(), angle.cos())]
    rest = torch.zeros(angles[0].shape[0], channels - 6 * count, device=device)
    return torch.cat([*parts, rest], dim=1)
