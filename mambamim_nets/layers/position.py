"""Fixed 3-D sine-cosine position embedding for token grids of any size."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["sincos_position"]


def sincos_position(grid: list[int], channels: int, device: torch.device | None = None) -> Tensor:
    """Embed every position of a grid: a third of the channels for each axis, half sines and half cosines.

    Args:
        grid: [d, h, w].
        channels: width C; what 6 does not divide is left zero at the end.
        device: where to build it.

    Returns:
        (d h w, C) float32 in raster order; frequencies 10000^(-k / (C // 6)), k = 0 .. C // 6 - 1.
    """
    count = channels // 6
    frequency = 10000 ** (-torch.arange(count, device=device, dtype=torch.float32) / max(count, 1))
    axes = torch.meshgrid([torch.arange(n, device=device, dtype=torch.float32) for n in grid], indexing="ij")
    angles = [axis.flatten()[:, None] * frequency for axis in axes]
    parts = [torch.cat([angle.sin(), angle.cos()], dim=1) for angle in angles]
    return F.pad(torch.cat(parts, dim=1), (0, channels - 6 * count))
