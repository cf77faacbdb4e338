"""Depthwise convolution with our gradients against F.conv3d with its own."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mambamim_nets.ops import depthwise
from mambamim_nets.ops.depthwise import depthwise_conv

SHAPES = [(1, 1, 3, 3, 3), (2, 7, 4, 5, 6), (5, 16, 3, 4, 3)]
FLAT = (1, 1, 1, 2, 5)  # which oneDNN with AMX gets wrong in bfloat16, if it is to pad it


def draw(shape, dtype=torch.float32, padding=1):
    torch.manual_seed(sum(shape))
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    inputs = [x, torch.randn(shape[1], 1, 3, 3, 3, dtype=dtype), torch.randn(shape[1], dtype=dtype)]
    sides = [n - 2 + 2 * padding for n in shape[2:]]
    return [tensor.requires_grad_() for tensor in inputs], torch.randn(*shape[:2], *sides, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)],
    ids=["float64", "float32", "bfloat16"],
)
def test_value_and_gradients_equal_those_of_conv3d(shape, padding, dtype, tolerance):
    check(shape, padding, dtype, tolerance)


def test_one_channel_of_one_slice_in_bfloat16():
    check(FLAT, 1, torch.bfloat16, 3e-2)


def check(shape, padding, dtype, tolerance):
    inputs, dy = draw(shape, dtype, padding)
    x, weight, bias = (tensor.detach().double().requires_grad_() for tensor in inputs)
    expected = F.conv3d(x, weight, bias, padding=padding, groups=shape[1])
    y = depthwise_conv(*inputs, padding)
    assert y.dtype == dtype
    assert_close(y.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    theirs = torch.autograd.grad(expected, (x, weight, bias), dy.double())
    for ours, reference in zip(torch.autograd.grad(y, inputs, dy), theirs, strict=True):
        assert ours.dtype == dtype
        assert_close(ours.double(), reference, rtol=tolerance, atol=tolerance * float(reference.abs().max()))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same(threads):
    inputs, dy = draw(SHAPES[1])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = torch.autograd.grad(depthwise_conv(*inputs, 1), inputs, dy)
    finally:
        torch.set_num_threads(before)
    theirs = torch.autograd.grad(F.conv3d(*inputs, padding=1, groups=7), inputs, dy)
    for found, expected in zip(ours, theirs, strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_only_wanted_gradients_are_computed():
    (x, weight, _), dy = draw(SHAPES[1])
    (dw,) = torch.autograd.grad(depthwise_conv(x.detach(), weight, None, 1), weight, dy)
    (expected,) = torch.autograd.grad(F.conv3d(x, weight, padding=1, groups=7), weight, dy)
    assert_close(dw, expected, rtol=1e-5, atol=1e-4)


def test_autocast_computes_in_bfloat16_and_returns_gradients_in_float32():
    inputs, dy = draw(SHAPES[1])
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv(*inputs, 1)
    assert y.dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(y, inputs, dy.bfloat16()))


def test_our_gradients_are_used_in_training_only(monkeypatch):
    calls = []
    apply = depthwise._Depthwise.apply
    monkeypatch.setattr(depthwise._Depthwise, "apply", lambda *args: calls.append(1) or apply(*args))
    inputs, _ = draw(SHAPES[1])
    depthwise_conv(*inputs, 1)
    assert calls == [1]
    with torch.no_grad():
        depthwise_conv(*inputs, 1)
    assert calls == [1]
