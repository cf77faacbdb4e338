"""MambaMIM: masked image modelling for Mamba and hybrid CNN + Mamba encoders with state-space token interpolation.

    encode   hidden blocks never enter CNN or Mamba (Algorithm 1)
    fill     hidden tokens by TOKI (Eq. 6 - 8), hidden voxels of the CNN maps by learnt tokens t_i
    decode   D_n = phi(yhat);  D_i = skip_i(concat(phi(Fill(S_i, t_i)), up_i(D_{i+1})))  (Algorithm 2)
    loss     mean squared error over hidden voxels

Glossary
    y       visible tokens after the Mamba stage, (B, K, C) in scan order
    yhat    tokens of the whole grid
    S_i     skip map of CNN stage i, strides 2, 4, 8
    D_i     decoder map; its width halves at every stage

Decisions where the paper is silent: the finest decoder map has stride 2, and the closing linear layer predicts the 2^3
voxels under each of its positions, so that nothing runs at full resolution; norms in the decoder are per voxel, so a
step does not depend on the batch. An encoder without a CNN stage has no skip maps; the rest of Algorithm 2 stays.

Deviations of the decoder from the public code, none of which the paper settles; it is thrown away after pre-training
    skip projections    1^3 convolutions; there 3^3 for all but the deepest map. Pointwise, they need no hidden voxels
    up-sampling         the transposed convolution halves the width; there it keeps it, and the convolution after it
                        halves
    activation, norm    LeakyReLU and norms per voxel; there ReLU and batch norm
    concatenation       skip map first, then the up-sampled one; there the other way round
    finest map          stride 2, see above; there a fourth stage ends at stride 1
    width               the encoder's unless `decoder_width` says so; there 768
TOKI itself and masking follow the paper: what the public code does instead is listed in `ops.toki` and tested.
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mambamim_nets.layers.conv import Conv3, VoxelNorm
from mambamim_nets.layers.interpolation import TokenInterpolation
from mambamim_nets.masking import place_tokens, token_grid
from mambamim_nets.nets.protocols import Encoder
from mambamim_nets.ops.blocks import unpack
from mambamim_nets.pretraining.base import MaskedModel

__all__ = ["MambaMIM"]

_SKIP_STRIDES = (2, 4, 8)


class _ConvNormAct(nn.Module):
    """Two times 3^3 convolution, norm, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = Conv3(in_channels, out_channels), VoxelNorm(out_channels, negative_slope=0.01)
        self.conv2, self.norm2 = Conv3(out_channels, out_channels), VoxelNorm(out_channels, negative_slope=0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(x))


class DecoderStage(nn.Module):
    """One step of Algorithm 2: up-sample D_{i+1}, join the filled skip map if there is one, and fuse.

    phi(Fill(S_i, t_i)) is computed as Fill(phi(S_i), phi(t_i)), the same without work on hidden voxels.
    """

    def __init__(self, in_channels: int, out_channels: int, skip_channels: int | None) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, kernel_size=2, stride=2)
        self.refine = _ConvNormAct(out_channels, out_channels)
        self.token: nn.Parameter | None = None
        if skip_channels is not None:
            self.token = nn.Parameter(torch.empty(1, skip_channels, 1, 1, 1))
            nn.init.trunc_normal_(self.token, std=0.02)
            self.project = nn.Conv3d(skip_channels, out_channels, kernel_size=1)
        self.fuse = _ConvNormAct(out_channels * (1 if skip_channels is None else 2), out_channels)

    def forward(self, x: Tensor, skip: Tensor | None, visible: Tensor) -> Tensor:
        """Decode one stage.

        Args:
            x: (B, in, D, H, W), D_{i+1}.
            skip: (N, skip, b, b, b), the visible blocks of S_i; None where the stage has none.
            visible: (B, 1, d, h, w) bool.

        Returns:
            (B, out, 2 D, 2 H, 2 W), D_i.
        """
        x = self.refine(self.up(x))
        if self.token is not None and skip is not None:
            x = torch.cat([unpack(self.project(skip), visible, self.project(self.token)), x], dim=1)
        return self.fuse(x)


class MambaMIM(MaskedModel):
    """Pre-training model around an encoder.

    Args:
        encoder: a `HyMamba` or `VisionMamba`; its weights are what fine-tuning starts from.
        mask_ratio: share of hidden blocks, in (0, 1); 0.75 in the paper.
        fill: hidden tokens of the Mamba stage by "toki", or by one "learnable" token (the ablation).
        masking: "bottom_up", one mask for CNN and Mamba, or "independent", one each (the ablation).
        skip: whether the decoder reads the CNN's skip maps; without effect on an encoder that has none.
        target: "patch_norm", every 16^3 patch standardised, or "raw" intensities.
        decoder_width: channels of the decoder at stride 16, divisible by 8; 768 in the public code. None: the
            encoder's.
        transition: A' of TOKI, "diagonal" or "full".

    Raises:
        ValueError: on an unknown switch value, a mask ratio outside (0, 1), or independent masks for an encoder without
            a CNN stage.
    """

    def __init__(
        self,
        encoder: Encoder,
        mask_ratio: float = 0.75,
        fill: Literal["toki", "learnable"] = "toki",
        masking: Literal["bottom_up", "independent"] = "bottom_up",
        skip: bool = True,
        target: Literal["patch_norm", "raw"] = "patch_norm",
        decoder_width: int | None = None,
        transition: Literal["diagonal", "full"] = "diagonal",
    ) -> None:
        super().__init__(encoder, mask_ratio, target)
        for name, value, choices in (
            ("fill", fill, ("toki", "learnable")),
            ("masking", masking, ("bottom_up", "independent")),
        ):
            if value not in choices:
                raise ValueError(f"{name} {value!r} must be one of {choices}")
        channels, has_cnn = encoder.widths[-1], len(encoder.widths) > 1
        if masking == "independent" and not has_cnn:
            raise ValueError(
                f"masking 'independent' needs a CNN stage, which {type(encoder).__name__} has not; use 'bottom_up'"
            )
        width = channels if decoder_width is None else decoder_width
        if width < 8 or width % 8:
            raise ValueError(f"decoder_width {width} must be a multiple of 8: it halves three times")
        self.fill, self.masking = fill, masking
        self.skip = skip and has_cnn
        if fill == "toki":
            self.toki = TokenInterpolation(channels, transition)
        else:
            self.token = nn.Parameter(torch.empty(1, 1, channels))
            nn.init.trunc_normal_(self.token, std=0.02)
        self.bottleneck = nn.Conv3d(channels, width, kernel_size=1)
        widths = [width // 2**level for level in range(4)]
        skips = [encoder.widths[level] if self.skip else None for level in (3, 2, 1)]
        self.decoder = nn.ModuleList(
            DecoderStage(i, o, s) for i, o, s in zip(widths[:-1], widths[1:], skips, strict=True)
        )
        self.predict = nn.Conv3d(widths[-1], 8 * encoder.in_channels, kernel_size=1)

    def fill_tokens(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Fill visible tokens (B, K, C) up to the grid; visible (B, T) bool, both in scan order: (B, T, C)."""
        if self.fill == "toki":
            return self.toki(tokens, visible)
        return place_tokens(tokens, visible, self.token)

    def reconstruct(self, x: Tensor, visible: Tensor) -> Tensor:
        """Encode visible blocks, fill the hidden tokens, and decode to voxels (Algorithms 1 and 2)."""
        token_visible = self.draw_visible(x) if self.masking == "independent" else visible
        encoding = self.encoder.encode(x, visible, token_visible, strides=_SKIP_STRIDES if self.skip else ())
        filled = self.fill_tokens(encoding.tokens, token_visible.flatten(1)[:, encoding.order])
        d, h, w = token_grid(x.shape[2:])
        filled = rearrange(filled[:, encoding.inverse], "b (d h w) c -> b c d h w", d=d, h=h, w=w)
        y = self.bottleneck(filled.contiguous(memory_format=torch.channels_last_3d))
        for stride, stage in zip(reversed(_SKIP_STRIDES), self.decoder, strict=True):
            y = stage(y, encoding.skips.get(stride), visible)
        return rearrange(self.predict(y), "b (c i j k) d h w -> b c (d i) (h j) (w k)", i=2, j=2, k=2)
