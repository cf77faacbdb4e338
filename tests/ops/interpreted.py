"""The Triton kernels in Triton's interpreter, against the loops that define them; run by test_fused.py in a process of
its own, because TRITON_INTERPRET must be set before triton is imported."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mambamim_nets.ops import selective_scan as scan
from mambamim_nets.ops import toki
from mambamim_nets.ops.interpolation import fused as toki_kernels
from mambamim_nets.ops.interpolation import naive as toki_naive
from mambamim_nets.ops.recurrence import fused as scan_kernels
from mambamim_nets.ops.recurrence import naive as scan_naive

CHUNK, BLOCK = scan_kernels.CHUNK, scan_kernels.BLOCK


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill what the kernels must write with nan."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def compare(ours, theirs, inputs: list[Tensor], tolerance: float) -> None:
    results = []
    for outputs in (ours(*inputs), theirs(*inputs)):
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64) for out in outputs]
        loss = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
        grads = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        results.append((*(out.detach() for out in outputs), *grads))
    for mine, other in zip(*results, strict=True):
        assert mine.dtype == other.dtype
        scale = max(1.0, float(other.abs().max()))
        assert_close(mine / scale, other / scale, rtol=tolerance, atol=tolerance)


def draw_scan(samples, length, channels, states, groups, dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    matrix = (samples, groups, length, states)
    inputs = [
        normal(samples, length, channels),
        normal(samples, length, channels).exp(),
        -normal(channels, states).exp(),
    ]
    return [tensor.to(dtype).requires_grad_() for tensor in (*inputs, normal(*matrix), normal(*matrix))]


@pytest.mark.parametrize(
    ("samples", "length", "channels", "states", "groups"),
    [
        (1, 1, 1, 1, 1),
        (3, 7, 2 * BLOCK + 2, 2, 2),
        (1, CHUNK - 1, BLOCK, 3, 1),
        (1, CHUNK, BLOCK + 1, 1, 1),
        (2, CHUNK + 1, BLOCK - 1, 3, 1),
        (1, 2 * CHUNK + 3, 6, 2, 3),
    ],
)
def test_scan_equals_the_loop_with_all_gradients(samples, length, channels, states, groups):
    inputs = draw_scan(samples, length, channels, states, groups)
    compare(scan_kernels.on_cuda, scan_naive, inputs, 1e-10)


def test_scan_in_float32():
    inputs = draw_scan(1, CHUNK + 2, 5, 3, 1, torch.float32)
    compare(scan_kernels.on_cuda, scan_naive, inputs, 1e-5)


def test_scan_without_gradients_is_the_same_and_saves_no_state():
    inputs = draw_scan(1, CHUNK + 1, 3, 2, 1)
    with torch.no_grad():
        results = scan_kernels.on_cuda(*inputs)
    assert not results[0].requires_grad
    for mine, other in zip(results, scan_kernels.on_cuda(*inputs), strict=True):
        assert torch.equal(mine, other)
    assert scan_kernels._forward(*(tensor.detach() for tensor in inputs), save=False)[2].numel() == 0


def test_scan_survives_strong_decay():
    u, matrix = torch.ones(1, CHUNK + 2, 2), torch.ones(1, 1, CHUNK + 2, 2)
    A = torch.tensor([[-16.0, -1e-4]]).expand(2, 2)
    inputs = [tensor.clone().requires_grad_() for tensor in (u, 50 * u, A, matrix, matrix)]
    compare(scan_kernels.on_cuda, scan_naive, inputs, 1e-5)


def test_scan_of_views():
    inputs = draw_scan(2, 5, 4, 2, 1)
    views = [tensor.detach().mT.contiguous().mT.requires_grad_() for tensor in inputs]
    assert not views[0].is_contiguous()
    compare(scan_kernels.on_cuda, scan_naive, views, 1e-10)


def rows(*patterns: str) -> Tensor:
    """Read masks drawn as text, x = visible and . = hidden."""
    return torch.tensor([[mark == "x" for mark in pattern] for pattern in patterns])


MASKS = {
    "unequal-gaps": rows("x..x.....x", "x.x......x", "xx.......x"),
    "both-runs": rows(".....x...x...", "xx..........."),
    "one-visible": rows("....x..", "x......", "......x"),
    "all-visible": rows("xxxxx", "xxxxx"),
    "one-token": rows("x"),
    "gap-60": rows("x" + "." * 60 + "x", "." * 60 + "xx"),
}


def draw_toki(visible: Tensor, channels: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(len(visible), int(visible[0].sum()), channels, generator=generator, dtype=torch.float64)
    a, b = torch.rand(2, channels, generator=generator, dtype=torch.float64)
    return [tensor.clone().requires_grad_() for tensor in (y, a, b)]


@pytest.mark.parametrize("visible", MASKS.values(), ids=MASKS.keys())
def test_toki_equals_the_loop_with_all_gradients(visible):
    compare(
        lambda y, a, b: toki_kernels.on_cuda(y, visible, a, b),
        lambda y, a, b: toki_naive(y, visible, a, b),
        draw_toki(visible),
        1e-10,
    )


@pytest.mark.parametrize("channels", [toki_kernels.BLOCK - 1, toki_kernels.BLOCK, toki_kernels.BLOCK + 1])
def test_toki_of_any_number_of_channels(channels):
    visible = MASKS["both-runs"]
    compare(
        lambda y, a, b: toki_kernels.on_cuda(y, visible, a, b),
        lambda y, a, b: toki_naive(y, visible, a, b),
        draw_toki(visible, channels),
        1e-10,
    )


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_toki_at_special_state_matrices(value):
    visible = MASKS["both-runs"]
    y, a, b = draw_toki(visible)
    compare(
        lambda y, a, b: toki_kernels.on_cuda(y, visible, a, b),
        lambda y, a, b: toki_naive(y, visible, a, b),
        [y, torch.full_like(a, value).requires_grad_(), b],
        1e-10,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_toki_equals_the_cpu_path_and_keeps_visible_tokens(dtype):
    visible = MASKS["gap-60"]
    y, a, b = (tensor.detach().float() for tensor in draw_toki(visible))
    y = y.to(dtype).requires_grad_()
    results = []
    for fill in (toki_kernels.on_cuda, toki):
        out = fill(y, visible, a, b)
        results.append((out, *torch.autograd.grad(out.float().square().sum(), y)))
        assert out.dtype == dtype and torch.equal(out[visible], y.flatten(0, 1))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for mine, other in zip(*results, strict=True):
        scale = max(1.0, float(other.detach().abs().max()))
        assert_close(mine / scale, other / scale, rtol=tolerance, atol=tolerance)


def test_public_names_are_functions():
    """Importing a kernel file must not put a module in place of an operator."""
    assert callable(scan) and callable(toki)
