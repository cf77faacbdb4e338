"""MambaUNETR: the "Vanilla Mamba" of MambaMIM section 3.1, UNETR with Vision Mamba in the place of its ViT.

Published: patches of 16^3, depth 12, width 768, UNETR's bottleneck and decoder.

Ours, where the paper is silent: Vision Mamba layers are those of HyMamba (bidirectional, pre-norm, an MLP of ratio 2);
positions are fixed sines and cosines, for any grid; the last layer is followed by UNETR's layer norm; skips are read
after layers 3, 6, 9 and 12 as UNETR's paper says (MONAI's UNETR reads layers 4, 7, 10 and 12); size "tiny".

Glossary
    patch    16^3 voxels of all image channels, one token
    x, y     visible tokens before and after the Mamba layers, (B, K, C) in scan order
    visible  (B, 1, d, h, w) bool, True = kept; d = D / 16
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from monai.networks.blocks import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from mambamim_nets.layers.mamba import NORM_EPS, MambaLayer, TokenNorm
from mambamim_nets.layers.norm import CHANNELS_LAST_INSTANCE
from mambamim_nets.layers.position import sincos_position
from mambamim_nets.masking import STRIDE, check_visible, place_tokens, token_grid
from mambamim_nets.nets.protocols import Encoding
from mambamim_nets.ops.orders import scan_order

__all__ = ["UNETR_SIZES", "MambaUNETR", "VisionMamba"]


class Size(NamedTuple):
    """Token width, number of layers (a multiple of 4), and channels of the decoder at stride 1."""

    width: int
    depth: int
    feature_size: int


UNETR_SIZES = {"base": Size(768, 12, 16), "tiny": Size(128, 4, 8)}
"""base: the published network. tiny: ours, for laptops, tests and shipped weights."""


class VisionMamba(nn.Module):
    """Patch embedding and Vision Mamba layers: an encoder without a CNN stage, and so without skip maps.

    Args:
        in_channels: image channels C_in.
        size: "base" (79.6 M parameters at 1 channel) or "tiny".
        scan: order of the tokens: raster, zigzag, hilbert or shuffle.
        bidirectional: Vision Mamba in both directions (the paper) or forward only.
        scan_seed: seed of the shuffle order.
        norm_eps: of all layer norms; weights that are loaded bring their own.

    Attributes:
        widths: channels of the one map, at stride 16, that pre-training reads.

    Raises:
        ValueError: on an unknown size or scan order, or less than one channel.
    """

    kind = "VisionMamba"

    def __init__(
        self,
        in_channels: int = 1,
        size: Literal["base", "tiny"] = "base",
        scan: Literal["raster", "zigzag", "hilbert", "shuffle"] = "raster",
        bidirectional: bool = True,
        scan_seed: int = 0,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        if size not in UNETR_SIZES:
            raise ValueError(f"size {size!r} is unknown; use one of {sorted(UNETR_SIZES)}")
        if in_channels < 1:
            raise ValueError(f"in_channels {in_channels} must be at least 1")
        spec = UNETR_SIZES[size]
        self.in_channels, self.scan, self.scan_seed = in_channels, scan, scan_seed
        self.size: Literal["base", "tiny"] = size
        self.bidirectional = bidirectional
        self.widths: tuple[int, ...] = (spec.width,)
        self.token_shape = self.widths
        scan_order((1, 1, 1), scan, scan_seed)  # refuses an unknown order now
        self.stem = nn.Conv3d(in_channels, spec.width, kernel_size=STRIDE, stride=STRIDE)
        self.mamba = nn.ModuleList(
            MambaLayer(spec.width, bidirectional=bidirectional, norm_eps=norm_eps) for _ in range(spec.depth)
        )
        self.norm = TokenNorm(spec.width, eps=norm_eps)

    def _read(
        self, x: Tensor, visible: Tensor | None, token: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the tokens after each quarter of the layers, the last normalised, and scan order and inverse."""
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            channels = self.in_channels
            raise ValueError(f"input {tuple(x.shape)} must be (B, {channels}, D, H, W): in_channels={channels}")
        batch, grid, p = x.shape[0], token_grid(x.shape[2:]), STRIDE
        order, inverse = (index.to(x.device) for index in scan_order(grid, self.scan, self.scan_seed))
        patches = rearrange(x, "b c (d i) (h j) (w k) -> b (d h w) (c i j k)", i=p, j=p, k=p)[:, order]
        position = sincos_position(list(grid), self.widths[-1], x.device)[order].expand(batch, -1, -1)
        kept = None
        if visible is not None:
            check_visible(visible, batch, grid)
            kept = visible.flatten(1)[:, order]
            patches = rearrange(patches[kept], "(b k) p -> b k p", b=batch)
        tokens = F.linear(patches, self.stem.weight.flatten(1), self.stem.bias)
        if kept is not None and token is not None:
            tokens = place_tokens(tokens, kept, token)
        elif kept is not None:
            position = rearrange(position[kept], "(b k) c -> b k c", b=batch)
        tokens, taps = tokens + position, []
        for number, layer in enumerate(self.mamba, start=1):
            tokens = layer(tokens)
            if number % (len(self.mamba) // 4) == 0:
                taps.append(tokens)
        return [*taps[:-1], self.norm(tokens)], order, inverse

    def encode(
        self,
        x: Tensor,
        visible: Tensor | None = None,
        token_visible: Tensor | None = None,
        strides: tuple[int, ...] = (),
    ) -> Encoding:
        """Encode a volume, or its visible patches; hidden ones never enter. Arguments and result: `Encoder.encode`.

        Raises:
            ValueError: on a wrong number of axes or channels, a side that 16 does not divide, an invalid mask, two
                different masks (there is no CNN stage that could see another), or any stride (there are no skip maps).
        """
        if strides:
            raise ValueError(f"strides {strides} must be (): {type(self).__name__} has no skip maps")
        one_mask = token_visible is None or token_visible is visible
        if not one_mask and (visible is None or token_visible is None or not torch.equal(visible, token_visible)):
            raise ValueError("token_visible must equal visible or be None: without a CNN stage there is one mask")
        taps, order, inverse = self._read(x, visible)
        return Encoding({}, taps[-1], order, inverse)

    def encode_filled(self, x: Tensor, visible: Tensor, token: Tensor) -> Encoding:
        """Encode a volume with a token, (width,), for the embedding of every hidden patch: all tokens, no skips."""
        taps, order, inverse = self._read(x, visible, token)
        return Encoding({}, taps[-1], order, inverse)

    def with_decoder(self, out_channels: int) -> "MambaUNETR":
        """Return a `MambaUNETR` of this size with a new decoder and this very encoder."""
        network = MambaUNETR(self.in_channels, out_channels, self.size)
        network.encoder = self
        return network

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return four maps (B, width, D / 16, H / 16, W / 16) of (B, C_in, D, H, W): layers 3, 6, 9, 12 of base."""
        taps, _, inverse = self._read(x, None)
        d, h, w = token_grid(x.shape[2:])
        return [rearrange(tokens[:, inverse], "b (d h w) c -> b c d h w", d=d, h=h, w=w) for tokens in taps]


class MambaUNETR(nn.Module):
    """UNETR's decoder, MONAI's blocks, on Vision Mamba features and the image.

    The decoder is channels-last, as that of `HyMambaSeg`.

    Args:
        in_channels: image channels.
        out_channels: classes with background (softmax), or regions (sigmoid).
        size: "base" (the paper's Vanilla Mamba, 84.0 M parameters at 1 channel and 14 classes) or "tiny".
        scan: see `VisionMamba`.
        bidirectional: see `VisionMamba`.
        scan_seed: see `VisionMamba`.
        norm_eps: see `VisionMamba`.

    Raises:
        ValueError: as `VisionMamba`, and on less than one class.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: Literal["base", "tiny"] = "base",
        scan: Literal["raster", "zigzag", "hilbert", "shuffle"] = "raster",
        bidirectional: bool = True,
        scan_seed: int = 0,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        if out_channels < 1:
            raise ValueError(f"out_channels {out_channels} must be at least 1")
        self.encoder = VisionMamba(in_channels, size, scan, bidirectional, scan_seed, norm_eps)
        self.size, self.out_channels = self.encoder.size, out_channels
        width, fine = UNETR_SIZES[size].width, UNETR_SIZES[size].feature_size

        self.image = UnetrBasicBlock(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=fine,
            kernel_size=3,
            stride=1,
            norm_name=CHANNELS_LAST_INSTANCE,
            res_block=True,
        )
        self.skips = nn.ModuleList(
            UnetrPrUpBlock(
                spatial_dims=3,
                in_channels=width,
                out_channels=fine * factor,
                num_layer=steps,
                kernel_size=3,
                stride=1,
                upsample_kernel_size=2,
                norm_name=CHANNELS_LAST_INSTANCE,
                conv_block=True,
                res_block=True,
            )
            for factor, steps in ((2, 2), (4, 1), (8, 0))
        )
        self.up = nn.ModuleList(
            UnetrUpBlock(
                spatial_dims=3,
                in_channels=i,
                out_channels=o,
                kernel_size=3,
                upsample_kernel_size=2,
                norm_name=CHANNELS_LAST_INSTANCE,
                res_block=True,
            )
            for i, o in ((width, fine * 8), (fine * 8, fine * 4), (fine * 4, fine * 2), (fine * 2, fine))
        )
        self.out = nn.Conv3d(fine, out_channels, kernel_size=1)
        for module in (self.image, self.skips, self.up, self.out):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Segment (B, C_in, D, H, W), sides multiples of 16: logits (B, out_channels, D, H, W)."""
        *features, y = self.encoder(x)
        skips = [self.image(x.clone(memory_format=torch.channels_last_3d))]
        skips += [project(feature) for project, feature in zip(self.skips, features, strict=True)]
        for up, skip in zip(self.up, reversed(skips), strict=True):
            y = up(y, skip)
        return self.out(y)
