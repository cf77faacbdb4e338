"""Mamba on a token sequence: the selective state-space mixer and the pre-norm layer around it.

Parameter names and initialisation are those of ``mamba_ssm.Mamba`` (Gu and Dao 2023), those of the backward direction
of Vision Mamba (Zhu et al. 2024), so that weights move between us and everything built on them.

Glossary
    d_model     token width C
    d_inner     expand * d_model
    d_state     N, states per channel
    d_conv      width of the causal convolution
    dt_rank     rank of the projection that makes Delta, ceil(d_model / 16)

Deviation from the public MambaMIM code: bidirectional by default, as the paper says; there a mode string falls through
and the backward weights are never used.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mambamim_nets.ops.selective_scan import selective_scan

__all__ = ["MambaLayer", "MambaMixer"]


class MambaMixer(nn.Module):
    """Selective state-space mixer, in one or both directions (outputs summed, in- and out-projection shared).

    Args:
        d_model: token width.
        d_state: states per channel.
        d_conv: width of the causal convolution.
        expand: d_inner / d_model.
        bidirectional: also scan the reversed sequence, with its own convolution and state-space parameters (suffix
            ``_b``).
    """

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, bidirectional: bool = True
    ) -> None:
        super().__init__()
        self.d_inner, self.d_state = expand * d_model, d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.bidirectional = bidirectional
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        for suffix in ("", "_b") if bidirectional else ("",):
            conv = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
            a = torch.arange(1, d_state + 1, dtype=torch.float32).repeat(self.d_inner, 1)
            setattr(self, f"conv1d{suffix}", conv)
            setattr(self, f"x_proj{suffix}", nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False))
            setattr(self, f"dt_proj{suffix}", self._dt_projection())
            setattr(self, f"A{suffix}_log", nn.Parameter(a.log()))
            setattr(self, f"D{suffix}", nn.Parameter(torch.ones(self.d_inner)))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def _dt_projection(self, dt_min: float = 1e-3, dt_max: float = 0.1, dt_floor: float = 1e-4) -> nn.Linear:
        """Initialise so that softplus(bias) is log-uniform in [dt_min, dt_max], as mamba_ssm does."""
        linear = nn.Linear(self.dt_rank, self.d_inner)
        nn.init.uniform_(linear.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.exp(torch.rand(self.d_inner) * math.log(dt_max / dt_min) + math.log(dt_min)).clamp(min=dt_floor)
        with torch.no_grad():
            linear.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        return linear

    def _direction(self, x: Tensor, z: Tensor, suffix: str) -> Tensor:
        """Convolve and scan one direction: x, z (B, d_inner, L) -> (B, d_inner, L)."""
        conv = cast(nn.Conv1d, getattr(self, f"conv1d{suffix}"))
        x_proj = cast(nn.Linear, getattr(self, f"x_proj{suffix}"))
        dt_proj = cast(nn.Linear, getattr(self, f"dt_proj{suffix}"))
        x = F.silu(conv(x)[..., : x.shape[-1]])
        dt, b, c = x_proj(rearrange(x, "b d l -> b l d")).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y = selective_scan(
            x,
            rearrange(F.linear(dt, dt_proj.weight), "b l d -> b d l"),
            -torch.exp(getattr(self, f"A{suffix}_log").float()),
            rearrange(b, "b l n -> b n l"),
            rearrange(c, "b l n -> b n l"),
            D=getattr(self, f"D{suffix}").float(),
            z=z,
            delta_bias=dt_proj.bias.float(),
            delta_softplus=True,
        )
        return cast(Tensor, y)  # a pair only with return_last_state

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens (B, L, d_model) along L; same shape out."""
        x, z = rearrange(self.in_proj(tokens), "b l (two d) -> two b d l", two=2)
        y = self._direction(x, z, "")
        if self.bidirectional:
            y = y + self._direction(x.flip(-1), z.flip(-1), "_b").flip(-1)
        return self.out_proj(rearrange(y, "b d l -> b l d"))


class MambaLayer(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)) with a GELU.

    Args:
        d_model: token width.
        d_state: states per channel.
        mlp_ratio: hidden width of the MLP over d_model.
        bidirectional: see ``MambaMixer``.
    """

    def __init__(self, d_model: int, d_state: int = 16, mlp_ratio: int = 2, bidirectional: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model, eps=1e-6)
        self.mixer = MambaMixer(d_model, d_state=d_state, bidirectional=bidirectional)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, mlp_ratio * d_model), nn.GELU(), nn.Linear(mlp_ratio * d_model, d_model)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform tokens (B, L, d_model); same shape out."""
        tokens = tokens + self.mixer(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))
