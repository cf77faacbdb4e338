"""The recurrence in plain tensor operations: the loop that defines it, and the version that tracing records.

Equations and glossary are in the package's docstring.
"""

import torch
from torch import Tensor

__all__ = ["naive", "parallel"]


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


def parallel(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Run the recurrence in log2(l) steps over the whole sequence, in plain tensor operations.

    A stretch of tokens acts on the state as h -> a h + s, and (a, s) followed by (a', s') is (a a', a' s + s'). Every
    token starts with a stretch of its own; each step joins it with the one before and so doubles its reach (Hillis and
    Steele, CACM 29(12), 1986). Nothing is divided, so strong decay is harmless. Memory is a few times (b, l, d, n).

    Args:
        u: input, (b, l, d).
        delta: step size after softplus, (b, l, d).
        A: state matrix, (d, n).
        B: input matrix, (b, g, l, n).
        C: output matrix, (b, g, l, n).

    Returns:
        y, (b, l, d), and the last state, (b, d, n).
    """
    groups = B.shape[1]
    u, delta = u.unflatten(2, (groups, -1)), delta.unflatten(2, (groups, -1))
    B, C = B.transpose(1, 2).unsqueeze(3), C.transpose(1, 2).unsqueeze(3)  # (b, l, g, 1, n)
    decay = torch.exp(delta.unsqueeze(-1) * A.unflatten(0, (groups, -1)))  # (b, l, g, d / g, n)
    h = (delta * u).unsqueeze(-1) * B
    reach = 1
    while reach < u.shape[1]:
        h = torch.cat([h[:, :reach], h[:, reach:] + decay[:, reach:] * h[:, :-reach]], dim=1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], dim=1)
        reach *= 2
    return (h * C).sum(-1).flatten(2), h[:, -1].flatten(1, 2)
