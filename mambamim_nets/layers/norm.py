"""Instance normalisation for MONAI's blocks in networks whose maps are channels-last."""

import torch
import torch.nn.functional as F
from monai.networks.layers import Norm
from torch import Tensor, nn

from mambamim_nets.ops.norm import instance_norm

__all__ = ["CHANNELS_LAST_INSTANCE", "ChannelsLastInstanceNorm"]

CHANNELS_LAST_INSTANCE = "channels_last_instance"  # as norm_name of MONAI's blocks


@Norm.factory_function(CHANNELS_LAST_INSTANCE)
def _instance_norm(_dimensions: int) -> type[nn.Module]:
    return ChannelsLastInstanceNorm


class ChannelsLastInstanceNorm(nn.Module):
    """Instance normalisation without parameters, which keeps channels-last maps as they are; eps 1e-5.

    The "instance" of MONAI's blocks would copy every map to another order in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every channel of every sample of (B, C, D, H, W) over its voxels; same shape out."""
        if torch.jit.is_scripting():
            return F.group_norm(x, x.shape[1], eps=self.eps)
        return instance_norm(x, self.eps)
