"""Selective scan on CUDA where mamba_ssm does not do it: Triton kernels, forward and backward; imported on first use.

The recurrence, its glossary and its equations are in the package's docstring; sequences are channels-last, (b, l, d).
One program walks BLOCK channels of one group of one sample through the sequence, CHUNK steps at a time: inside a chunk
the states are an associative scan (see `plain.parallel`), between chunks one state is carried. The forward pass saves
the state before every chunk. The backward pass walks back with the gradient g of the state,

    g_t = C_t dy_t + exp(Delta_{t+1} A) g_{t+1},

and scans the states of its chunk again. No memory grows with l x d x n: the saved states take n / CHUNK and the parts
of the gradients of B and C, one per block and added up afterwards without atomics, n / BLOCK times the size of u each.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# Triton reads the annotations of kernels itself, so these have none but constexpr.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 16  # steps scanned together, and between two saved states
BLOCK = 8  # channels of a program: 32 bytes, the least that memory delivers


@triton.jit
def _join(decay, inflow, next_decay, next_inflow):
    """Return the stretch h -> decay h + inflow followed by the next one."""
    return decay * next_decay, next_decay * inflow + next_inflow


@triton.jit
def _states(decay, inflow, h, reverse: tl.constexpr):
    """Return the state after every step of a chunk, (CHUNK, BLOCK, STATES), from the state h before it."""
    steps: tl.constexpr = decay.shape[0]
    lanes: tl.constexpr = decay.shape[1] * decay.shape[2]
    flat, own = tl.reshape(decay, (steps, lanes)), tl.reshape(inflow, (steps, lanes))
    through, own = tl.associative_scan((flat, own), 0, _join, reverse=reverse)
    return tl.reshape(own, decay.shape) + tl.reshape(through, decay.shape) * h[None]


@triton.jit
def _sequence(pointer, t, d, length, width, inside):
    """Load (CHUNK, BLOCK) of a (l, width) sequence, zero outside it."""
    offset = t.to(tl.int64)[:, None] * width + d[None]
    return tl.load(pointer + offset, ((t >= 0) & (t < length))[:, None] & inside[None], 0)


@triton.jit
def _forward_kernel(
    u, delta, A, B, C, y, final, saved, length, channels, states,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """u, delta, y (b, l, d); A (d, n); B, C (b, g, l, n); final (b, d, n); saved (b, chunks, d, n)."""
    sample, group, groups = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    d, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    inside, inside_n = d < channels // groups, n < states
    d += group * (channels // groups)
    tile, inside_tile = d[:, None] * states + n[None], inside[:, None] & inside_n[None]
    u, delta, y = u + sample * length * channels, delta + sample * length * channels, y + sample * length * channels
    B, C = B + (sample * groups + group) * length * states, C + (sample * groups + group) * length * states
    saved += sample * tl.cdiv(length, CHUNK) * channels * states

    a = tl.load(A + tile, inside_tile, 0)
    h = a * 0
    for start in range(0, length, CHUNK):
        if SAVE:
            tl.store(saved + tile, h, inside_tile)
            saved += channels * states
        t = start + tl.arange(0, CHUNK)
        step = _sequence(delta, t, d, length, channels, inside)
        inflow = step * _sequence(u, t, d, length, channels, inside)
        b_t, c_t = _sequence(B, t, n, length, states, inside_n), _sequence(C, t, n, length, states, inside_n)
        h_t = _states(tl.exp(step[:, :, None] * a[None]), inflow[:, :, None] * b_t[:, None], h, False)
        out = tl.sum(h_t * c_t[:, None], 2)
        tl.store(y + t.to(tl.int64)[:, None] * channels + d[None], out, (t < length)[:, None] & inside[None])
        h = tl.sum(tl.where((t == start + CHUNK - 1)[:, None, None], h_t, 0), 0)  # steps past the end leave h as it is
    tl.store(final + sample * channels * states + tile, h, inside_tile)


@triton.jit
def _backward_kernel(
    u, delta, A, B, C, saved, dy, dfinal, du, ddelta, dA, dB, dC, length, channels, states,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Write du, ddelta (b, l, d), dA (b, d, n) and, one part per block of channels, dB, dC (b, g, blocks, l, n)."""
    sample, group, groups = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    block, blocks = tl.program_id(0), tl.num_programs(0)
    d, n = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES)
    inside, inside_n = d < channels // groups, n < states
    d += group * (channels // groups)
    tile, inside_tile = d[:, None] * states + n[None], inside[:, None] & inside_n[None]
    u, delta, dy = u + sample * length * channels, delta + sample * length * channels, dy + sample * length * channels
    du, ddelta = du + sample * length * channels, ddelta + sample * length * channels
    matrix = sample * groups + group
    B, C = B + matrix * length * states, C + matrix * length * states
    dB, dC = dB + (matrix * blocks + block) * length * states, dC + (matrix * blocks + block) * length * states
    chunks = tl.cdiv(length, CHUNK)
    saved += (sample + 1) * chunks * channels * states

    a = tl.load(A + tile, inside_tile, 0)
    g = tl.load(dfinal + sample * channels * states + tile, inside_tile, 0)
    da = a * 0
    for chunk in range(0, chunks):
        start = (chunks - 1 - chunk) * CHUNK
        t = start + tl.arange(0, CHUNK)
        first, inside_t = t == start, (t < length)[:, None]
        saved -= channels * states
        h = tl.load(saved + tile, inside_tile, 0)
        # the states before every step: the first is h, so the scan runs over the steps before
        before = tl.where(first, -1, t - 1)
        step = _sequence(delta, before, d, length, channels, inside)
        inflow = step * _sequence(u, before, d, length, channels, inside)
        b_t = _sequence(B, before, n, length, states, inside_n)
        h_t = _states(tl.exp(step[:, :, None] * a[None]), inflow[:, :, None] * b_t[:, None], h, False)

        out = _sequence(dy, t, d, length, channels, inside)
        c_t = _sequence(C, t, n, length, states, inside_n)
        step = _sequence(delta, t + 1, d, length, channels, inside)
        g_t = _states(tl.exp(step[:, :, None] * a[None]), out[:, :, None] * c_t[:, None], g, True)
        g = tl.sum(tl.where(first[:, None, None], g_t, 0), 0)

        step = _sequence(delta, t, d, length, channels, inside)
        u_t = _sequence(u, t, d, length, channels, inside)
        b_t = _sequence(B, t, n, length, states, inside_n)
        decayed = tl.exp(step[:, :, None] * a[None]) * h_t
        dexponent = g_t * decayed
        da += tl.sum(dexponent * step[:, :, None], 0)
        dinflow = tl.sum(g_t * b_t[:, None], 2)
        place, place_n = t.to(tl.int64)[:, None] * channels + d[None], t.to(tl.int64)[:, None] * states + n[None]
        tl.store(du + place, dinflow * step, inside_t & inside[None])
        dstep = tl.sum(dexponent * a[None], 2) + dinflow * u_t
        tl.store(ddelta + place, dstep, inside_t & inside[None])
        inflow = step * u_t
        tl.store(dB + place_n, tl.sum(g_t * inflow[:, :, None], 1), inside_t & inside_n[None])
        dc = tl.sum((decayed + inflow[:, :, None] * b_t[:, None]) * out[:, :, None], 1)
        tl.store(dC + place_n, dc, inside_t & inside_n[None])
    tl.store(dA + sample * channels * states + tile, da, inside_tile)


def _grid(u: Tensor, B: Tensor) -> tuple[int, int, int]:
    """Blocks of channels of a group, groups, samples."""
    return triton.cdiv(u.shape[2] // B.shape[1], BLOCK), B.shape[1], u.shape[0]


def _sizes(states: int) -> dict[str, int]:
    """Constants of the kernels; the warps grow with the states, so that the registers of a thread suffice."""
    padded = triton.next_power_of_2(states)
    return {"CHUNK": CHUNK, "BLOCK": BLOCK, "STATES": padded, "num_warps": min(max(padded // 4, 4), 16)}


def _forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state and, if save, the state before every chunk (b, chunks, d, n)."""
    samples, length, channels = u.shape
    y, final = torch.empty_like(u), u.new_empty(samples, *A.shape)
    saved = u.new_empty(samples, triton.cdiv(length, CHUNK) if save else 0, *A.shape)
    tensors = (u, delta, A, B, C, y, final, saved)
    _forward_kernel[_grid(u, B)](*tensors, length, channels, A.shape[1], SAVE=save, **_sizes(A.shape[1]))
    return y, final, saved


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        y, final, saved = _forward(u, delta, A, B, C, save=True)
        ctx.save_for_backward(u, delta, A, B, C, saved)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, saved = ctx.saved_tensors
        samples, length, channels = u.shape
        grid = _grid(u, B)
        du, ddelta = torch.empty_like(u), torch.empty_like(u)
        dA = A.new_empty(samples, *A.shape)
        dB, dC = B.new_empty(2, samples, B.shape[1], grid[0], *B.shape[2:])
        tensors = (u, delta, A, B, C, saved, dy.contiguous(), dfinal.contiguous(), du, ddelta, dA, dB, dC)
        _backward_kernel[grid](*tensors, length, channels, A.shape[1], **_sizes(A.shape[1]))
        return du, ddelta, dA.sum(0), dB.sum(2), dC.sum(2)


def on_cuda(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Run the recurrence on CUDA in Triton.

    Autograd keeps the inputs and one state per CHUNK steps, never (b, l, d, n). Arguments and results as in `naive`.
    """
    inputs = tuple(tensor.contiguous() for tensor in (u, delta, A, B, C))
    with torch.cuda.device_of(u):
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            return _Fused.apply(*inputs)
        return _forward(*inputs, save=False)[:2]
