"""Models Genesis: restore a distorted volume with an encoder and a segmentation decoder (Zhou et al. 2021).

    distort  local shuffling, intensities, in- and out-painting: transforms of the data, not of the model
    restore  the encoder with the decoder that fine-tuning will use, as many channels out as in
    loss     mean squared error over all voxels, but those of removed faces

Ours: the decoder is that of the encoder's segmentation network; only the encoder is handed to fine-tuning. The map of
intensities always rises; half of the published curves fall, which inverts the image.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mambamim_nets.nets.protocols import Encoder
from mambamim_nets.pretraining.base import MIMOutput

__all__ = ["ModelsGenesis"]


class ModelsGenesis(nn.Module):
    """Autoencoder of distorted volumes.

    Args:
        encoder: a `HyMamba` or `VisionMamba`.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.network = encoder.with_decoder(encoder.in_channels)

    @property
    def encoder(self) -> nn.Module:
        """The encoder, what fine-tuning starts from."""
        return self.network.get_submodule("encoder")

    def forward(self, x: Tensor, target: Tensor | None = None, ignored: Tensor | None = None) -> MIMOutput:
        """Restore a batch.

        Args:
            x: (B, C_in, D, H, W) float, distorted, sides multiples of 16.
            target: the same without distortion; x itself if None.
            ignored: (B, 1, D, H, W) bool, voxels that have no part in the loss, such as those of removed faces; None:
                none.

        Returns:
            MIMOutput without a mask.
        """
        restored = self.network(x)
        error = F.mse_loss(restored.float(), (x if target is None else target).float(), reduction="none")
        if ignored is None:
            return MIMOutput(error.mean(), restored, None)
        scored = (~ignored).expand_as(error)
        return MIMOutput((error * scored).sum() / scored.sum().clamp(min=1), restored, None)

    def rebuild(self, x: Tensor, output: MIMOutput) -> Tensor:
        """Return what was restored, for pictures: (B, C_in, D, H, W)."""
        if output.reconstruction is None:
            raise ValueError("output must hold a reconstruction; this model's own outputs do")
        return output.reconstruction.float()
