"""Every baseline equals the fast path that is measured against it, with all gradients."""

import copy

import pytest
import torch
from baselines import (
    dense_masked_cnn,
    dense_masked_mim,
    looped_toki,
    parallel_recurrence,
    reference_recurrence,
    scan,
    with_plain_norms,
)
from torch.testing import assert_close

from mambamim_nets import HyMamba, HyMambaSeg, MambaMIM
from mambamim_nets.masking import random_visible
from mambamim_nets.ops import selective_scan, toki

SHAPE, GRID = (32, 32, 16), (2, 2, 1)


def batch(samples=2, channels=2):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(samples, channels, *SHAPE, generator=generator, dtype=torch.float64)
    return x, random_visible(samples, GRID, 0.5, generator)


def gradients(output, module):
    module.zero_grad()
    output.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_same_gradients(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        scale = float(theirs[name].abs().max())
        assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


def test_dense_masked_cnn_equals_the_sparse_encoder():
    torch.manual_seed(0)
    # in float32, kinks of ReLU and max-pool tell the two apart
    encoder = HyMamba(in_channels=2, size="tiny", mamba_depth=0).double()
    x, visible = batch()
    ours = encoder(x, visible)
    skips, deepest = dense_masked_cnn(encoder, x, visible, strides=(1, 2, 4, 8))
    theirs = [*skips.values(), deepest]
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, rtol=1e-6, atol=1e-6)
    weights = [torch.randn(one.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) for one in ours]
    found, expected = (
        gradients(sum((one * weight).sum() for one, weight in zip(maps, weights, strict=True)), encoder)
        for maps in (ours, theirs)
    )
    assert_same_gradients(found, expected)


@pytest.mark.parametrize(("scan_kind", "unread_skip"), [("raster", True), ("hilbert", False)])
def test_dense_masked_step_equals_the_pre_training_step(unread_skip, scan_kind):
    torch.manual_seed(0)
    model = MambaMIM(HyMamba(in_channels=2, size="tiny", scan=scan_kind), decoder_width=64).double()
    x, visible = batch()
    ours = model(x, visible)
    loss, reconstruction = dense_masked_mim(model, x, visible, unread_skip, looped_toki)
    assert_close(reconstruction, ours.reconstruction, rtol=1e-6, atol=1e-6)
    assert_close(loss, ours.loss, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(ours.loss, model), gradients(loss, model))


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_looped_toki_equals_toki(full):
    generator = torch.Generator().manual_seed(0)
    visible = random_visible(3, (3, 5, 2), 0.8, generator).flatten(1)
    y = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    a, b = torch.rand(2, 5, *([5] if full else []), generator=generator, dtype=torch.float64) / (5 if full else 1)
    inputs = [tensor.requires_grad_() for tensor in (y, a, b)]
    ours, theirs = toki(y, visible, a, b), looped_toki(y, visible, a, b)
    assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for one, other in zip(
        torch.autograd.grad(ours.square().sum(), inputs),
        torch.autograd.grad(theirs.square().sum(), inputs),
        strict=True,
    ):
        assert_close(one, other, rtol=1e-9, atol=1e-9)


def reference_by_steps(*inputs):
    return reference_recurrence(*inputs, unbind=True)


@pytest.mark.parametrize("length", [1, 2, 3, 54, 77], ids=str)
@pytest.mark.parametrize("recurrence", [reference_recurrence, reference_by_steps, parallel_recurrence])
def test_scans_equal_selective_scan(recurrence, length):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    u, delta, z = draw(2, 6, length), draw(2, 6, length), draw(2, 6, length)
    A, B, C, D, bias = draw(6, 4), draw(2, 4, length), draw(2, 4, length), draw(6), draw(6)
    inputs = (u, delta, A, B, C, D, z, bias)
    ours = selective_scan(u, delta, -A.exp(), B, C, D, z, bias, delta_softplus=True)
    theirs = scan(recurrence, u, delta, -A.exp(), B, C, D, z, bias)
    assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    weight = torch.randn(ours.shape, generator=generator, dtype=ours.dtype)
    for one, other in zip(
        torch.autograd.grad(ours, inputs, weight), torch.autograd.grad(theirs, inputs, weight), strict=True
    ):
        assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_float32_gradients_of_the_step_are_those_of_its_definition_in_float64():
    """Kinks of ReLU and max-pool move single values by per cents, dense-masked ones too; a wrong path moves all."""
    torch.manual_seed(3)
    model = MambaMIM(HyMamba(size="tiny"), decoder_width=32)
    definition = copy.deepcopy(model).double()
    x, visible = torch.rand(2, 1, 48, 48, 48), random_visible(2, (3, 3, 3), 0.6)
    model(x, visible).loss.backward()
    dense_masked_mim(definition, x.double(), visible, unread_skip=False)[0].backward()
    compared = 0
    for (name, ours), theirs in zip(model.named_parameters(), definition.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if theirs.grad is not None and theirs.grad.norm() > 1e-7:
            assert (ours.grad - theirs.grad).norm() < 0.05 * theirs.grad.norm(), name
            compared += 1
    assert compared > 100


def test_plain_norms_give_the_same_gradients():
    torch.manual_seed(0)
    network = HyMambaSeg(in_channels=2, out_channels=3, size="tiny")
    x = batch()[0].float()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (gradients(one(x).float().square().mean(), one) for one in (network, with_plain_norms(network)))
    assert ours.keys() == theirs.keys()
    one, other = (torch.cat([values.flatten() for values in found.values()]) for found in (ours, theirs))
    assert float((one - other).norm() / other.norm()) < 0.02  # bfloat16 has eight bits
