"""A network that needs no training, so that a whole run takes milliseconds: bright voxels are its class."""

import torch
from torch import Tensor, nn


class Bright(nn.Module):
    """Logits (B, out_channels, D, H, W): class 1 where the first channel is above a threshold, else background.

    Args:
        in_channels: of the images.
        out_channels: background and the classes, of which only the first is ever found.
    """

    def __init__(self, in_channels: int = 1, out_channels: int = 3) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.threshold = nn.Parameter(torch.tensor(0.5))

    def forward(self, image: Tensor) -> Tensor:
        logits = image.new_full((len(image), self.out_channels, *image.shape[2:]), -10.0)
        logits[:, 0] = 0.0
        logits[:, 1] = 20.0 * (image[:, 0] - self.threshold)
        return logits
