"""Sine-cosine positions: a third of the channels for each axis."""

import math

import pytest
import torch

from mambamim_nets.layers.position import sincos_position


def test_positions_by_hand():
    found = sincos_position([2, 3, 1], 12)
    assert found.shape == (6, 12) and found.dtype == torch.float32
    fast, slow = 1.0, 10000**-0.5
    row = found[1 * 3 + 2]  # d 1, h 2, w 0
    wanted = [math.sin(fast), math.sin(slow), math.cos(fast), math.cos(slow)]
    wanted += [math.sin(2 * fast), math.sin(2 * slow), math.cos(2 * fast), math.cos(2 * slow), 0, 0, 1, 1]
    torch.testing.assert_close(row, torch.tensor(wanted), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [13, 17, 5])
def test_channels_that_6_does_not_divide_are_zero(channels):
    found = sincos_position([2, 2, 2], channels)
    used = channels // 6 * 6
    assert found.shape == (8, channels) and (found[:, used:] == 0).all()
    assert torch.equal(found[:, :used], sincos_position([2, 2, 2], used)) if used else not found.any()


def test_no_two_positions_are_alike():
    found = sincos_position([3, 4, 5], 24)
    assert len(found.unique(dim=0)) == 60
