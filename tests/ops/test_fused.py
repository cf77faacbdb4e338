"""The Triton kernels: in the interpreter, compiled ahead of time for two GPUs, and on a GPU where there is one."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mambamim_nets.ops import selective_scan, toki
from mambamim_nets.ops.recurrence import naive
from mambamim_nets.ops.recurrence.external import mamba_ssm_scan

pytest.importorskip("triton", reason="needs Triton, which has no wheel for this system")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.slow
def test_in_the_interpreter():
    """interpreted.py in a process of its own: TRITON_INTERPRET must be set before triton is imported."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).parent / "interpreted.py"),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


SCAN = {"CHUNK": 16, "BLOCK": 8, "STATES": 16}
KERNELS = {
    "scan-forward": ("recurrence", "_forward_kernel", {**SCAN, "SAVE": True}, 4),
    "scan-backward": ("recurrence", "_backward_kernel", SCAN, 4),
    "toki-forward": ("interpolation", "_forward_kernel", {"BLOCK": 128}, 1),
    "toki-backward": ("interpolation", "_backward_kernel", {"BLOCK": 128}, 1),
}
INTEGERS = ("length", "channels", "states", "total", "kept")
TYPES = {"edge": "*i32", **dict.fromkeys(INTEGERS, "i32")}


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("operator", "name", "constants", "warps"), KERNELS.values(), ids=KERNELS.keys())
def test_compiles_for(operator, name, constants, warps, architecture):
    """Down to machine code, which needs no GPU: the interpreter accepts more than the compiler."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"mambamim_nets.ops.{operator}.fused"), name)
    half = ("y", "out", "dout") if operator == "interpolation" else ()
    types = {key: TYPES.get(key, "*bf16" if key in half else "*fp32") for key in kernel.arg_names}
    types |= dict.fromkeys(constants, "constexpr")
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(ASTSource(kernel, types, constants), target=target, options={"num_warps": warps})
    assert len(compiled.asm["cubin"]) > 1000
    assert compiled.metadata.shared <= 48 * 1024


def test_constants_are_those_that_are_compiled_above():
    scan = importlib.import_module("mambamim_nets.ops.recurrence.fused")
    assert scan._sizes(16) == {**SCAN, "num_warps": 4}
    assert scan._sizes(5)["STATES"] == 8 and scan._sizes(64)["num_warps"] == 16
    assert importlib.import_module("mambamim_nets.ops.interpolation.fused").BLOCK == 128


def draw(length=65, channels=24, groups=2, states=16):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, length, channels, generator=generator) for _ in range(2)]
    A = -torch.randn(channels, states, generator=generator).exp()
    matrices = [torch.randn(2, groups, length, states, generator=generator) for _ in range(2)]
    return [inputs[0], inputs[1].exp(), A, *matrices]


@needs_cuda
@pytest.mark.parametrize("length", [1, 54, 65, 1000])
def test_scan_on_cuda_equals_the_cpu_with_all_gradients(length):
    from mambamim_nets.ops.recurrence.fused import on_cuda

    results = []
    for scan, device in ((on_cuda, "cuda"), (naive, "cpu")):
        inputs = [tensor.to(device).requires_grad_() for tensor in draw(length)]
        y, state = scan(*inputs)
        loss = (y * torch.linspace(-1, 1, y.numel(), device=device).view_as(y)).sum() + state.square().sum()
        results.append([y.detach(), state.detach(), *torch.autograd.grad(loss, inputs)])
    for ours, theirs in zip(*results, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        assert_close(ours.cpu() / scale, theirs / scale, rtol=1e-4, atol=1e-4)


@needs_cuda
@pytest.mark.skipif(mamba_ssm_scan() is None, reason="needs mamba_ssm")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mamba_ssm_equals_the_cpu(dtype):
    u, delta, A, B, C = draw(54, groups=1)
    inputs = [u.mT, delta.mT, A, B.mT, C.mT]
    results = []
    for device in ("cuda", "cpu"):
        here = [tensor.to(device, tensor.dtype if tensor is inputs[2] else dtype).requires_grad_() for tensor in inputs]
        y = selective_scan(*here)
        results.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), here)])
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for ours, theirs in zip(*results, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        assert_close(ours.cpu().float() / scale, theirs.float() / scale, rtol=tolerance, atol=tolerance)


@needs_cuda
def test_last_state_on_cuda_carries_its_gradient():
    u, delta, A, B, C = (tensor.cuda() for tensor in draw())
    u.requires_grad_()
    state = selective_scan(u.mT, delta.mT, A, B.mT, C.mT, return_last_state=True)[1]
    assert torch.autograd.grad(state.sum(), u)[0].abs().sum() > 0


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_toki_on_cuda_equals_the_cpu_without_synchronisation(dtype):
    generator = torch.Generator().manual_seed(0)
    visible = torch.rand(4, 216, generator=generator).argsort(1) < 54
    inputs = [torch.randn(4, 54, 384, generator=generator).to(dtype), *torch.rand(2, 384, generator=generator)]
    results = []
    for device in ("cuda", "cpu"):
        y, a, b = (tensor.to(device).requires_grad_() for tensor in inputs)
        mask = visible.to(device)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            out = toki(y, mask, a, b)
            grads = torch.autograd.grad(out.float().square().sum(), (y, a, b))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append((out.detach(), *grads))
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(*results, strict=True):
        scale = max(1.0, float(theirs.float().abs().max()))
        assert_close(ours.cpu().float() / scale, theirs.float() / scale, rtol=tolerance, atol=tolerance)
