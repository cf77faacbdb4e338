"""Instance normalisation with our gradient against F.group_norm with its own."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mambamim_nets.ops import norm as module
from mambamim_nets.ops.norm import instance_norm

SHAPES = [(1, 1, 3, 3, 3), (2, 7, 4, 5, 6), (3, 16, 2, 1, 4)]
EPS = 1e-5


def draw(shape, dtype, order=torch.channels_last_3d):
    torch.manual_seed(sum(shape))
    x = (3 * torch.randn(shape, dtype=dtype) + 5).contiguous(memory_format=order)
    return x.requires_grad_(), torch.randn(shape, dtype=dtype).contiguous(memory_format=order)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
    ids=["float64", "float32", "bfloat16"],
)
def test_value_and_gradient_equal_those_of_group_norm(shape, dtype, tolerance):
    x, dy = draw(shape, dtype)
    y = instance_norm(x, EPS)
    exact = x.detach().double().requires_grad_()
    expected = F.group_norm(exact, shape[1], eps=EPS)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last_3d)
    assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    (ours,), (theirs,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(expected, exact, dy.double())
    assert ours.dtype == dtype
    assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


def test_what_our_gradient_is_made_for_uses_it(monkeypatch):
    uses = []
    monkeypatch.setattr(module._InstanceNorm, "apply", lambda x, eps: uses.append(x.dtype) or x)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        instance_norm(draw(SHAPES[1], dtype)[0], EPS)
    instance_norm(draw(SHAPES[1], torch.bfloat16, torch.contiguous_format)[0], EPS)
    with torch.no_grad():
        instance_norm(draw(SHAPES[1], torch.bfloat16)[0], EPS)
    assert uses == [torch.bfloat16]


def test_the_same_with_and_without_gradients():
    x, _ = draw(SHAPES[1], torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(instance_norm(x, EPS), instance_norm(x.requires_grad_(), EPS).detach())
