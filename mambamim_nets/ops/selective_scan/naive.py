"""Selective scan, its definition: a loop over the sequence; equations and glossary are in the package's docstring."""

import torch
from torch import Tensor


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
    h = u.new_zeros((u.shape[0], A.shape[0], A.shape[1]))
    y: list[Tensor] = []
    for t in range(u.shape[1]):
        B_t, C_t = B[:, :, t].repeat_interleave(channels, dim=1), C[:, :, t].repeat_interleave(channels, dim=1)
        delta_t, u_t = delta[:, t, :, None], u[:, t, :, None]
        h = torch.exp(delta_t * A) * h + delta_t * B_t * u_t
        y.append((h * C_t).sum(-1))
    return torch.stack(y, dim=1), h
