"""Causal depthwise convolution with an optional SiLU: the short convolution in front of the Mamba recurrence.

    y_t = bias + sum_{k=0}^{W-1} weight_{W-1-k} x_{t-k},   x_t = 0 for t < 0,   then SiLU

Glossary (B batch, D channels, L length)
    x       (B, D, L)   sequences; a transposed view of (B, L, D) memory is as good
    W       width of the convolution, d_conv of mamba_ssm

On CUDA `causal_conv1d` runs where it is installed. Elsewhere W shifted multiply-adds do, with a backward pass of their
own, on memory of either order: at every length we tried they were faster than F.conv1d, and compiled loops (numba) won
at the longest only.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambamim_nets.ops.dispatch import importable, opaque, recording

__all__ = ["causal_conv"]


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """Convolve every channel with its own filter over the present and the past.

    Autograd keeps x and one tensor of its size. Sums are float32 (float64 if x is), also inside autocast. Tracing,
    export and scripting record F.conv1d.

    Args:
        x: input, (B, D, L).
        weight: filters, (D, W); the last column meets the present.
        bias: (D,).
        activation: "silu" or None.

    Returns:
        (B, D, L) in the dtype of x.

    Raises:
        ValueError: if a shape does not fit x, or the activation is unknown.
    """
    if not torch.jit.is_scripting():
        _check(x, weight, bias, activation)
        usable = x.is_cuda and x.dtype != torch.float64 and 2 <= weight.shape[1] <= 4 and not recording()
        if usable and importable("causal_conv1d") and _causal_conv1d() is not None:
            return opaque(_external, x, weight, bias, activation)
        if not recording():
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            y = _Shifted.apply(
                x.transpose(1, 2).to(dtype),
                weight.to(dtype),
                None if bias is None else bias.to(dtype),
                activation is not None,
            )
            return y.to(x.dtype).transpose(1, 2)
    y = F.conv1d(x, weight.unsqueeze(1), bias, padding=weight.shape[1] - 1, groups=weight.shape[0])
    y = y[..., : x.shape[2]]
    return y if activation is None else F.silu(y)


@functools.cache
def _causal_conv1d() -> Callable[..., Tensor] | None:
    """Import causal_conv1d_fn, once; None when the package does not load here."""
    try:
        return importlib.import_module("causal_conv1d").causal_conv1d_fn
    except (ImportError, OSError):
        return None


def _external(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """Call causal_conv1d: widths 2 to 4; contiguous over the sequence, since it wants strides of 8 otherwise."""
    kernel = _causal_conv1d()
    assert kernel is not None
    return kernel(x.contiguous(), weight.contiguous(), bias, activation=activation)


class _Shifted(torch.autograd.Function):
    """Sum of W shifted sequences x (B, L, D); in place, so that no padded or shifted copy is made."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
        length, taps = x.shape[1], weight.flip(1).unbind(1)
        y = x * taps[0] if bias is None else torch.addcmul(bias, x, taps[0])
        for k in range(1, min(len(taps), length)):
            y[:, k:].addcmul_(x[:, :-k], taps[k])
        ctx.save_for_backward(x, weight, y if silu else None)
        ctx.has_bias = bias is not None
        return F.silu(y) if silu else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        if y is not None:
            dy = torch.ops.aten.silu_backward(dy, y)
        taps = weight.flip(1).unbind(1)
        dx, dtaps = dy * taps[0], [(dy * x).sum((0, 1))]
        for k in range(1, len(taps)):
            later, earlier = dy[:, k:], x[:, : max(x.shape[1] - k, 0)]
            dx[:, : earlier.shape[1]].addcmul_(later, taps[k])
            dtaps.append((later * earlier).sum((0, 1)))
        return dx, torch.stack(dtaps[::-1], 1), dy.sum((0, 1)) if ctx.has_bias else None, None


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"x {x.shape} {x.dtype} must be a floating (B, D, L) tensor; move the channels to the front")
    if weight.ndim != 2 or weight.shape[0] != x.shape[1]:
        raise ValueError(f"weight {weight.shape} must be (D, W) with D = {x.shape[1]}, the channels of x")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {bias.shape} must be (D,) with D = {x.shape[1]}, the channels of x")
    if activation is not None and activation != "silu":
        raise ValueError(f"activation {activation} must be 'silu' or None")
