"""What pre-training models share: what they return, and for those that mask, the mask, the target and pictures.

The contract of a pre-training model: called with a batch of images it returns a `MIMOutput`; `encoder` is what
fine-tuning starts from; where there is a reconstruction, `rebuild` makes an image of it.
"""

from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from mambamim_nets.losses import masked_mse, patch_statistics, reconstruction_target
from mambamim_nets.masking import STRIDE, expand_visible, random_visible, token_grid
from mambamim_nets.nets.protocols import Encoder

__all__ = ["MIMOutput", "MaskedModel", "unpatch"]


class MIMOutput(NamedTuple):
    """What pre-training models return.

    Attributes:
        loss: scalar.
        reconstruction: (B, C_in, D, H, W) in the target's space, or None if nothing is rebuilt.
        visible: (B, 1, d, h, w) bool, or None if nothing is masked.
    """

    loss: Tensor
    reconstruction: Tensor | None
    visible: Tensor | None


class MaskedModel(nn.Module):
    """A model that hides blocks and rebuilds them; a subclass says how, in `reconstruct`.

    Args:
        encoder: its weights are what fine-tuning starts from.
        mask_ratio: share of hidden blocks, in (0, 1).
        target: "patch_norm", every 16^3 patch standardised over all its channels, or "raw" intensities.

    Raises:
        ValueError: on a mask ratio outside (0, 1) or an unknown target.
    """

    score = staticmethod(masked_mse)

    def __init__(self, encoder: Encoder, mask_ratio: float, target: Literal["patch_norm", "raw"]) -> None:
        super().__init__()
        if target not in ("patch_norm", "raw"):
            raise ValueError(f"target {target!r} must be one of ('patch_norm', 'raw')")
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio {mask_ratio} must lie in (0, 1); the paper uses 0.75")
        self.encoder, self.mask_ratio, self.target = encoder, mask_ratio, target

    def reconstruct(self, x: Tensor, visible: Tensor) -> Tensor:
        """Rebuild a volume (B, C_in, D, H, W) from its visible blocks, in the target's space: (B, C_in, D, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor, visible: Tensor | None = None, ignored: Tensor | None = None) -> MIMOutput:
        """Mask a batch, rebuild it and score the hidden part.

        Args:
            x: (B, C_in, D, H, W) float, intensities in [0, 1], sides multiples of 16.
            visible: (B, 1, d, h, w) bool, True = kept; drawn at `mask_ratio` if None.
            ignored: (B, 1, d, h, w) bool, blocks that have no part in the loss, such as those of removed faces; None:
                none.

        Returns:
            MIMOutput.
        """
        visible = self.draw_visible(x) if visible is None else visible
        reconstruction = self.reconstruct(x, visible)
        scored = visible if ignored is None else visible | ignored  # the loss is that of all others
        loss = self.score(reconstruction, reconstruction_target(x, self.target), scored)
        return MIMOutput(loss, reconstruction, visible)

    def draw_visible(self, x: Tensor) -> Tensor:
        """Draw a mask for a batch (B, C_in, D, H, W) from the default generator of its device."""
        return random_visible(x.shape[0], token_grid(x.shape[2:]), self.mask_ratio, device=x.device)

    @torch.no_grad()
    def rebuild(self, x: Tensor, output: MIMOutput) -> Tensor:
        """Return the image with its hidden blocks replaced by their reconstruction, for pictures: (B, C_in, D, H, W).

        With the `patch_norm` target the mean and deviation of each hidden patch come from the image itself.

        Raises:
            ValueError: if the output holds no reconstruction or no mask.
        """
        if output.reconstruction is None or output.visible is None:
            raise ValueError("output must hold a reconstruction and a mask; this model's own outputs do")
        rebuilt = output.reconstruction.float()
        if self.target == "patch_norm":
            mean, std = patch_statistics(x)
            rebuilt = rebuilt * std + mean
        return torch.where(expand_visible(output.visible, x.shape[2] // output.visible.shape[2]), x.float(), rebuilt)


def unpatch(patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Lay patches (B, T, C_in 16^3) in raster order out as a volume (B, C_in, D, H, W)."""
    d, h, w = grid
    pattern, side = "b (d h w) (c i j k) -> b c (d i) (h j) (w k)", STRIDE
    return rearrange(patches, pattern, d=d, h=h, w=w, i=side, j=side, k=side)
