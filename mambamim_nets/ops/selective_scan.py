"""Selective scan: the Mamba recurrence with the interface of mamba_ssm's `selective_scan_fn`.

Paper: Mamba, arXiv 2312.00752, Eq. 2-4.

Glossary (b batch, d channels, l length, n state size, g groups)
    u       (b, d, l)      input sequence
    delta   (b, d, l)      step size Delta, before bias and softplus
    A       (d, n)         continuous state matrix, diagonal, negative for a stable system
    B, C    (b, g, n, l)   input and output matrices, one set per group; channel d reads group d // (d_total // g)
    D       (d,)           skip
    z       (b, d, l)      gate
    h       (b, d, n)      state

Equations, one channel
    Delta_t = softplus(delta_t + delta_bias)
    h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t u_t
    y_t = C_t h_t + D u_t
    out_t = y_t silu(z_t)

Three implementations of the recurrence: `naive` states it, `native` is the CPU path, `fused` is mamba_ssm's CUDA
kernel.

Deliberate deviations from mamba_ssm: the last state carries its gradient; float64 inputs are computed in float64; A is
real.
"""

import functools
import importlib
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

LANES = 64  # channels that advance together: a constant, so that the compiler vectorises the innermost loops
CHUNK = 32  # steps between two saved states; the backward pass recomputes the states in between
SERIAL_WORK = 1 << 17  # below this many state updates a thread pool costs more than it saves


def naive(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """State the recurrence as a loop over the sequence.

    Args:
        u: input, (b, l, d).
        delta: step size after softplus, (b, l, d).
        A: state matrix, (d, n).
        B: input matrix, (b, g, l, n).
        C: output matrix, (b, g, l, n).

    Returns:
        y, (b, l, d), and the last state, (b, d, n).
    """
    channels = u.shape[2] // B.shape[1]
    h = u.new_zeros(u.shape[0], *A.shape)
    y = []
    for t in range(u.shape[1]):
        B_t, C_t = (matrix[:, :, t].repeat_interleave(channels, dim=1) for matrix in (B, C))
        delta_t, u_t = delta[:, t, :, None], u[:, t, :, None]
        h = torch.exp(delta_t * A) * h + delta_t * B_t * u_t
        y.append((h * C_t).sum(-1))
    return torch.stack(y, dim=1), h


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
            lanes = min(LANES, end - low)
            for n in range(states):
                for i in range(LANES):
                    h[n, i] = 0
                for i in range(lanes):
                    a[n, i] = A[n, low + i]
            for t in range(length):
                if t % CHUNK == 0 and t // CHUNK < saved.shape[1]:
                    for n in range(states):
                        for i in range(lanes):
                            saved[sample, t // CHUNK, n, low + i] = h[n, i]
                for i in range(lanes):
                    step[i] = delta[sample, t, low + i]
                    inflow[i] = step[i] * u[sample, t, low + i]
                for i in range(LANES):
                    out[i] = 0
                for n in range(states):
                    b_t, c_t = B[sample, group, t, n], C[sample, group, t, n]
                    for i in range(LANES):
                        h[n, i] = _exp(step[i] * a[n, i]) * h[n, i] + inflow[i] * b_t
                        out[i] += c_t * h[n, i]
                for i in range(lanes):
                    y[sample, t, low + i] = out[i]
            for n in range(states):
                for i in range(lanes):
                    final[sample, n, low + i] = h[n, i]


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
            lanes = min(LANES, end - low)
            if lanes < LANES:  # unused lanes must not carry values of the previous block into dB and dC
                h[:], step[:], inflow[:], dout[:], dh[:] = 0, 0, 0, 0, 0
            for n in range(states):
                for i in range(LANES):
                    da[n, i] = 0
                for i in range(lanes):
                    a[n, i] = A[n, low + i]
                    dh[n, i] = dfinal[sample, n, low + i]
            for chunk in range((length - 1) // CHUNK, -1, -1):
                start = chunk * CHUNK
                size = min(CHUNK, length - start)
                for n in range(states):
                    for i in range(lanes):
                        h[0, n, i] = saved[sample, chunk, n, low + i]
                for s in range(size):
                    for i in range(lanes):
                        step[s, i] = delta[sample, start + s, low + i]
                        inflow[s, i] = step[s, i] * u[sample, start + s, low + i]
                    for n in range(states):
                        b_t = B[sample, group, start + s, n]
                        for i in range(LANES):
                            decay[s, n, i] = _exp(step[s, i] * a[n, i])
                            h[s + 1, n, i] = decay[s, n, i] * h[s, n, i] + inflow[s, i] * b_t
                for s in range(size - 1, -1, -1):
                    t = start + s
                    for i in range(lanes):
                        dout[i] = dy[sample, t, low + i]
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
                    for i in range(lanes):
                        du[sample, t, low + i] = dinflow[i] * step[s, i]
                        ddelta[sample, t, low + i] = dinflow[i] * u[sample, t, low + i] + dstep[i]
            for n in range(states):
                for i in range(lanes):
                    dA[sample, n, low + i] = da[n, i]


@functools.cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the two compiled kernels; numba compiles once per machine and reads its disk cache afterwards."""
    import numba
    from numba.extending import overload

    # Sums may be reordered and products fused; nan and inf keep their meaning.
    fastmath = {"reassoc", "contract", "nsz"}

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

    @overload(_exp, jit_options={"fastmath": fastmath})
    def _(x):
        return exp_float32 if x == numba.float32 else exp_float64

    def compiled(kernel: Callable[..., None]) -> Callable[..., None]:
        try:
            return numba.njit(nogil=True, fastmath=fastmath, cache=True)(kernel)
        except RuntimeError:  # neither the package folder nor the user's cache folder can be written
            return numba.njit(nogil=True, fastmath=fastmath)(kernel)

    return compiled(_forward_kernel), compiled(_backward_kernel)


_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    """Drop the pool in a forked child: its threads stayed in the parent."""
    global _lock, _pool, _pool_size
    _lock, _pool, _pool_size = threading.Lock(), None, 0


@functools.cache
def _forget_pool_after_fork() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_pool)


def _workers(count: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < count:
            _forget_pool_after_fork()
            _pool, _pool_size = ThreadPoolExecutor(count, thread_name_prefix="selective_scan"), count
        return _pool


def _plan(u: Tensor, B: Tensor) -> tuple[int, int]:
    """Return the number of threads, and into how many parts a group's channels are cut to occupy every thread."""
    samples, length, channels = u.shape
    groups, states = B.shape[1], B.shape[3]
    threads = torch.get_num_threads()
    if threads == 1 or samples * length * channels * states < SERIAL_WORK:
        return 1, 1
    blocks = math.ceil(channels / groups / LANES)
    return threads, min(math.ceil(threads / math.gcd(threads, samples * groups)), blocks)


def _launch(kernel: Callable[..., None], threads: int, tasks: int, parts: int, tensors: tuple[Tensor, ...]) -> None:
    """Split the tasks of a kernel over threads; the calling thread takes the first share."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    threads = min(threads, tasks)
    if threads == 1:
        kernel(0, tasks, parts, *arrays)
        return
    cuts = [tasks * i // threads for i in range(threads + 1)]
    pool = _workers(threads - 1)
    waiting = [pool.submit(kernel, cuts[i], cuts[i + 1], parts, *arrays) for i in range(1, threads)]
    kernel(cuts[0], cuts[1], parts, *arrays)
    for future in waiting:
        future.result()


def _native_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the last state (b, n, d) and, if save, the state before every chunk (b, chunks, n, d)."""
    samples, length, channels = u.shape
    y = torch.empty_like(u)
    final = u.new_empty(samples, A.shape[0], channels)
    saved = u.new_empty(samples, math.ceil(length / CHUNK) if save else 0, A.shape[0], channels)
    threads, parts = _plan(u, B)
    _launch(_kernels()[0], threads, samples * B.shape[1] * parts, parts, (u, delta, A, B, C, y, final, saved))
    return y, final, saved


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        y, final, saved = _native_forward(u, delta, A, B, C, save=True)
        ctx.save_for_backward(u, delta, A, B, C, saved)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, saved = ctx.saved_tensors
        threads, parts = _plan(u, B)
        du, ddelta = torch.empty_like(u), torch.empty_like(u)
        dA = A.new_empty(u.shape[0], *A.shape)
        dB, dC = B.new_zeros(parts, *B.shape), C.new_zeros(parts, *C.shape)
        inputs = (u, delta, A, B, C, saved, dy.contiguous(), dfinal.contiguous())
        _launch(_kernels()[1], threads, u.shape[0] * B.shape[1] * parts, parts, (*inputs, du, ddelta, dA, dB, dC))
        return du, ddelta, dA.sum(0), dB.sum(0), dC.sum(0)


def native(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Run the recurrence on the CPU: compiled loops over blocks of channels, on torch.get_num_threads() threads.

    Autograd keeps the inputs and one state per CHUNK steps, never (b, l, d, n). Arguments and results as in `naive`.
    """
    inputs = tuple(tensor.contiguous() for tensor in (u, delta, rearrange(A, "d n -> n d"), B, C))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        y, final = _Native.apply(*inputs)
    else:
        y, final, _ = _native_forward(*inputs, save=False)
    return y, rearrange(final, "b n d -> b d n")


@functools.cache
def _mamba_ssm_scan() -> Callable[..., Any] | None:
    """Import mamba_ssm's kernel, once; None when it is not installed or does not load here."""
    try:
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except (ImportError, OSError):
        return None


def fused(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """Call mamba_ssm's CUDA kernel with the dtypes it wants.

    Arguments and results as in `selective_scan`, but the last state has no gradient.
    """
    kernel = _mamba_ssm_scan()
    assert kernel is not None
    delta, B, C = (tensor.to(u.dtype) for tensor in (delta, B, C))
    z = None if z is None else z.to(u.dtype)
    D, delta_bias = (None if tensor is None else tensor.float() for tensor in (D, delta_bias))
    return kernel(u, delta, A.float(), B, C, D, z, delta_bias, delta_softplus, return_last_state)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan sequences with the Mamba recurrence; the equations are at the top of this file.

    CUDA tensors go to mamba_ssm's kernel where it is installed, CPU tensors to compiled loops, anything else, and
    tracing, torch.compile and export, to the plain loop. All three agree. States and sums are float32 (float64 if u
    is), also inside autocast.

    Args:
        u: input, (B, D, L).
        delta: step size, (B, D, L).
        A: state matrix, (D, N), real.
        B: input matrix, (B, N, L), or (B, G, N, L) with G groups of channels.
        C: output matrix, shape of B.
        D: skip, (D,).
        z: gate, (B, D, L).
        delta_bias: added to delta before the softplus, (D,).
        delta_softplus: pass delta through softplus.
        return_last_state: also return the state after the last step.

    Returns:
        out, (B, D, L) in the dtype of u; with return_last_state also the last state, (B, D, N) float32 (float64 if u
        is).

    Raises:
        ValueError: if a shape or dtype does not fit u, or D is not divisible by the number of groups.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    tracing = torch.jit.is_tracing() or torch.compiler.is_compiling()  # the latter also while exporting
    if u.is_cuda and u.dtype != torch.float64 and not tracing and _mamba_ssm_scan() is not None:
        # mamba_ssm drops the gradient of the last state: with one to keep, the plain loop is right.
        if not (return_last_state and torch.is_grad_enabled()):
            return fused(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)

    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    # One transposition in front, so that everything after it is contiguous over channels.
    x, step = (tensor.transpose(1, 2).to(dtype).contiguous() for tensor in (u, delta))
    B, C = (tensor[:, None] if tensor.ndim == 3 else tensor for tensor in (B, C))
    B, C = (tensor.transpose(2, 3).to(dtype) for tensor in (B, C))
    if delta_bias is not None:
        step = step + delta_bias.to(dtype)
    if delta_softplus:
        step = F.softplus(step)
    recurrence = native if u.device.type == "cpu" and not tracing else naive
    y, last_state = recurrence(x, step, A.to(dtype), B, C)
    if D is not None:
        y = torch.addcmul(y, x, D.to(dtype))
    if z is not None:
        y = y * F.silu(z.transpose(1, 2).to(dtype).contiguous())
    out = y.to(u.dtype).transpose(1, 2)
    return (out, last_state) if return_last_state else out


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.ndim != 3 or 0 in u.shape:
        raise ValueError(
            f"u {tuple(u.shape)} must be a non-empty (B, D, L) tensor; move the channels in front of the sequence"
        )
    samples, channels, length = u.shape
    if A.ndim != 2 or A.shape[0] != channels:
        raise ValueError(
            f"A {tuple(A.shape)} must be (D, N) with D = {channels}, the channels of u; make one row per channel"
        )
    if B.ndim not in (3, 4):
        raise ValueError(
            f"B {tuple(B.shape)} must be (B, N, L) or (B, G, N, L); B and C depend on the input in a selective scan"
        )
    groups = B.shape[1] if B.ndim == 4 else 1
    if groups < 1 or channels % groups:
        raise ValueError(
            f"B {tuple(B.shape)} has G = {groups} groups, which must divide D = {channels}; "
            "change the groups or the channels"
        )
    matrix = (samples, groups, A.shape[1], length) if B.ndim == 4 else (samples, A.shape[1], length)
    expected = (
        ("u", u, u.shape),
        ("delta", delta, u.shape),
        ("A", A, A.shape),
        ("B", B, matrix),
        ("C", C, matrix),
        ("D", D, (channels,)),
        ("z", z, u.shape),
        ("delta_bias", delta_bias, (channels,)),
    )
    for name, tensor, shape in expected:
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} must be {tuple(shape)} for u {tuple(u.shape)} and A {tuple(A.shape)}; "
                "check its axes"
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name} is {tensor.dtype} and must be real floating point; "
                "convert it, complex states are not supported"
            )
        if tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device} and u on {u.device}; move both to one device")
