"""The causal depthwise convolution against its definition, and how it calls causal_conv1d."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from mambamim_nets.ops import causal as module
from mambamim_nets.ops.causal import causal_conv


def draw(samples=2, channels=5, length=9, width=4, dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = ((samples, channels, length), (channels, width), (channels,))
    return [torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    steps = []
    for t in range(x.shape[2]):
        y = torch.zeros_like(x[..., 0]) if bias is None else bias.expand_as(x[..., 0])
        for k in range(min(weight.shape[1], t + 1)):
            y = y + weight[:, -1 - k] * x[..., t - k]
        steps.append(y)
    y = torch.stack(steps, -1)
    return y if activation is None else y * torch.sigmoid(y)


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 17])
def test_equals_the_definition_with_all_gradients(length, width, with_bias, activation):
    x, weight, bias = draw(length=length, width=width)
    bias = bias if with_bias else None
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None]
    results = []
    for convolve in (causal_conv, definition):
        y = convolve(x, weight, bias, activation)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        results.append((y.detach(), *torch.autograd.grad((y * weights).sum(), inputs)))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda *inputs: causal_conv(*inputs, "silu"), draw(length=6))


def test_memory_of_tokens_gives_memory_of_tokens():
    x, weight, bias = (tensor.detach() for tensor in draw(length=11))
    tokens = x.mT.contiguous()
    wide = torch.cat([tokens, tokens], 2)[..., : x.shape[1]]
    expected = definition(x, weight, bias, "silu")
    for view in (x, tokens.mT, wide.mT):
        assert_close(causal_conv(view, weight, bias, "silu"), expected, rtol=1e-10, atol=1e-10)
    assert causal_conv(wide.mT, weight, bias, "silu").mT.is_contiguous()


def test_is_causal():
    x, weight, bias = (tensor.detach() for tensor in draw(length=11))
    changed = x.clone()
    changed[..., 6] += 1
    before, after = causal_conv(x, weight, bias), causal_conv(changed, weight, bias)
    assert (before != after).any(1).any(0).nonzero().flatten().tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_computed_in_float32(dtype):
    x, weight, bias = (tensor.detach().float() for tensor in draw())
    y = causal_conv(x.to(dtype), weight, bias, "silu")
    assert y.dtype == dtype
    assert torch.equal(y, causal_conv(x.to(dtype).float(), weight, bias, "silu").to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(causal_conv(x.to(dtype), weight, bias, "silu"), y)


def test_autograd_keeps_the_input_and_one_tensor_of_its_size():
    x, weight, bias = draw(1, 8, 5000)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        causal_conv(x, weight, bias, "silu")
    assert sum(kept.values()) < 2.1 * x.untyped_storage().nbytes()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("record", [torch.jit.script, "trace", "compile"], ids=["script", "trace", "compile"])
def test_recorded_equals_eager(record):
    inputs = [tensor.detach().float() for tensor in draw(length=12)]
    if record == "trace":
        recorded = torch.jit.trace(lambda *args: causal_conv(*args, "silu"), tuple(inputs))
    elif record == "compile":
        recorded = torch.compile(lambda *args: causal_conv(*args, "silu"), backend="aot_eager", fullgraph=True)
    else:
        scripted = record(causal_conv)
        recorded = lambda *args: scripted(*args, "silu")  # noqa: E731
    inputs = [1.1 * tensor for tensor in inputs]
    assert_close(recorded(*inputs), causal_conv(*inputs, "silu"), rtol=1e-5, atol=1e-5)


def test_what_causal_conv1d_is_given(monkeypatch):
    """Its contract: x (B, D, L), weight (D, W), both contiguous, bias (D,), activation by name."""
    x, weight, bias = (tensor.detach().float() for tensor in draw(length=12))

    def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, activation=None):
        assert x.is_contiguous() and weight.is_contiguous() and weight.shape == (5, 4) and seq_idx is None
        y = F.conv1d(x, weight[:, None], bias, padding=3, groups=5)[..., : x.shape[2]]
        return F.silu(y) if activation == "silu" else y

    monkeypatch.setattr(module, "_causal_conv1d", lambda: causal_conv1d_fn)
    y = module._external(x.mT.contiguous().mT, weight.mT.contiguous().mT, bias, "silu")
    assert_close(y, causal_conv(x, weight, bias, "silu"), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_equals_cpu_with_all_gradients(dtype):
    """With causal_conv1d where it is installed."""
    inputs = draw(3, 13, 70, dtype=torch.float32)
    results = []
    for device in ("cuda", "cpu"):
        x, weight, bias = (tensor.detach().to(device).requires_grad_() for tensor in inputs)
        y = causal_conv(x.to(dtype), weight, bias, "silu")
        grads = torch.autograd.grad(y.float().square().sum(), (x, weight, bias))
        results.append((y.detach().float().cpu(), *(grad.cpu() for grad in grads)))
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(*results, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        assert_close(ours / scale, theirs / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(5, 9)}, r"x .*\(B, D, L\)"),
        ({"x": torch.zeros(2, 5, 9, dtype=torch.int64)}, r"int64.*floating"),
        ({"weight": torch.zeros(5, 1, 4)}, r"weight .*\(D, W\) with D = 5"),
        ({"bias": torch.zeros(4)}, r"bias .*\(D,\) with D = 5"),
        ({"activation": "gelu"}, r"activation gelu.*silu"),
    ],
    ids=["x", "x-dtype", "weight", "bias", "activation"],
)
def test_errors_name_the_rule(change, message):
    x, weight, bias = draw()
    with pytest.raises(ValueError, match=message):
        causal_conv(**{"x": x, "weight": weight, "bias": bias, **change})
