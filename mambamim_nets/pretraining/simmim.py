"""SimMIM: nothing is dropped, a mask token stands for what is hidden, one linear layer predicts it (Xie et al. 2022).

    encode   the whole volume, dense, with the mask token in hidden places
    decode   one linear layer from every token to the 16^3 voxels under it
    loss     mean absolute error over hidden voxels, raw intensities

Where the mask token stands:
    VisionMamba   in place of the embedding of a hidden patch, as published; positions are added to it
    HyMamba       ours: its stem is a convolution, so a learnt block of 16^3 voxels stands in the input
"""

from typing import Literal

import torch
from torch import Tensor, nn

from mambamim_nets.losses import masked_l1, reconstruction_target
from mambamim_nets.masking import STRIDE, check_visible, expand_visible, token_grid
from mambamim_nets.nets.hymamba import Encoding, HyMamba
from mambamim_nets.nets.mamba_unetr import VisionMamba
from mambamim_nets.pretraining.base import MaskedModel, MIMOutput, unpatch

__all__ = ["SimMIM"]


class SimMIM(MaskedModel):
    """SimMIM around a Mamba encoder.

    Args:
        encoder: a ``VisionMamba`` or ``HyMamba``; the skip maps of the latter are not used, and so not trained.
        mask_ratio: share of hidden blocks, in (0, 1).
        target: "raw" or "patch_norm".

    Raises:
        ValueError: on an unknown target or a mask ratio outside (0, 1).
    """

    def __init__(
        self,
        encoder: VisionMamba | HyMamba,
        mask_ratio: float = 0.6,
        target: Literal["patch_norm", "raw"] = "raw",
    ) -> None:
        super().__init__(encoder, mask_ratio, target)
        block = (1, encoder.in_channels, STRIDE, STRIDE, STRIDE)
        self.token = nn.Parameter(torch.empty(block if isinstance(encoder, HyMamba) else encoder.widths[-1]))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.predict = nn.Linear(encoder.widths[-1], encoder.in_channels * STRIDE**3)

    def encode(self, x: Tensor, visible: Tensor) -> Encoding:
        """Encode a volume (B, C_in, D, H, W) with the mask token in its hidden blocks: all tokens, no skips."""
        if not isinstance(self.encoder, HyMamba):
            return self.encoder.encode(x, visible, token=self.token)
        grid = token_grid(x.shape[2:])
        check_visible(visible, x.shape[0], grid)
        hidden = self.token.repeat(1, 1, *grid)
        return self.encoder.encode(torch.where(expand_visible(visible, STRIDE), x, hidden), strides=())

    def forward(self, x: Tensor, visible: Tensor | None = None) -> MIMOutput:
        """Mask a batch, rebuild it and score the hidden part.

        Args:
            x: (B, C_in, D, H, W) float, intensities in [0, 1], sides multiples of 16.
            visible: (B, 1, d, h, w) bool, True = kept; drawn at ``mask_ratio`` if None.

        Returns:
            MIMOutput.
        """
        visible = self.draw_visible(x) if visible is None else visible
        encoding = self.encode(x, visible)
        reconstruction = unpatch(self.predict(encoding.tokens)[:, encoding.inverse], token_grid(x.shape[2:]))
        loss = masked_l1(reconstruction, reconstruction_target(x, self.target), visible)
        return MIMOutput(loss, reconstruction, visible)
