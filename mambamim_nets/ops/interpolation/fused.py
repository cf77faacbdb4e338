"""TOKI on CUDA: one Triton kernel forward and one backward for diagonal matrices; imported on first use.

The hidden run between two neighbouring visible tokens belongs to one program per block of channels, so that every token
is read once per side and written once. With d = (y_{i+1} - y_i) / (Q + 2) the fill and its derivatives,

    z_j = b (G_j y_i + P_j d),  G_j = a G_{j-1} + 1,  P_j = a P_{j-1} + j,  G_0 = 1,  P_0 = 0,
    dG_j / da = a dG_{j-1} / da + G_{j-1},  and likewise for P,

are recurrences over j alone. All gradients are therefore sums along the run: the backward pass also walks it once, in
the same direction, saves no state and needs no atomics.

Glossary
    a, b    diagonals of Abar and Bbar
    run     number of a hidden run, 0 .. K: run i lies in front of visible token i
    edge    (B, K + 2) int32: positions of the visible tokens between -1 and T, the ends of the runs
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Triton reads the annotations of kernels itself, so these have none but constexpr.

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 128  # channels of a program


@triton.jit
def _run(edge, kept):
    """Return sample and number of this program's run, the visible tokens at its ends and the positions around it."""
    sample, run = tl.program_id(0) // (kept + 1), tl.program_id(0) % (kept + 1)
    left, right = tl.maximum(run - 1, 0), tl.minimum(run, kept - 1)
    place = edge + sample.to(tl.int64) * (kept + 2) + run
    return sample.to(tl.int64), run, left, right, tl.load(place), tl.load(place + 1)


@triton.jit
def _forward_kernel(y, edge, a, b, out, total, kept, channels, BLOCK: tl.constexpr):
    sample, run, left, right, begin, end = _run(edge, kept)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    a_c, b_c = tl.load(a + c, inside, 0), tl.load(b + c, inside, 0)
    token = tl.load(y + (sample * kept + left) * channels + c, inside, 0)
    if run > 0:
        tl.store(out + (sample * total + begin) * channels + c, token, inside)
    start = token.to(a_c.dtype)
    other = tl.load(y + (sample * kept + right) * channels + c, inside, 0).to(a_c.dtype)
    slope = (other - start) / (end - begin + 1)
    g, p = a_c * 0 + 1, a_c * 0
    for j in range(1, end - begin):
        g, p = a_c * g + 1, a_c * p + j
        z = b_c * (g * start + p * slope)
        tl.store(out + (sample * total + begin + j) * channels + c, z.to(token.dtype), inside)


@triton.jit
def _backward_kernel(y, edge, a, b, dout, partial, total, kept, channels, BLOCK: tl.constexpr):
    """Write to partial (4, B, K + 1, C) what each run gives to the token before it, the one after it, a and b."""
    sample, run, left, right, begin, end = _run(edge, kept)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    a_c, b_c = tl.load(a + c, inside, 0), tl.load(b + c, inside, 0)
    start = tl.load(y + (sample * kept + left) * channels + c, inside, 0).to(a_c.dtype)
    other = tl.load(y + (sample * kept + right) * channels + c, inside, 0).to(a_c.dtype)
    slope = (other - start) / (end - begin + 1)
    zero = a_c * 0
    before = tl.load(dout + (sample * total + tl.maximum(begin, 0)) * channels + c, inside, 0).to(a_c.dtype)
    before = tl.where(run > 0, before, zero)
    g, p, dg, dp = zero + 1, zero, zero, zero
    sum_g, sum_p, sum_dg, sum_dp = zero, zero, zero, zero
    for j in range(1, end - begin):
        dg, dp = a_c * dg + g, a_c * dp + p
        g, p = a_c * g + 1, a_c * p + j
        dz = tl.load(dout + (sample * total + begin + j) * channels + c, inside, 0).to(a_c.dtype)
        sum_g, sum_p = sum_g + dz * g, sum_p + dz * p
        sum_dg, sum_dp = sum_dg + dz * dg, sum_dp + dz * dp
    after = b_c * sum_p / (end - begin + 1)
    before += b_c * sum_g - after
    # Both ends of the first and of the last run are one token.
    before, after = before + tl.where(run == kept, after, zero), after + tl.where(run == 0, before, zero)
    plane = tl.num_programs(0).to(tl.int64) * channels
    row = partial + tl.program_id(0).to(tl.int64) * channels + c
    tl.store(row, before, inside)
    tl.store(row + plane, after, inside)
    tl.store(row + 2 * plane, b_c * (sum_dg * start + sum_dp * slope), inside)
    tl.store(row + 3 * plane, sum_g * start + sum_p * slope, inside)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, visible: Tensor, a: Tensor, b: Tensor) -> Tensor:
        samples, kept, channels = y.shape
        total = visible.shape[1]
        place = visible.byte().argsort(dim=1, descending=True, stable=True)[:, :kept].int()
        edge = F.pad(F.pad(place, (1, 0), value=-1), (0, 1), value=total)
        out = y.new_empty(samples, total, channels)
        grid = (samples * (kept + 1), triton.cdiv(channels, BLOCK))
        _forward_kernel[grid](y, edge, a, b, out, total, kept, channels, BLOCK=BLOCK, num_warps=1)
        ctx.save_for_backward(y, edge, a, b)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, edge, a, b = ctx.saved_tensors
        samples, kept, channels = y.shape
        partial = a.new_empty(4, samples, kept + 1, channels)
        grid = (samples * (kept + 1), triton.cdiv(channels, BLOCK))
        dout = dout.contiguous()
        total = dout.shape[1]
        _backward_kernel[grid](y, edge, a, b, dout, partial, total, kept, channels, BLOCK=BLOCK, num_warps=1)
        before, after = partial[0, :, 1:], partial[1, :, :-1]
        da, db = rearrange(partial[2:], "ab s k c -> ab (s k) c").sum(1)
        return (before + after).to(y.dtype), None, da, db


def on_cuda(y: Tensor, visible: Tensor, a_bar: Tensor, b_bar: Tensor) -> Tensor:
    """Fill hidden tokens with diagonal matrices; arguments and result as in `toki`, a_bar and b_bar in the sums' dtype.

    Nothing here waits for the device.
    """
    with torch.cuda.device_of(y):
        return _Fused.apply(y.contiguous(), visible, a_bar.contiguous(), b_bar.contiguous())
