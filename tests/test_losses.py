"""Targets and losses of masked image modelling."""

import pytest
import torch
from helpers import image

from mambamim_nets.losses import masked_l1, masked_mse, patch_norm, patch_statistics, reconstruction_target
from mambamim_nets.masking import expand_visible

SHAPE = (2, 3, 32, 48, 16)
VISIBLE = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 1, 1, 1, 0, 1]]).bool().reshape(2, 1, 2, 3, 1)


def test_statistics_are_those_of_each_patch_over_all_channels():
    x = image(*SHAPE) * 5 + 7
    mean, std = patch_statistics(x)
    assert mean.shape == std.shape == (2, 1, *SHAPE[2:])
    patch = x[1, :, 16:, 32:, :]
    torch.testing.assert_close(mean[1, 0, 16:, 32:], patch.mean().expand(16, 16, 16))
    torch.testing.assert_close(std[1, 0, 16:, 32:], (patch.var() + 1e-6).sqrt().expand(16, 16, 16))


def test_a_flat_patch_becomes_zero_and_not_nan():
    assert torch.equal(patch_norm(torch.full((1, 2, 16, 16, 16), 3.0)), torch.zeros(1, 2, 16, 16, 16))


def test_targets_are_float32_of_any_input():
    x = image(*SHAPE)
    assert torch.equal(reconstruction_target(x, "raw"), x)
    assert torch.equal(reconstruction_target(x, "patch_norm"), patch_norm(x))
    for target in ("raw", "patch_norm"):
        assert reconstruction_target(x.bfloat16(), target).dtype == torch.float32


@pytest.mark.parametrize(("loss", "power"), [(masked_mse, 2), (masked_l1, 1)])
def test_losses_are_means_over_hidden_voxels_only(loss, power):
    target = image(*SHAPE, seed=1)
    prediction = image(*SHAPE).requires_grad_()
    hidden = ~expand_visible(VISIBLE, 16).expand_as(target)
    value = loss(prediction, target, VISIBLE)
    torch.testing.assert_close(value, (prediction - target)[hidden].abs().pow(power).mean())
    (gradient,) = torch.autograd.grad(value, prediction)
    assert (gradient[~hidden] == 0).all() and (gradient[hidden] != 0).all()
    assert loss(prediction, target, torch.ones_like(VISIBLE)) == 0, "nothing is hidden"
    assert loss(prediction.bfloat16(), target.bfloat16(), VISIBLE).dtype == torch.float32
