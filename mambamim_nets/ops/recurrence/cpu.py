"""The whole selective scan on the CPU: the compiled recurrence, and around it what memory allows.

For long sequences the tensors around the recurrence (steps before and after the softplus, the skip, the gate and their
gradients) would take several times what it takes itself. Here autograd keeps x, Delta, the ungated y and the states
between chunks, and nothing else: the derivative of the softplus is 1 - exp(-Delta).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mambamim_nets.ops.recurrence.native import native_backward, native_forward

__all__ = ["on_cpu"]


def _rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn (b, d, l) into contiguous (b, l, d); a view where memory is in that order already."""
    return tensor.transpose(1, 2).to(dtype).contiguous()


def _silu(z: Tensor, like: Tensor) -> Tensor:
    """Return silu(z) of (b, d, l) as a new tensor of (b, l, d), in the dtype of another."""
    out = torch.empty_like(like)
    return torch.ops.aten.silu.out(z.transpose(1, 2).to(like.dtype), out=out)


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut (b, l, d) tensors along l, so that what is computed in between stays small."""
    return zip(*(tensor.split(4096, dim=1) for tensor in tensors), strict=True)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
        save: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        x = _rows(u, dtype)
        bias = x.new_zeros(1) if delta_bias is None else delta_bias.to(dtype)
        step = torch.add(delta.transpose(1, 2), bias, out=torch.empty_like(x))
        if delta_softplus:
            torch.ops.aten.softplus.out(step, out=step)
        a = A.t().to(dtype).contiguous()
        b, c = (matrix.transpose(2, 3).to(dtype).contiguous() for matrix in (B, C))
        y, final, states = native_forward(x, step, a, b, c, save=save)
        if D is not None:
            y.addcmul_(x, D.to(dtype))
        out = y if z is None else _silu(z, y).mul_(y)
        if save:
            ctx.save_for_backward(x, step, a, b, c, states, D, z, None if z is None else y)
            ctx.dtypes = [None if t is None else t.dtype for t in (u, delta, A, B, C, D, z, delta_bias)]
            ctx.delta_softplus = delta_softplus
        return out.to(u.dtype).transpose(1, 2), final.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        x, step, a, b, c, states, D, z, y = ctx.saved_tensors
        dz = dD = dbias = None
        dout = dout.transpose(1, 2).to(x.dtype)
        dy = dout.contiguous() if z is None else _silu(z, x).mul_(dout)
        du, dstep, dA, dB, dC = native_backward(x, step, a, b, c, states, dy, dfinal.transpose(1, 2))
        if D is not None:
            dD = torch.zeros_like(D, dtype=x.dtype)
            for part, other in _parts(dy, x):
                dD += (part * other).sum((0, 1))
            du.addcmul_(dy, D.to(x.dtype))
        if ctx.delta_softplus:
            for part, other in _parts(dstep, step):
                part.mul_(other.neg().expm1_().neg_())
        if ctx.dtypes[7] is not None:
            dbias = dstep.sum((0, 1))
        if z is not None:  # dy has done its work; its memory has not
            dz = torch.mul(dout, y, out=dy)
            gate = z.transpose(1, 2).to(x.dtype)
            dz = torch.ops.aten.silu_backward.grad_input(dz, gate, grad_input=dz).transpose(1, 2)
        gradients = (du.transpose(1, 2), dstep.transpose(1, 2), dA.t(), dB.mT, dC.mT, dD, dz, dbias)
        cast = (None if g is None else g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True))
        return *cast, None, None


def on_cpu(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Run the operator in compiled loops, on torch.get_num_threads() threads.

    Arguments as in `selective_scan`; B and C with groups, (b, g, n, l). Returns out and the last state.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return _Whole.apply(*tensors, delta_softplus, save)
