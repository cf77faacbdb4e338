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

from mambamim_nets.losses import masked_l1
from mambamim_nets.masking import STRIDE, token_grid
from mambamim_nets.nets.protocols import Encoder
from mambamim_nets.pretraining.base import MaskedModel, unpatch

__all__ = ["SimMIM"]


class SimMIM(MaskedModel):
    """SimMIM around a Mamba encoder.

    Args:
        encoder: a `VisionMamba` or `HyMamba`; the skip maps of the latter are not used, and so not trained.
        mask_ratio: share of hidden blocks, in (0, 1).
        target: "raw" or "patch_norm".

    Raises:
        ValueError: on an unknown target or a mask ratio outside (0, 1).
    """

    score = staticmethod(masked_l1)

    def __init__(
        self,
        encoder: Encoder,
        mask_ratio: float = 0.6,
        target: Literal["patch_norm", "raw"] = "raw",
    ) -> None:
        super().__init__(encoder, mask_ratio, target)
        self.token = nn.Parameter(torch.empty(encoder.token_shape))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.predict = nn.Linear(encoder.widths[-1], encoder.in_channels * STRIDE**3)

    def reconstruct(self, x: Tensor, visible: Tensor) -> Tensor:
        """Encode the whole volume with the mask token in hidden places, and predict the voxels under every token."""
        encoding = self.encoder.encode_filled(x, visible, self.token)
        return unpatch(self.predict(encoding.tokens)[:, encoding.inverse], token_grid(x.shape[2:]))
