"""Convolutional layers: the same on a dense map and on its visible blocks, where nothing is hidden."""

import pytest
import torch
import torch.nn.functional as F
from helpers import image
from torch.testing import assert_close

from mambamim_nets.layers.conv import Conv3, MedNeXtBlock, ResidualBlock, VoxelNorm
from mambamim_nets.ops.blocks import neighbour_table, pack, unpack

GRID = (2, 3, 2)


@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize(
    "layer",
    [lambda: Conv3(6, 4), lambda: Conv3(6, 6, groups=6), lambda: MedNeXtBlock(6, 2), lambda: ResidualBlock(6, 4)],
    ids=["convolution", "depthwise", "MedNeXt", "residual"],
)
def test_blocks_are_convolved_as_the_map_with_zeros_where_they_are_hidden(layer, side):
    torch.manual_seed(0)
    module, x = layer(), image(2, 6, *(side * n for n in GRID))
    everything = torch.ones(2, 1, *GRID, dtype=torch.bool)
    blocks = module(pack(x, everything), neighbour_table(everything))
    assert_close(unpack(blocks, everything), module(x), atol=1e-5, rtol=1e-5)
    some = everything.clone()
    some[0, 0, 0, 1, 1] = some[1, 0, 1, 2, 0] = False
    if isinstance(module, Conv3):  # the others convolve twice, or add where nothing is visible
        hidden = F.interpolate(some.float(), scale_factor=side).bool()
        found = unpack(module(pack(x, some), neighbour_table(some)), some)
        assert_close(found, torch.where(hidden, module(x * hidden), 0.0), atol=1e-5, rtol=1e-5)


def test_a_convolution_is_that_of_torch():
    layer, x = Conv3(3, 5), image(2, 3, 5, 7, 4)
    assert_close(layer(x), F.conv3d(x, layer.weight, layer.bias, padding=1))


@pytest.mark.parametrize("slope", [1.0, 0.01])
def test_a_voxel_is_normalised_by_its_own_channels(slope):
    norm, x = VoxelNorm(5, slope), image(2, 5, 3, 4, 2) * 3 + 2
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    wanted = (x - mean) / (variance + 1e-6).sqrt()
    assert_close(norm(x), torch.where(wanted > 0, wanted, slope * wanted), atol=1e-5, rtol=1e-5)
    others = x.clone()
    others[:, :, 1:] = 0
    assert torch.equal(norm(others)[:, :, :1], norm(x)[:, :, :1]), "other voxels play no part"
