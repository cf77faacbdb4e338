"""Mamba on tokens: the selective state-space mixer, the pre-norm layer around it, and a mixer of several grid scans.

Parameter names and initialisation are those of `mamba_ssm.Mamba` (Gu and Dao 2023), those of the backward direction
of Vision Mamba (Zhu et al. 2024), so that weights move between us and everything built on them.

Glossary
    d_model     token width C
    d_inner     expand * d_model
    d_state     N, states per channel
    d_conv      width of the causal convolution
    dt_rank     rank of the projection that makes Delta, ceil(d_model / 16)

Deviations from the public MambaMIM code
    directions      bidirectional by default, as the paper says; there a mode string falls through and the backward
                    weights are never used.
    initialisation  dt_proj keeps that of mamba_ssm, by which Delta starts log-uniform in [0.001, 0.1], median 0.01.
                    There a later pass over all linear layers (Xavier weights, zero biases, as for a ViT) wipes it:
                    Delta starts at softplus(0) = 0.69, and states forget within two tokens.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mambamim_nets.ops.causal import causal_conv
from mambamim_nets.ops.recurrence import selective_scan

__all__ = ["FORMER_NORM_EPS", "NORM_EPS", "GridMixer", "MambaLayer", "MambaMixer", "TokenNorm"]

NORM_EPS = 1e-5  # of the public code, PyTorch's default
FORMER_NORM_EPS = 1e-6  # of weights that do not say theirs: they were trained with it

_GRID_SCANS = (("d h w", ""), ("h w d", "_hwd"), ("w d h", "_wdh"))  # last axis fastest; suffix of its parameters


class MambaMixer(nn.Module):
    """Selective state-space mixer, in one or both directions (outputs summed, in- and out-projection shared).

    Args:
        d_model: token width.
        d_state: states per channel.
        d_conv: width of the causal convolution.
        expand: d_inner / d_model.
        bidirectional: also scan the reversed sequence, with its own convolution and state-space parameters (suffix
            `_b`).
    """

    __constants__ = ["bidirectional"]  # noqa: RUF012  # scripting drops the branch that is not taken

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, bidirectional: bool = True
    ) -> None:
        super().__init__()
        self.d_inner, self.d_state = expand * d_model, d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.bidirectional = bidirectional
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D = self._direction(d_conv)
        if bidirectional:
            self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b = self._direction(d_conv)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def _direction(self, d_conv: int) -> tuple[nn.Conv1d, nn.Linear, nn.Linear, nn.Parameter, nn.Parameter]:
        """Make what each direction has of its own: convolution, projections, A_log and D."""
        conv = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * self.d_state, bias=False)
        a = torch.arange(1, self.d_state + 1, dtype=torch.float32).repeat(self.d_inner, 1)
        return conv, x_proj, self._dt_projection(), nn.Parameter(a.log()), nn.Parameter(torch.ones(self.d_inner))

    def _dt_projection(self, dt_min: float = 1e-3, dt_max: float = 0.1, dt_floor: float = 1e-4) -> nn.Linear:
        """Initialise so that softplus(bias) is log-uniform in [dt_min, dt_max], as mamba_ssm does."""
        linear = nn.Linear(self.dt_rank, self.d_inner)
        nn.init.uniform_(linear.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.exp(torch.rand(self.d_inner) * math.log(dt_max / dt_min) + math.log(dt_min)).clamp(min=dt_floor)
        with torch.no_grad():
            linear.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        return linear

    def _direct(
        self,
        x: Tensor,
        conv: Tensor,
        conv_bias: Tensor | None,
        x_proj: Tensor,
        dt_proj: Tensor,
        dt_bias: Tensor,
        A_log: Tensor,
        D: Tensor,
    ) -> Tensor:
        """Convolve and scan one direction, x (B, L, d_inner) -> (B, L, d_inner), with that direction's parameters.

        Sequences stay (B, L, d_inner) in memory; what the operators see as (B, d_inner, L) is a view.
        """
        u = causal_conv(x.transpose(1, 2), conv.squeeze(1), conv_bias, activation="silu")
        projected = F.linear(u.transpose(1, 2), x_proj)
        dt, b, c = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y = selective_scan(
            u,
            F.linear(dt, dt_proj).transpose(1, 2),
            -torch.exp(A_log.float()),
            b.transpose(1, 2),
            c.transpose(1, 2),
            D=D.float(),
            delta_bias=dt_bias.float(),
            delta_softplus=True,
        )
        assert isinstance(y, Tensor)  # a pair only with return_last_state
        return y.transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens (B, L, d_model) along L; same shape out."""
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        y = self._direct(
            x,
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            self.A_log,
            self.D,
        )
        if self.bidirectional:
            back = self._direct(
                x.flip(1),
                self.conv1d_b.weight,
                self.conv1d_b.bias,
                self.x_proj_b.weight,
                self.dt_proj_b.weight,
                self.dt_proj_b.bias,
                self.A_b_log,
                self.D_b,
            )
            y = y + back.flip(1)
        return self.out_proj(y * F.silu(z))  # one gate for both directions


class GridMixer(MambaMixer):
    """Mixer that scans the tokens of a grid in several orders: outputs summed, projections and gate shared.

    Args:
        d_model: token width.
        scans: 1: raster (d, h, w), the last axis fastest; 2: raster and its full reverse; 6: raster over (d, h, w),
            (h, w, d) and (w, d, h), each with its reverse.
        share_directions: one convolution and state space for all scans. Otherwise each has its own, named as in
            `MambaMixer` with suffixes "", "_b", "_hwd", "_hwd_b", "_wdh" and "_wdh_b".
        d_state: states per channel.
        d_conv: width of the causal convolution.
        expand: d_inner / d_model.

    Raises:
        ValueError: on another number of scans.
    """

    def __init__(
        self,
        d_model: int,
        scans: Literal[1, 2, 6] = 2,
        share_directions: bool = False,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
    ) -> None:
        if scans not in (1, 2, 6):
            raise ValueError(f"scans {scans!r} must be 1, 2 or 6; 2 (forward and backward) is the published choice")
        super().__init__(d_model, d_state, d_conv, expand, bidirectional=scans > 1 and not share_directions)
        self.scans, self.share_directions = scans, share_directions
        if scans == 6 and not share_directions:
            for suffix in (f"{order}{back}" for _, order in _GRID_SCANS[1:] for back in ("", "_b")):
                conv, x_proj, dt_proj, a_log, d = self._direction(d_conv)
                for name, module in (("conv1d", conv), ("x_proj", x_proj), ("dt_proj", dt_proj)):
                    self.add_module(f"{name}{suffix}", module)
                self.register_parameter(f"A{suffix}_log", a_log)
                self.register_parameter(f"D{suffix}", d)

    def _scan(self, x: Tensor, suffix: str) -> Tensor:
        """Scan (B, L, d_inner) with the parameters of a suffix, or the shared ones."""
        suffix = "" if self.share_directions else suffix
        conv, x_proj, dt_proj = (getattr(self, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj"))
        a_log, d = getattr(self, f"A{suffix}_log"), getattr(self, f"D{suffix}")
        return self._direct(x, conv.weight, conv.bias, x_proj.weight, dt_proj.weight, dt_proj.bias, a_log, d)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:  # type: ignore[override]
        """Mix tokens (B, d h w, d_model), in raster order of the grid [d, h, w]; same shape out."""
        sizes = dict(zip("dhw", grid, strict=True))
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        outputs = []
        for axes, suffix in _GRID_SCANS[: 3 if self.scans == 6 else 1]:
            sequence = x if suffix == "" else rearrange(x, f"b (d h w) c -> b ({axes}) c", **sizes)
            y = self._scan(sequence, suffix)
            if self.scans > 1:
                y = y + self._scan(sequence.flip(1), f"{suffix}_b").flip(1)
            outputs.append(rearrange(y, f"b ({axes}) c -> b (d h w) c", **sizes))
        return self.out_proj(sum(outputs[1:], outputs[0]) * F.silu(z))


class TokenNorm(nn.LayerNorm):
    """Layer norm of tokens (B, L, C) whose eps belongs to its weights and travels with them.

    A state dict holds it in its `_metadata`, where PyTorch keeps versions of modules, and loading takes it over. One
    with metadata that do not say it is of a time when it was 1e-6, and gets that; one without any leaves it alone.
    """

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["eps"] = self.eps

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        eps = local_metadata.get("eps", FORMER_NORM_EPS) if "version" in local_metadata else self.eps
        if isinstance(eps, float) and 0 < eps < 1:
            self.eps = eps
        else:
            error_msgs.append(f"{prefix}eps is {eps!r} and must lie in (0, 1); the file is damaged")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class MambaLayer(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)) with a GELU.

    Args:
        d_model: token width.
        d_state: states per channel.
        mlp_ratio: hidden width of the MLP over d_model.
        bidirectional: see `MambaMixer`.
        norm_eps: of both norms; weights that are loaded bring their own, see `TokenNorm`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        mlp_ratio: int = 2,
        bidirectional: bool = True,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        self.norm1 = TokenNorm(d_model, eps=norm_eps)
        self.mixer = MambaMixer(d_model, d_state=d_state, bidirectional=bidirectional)
        self.norm2 = TokenNorm(d_model, eps=norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, mlp_ratio * d_model), nn.GELU(), nn.Linear(mlp_ratio * d_model, d_model)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform tokens (B, L, d_model); same shape out."""
        tokens = tokens + self.mixer(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))
