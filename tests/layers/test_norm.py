"""The layer that MONAI's blocks make by its name."""

import torch
from helpers import image
from monai.networks.layers import get_norm_layer
from torch.testing import assert_close

from mambamim_nets.layers.norm import CHANNELS_LAST_INSTANCE, ChannelsLastInstanceNorm


def test_monai_makes_it_by_name_and_it_is_instance_normalisation():
    layer = get_norm_layer(CHANNELS_LAST_INSTANCE, spatial_dims=3, channels=4)
    assert isinstance(layer, ChannelsLastInstanceNorm) and not layer.state_dict()
    x = image(2, 4, 5, 3, 4).contiguous(memory_format=torch.channels_last_3d)
    assert_close(layer(x), torch.nn.InstanceNorm3d(4)(x))


def test_scripted_and_traced_give_the_same():
    layer, x = ChannelsLastInstanceNorm(), image(2, 4, 5, 3, 4).requires_grad_()
    for exported in (torch.jit.script(layer), torch.jit.trace(layer, x)):
        assert torch.equal(exported(x), layer(x))
