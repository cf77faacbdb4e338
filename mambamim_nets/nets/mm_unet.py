"""MM-UNet, Meta Mamba UNet: a U-Net whose blocks may hold a state-space module (arXiv 2503.17540).

Published: a symmetric U of stem, encoder blocks, bottleneck block and decoder blocks, each CNN, SSM or hybrid; the best
is hybrid, two convolutions and then Mamba inside one residual connection, in encoder and bottleneck, with the
bidirectional scan (d, h, w) and its full reverse; deep supervision at the three finest decoder resolutions.

Ours, since no code exists and the paper does not say:
    plan         nnU-Net's: 6 resolutions, widths 32 to 320, stride 2 everywhere; instance norm, affine, written as a
                 group norm of one channel per group; LeakyReLU 0.01; convolutions with bias
    hybrid       y = LeakyReLU(P(x) + SSM(norm(conv(LeakyReLU(norm(conv_s(x)))))), P a strided 1^3 convolution
    cnn          the same without SSM
    ssm          y = LeakyReLU(P(x) + SSM(R(x))), R a convolution of kernel and stride s
    outside      y = SSM(the cnn block), the comparison "Mamba outside the residual connection"
    SSM          layer norm over channels, then one mixer on raster tokens: in- and out-projection and gate shared by
                 the scans, convolution and state space of each scan its own, outputs summed; d_state 16, d_conv 4,
                 expand 2
    resolution   no SSM at the finest, neither in the stem nor in the last decoder block: 2 million tokens at 128^3
    decoder      transposed convolution of kernel 2, concatenation, the same block with stride 1
    six scans    raster over (d, h, w), (h, w, d) and (w, d, h), each with its reverse
    "tiny"       a quarter of the widths

Glossary
    resolutions  number of levels; sides must be multiples of 2^(resolutions - 1)
    SSM          state-space module, `layers.mamba.GridMixer` behind a layer norm
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambamim_nets.layers.mamba import GridMixer

__all__ = ["WIDTHS", "MMUNet", "MetaBlock"]

WIDTHS = {"base": (32, 64, 128, 256, 320, 320), "tiny": (8, 16, 32, 64, 80, 80)}
_BLOCKS = ("cnn", "ssm", "hybrid_inside", "hybrid_outside")
_PLACEMENTS = {"enc": {"enc"}, "enc+bot": {"enc", "bot"}, "bot": {"bot"}, "dec": {"dec"}, "all": {"enc", "bot", "dec"}}
_HEADS = 3  # decoder resolutions under deep supervision

Block = Literal["cnn", "ssm", "hybrid_inside", "hybrid_outside"]


class GridMamba(nn.Module):
    """The state-space module on a feature map (B, C, D, H, W): layer norm over channels, then a `GridMixer`."""

    def __init__(self, channels: int, scans: Literal[1, 2, 6], share_directions: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mixer = GridMixer(channels, scans, share_directions)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the voxels of (B, C, D, H, W) as tokens; same shape out."""
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        return self.mixer(tokens, x.shape[2:]).transpose(1, 2).unflatten(2, x.shape[2:])


class MetaBlock(nn.Module):
    """One block of the U; the equations of its four kinds are at the top of this file.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        stride: 1 or 2.
        block: "cnn", "ssm", "hybrid_inside" or "hybrid_outside".
        scans: see `MMUNet`.
        share_directions: see `MMUNet`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        block: Block = "cnn",
        scans: Literal[1, 2, 6] = 2,
        share_directions: bool = False,
    ) -> None:
        super().__init__()
        self.block = block
        self.project = nn.Conv3d(in_channels, out_channels, kernel_size=1, stride=stride)
        if block == "ssm":
            self.reduce = nn.Conv3d(in_channels, out_channels, kernel_size=stride, stride=stride)
        else:
            self.conv1 = nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
            self.norm1 = nn.GroupNorm(out_channels, out_channels)
            self.conv2 = nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1)
            self.norm2 = nn.GroupNorm(out_channels, out_channels)
        if block != "cnn":
            self.ssm = GridMamba(out_channels, scans, share_directions)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, in_channels, D, H, W): (B, out_channels, D / stride, H / stride, W / stride)."""
        if self.block == "ssm":
            y = self.ssm(self.reduce(x))
        else:
            y = F.leaky_relu(self.norm1(self.conv1(x)), 0.01, inplace=True)
            y = self.norm2(self.conv2(y))
            if self.block == "hybrid_inside":
                y = self.ssm(y)
        y = F.leaky_relu(self.project(x) + y, 0.01, inplace=True)
        return self.ssm(y) if self.block == "hybrid_outside" else y


class MMUNet(nn.Module):
    """Meta Mamba UNet; what is published and what is ours is at the top of this file.

    Args:
        in_channels: image channels.
        out_channels: classes with background (softmax), or regions (sigmoid).
        size: "base" (33.9 M parameters at 1 channel, 16 classes and 6 resolutions) or "tiny".
        resolutions: levels of the U, 2 to 6; 5 suits 96^3.
        block: what stands at the places of `placement`: "cnn", "ssm", "hybrid_inside" the residual connection
            (published) or "hybrid_outside" it. Everything else is "cnn".
        placement: "enc", "enc+bot" (published), "bot", "dec" or "all".
        scans: 1, 2 (published) or 6 scan orders.
        share_directions: one state space for all scans; no (ours): each its own.
        deep_supervision: in training mode, return the logits of the three finest decoder resolutions (published).

    Raises:
        ValueError: on an unknown switch value or fewer than one channel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: Literal["base", "tiny"] = "base",
        resolutions: int = 6,
        block: Block = "hybrid_inside",
        placement: Literal["enc", "enc+bot", "bot", "dec", "all"] = "enc+bot",
        scans: Literal[1, 2, 6] = 2,
        share_directions: bool = False,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("size", size, tuple(WIDTHS)),
            ("block", block, _BLOCKS),
            ("placement", placement, tuple(_PLACEMENTS)),
            ("resolutions", resolutions, (2, 3, 4, 5, 6)),
            ("scans", scans, (1, 2, 6)),
        ):
            if value not in choices:
                raise ValueError(f"{name} {value!r} must be one of {choices}")
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1:
                raise ValueError(f"{name} {channels} must be at least 1")
        self.in_channels, self.out_channels, self.size = in_channels, out_channels, size
        self.resolutions, self.deep_supervision = resolutions, deep_supervision
        self.block, self.placement, self.scans, self.share_directions = block, placement, scans, share_directions
        widths, places = WIDTHS[size][:resolutions], _PLACEMENTS[placement]

        def make(i: int, o: int, stride: int, place: str) -> MetaBlock:
            return MetaBlock(i, o, stride, block if place in places else "cnn", scans, share_directions)

        self.stem = MetaBlock(in_channels, widths[0], stride=1)
        kinds = ["enc"] * (resolutions - 2) + ["bot"]
        self.down = nn.ModuleList(make(i, o, 2, place) for i, o, place in zip(widths, widths[1:], kinds, strict=False))
        # from here on coarse to fine, the finest last
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose3d(i, o, kernel_size=2, stride=2) for i, o in pairs)
        kinds = ["dec"] * (resolutions - 2) + ["stem"]
        self.fuse = nn.ModuleList(make(2 * o, o, 1, place) for (_, o), place in zip(pairs, kinds, strict=True))
        supervised = pairs[-_HEADS:] if deep_supervision else pairs[-1:]
        self.heads = nn.ModuleList(nn.Conv3d(o, out_channels, kernel_size=1) for _, o in supervised)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def _check(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            channels = self.in_channels
            raise ValueError(f"input {tuple(x.shape)} must be (B, {channels}, D, H, W): in_channels={channels}")
        shape, stride = tuple(x.shape[2:]), 2 ** (self.resolutions - 1)
        if any(n < stride or n % stride for n in shape):
            suggestion = tuple(max(1, math.ceil(n / stride)) * stride for n in shape)
            raise ValueError(
                f"input spatial shape {shape} must be divisible by {stride} on every axis at "
                f"resolutions={self.resolutions}; try {suggestion} or fewer resolutions"
            )
        if all(n == stride for n in shape):
            raise ValueError(
                f"input spatial shape {shape} must leave more than one voxel after division by {stride}, since the "
                f"bottleneck is normalised over them; try {(2 * stride, *shape[1:])} or fewer resolutions"
            )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment a batch.

        Args:
            x: (B, C_in, D, H, W) float, sides multiples of 2^(resolutions - 1).

        Returns:
            Logits (B, out_channels, D, H, W); in training mode with deep supervision a list of logits at strides 1, 2
            and 4 (fewer below 4 resolutions), the finest first, as MONAI's `DeepSupervisionLoss` takes them.

        Raises:
            ValueError: on a wrong number of axes or channels, or sides that do not fit.
        """
        self._check(x)
        # contiguous() would leave one channel as it is, and convolutions then take it for channels-first
        maps = [self.stem(x.clone(memory_format=torch.channels_last_3d))]
        for block in self.down:
            maps.append(block(maps[-1]))
        y, decoded = maps.pop(), []
        for up, fuse in zip(self.up, self.fuse, strict=True):
            y = fuse(torch.cat([up(y), maps.pop()], dim=1))
            decoded.append(y)
        if self.training and self.deep_supervision:
            supervised = decoded[-len(self.heads) :]
            return [head(y) for head, y in zip(self.heads, supervised, strict=True)][::-1]
        return self.heads[-1](y)
