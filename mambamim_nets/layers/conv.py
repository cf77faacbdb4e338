"""Convolutional layers that run on a dense feature map or on its visible blocks with the same weights.

`neighbours` is None for a dense map (B, C, D, H, W); for visible blocks (N, C, b, b, b) it is the table of
`ops.blocks.neighbour_table`. Only `Conv3` looks at it: everything else is pointwise.

Sources: MedNeXt block, Roy et al. 2023, with normalisation per voxel; residual skip block and widths, MambaMIM section
3.2.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mambamim_nets.ops.blocks import halo, surroundings
from mambamim_nets.ops.depthwise import depthwise_conv

__all__ = ["Conv3", "MedNeXtBlock", "ResidualBlock", "VoxelNorm"]

_MOSTLY_HALO = 2  # blocks up to this side are convolved as a matrix product


class Conv3(nn.Conv3d):
    """3^3 convolution with zero padding, on a dense map or on visible blocks.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        groups: 1, or `in_channels` for a depthwise convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, groups=groups)

    def forward(self, x: Tensor, neighbours: Tensor | None = None) -> Tensor:
        """Convolve a dense map (B, C, D, H, W) or visible blocks (N, C, b, b, b): same sides out."""
        if torch.jit.is_scripting():
            return self._conv_forward(x, self.weight, self.bias)
        if self.groups > 1:
            padded, padding = (x, 1) if neighbours is None else (halo(x, neighbours), 0)
            return depthwise_conv(padded, self.weight, self.bias, padding)
        if neighbours is None:
            return self._conv_forward(x, self.weight, self.bias)
        if x.shape[-1] > _MOSTLY_HALO:
            return F.conv3d(halo(x, neighbours), self.weight, self.bias)
        n, side = x.shape[0], x.shape[-1]
        weight = rearrange(self.weight, "o c i j k -> o (i j k c)")
        y = F.linear(surroundings(x, neighbours), weight, self.bias)
        return rearrange(y, "(n i j k) o -> n o i j k", n=n, i=side, j=side)


class VoxelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of every voxel (B, C, D, H, W), eps 1e-6: hidden voxels play no part.

    Args:
        channels: C.
        negative_slope: of a LeakyReLU that follows in place; 1 for none.
    """

    def __init__(self, channels: int, negative_slope: float = 1.0) -> None:
        super().__init__(channels, eps=1e-6)
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every voxel of (B, C, D, H, W) over its channels; same shape out."""
        y = F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        if self.negative_slope != 1:  # before the view: autograd copies what is written through one
            y = F.leaky_relu(y, self.negative_slope, inplace=True)
        return y.movedim(-1, 1)


class MedNeXtBlock(nn.Module):
    """x + compress(GELU(expand(norm(depthwise 3^3(x))))).

    Args:
        channels: channels in and out.
        expansion: width of the hidden 1^3 layer over `channels`.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = Conv3(channels, channels, groups=channels)
        self.norm = VoxelNorm(channels)
        self.expand = nn.Conv3d(channels, expansion * channels, kernel_size=1)
        self.compress = nn.Conv3d(expansion * channels, channels, kernel_size=1)

    def forward(self, x: Tensor, neighbours: Tensor | None = None) -> Tensor:
        """Transform a dense map (B, C, D, H, W) or visible blocks (N, C, b, b, b); same shape out."""
        y = self.norm(self.depthwise(x, neighbours))
        return x + self.compress(F.gelu(self.expand(y)))


class ResidualBlock(nn.Module):
    """LeakyReLU(shortcut(x) + norm(conv(LeakyReLU(norm(conv(x)))))), slope 0.01.

    Args:
        in_channels: channels in.
        out_channels: channels out; where they differ, the shortcut is a 1^3 convolution and a norm, else the identity.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = Conv3(in_channels, out_channels)
        self.norm1 = VoxelNorm(out_channels, negative_slope=0.01)
        self.conv2 = Conv3(out_channels, out_channels)
        self.norm2 = VoxelNorm(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv3d(in_channels, out_channels, kernel_size=1), VoxelNorm(out_channels))

    def forward(self, x: Tensor, neighbours: Tensor | None = None) -> Tensor:
        """Transform a dense map (B, C, D, H, W) or visible blocks (N, C, b, b, b): same sides out."""
        y = self.norm1(self.conv1(x, neighbours))
        y = self.norm2(self.conv2(y, neighbours))
        return F.leaky_relu(self.shortcut(x) + y, 0.01, inplace=True)
