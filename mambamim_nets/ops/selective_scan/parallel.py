"""Selective scan in log-depth, in plain tensor operations: what tracing, torch.compile and ONNX record."""

import torch
from torch import Tensor


def parallel(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Run the recurrence in log2(l) steps over the whole sequence, in plain tensor operations.

    A stretch of tokens acts on the state as h -> a h + s, and (a, s) followed by (a', s') is (a a', a' s + s'). Every
    token starts with a stretch of its own; each step joins it with the one before and so doubles its reach (Hillis and
    Steele, CACM 29(12), 1986). Nothing is divided, so strong decay is harmless. Memory is a few times (b, l, d, n).
    Arguments and results as in `naive`.
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
