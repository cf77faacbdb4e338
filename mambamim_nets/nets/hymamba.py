"""HyMamba: a hybrid CNN + Mamba encoder, and the segmentation network on top (MambaMIM section 3.1, 3.2).

The CNN stage (MedNeXt blocks, max-pooling) brings a volume to stride 16, the Mamba stage (bidirectional Vision Mamba)
mixes the resulting tokens along a scan order. The same weights run dense, or sparse on the visible blocks of a masked
volume, where hidden voxels are not computed (Algorithm 1; see `ops.blocks`).

Glossary
    S_i          feature map of CNN stage i, zero where hidden
    x, y         visible tokens before and after the Mamba stage, (B, K, C) in scan order
    visible      (B, 1, d, h, w) bool, True = kept; d = D / 16

Deviations from the public code: bidirectional Mamba (the paper's), any grid size, tokens kept in scan order, the number
of visible tokens counted per sample, and the initialisation of the Mamba stage (see `layers.mamba`).

Deviation from the paper: it names MedNeXt's decoder for segmentation, the public code builds UNETR's, and so do we: its
results, counts of parameters and weights are those of that network.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from monai.networks.blocks import UnetrUpBlock
from torch import Tensor, nn

from mambamim_nets.layers.conv import Conv3, MedNeXtBlock, ResidualBlock
from mambamim_nets.layers.mamba import NORM_EPS, MambaLayer
from mambamim_nets.layers.norm import CHANNELS_LAST_INSTANCE
from mambamim_nets.layers.position import sincos_position
from mambamim_nets.masking import STRIDE, check_visible, expand_visible, place_tokens, token_grid
from mambamim_nets.nets.protocols import Encoding
from mambamim_nets.ops.blocks import neighbour_table, pack, unpack
from mambamim_nets.ops.orders import scan_order

__all__ = ["SIZES", "HyMamba", "HyMambaFeatures", "HyMambaSeg", "Size"]


class Size(NamedTuple):
    """Widths and depths of a HyMamba; tuples run over the strides 1, 2, 4, 8 (widths) and 2, 4, 8, 16 (depths)."""

    stem: int
    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    expansions: tuple[int, int, int, int]
    mamba_layers: int
    d_state: int
    mlp_ratio: int


SIZES = {
    "base": Size(32, (64, 128, 192, 384), (2, 2, 2, 1), (2, 4, 4, 4), mamba_layers=4, d_state=16, mlp_ratio=2),
    "tiny": Size(16, (16, 32, 64, 128), (1, 1, 2, 1), (2, 2, 2, 2), mamba_layers=2, d_state=16, mlp_ratio=2),
}
"""base: the published network. tiny: ours, for laptops, tests and shipped weights."""


class HyMamba(nn.Module):
    """Hybrid CNN + Mamba encoder.

    Args:
        in_channels: image channels C_in.
        size: "base" (22.6 M parameters at 1 channel) or "tiny".
        scan: order of the tokens in the Mamba stage: raster, zigzag, hilbert or shuffle.
        bidirectional: Vision Mamba in both directions (the paper) or forward only.
        scan_seed: seed of the shuffle order.
        mamba_depth: layers of the Mamba stage; None: those of the size, 4 or 2. 0 leaves the stage out, positions too:
            an all-CNN encoder.
        norm_eps: of the layer norms of the Mamba stage; weights that are loaded bring their own.
        conv_depth: MedNeXt blocks at stride 16, before the Mamba stage; None: one, as in both sizes.

    Attributes:
        widths: channels of the five feature maps, strides 1, 2, 4, 8, 16.

    Raises:
        ValueError: on an unknown size or scan order, less than one channel, or a negative depth.
    """

    kind = "HyMamba"

    def __init__(
        self,
        in_channels: int = 1,
        size: Literal["base", "tiny"] = "base",
        scan: Literal["raster", "zigzag", "hilbert", "shuffle"] = "raster",
        bidirectional: bool = True,
        scan_seed: int = 0,
        mamba_depth: int | None = None,
        norm_eps: float = NORM_EPS,
        conv_depth: int | None = None,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size {size!r} is unknown; use one of {sorted(SIZES)}")
        if in_channels < 1:
            raise ValueError(f"in_channels {in_channels} must be at least 1")
        for name, depth in (("mamba_depth", mamba_depth), ("conv_depth", conv_depth)):
            if depth is not None and depth < 0:
                raise ValueError(f"{name} {depth} must be at least 0; None takes the size's own")
        spec = SIZES[size]
        self.mamba_depth = spec.mamba_layers if mamba_depth is None else mamba_depth
        self.conv_depth = spec.depths[-1] if conv_depth is None else conv_depth
        self.in_channels, self.scan, self.scan_seed = in_channels, scan, scan_seed
        self.size: Literal["base", "tiny"] = size
        self.bidirectional = bidirectional
        self.widths: tuple[int, ...] = (*spec.widths, spec.widths[-1])
        self.token_shape: tuple[int, ...] = (1, in_channels, STRIDE, STRIDE, STRIDE)
        scan_order((1, 1, 1), scan, scan_seed)  # refuses an unknown order now
        self.stem = Conv3(in_channels, spec.stem)
        self.widen = nn.ModuleList(Conv3(i, o) for i, o in zip((spec.stem, *spec.widths), spec.widths, strict=False))
        self.skips = nn.ModuleList(ResidualBlock(width, width) for width in spec.widths)
        self.stages = nn.ModuleList(
            nn.ModuleList(MedNeXtBlock(width, expansion) for _ in range(depth))
            for width, depth, expansion in zip(
                spec.widths, (*spec.depths[:-1], self.conv_depth), spec.expansions, strict=True
            )
        )
        self.mamba = nn.ModuleList(
            MambaLayer(spec.widths[-1], spec.d_state, spec.mlp_ratio, bidirectional, norm_eps)
            for _ in range(self.mamba_depth)
        )

    def __prepare_scriptable__(self) -> "HyMamba":
        """Stand for this module in torch.jit.script, which compiles its dense form; raster needs no order table."""
        if self.scan != "raster":
            raise ValueError(
                f"scan {self.scan!r} cannot be scripted, only 'raster' can; "
                "trace it for one input shape, in monai.bundle ckpt_export with --use_trace true --input_shape"
            )
        return self

    def _convolve(self, x: Tensor, neighbours: Tensor | None, strides: list[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Run the CNN stage on a dense map, or on visible blocks: skips at `strides`, and the map at stride 16."""
        if neighbours is None:
            # contiguous() would leave one channel as it is, and convolutions then take it for channels-first
            x = x.clone(memory_format=torch.channels_last_3d)
        skips: dict[int, Tensor] = {}
        x = self.stem(x, neighbours)
        for level, (widen, skip, blocks) in enumerate(zip(self.widen, self.skips, self.stages)):  # noqa: B905  # scripted
            x = widen(x, neighbours)
            if 1 << level in strides:
                skips[1 << level] = skip(x, neighbours)
            x = F.max_pool3d(x, kernel_size=2)
            for block in blocks.children():
                x = block(x, neighbours)
        return skips, x

    def _embed(self, deepest: Tensor) -> Tensor:
        """Read the map at stride 16 as tokens (B, d h w, C) in raster order and tell them where they are."""
        tokens = deepest.flatten(2).transpose(1, 2)
        if len(self.mamba) == 0:
            return tokens
        position = sincos_position(list(deepest.shape[2:]), deepest.shape[1], deepest.device)
        return tokens + position.to(deepest.dtype)

    def _mix(self, tokens: Tensor) -> Tensor:
        for layer in self.mamba:
            tokens = layer(tokens)
        return tokens

    def _scripted(self, x: Tensor, visible: Tensor | None) -> list[Tensor]:
        """Do what `forward` does when it is dense and raster, in TorchScript."""
        if visible is not None:
            raise ValueError("visible must be None: a scripted network is dense; use the network in Python")
        if x.ndim != 5 or any([side < 16 or side % 16 != 0 for side in x.shape[2:]]):
            raise ValueError(f"input {x.shape} must be (B, C_in, D, H, W) with sides that are multiples of 16")
        skips, deepest = self._convolve(x, None, [1, 2, 4, 8])
        tokens = self._mix(self._embed(deepest))
        return [skips[1], skips[2], skips[4], skips[8], tokens.transpose(1, 2).view(deepest.shape)]

    def encode(
        self,
        x: Tensor,
        visible: Tensor | None = None,
        token_visible: Tensor | None = None,
        strides: tuple[int, ...] = (1, 2, 4, 8),
    ) -> Encoding:
        """Encode a volume, or the visible part of it. Arguments and result: `Encoder.encode`.

        Where `visible` and `token_visible` differ, CNN and Mamba stage see different parts; the paper's bottom-up
        masking has one mask. Skip maps at other strides than `strides` are not computed.

        Raises:
            ValueError: on a wrong number of axes or channels, a side that 16 does not divide, or an invalid mask.
        """
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            channels = self.in_channels
            raise ValueError(f"input {tuple(x.shape)} must be (B, {channels}, D, H, W): in_channels={channels}")
        grid = token_grid(x.shape[2:])
        for mask in (visible, token_visible):
            if mask is not None:
                check_visible(mask, x.shape[0], grid)
        token_visible = visible if token_visible is None else token_visible
        if visible is None:
            skips, deepest = self._convolve(x, None, list(strides))
        elif bool(visible.all()):
            dense, deepest = self._convolve(x, None, list(strides))
            skips = {stride: pack(skip, visible) for stride, skip in dense.items()}
        else:
            skips, deepest = self._convolve(pack(x, visible), neighbour_table(visible), list(strides))
            deepest = unpack(deepest, visible)
        tokens = self._embed(deepest)
        order, inverse = (index.to(x.device) for index in scan_order(grid, self.scan, self.scan_seed))
        tokens = tokens[:, order]
        if token_visible is not None:
            kept = token_visible.flatten(1)[:, order]
            tokens = rearrange(tokens[kept], "(b k) c -> b k c", b=x.shape[0])
        return Encoding(skips, self._mix(tokens), order, inverse)

    def encode_filled(self, x: Tensor, visible: Tensor, token: Tensor) -> Encoding:
        """Encode a volume with a block of voxels, (1, C_in, 16, 16, 16), in its hidden places: all tokens, no skips."""
        grid = token_grid(x.shape[2:])
        check_visible(visible, x.shape[0], grid)
        filled = torch.where(expand_visible(visible, STRIDE), x, token.repeat(1, 1, *grid))
        return self.encode(filled, strides=())

    def with_decoder(self, out_channels: int) -> "HyMambaSeg":
        """Return a `HyMambaSeg` of this size with a new decoder and this very encoder."""
        network = HyMambaSeg(self.in_channels, out_channels, self.size)
        network.encoder = self
        return network

    def forward(self, x: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """Return the five feature maps of a volume.

        Args:
            x: (B, C_in, D, H, W) float, sides multiples of 16.
            visible: (B, 1, d, h, w) bool, True = kept, the same number in every sample; None: dense.

        Returns:
            Maps at strides 1, 2, 4, 8, 16 with `widths` channels, zero where hidden.
        """
        if torch.jit.is_scripting():
            return self._scripted(x, visible)
        encoding = self.encode(x, visible)
        batch, grid = x.shape[0], token_grid(x.shape[2:])
        tokens, skips = encoding.tokens, list(encoding.skips.values())
        if visible is not None:
            skips = [unpack(blocks, visible) for blocks in skips]
            kept = visible.flatten(1)[:, encoding.order]
            tokens = place_tokens(tokens, kept, tokens.new_zeros(()))
        d, h, w = grid
        deepest = rearrange(tokens[:, encoding.inverse], "b (d h w) c -> b c d h w", b=batch, d=d, h=h, w=w)
        return [*skips, deepest]


class HyMambaSeg(nn.Module):
    """HyMamba with a UNETR decoder: four up-blocks, a residual block and a 1^3 convolution to classes.

    Everything is channels-last, weights too, where convolutions need no reordering.

    Args:
        in_channels: image channels.
        out_channels: classes with background (softmax), or regions (sigmoid).
        size: "base" (41.8 M parameters at 1 channel and 14 classes) or "tiny".
        scan: see `HyMamba`.
        bidirectional: see `HyMamba`.
        scan_seed: see `HyMamba`.
        mamba_depth: see `HyMamba`.
        norm_eps: see `HyMamba`.
        conv_depth: see `HyMamba`.

    Raises:
        ValueError: as `HyMamba`, and on less than one class.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: Literal["base", "tiny"] = "base",
        scan: Literal["raster", "zigzag", "hilbert", "shuffle"] = "raster",
        bidirectional: bool = True,
        scan_seed: int = 0,
        mamba_depth: int | None = None,
        norm_eps: float = NORM_EPS,
        conv_depth: int | None = None,
    ) -> None:
        super().__init__()
        if out_channels < 1:
            raise ValueError(f"out_channels {out_channels} must be at least 1")
        self.encoder = HyMamba(in_channels, size, scan, bidirectional, scan_seed, mamba_depth, norm_eps, conv_depth)
        self.size, self.out_channels = self.encoder.size, out_channels
        widths, stem = self.encoder.widths, SIZES[size].stem
        self.up = nn.ModuleList(
            UnetrUpBlock(
                spatial_dims=3,
                in_channels=widths[level + 1],
                out_channels=widths[level],
                kernel_size=3,
                upsample_kernel_size=2,
                norm_name=CHANNELS_LAST_INSTANCE,
                res_block=True,
            )
            for level in (3, 2, 1, 0)
        )
        self.head = ResidualBlock(widths[0], stem)
        self.out = nn.Conv3d(stem, out_channels, kernel_size=1)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Segment (B, C_in, D, H, W), sides multiples of 16: logits (B, out_channels, D, H, W)."""
        maps = self.encoder(x)
        y = maps[4]
        for index, up in enumerate(self.up):
            y = up(y, maps[3 - index])
        return self.out(self.head(y))


class HyMambaFeatures(HyMamba):
    """HyMamba that returns its deepest feature map only; arguments and weights are those of `HyMamba`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Encode (B, C_in, D, H, W), sides multiples of 16: features (B, widths[4], D / 16, H / 16, W / 16)."""
        if torch.jit.is_scripting():
            return self._scripted(x, None)[4]
        encoding, (d, h, w) = self.encode(x, strides=()), token_grid(x.shape[2:])
        return rearrange(encoding.tokens[:, encoding.inverse], "b (d h w) c -> b c d h w", d=d, h=h, w=w)
