"""TOKI in plain tensor operations, its definition: a loop over samples, gaps and tokens.

Equations and glossary are in the package's docstring.
"""

import itertools

import torch
from torch import Tensor


def naive(y: Tensor, visible: Tensor, a_bar: Tensor, b_bar: Tensor) -> Tensor:
    """State Eq. 6-8 as a loop over samples, gaps and tokens; the definition that `toki` is tested against."""

    def act(matrix: Tensor, token: Tensor) -> Tensor:
        return matrix * token if matrix.ndim == 1 else matrix @ token

    samples = []
    for tokens, mask in zip(y, visible, strict=True):
        kept = mask.nonzero().flatten().tolist()
        filled = dict(zip(kept, tokens, strict=True))
        ends = [-1, *kept, mask.numel()]
        for i, (start, stop) in enumerate(itertools.pairwise(ends)):
            left, right = tokens[max(i - 1, 0)], tokens[min(i, len(kept) - 1)]
            gap = stop - start - 1
            h = act(b_bar, left)
            for j in range(1, gap + 1):
                s = ((gap + 2 - j) * left + j * right) / (gap + 2)
                h = act(a_bar, h) + act(b_bar, s)
                filled[start + j] = h
        samples.append(torch.stack([filled[t] for t in range(mask.numel())]))
    return torch.stack(samples)
