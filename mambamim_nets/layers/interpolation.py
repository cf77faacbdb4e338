"""TOKI as a layer: the learnable continuous system (A', Delta) that fills hidden tokens (MambaMIM section 3.4).

    Abar = exp(Delta A'),   Bbar = (Delta A')^-1 (exp(Delta A') - I) Delta        zero-order hold, Eq. 3, exact form

Deviations from the public code: A' is stable and starts at -I instead of zero; zero-order hold keeps "- I", which the
paper drops.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambamim_nets.ops.interpolation import toki

__all__ = ["TokenInterpolation"]

_DELTA = 2.0  # exp(-2) = 0.14: the fill starts as a linear interpolation, lightly smoothed, of gain 1 - 0.14^(j + 1)


class TokenInterpolation(nn.Module):
    """Fill hidden tokens by state-space interpolation between their visible neighbours in scan order.

    Args:
        channels: token width C.
        transition: "diagonal", A' = -exp(a) per channel, stable by construction; "full", a C x C matrix A'.

    Raises:
        ValueError: on another transition.
    """

    def __init__(self, channels: int, transition: Literal["diagonal", "full"] = "diagonal") -> None:
        super().__init__()
        if transition not in ("diagonal", "full"):
            raise ValueError(f"transition {transition!r} must be 'diagonal' or 'full'")
        self.transition = transition
        self.a = nn.Parameter(torch.zeros(channels) if transition == "diagonal" else -torch.eye(channels))
        self.delta = nn.Parameter(torch.full((channels,), math.log(math.expm1(_DELTA))))

    def discretise(self) -> tuple[Tensor, Tensor]:
        """Return Abar and Bbar, (C,) or (C, C) acting on columns, in float32."""
        delta = F.softplus(self.delta.float())
        if self.transition == "diagonal":
            a = -torch.exp(self.a.float())
            return torch.exp(delta * a), torch.expm1(delta * a) / a
        # exp([[Delta A', Delta], [0, 0]]) = [[Abar, Bbar], [0, I]]: needs no inverse of Delta A'
        c = delta.numel()
        system = torch.cat([delta[:, None] * self.a.float(), torch.diag(delta)], dim=1)
        exponential = torch.matrix_exp(F.pad(system, (0, 0, 0, c)))
        return exponential[:c, :c], exponential[:c, c:]

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Fill visible tokens (B, K, C) up to the grid, visible (B, T) bool in scan order: (B, T, C)."""
        return toki(tokens, visible, *self.discretise())
