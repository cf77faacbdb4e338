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

Implementations: in `plain`, `naive` states the recurrence and `parallel` keeps graphs small (torch.jit.trace,
torch.export, ONNX); `cpu` is the operator on the CPU, around the compiled loops of `native`; on CUDA `external` calls
mamba_ssm's kernel where it is installed, and `fused` is our own in Triton.

Deliberate deviations from mamba_ssm: the last state carries its gradient; float64 inputs are computed in float64; A is
real.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mambamim_nets.ops.dispatch import importable, opaque, recording, triton_works
from mambamim_nets.ops.recurrence.cpu import on_cpu
from mambamim_nets.ops.recurrence.external import mamba_ssm_scan, on_mamba_ssm
from mambamim_nets.ops.recurrence.plain import naive, parallel

__all__ = ["naive", "on_cpu", "parallel", "selective_scan"]


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

    CUDA tensors go to mamba_ssm's kernel where it is installed, else to our own where Triton is; CPU tensors to
    compiled loops; anything else to the plain loop. torch.compile leaves these kernels as they are: the graph breaks
    around them. Tracing and export record `parallel`; a scripted network runs it on CUDA and the plain loop on the CPU.
    All agree. States and sums are float32 (float64 if u is), also inside autocast.

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
    if not torch.jit.is_scripting():
        _check(u, delta, A, B, C, D, z, delta_bias)
        # mamba_ssm drops the gradient of the last state
        keeps_gradients = not (return_last_state and torch.is_grad_enabled())
        usable = u.is_cuda and u.dtype != torch.float64 and not recording() and keeps_gradients
        if usable and importable("mamba_ssm") and mamba_ssm_scan() is not None:
            return opaque(on_mamba_ssm, u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)

        if u.device.type == "cpu" and not recording():
            grouped = (matrix.unsqueeze(1) if matrix.ndim == 3 else matrix for matrix in (B, C))
            pair = opaque(on_cpu, u, delta, A, *grouped, D, z, delta_bias, delta_softplus)
            return pair if return_last_state else pair[0]

    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    # One transposition in front, so that everything after it is contiguous over channels.
    x, step = u.transpose(1, 2).to(dtype).contiguous(), delta.transpose(1, 2).to(dtype).contiguous()
    if B.ndim == 3:
        B, C = B.unsqueeze(1), C.unsqueeze(1)
    B, C = B.transpose(2, 3).to(dtype), C.transpose(2, 3).to(dtype)
    if delta_bias is not None:
        step = step + delta_bias.to(dtype)
    if delta_softplus:
        step = F.softplus(step)
    y, last_state = _recurrence(x, step, A.to(dtype), B, C)
    if D is not None:
        y = torch.addcmul(y, x, D.to(dtype))
    if z is not None:
        y = y * F.silu(z.transpose(1, 2).to(dtype))
    out = y.to(u.dtype).transpose(1, 2)
    if return_last_state:
        return out, last_state
    return out


def _recurrence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Choose an implementation; scripting compiles its own branch alone."""
    if torch.jit.is_scripting():
        return parallel(u, delta, A, B, C) if u.is_cuda else naive(u, delta, A, B, C)
    if recording():
        return parallel(u, delta, A, B, C)
    if u.is_cuda and triton_works():
        return opaque(_fused, u, delta, A, B, C)
    return naive(u, delta, A, B, C)


def _fused(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    from mambamim_nets.ops.recurrence.fused import on_cuda

    return on_cuda(u, delta, A, B, C)


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
