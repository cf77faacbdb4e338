"""Convolution on blocks equals dense convolution times mask, in value and every gradient."""

import pytest
import torch
import torch.nn.functional as F

from mambamim_nets.masking import expand_visible, random_visible
from mambamim_nets.ops.blocks import halo, neighbour_table, pack, surroundings, unpack

GRIDS = [(3, 2, 4), (1, 1, 1), (1, 5, 2)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("side", [1, 2, 5])
def test_unpack_inverts_pack(grid, side):
    visible = random_visible(3, grid, 0.4 if max(grid) > 1 else 0.0)
    x = torch.randn(3, 7, *(n * side for n in grid))
    blocks = pack(x, visible)
    assert blocks.shape == (int(visible.sum()), 7, side, side, side)
    torch.testing.assert_close(unpack(blocks, visible), x * expand_visible(visible, side), atol=0, rtol=0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("side", [1, 2, 5])
def test_unpack_fills_hidden_voxels_and_sums_their_gradients(grid, side):
    visible = random_visible(3, grid, 0.4 if max(grid) > 1 else 0.0)
    mask = expand_visible(visible, side)
    x = torch.randn(3, 7, *(n * side for n in grid), dtype=torch.float64, requires_grad=True)
    fill = torch.randn(1, 7, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    y, expected = unpack(pack(x, visible), visible, fill), torch.where(mask, x, fill)
    torch.testing.assert_close(y, expected, atol=0, rtol=0)
    assert y.permute(0, 2, 3, 4, 1).is_contiguous()
    upstream = torch.randn_like(y)
    theirs = torch.autograd.grad(expected, (x, fill), upstream)
    for ours, reference in zip(torch.autograd.grad(y, (x, fill), upstream), theirs, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("side", [1, 2, 3])
def test_surroundings_are_those_of_the_dense_map(grid, side):
    visible = random_visible(2, grid, 0.5 if max(grid) > 1 else 0.0)
    x = torch.randn(2, 3, *(n * side for n in grid), dtype=torch.float64, requires_grad=True)
    rows = surroundings(pack(x, visible), neighbour_table(visible))
    padded = F.pad(x * expand_visible(visible, side), (1,) * 6)
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)  # (B, C, D, H, W, 3, 3, 3)
    expected = pack(windows.permute(0, 5, 6, 7, 1, 2, 3, 4).flatten(1, 4), visible).permute(0, 2, 3, 4, 1).flatten(0, 3)
    torch.testing.assert_close(rows, expected, atol=0, rtol=0)
    upstream = torch.randn_like(rows)
    ours, theirs = (torch.autograd.grad(result, x, upstream)[0] for result in (rows, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_with_halo_is_dense_convolution_times_mask(grid, side, groups):
    torch.manual_seed(0)
    visible = random_visible(2, grid, 0.5 if max(grid) > 1 else 0.0)
    mask = expand_visible(visible, side).double()
    x = torch.randn(2, 4, *(n * side for n in grid), dtype=torch.float64)
    weight = torch.randn(4, 4 // groups, 3, 3, 3, dtype=torch.float64)
    upstream = torch.randn_like(x)
    results = []
    for sparse in (True, False):
        a, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
        if sparse:
            blocks = F.conv3d(halo(pack(a, visible), neighbour_table(visible)), w, groups=groups)
            y = unpack(blocks, visible)
        else:
            y = F.conv3d(a * mask, w, padding=1, groups=groups) * mask
        y.backward(upstream)
        results.append((y.detach(), a.grad * mask, w.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_halo_gradient_is_exact():
    visible = random_visible(2, (2, 2, 1), 0.5)
    table = neighbour_table(visible)
    blocks = torch.randn(int(visible.sum()), 1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: halo(b, table), blocks)


def test_neighbours_never_cross_samples_or_borders():
    visible = torch.ones(2, 1, 1, 1, 2, dtype=torch.bool)
    table = neighbour_table(visible)
    assert table.shape == (4, 27)
    for row, others in enumerate(table.tolist()):
        seen = {other for other in others if other != 4}
        assert seen == ({0, 1} if row < 2 else {2, 3})
