"""Depthwise convolution whose gradients are forward convolutions on the CPU.

oneDNN's backward kernels for one channel per group are slow, bfloat16 worst; its forward kernel is not. With y = x * w,

    dx = dy * flipped w,    dw = x * dy   (every sample and channel a group of its own, dy the kernel),    db = sum dy
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["depthwise_conv"]


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """Convolve every channel with its own 3^3 kernel.

    Args:
        x: (B, C, D, H, W).
        weight: (C, 1, 3, 3, 3).
        bias: (C,) or None.
        padding: zeros around x, 0 or 1.

    Returns:
        (B, C, D', H', W') with D' = D - 2 + 2 padding, as `F.conv3d` with C groups, also under autocast.
    """
    ours = x.device.type == "cpu" and torch.is_grad_enabled() and not torch.jit.is_tracing()
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if ours and x.dtype in (torch.float32, torch.bfloat16):
        return _Depthwise.apply(x, weight, bias, padding)
    return _conv(x, weight, bias, padding)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    # oneDNN 3.12 with AMX is wrong in bfloat16 for one channel, a side of one voxel, and padding of its own
    if not torch.jit.is_tracing() and x.shape[1] == 1:
        x, padding = F.pad(x, [padding] * 6), 0
    return F.conv3d(x, weight, bias, padding=padding, groups=x.shape[1])


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return _conv(x, weight, bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx = _conv(dy, weight.flip(2, 3, 4), None, 2 - ctx.padding)
        groups, kernels = rearrange(x, "b c d h w -> 1 (b c) d h w"), rearrange(dy, "b c d h w -> (b c) 1 d h w")
        dw = F.conv3d(groups, kernels, padding=ctx.padding, groups=groups.shape[1])
        dw = rearrange(dw, "1 (b c) i j k -> b c 1 i j k", c=x.shape[1]).sum(0, dtype=torch.float32)
        if ctx.needs_input_grad[2]:
            db = dy.sum((0, 2, 3, 4))
        return dx, dw.to(weight.dtype), db, None
