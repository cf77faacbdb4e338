"""Selective scan on the CPU: compiled loops over blocks of channels, threads over batch x channels.

The recurrence, its glossary and its equations are in the package's docstring; the operator around these loops is in
`cpu`. Here sequences are channels-last, (b, l, d), so that the innermost loops run over neighbouring channels. Memory
does not grow with l x d x n: the forward pass keeps one state per CHUNK steps, the backward pass recomputes the states
in between. numba compiles on first use and caches on disk; no compiler is needed at install.
"""

# mypy: allow-untyped-defs
# numba compiles the kernels for the types that it meets.

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mambamim_nets.ops.kernels import FASTMATH, SERIAL_WORK, compiled, launch

LANES = 64  # channels that advance together: a constant, so that the compiler vectorises the innermost loops
CHUNK = 32  # steps between two saved states; the backward pass recomputes the states in between


def _exp(x: float) -> float:
    """Exponential inside the kernels; `_kernels` gives it a float32 version that vectorises."""
    return math.exp(x)


def _forward_kernel(first, last, parts, u, delta, A, B, C, y, final, saved):
    """Run tasks first .. last - 1; a task is one part of the channels of one group of one sample.

    u, delta, y (b, l, d); A (n, d); B, C (b, g, l, n); final (b, n, d); saved (b, chunks, n, d), the state before every
    chunk, or no chunks.
    """
    length, groups, states = u.shape[1], B.shape[1], A.shape[0]
    channels = u.shape[2] // groups
    a = np.zeros((states, LANES), u.dtype)
    h = np.zeros((states, LANES), u.dtype)
    step = np.zeros(LANES, u.dtype)
    inflow = np.zeros(LANES, u.dtype)
    out = np.zeros(LANES, u.dtype)
    for task in range(first, last):
        part, group, sample = task % parts, task // parts % groups, task // parts // groups
        begin = group * channels + channels * part // parts
        end = group * channels + channels * (part + 1) // parts
        for low in range(begin, end, LANES):
            high = min(low + LANES, end)
            lanes = high - low
            for n in range(states):
                for i in range(LANES):
                    h[n, i] = 0
                a[n, :lanes] = A[n, low:high]
            for t in range(length):
                if t % CHUNK == 0 and t // CHUNK < saved.shape[1]:
                    for n in range(states):
                        saved[sample, t // CHUNK, n, low:high] = h[n, :lanes]
                u_t, delta_t, y_t = u[sample, t, low:high], delta[sample, t, low:high], y[sample, t, low:high]
                for i in range(lanes):
                    step[i] = delta_t[i]
                    inflow[i] = delta_t[i] * u_t[i]
                for i in range(LANES):
                    out[i] = 0
                for n in range(states):
                    b_t, c_t = B[sample, group, t, n], C[sample, group, t, n]
                    for i in range(LANES):
                        h[n, i] = _exp(step[i] * a[n, i]) * h[n, i] + inflow[i] * b_t
                        out[i] += c_t * h[n, i]
                for i in range(lanes):
                    y_t[i] = out[i]
            for n in range(states):
                final[sample, n, low:high] = h[n, :lanes]


def _backward_kernel(first, last, parts, u, delta, A, B, C, saved, dy, dfinal, du, ddelta, dA, dB, dC):
    """Gradients of `_forward_kernel`: du, ddelta, dA (b, n, d) and dB, dC (parts, b, g, l, n).

    dB and dC must be zero on entry; every task adds to its own slice of them.
    """
    length, groups, states = u.shape[1], B.shape[1], A.shape[0]
    channels = u.shape[2] // groups
    a = np.zeros((states, LANES), u.dtype)
    da = np.zeros((states, LANES), u.dtype)
    dh = np.zeros((states, LANES), u.dtype)
    h = np.zeros((CHUNK + 1, states, LANES), u.dtype)
    decay = np.zeros((CHUNK, states, LANES), u.dtype)
    step = np.zeros((CHUNK, LANES), u.dtype)
    inflow = np.zeros((CHUNK, LANES), u.dtype)
    dout = np.zeros(LANES, u.dtype)
    dinflow = np.zeros(LANES, u.dtype)
    dstep = np.zeros(LANES, u.dtype)
    for task in range(first, last):
        part, group, sample = task % parts, task // parts % groups, task // parts // groups
        begin = group * channels + channels * part // parts
        end = group * channels + channels * (part + 1) // parts
        for low in range(begin, end, LANES):
            high = min(low + LANES, end)
            lanes = high - low
            if lanes < LANES:  # unused lanes must not carry values of the previous block into dB and dC
                h[:], step[:], inflow[:], dout[:], dh[:] = 0, 0, 0, 0, 0
            for n in range(states):
                da[n] = 0
                a[n, :lanes] = A[n, low:high]
                dh[n, :lanes] = dfinal[sample, n, low:high]
            for chunk in range((length - 1) // CHUNK, -1, -1):
                start = chunk * CHUNK
                size = min(CHUNK, length - start)
                for n in range(states):
                    h[0, n, :lanes] = saved[sample, chunk, n, low:high]
                for s in range(size):
                    u_t, delta_t = u[sample, start + s, low:high], delta[sample, start + s, low:high]
                    for i in range(lanes):
                        step[s, i] = delta_t[i]
                        inflow[s, i] = delta_t[i] * u_t[i]
                    for n in range(states):
                        b_t = B[sample, group, start + s, n]
                        for i in range(LANES):
                            decay[s, n, i] = _exp(step[s, i] * a[n, i])
                            h[s + 1, n, i] = decay[s, n, i] * h[s, n, i] + inflow[s, i] * b_t
                for s in range(size - 1, -1, -1):
                    t = start + s
                    u_t, dy_t = u[sample, t, low:high], dy[sample, t, low:high]
                    for i in range(lanes):
                        dout[i] = dy_t[i]
                    for i in range(LANES):
                        dinflow[i] = 0
                        dstep[i] = 0
                    for n in range(states):
                        b_t, c_t = B[sample, group, t, n], C[sample, group, t, n]
                        db = u.dtype.type(0)
                        dc = u.dtype.type(0)
                        for i in range(LANES):
                            g = dh[n, i] + c_t * dout[i]
                            back = g * decay[s, n, i]
                            dexponent = back * h[s, n, i]
                            db += g * inflow[s, i]
                            dc += dout[i] * h[s + 1, n, i]
                            dinflow[i] += g * b_t
                            dstep[i] += dexponent * a[n, i]
                            da[n, i] += dexponent * step[s, i]
                            dh[n, i] = back
                        dB[part, sample, group, t, n] += db
                        dC[part, sample, group, t, n] += dc
                    du_t, ddelta_t = du[sample, t, low:high], ddelta[sample, t, low:high]
                    for i in range(lanes):
                        du_t[i] = dinflow[i] * step[s, i]
                    for i in range(lanes):
                        ddelta_t[i] = dinflow[i] * u_t[i] + dstep[i]
            for n in range(states):
                dA[sample, n, low:high] = da[n, :lanes]


@functools.cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the two compiled kernels; numba compiles once per machine and reads its disk cache afterwards."""
    import numba
    from numba.extending import overload

    def exp_float32(x):
        # exp(x) = 2^k exp(r), |r| <= ln(2) / 2; ln(2) in two parts, Taylor to the seventh order: error below 3e-7.
        x = np.float32(-87.0) if x < np.float32(-87.0) else (np.float32(88.0) if x > np.float32(88.0) else x)
        k = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
        r = x - k * np.float32(0.693359375) - k * np.float32(-2.12194440e-4)
        p = np.float32(1 / 5040)
        p = p * r + np.float32(1 / 720)
        p = p * r + np.float32(1 / 120)
        p = p * r + np.float32(1 / 24)
        p = p * r + np.float32(1 / 6)
        p = p * r + np.float32(0.5)
        p = p * r + np.float32(1.0)
        p = p * r + np.float32(1.0)
        return p * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)

    def exp_float64(x):
        return math.exp(x)

    @overload(_exp, jit_options={"fastmath": FASTMATH})
    def _(x):
        return exp_float32 if x == numba.float32 else exp_float64

    return compiled(_forward_kernel), compiled(_backward_kernel)


def _plan(u: Tensor, B: Tensor) -> tuple[int, int]:
    """Return the number of threads, and into how many parts a group's channels are cut to occupy every thread."""
    samples, length, channels = u.shape
    groups, states = B.shape[1], B.shape[3]
    threads = torch.get_num_threads()
    if threads == 1 or samples * length * channels * states < SERIAL_WORK:
        return 1, 1
    blocks = math.ceil(channels / groups / LANES)
    return threads, min(math.ceil(threads / math.gcd(threads, samples * groups)), blocks)


def native_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the recurrence on contiguous u, delta (b, l, d), A (n, d), B and C (b, g, l, n).

    Returns:
        y (b, l, d), the last state (b, n, d) and, if save, the state before every chunk (b, chunks, n, d).
    """
    samples, length, channels = u.shape
    y = torch.empty_like(u)
    final = u.new_empty(samples, A.shape[0], channels)
    saved = u.new_empty(samples, math.ceil(length / CHUNK) if save else 0, A.shape[0], channels)
    threads, parts = _plan(u, B)
    launch(_kernels()[0], threads, samples * B.shape[1] * parts, parts, (u, delta, A, B, C, y, final, saved))
    return y, final, saved


def native_backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, saved: Tensor, dy: Tensor, dfinal: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B and C, in their shapes, for those of y and the last state."""
    threads, parts = _plan(u, B)
    du, ddelta = torch.empty_like(u), torch.empty_like(u)
    dA = A.new_empty(u.shape[0], *A.shape)
    dB, dC = B.new_zeros(parts, *B.shape), C.new_zeros(parts, *C.shape)
    inputs = (u, delta, A, B, C, saved, dy.contiguous(), dfinal.contiguous())
    launch(_kernels()[1], threads, u.shape[0] * B.shape[1] * parts, parts, (*inputs, du, ddelta, dA, dB, dC))
    if parts == 1:
        return du, ddelta, dA.sum(0), dB[0], dC[0]
    return du, ddelta, dA.sum(0), dB.sum(0), dC.sum(0)
