"""TOKI on the CPU for diagonal matrices: compiled loops that touch every token once.

The equations and the glossary are in the package's docstring. With d = (y_{i+1} - y_i) / (Q + 2),

    z_j = b (G_j y_i + P_j d),  G_j = a G_{j-1} + 1,  P_j = P_{j-1} + G_{j-1},  G_0 = 1,  P_0 = 0,

where G, P and their derivatives by a depend on j alone: the backward pass needs four sums over a gap and no state.
"""

# mypy: allow-untyped-defs
# numba compiles the kernels for the types that it meets.

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambamim_nets.ops.kernels import SERIAL_WORK, compiled, launch

LANES = 512  # channels of a task


def _forward_kernel(first, last, parts, y, visible, a, b, out):
    """Run tasks first .. last - 1; a task is up to LANES channels of one sample.

    y (b, k, c); visible (b, t); a, b (c,); out (b, t, c).
    """
    total, kept, channels = visible.shape[1], y.shape[1], y.shape[2]
    h = np.zeros(LANES, y.dtype)
    slope = np.zeros(LANES, y.dtype)
    for task in range(first, last):
        sample, low = task // parts, task % parts * LANES
        high = min(low + LANES, channels)
        lanes, a_c, b_c = high - low, a[low:high], b[low:high]
        rank, t = 0, 0
        while t < total:
            gap = 0
            left, right = y[sample, max(rank - 1, 0), low:high], y[sample, min(rank, kept - 1), low:high]
            while t + gap < total and not visible[sample, t + gap]:
                gap += 1
            scale = y.dtype.type(1 / (gap + 2))
            for i in range(lanes):
                h[i] = b_c[i] * left[i]
                slope[i] = (right[i] - left[i]) * scale
            for j in range(1, gap + 1):
                at, row = y.dtype.type(j), out[sample, t + j - 1, low:high]
                for i in range(lanes):
                    h[i] = a_c[i] * h[i] + b_c[i] * (left[i] + at * slope[i])
                for i in range(lanes):
                    row[i] = h[i]
            t += gap
            if t < total:
                out[sample, t, low:high] = y[sample, rank, low:high]
                rank += 1
                t += 1


def _backward_kernel(first, last, parts, y, visible, a, b, dout, dy, da, db):
    """Gradients of `_forward_kernel`: dy (b, k, c), zero on entry; da and db (b, c), of every sample."""
    total, kept, channels = visible.shape[1], y.shape[1], y.shape[2]
    table = np.zeros((4, total + 1, LANES), y.dtype)  # G, P, dG / da, dP / da at every j
    sums = np.zeros((4, LANES), y.dtype)  # of the gradient times the table, over a gap
    one = y.dtype.type(1)
    for task in range(first, last):
        sample, low = task // parts, task % parts * LANES
        high = min(low + LANES, channels)
        lanes, a_c, b_c, da_c, db_c = high - low, a[low:high], b[low:high], da[sample, low:high], db[sample, low:high]
        da_c[:], db_c[:], table[0, 0] = 0, 0, 1
        ready, rank, t = 0, 0, 0
        while t < total:
            left, right, gap = max(rank - 1, 0), min(rank, kept - 1), 0
            while t + gap < total and not visible[sample, t + gap]:
                gap += 1
            for j in range(ready + 1, gap + 1):
                for i in range(lanes):
                    table[0, j, i] = a_c[i] * table[0, j - 1, i] + one
                    table[1, j, i] = table[1, j - 1, i] + table[0, j - 1, i]
                    table[2, j, i] = a_c[i] * table[2, j - 1, i] + table[0, j - 1, i]
                    table[3, j, i] = table[3, j - 1, i] + table[2, j - 1, i]
            ready = max(ready, gap)
            if gap:
                sums[:] = 0
                for j in range(1, gap + 1):
                    grad = dout[sample, t + j - 1, low:high]
                    for k in range(4):
                        for i in range(lanes):
                            sums[k, i] += grad[i] * table[k, j, i]
                scale = one / y.dtype.type(gap + 2)
                for i in range(lanes):
                    start = y[sample, left, low + i]
                    slope = (y[sample, right, low + i] - start) * scale
                    outward = b_c[i] * sums[1, i] * scale
                    dy[sample, left, low + i] += b_c[i] * sums[0, i] - outward
                    dy[sample, right, low + i] += outward
                    db_c[i] += sums[0, i] * start + sums[1, i] * slope
                    da_c[i] += b_c[i] * (sums[2, i] * start + sums[3, i] * slope)
            t += gap
            if t < total:
                dy[sample, rank, low:high] += dout[sample, t, low:high]
                rank += 1
                t += 1


@functools.cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the two compiled kernels."""
    return compiled(_forward_kernel), compiled(_backward_kernel)


def _run(kernel: Callable[..., None], y: Tensor, visible: Tensor, *others: Tensor) -> None:
    parts = math.ceil(y.shape[2] / LANES)
    threads = torch.get_num_threads() if visible.numel() * y.shape[2] >= SERIAL_WORK else 1
    launch(kernel, threads, y.shape[0] * parts, parts, (y, visible, *others))


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, visible: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(y, visible, a, b)
        out = y.new_empty(*visible.shape, y.shape[2])
        _run(_kernels()[0], y, visible, a, b, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        y, visible, a, b = ctx.saved_tensors
        dy, da, db = torch.zeros_like(y), y.new_empty(len(y), y.shape[2]), y.new_empty(len(y), y.shape[2])
        _run(_kernels()[1], y, visible, a, b, dout.contiguous(), dy, da, db)
        return dy, None, da.sum(0), db.sum(0)


def on_cpu(y: Tensor, visible: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Fill the hidden tokens between visible ones, on torch.get_num_threads() threads.

    Args:
        y: visible tokens, (b, k, c), float32 or float64.
        visible: (b, t) bool.
        a: diagonal of Abar, (c,), dtype of y.
        b: diagonal of Bbar, likewise.

    Returns:
        (b, t, c).
    """
    return _Native.apply(y.contiguous(), visible.contiguous(), a.contiguous(), b.contiguous())
