"""MAE: a masked autoencoder around a Mamba encoder (He et al. 2022; the decoder's size as in MONAI's 3-D version).

    encode   hidden patches are dropped
    fill     a learnable token at every hidden position, then positions
    decode   a light sequence decoder, then one linear layer to voxels; no skip maps
    loss     mean squared error over hidden voxels, patches standardised

Ours: decoder layers are those of the encoder, Vision Mamba in the place of transformer blocks, in its scan order.

Glossary
    tokens   (B, K, C) visible, (B, T, C) all, in scan order
"""

from typing import Literal

import torch
from torch import Tensor, nn

from mambamim_nets.layers.mamba import MambaLayer
from mambamim_nets.layers.position import sincos_position
from mambamim_nets.masking import STRIDE, place_tokens, token_grid
from mambamim_nets.nets.protocols import Encoder
from mambamim_nets.pretraining.base import MaskedModel, unpatch

__all__ = ["MAE"]


class MAE(MaskedModel):
    """Masked autoencoder.

    Args:
        encoder: a `VisionMamba`; of a `HyMamba` the skip maps are not used, and so not trained.
        mask_ratio: share of hidden patches, in (0, 1).
        target: "patch_norm" or "raw".
        decoder_width: channels of the decoder's tokens.
        decoder_depth: its layers.

    Raises:
        ValueError: on an unknown target, a mask ratio outside (0, 1), or a decoder without width or layers.
    """

    def __init__(
        self,
        encoder: Encoder,
        mask_ratio: float = 0.75,
        target: Literal["patch_norm", "raw"] = "patch_norm",
        decoder_width: int = 384,
        decoder_depth: int = 4,
    ) -> None:
        super().__init__(encoder, mask_ratio, target)
        for name, value in (("decoder_width", decoder_width), ("decoder_depth", decoder_depth)):
            if value < 1:
                raise ValueError(f"{name} {value} must be at least 1; MAE's light decoder has width 384 and 4 layers")
        self.project = nn.Linear(encoder.widths[-1], decoder_width)
        self.token = nn.Parameter(torch.empty(decoder_width))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.decoder = nn.ModuleList(MambaLayer(decoder_width) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(decoder_width, eps=1e-6)
        self.predict = nn.Linear(decoder_width, encoder.in_channels * STRIDE**3)

    def reconstruct(self, x: Tensor, visible: Tensor) -> Tensor:
        """Encode visible patches, put them in their places among learnt tokens, and decode all of them to voxels."""
        encoding = self.encoder.encode(x, visible, strides=())
        kept = visible.flatten(1)[:, encoding.order]
        d, h, w = token_grid(x.shape[2:])
        tokens = place_tokens(self.project(encoding.tokens), kept, self.token)
        tokens = tokens + sincos_position([d, h, w], tokens.shape[-1], x.device)[encoding.order]
        for layer in self.decoder:
            tokens = layer(tokens)
        return unpatch(self.predict(self.norm(tokens))[:, encoding.inverse], (d, h, w))
