"""TOKI: fill the hidden tokens between visible ones with a small state-space model (MambaMIM section 3.4, Eq. 6-8).

Glossary
    y_i      visible token i in scan order, (C,)
    Q        number of hidden tokens between y_i and y_{i+1}
    s_n      linear interpolation between the two, n = 0 .. Q + 1; s_0 = y_i
    h_j, z_j state and fill of the j-th hidden token of the gap, j = 1 .. Q
    Abar     `a_bar`, discretised state matrix: diagonal (C,) or full (C, C)
    Bbar     `b_bar`, discretised input matrix, same form

Equations
    s_n = ((Q + 2 - n) y_i + n y_{i+1}) / (Q + 2)
    h_0 = Bbar s_0,  h_j = Abar h_{j-1} + Bbar s_j,  z_j = h_j,  that is  z_j = sum_{n=0}^{j} Abar^{j-n} Bbar s_n

Left open by the paper: a hidden run before the first or after the last visible token takes that token as both ends.

Deliberate deviations from the public code: powers of Abar are j - n (there: gap - 1 - n); s reaches y_{i+1} one step
after the last hidden token (there: on it); hidden first and last positions are filled (there: taken as visible); the
result stays (tokens, channels) (there: reshaped to (channels, grid) without a transpose); no loop over samples, gaps
or tokens.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from mambamim_nets.ops.dispatch import opaque, recording, triton_works
from mambamim_nets.ops.interpolation.native import on_cpu
from mambamim_nets.ops.interpolation.plain import naive

__all__ = ["naive", "toki"]


def toki(y: Tensor, visible: Tensor, a_bar: Tensor, b_bar: Tensor) -> Tensor:
    """Put visible tokens at their positions and fill every hidden position by state-space interpolation.

    Diagonal matrices go to compiled loops on the CPU (`native`) and to one Triton kernel on CUDA (`fused`), which does
    not wait for the device. What is recorded (tracing, export), and CUDA without Triton, uses a closed form: with
    d = (y_{i+1} - y_i) / (Q + 2),

        z_j = Bbar (G_j y_i + P_j d),  G_j = sum_{m=0}^{j} Abar^m,  P_j = sum_{n=0}^{j} n Abar^{j-n} = sum_{k<j} G_k,

    two tables of (longest gap + 1, C) that are exact at Abar = 0 and Abar = 1. Full matrices use a segmented doubling
    scan of log2(longest gap) steps: x_t += Abar^(2^k) x_{t-2^k} wherever t - 2^k lies in the same gap. The last two
    read the longest gap from the device.

    Args:
        y: visible tokens in scan order, (B, K, C), K >= 1, any floating dtype.
        visible: True = visible (kept), (B, T) bool, exactly K True in every row.
        a_bar: discretised state matrix, (C,) diagonal or (C, C) acting on columns (row form: s @ a_bar.T).
        b_bar: discretised input matrix, same form as a_bar.

    Returns:
        All tokens in scan order, (B, T, C), dtype of y; visible positions hold y unchanged. Computed in float32, or
        float64 if y is.

    Raises:
        ValueError: if a shape or dtype is wrong, or a row of `visible` does not keep K tokens. On CUDA, where reading
            the counts would wait for the device, the device asserts them and the next synchronisation reports it.
    """
    _check(y, visible, a_bar, b_bar)
    dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
    a, b = a_bar.to(dtype), b_bar.to(dtype)
    if a.ndim == 1 and not recording():
        if y.device.type == "cpu":
            return opaque(on_cpu, y.to(dtype), visible, a, b).to(y.dtype)
        if y.is_cuda and triton_works():
            return opaque(_fused, y, visible, a, b)
    channels, total, kept = y.shape[2], visible.shape[1], y.shape[1]

    position = torch.arange(total, device=y.device)
    previous = torch.where(visible, position, -1).cummax(1).values  # last visible position up to t; -1 in a leading run
    following = torch.where(visible, position, total).flip(1).cummin(1).values.flip(1)
    step = position - previous  # j of Eq. 7; 0 at visible positions
    rank = visible.cumsum(1)  # visible tokens up to and including t
    left = _take(y, (rank - 1).clamp(min=0))
    right = _take(y, rank.clamp(max=kept - 1))
    gap = rearrange(following - previous - 1, "b t -> b t 1")
    longest = int(step.max())
    if longest == 0:
        return left

    with torch.autocast(y.device.type, enabled=False):
        start, slope = left.to(dtype), (right.to(dtype) - left.to(dtype)) / (gap + 2)
        if a.ndim == 1:
            fill = _fill_diagonal(start, slope, step, longest, a, b)
        else:
            s = start + rearrange(step, "b t -> b t 1") * slope
            # A leading run starts from a virtual visible token in front of position 0.
            s = F.pad(s, (0, 0, 1, 0)) + F.pad(start[:, :1], (0, 0, 0, total))
            fill = _fill_full(s, F.pad(step, (1, 0)), longest, a, b)[:, 1:]
    keep = repeat(visible, "b t -> b t c", c=channels)
    return torch.where(keep, left, fill.to(y.dtype))


def _fused(y: Tensor, visible: Tensor, a: Tensor, b: Tensor) -> Tensor:
    from mambamim_nets.ops.interpolation.fused import on_cuda

    return on_cuda(y, visible, a, b)


def _take(y: Tensor, index: Tensor) -> Tensor:
    return y.gather(1, repeat(index, "b t -> b t c", c=y.shape[2]))


def _fill_diagonal(start: Tensor, slope: Tensor, step: Tensor, longest: int, a: Tensor, b: Tensor) -> Tensor:
    """Evaluate z_j = Bbar (G_j y_i + P_j d) by looking j = step up in the tables G and P, each (longest + 1, C)."""
    exponent = torch.arange(longest + 1, device=a.device, dtype=a.dtype)
    geometric = a.pow(rearrange(exponent, "j -> j 1")).cumsum(0)
    ramp = F.pad(geometric.cumsum(0)[:-1], (0, 0, 1, 0))
    return b * (F.embedding(step, geometric) * start + F.embedding(step, ramp) * slope)


def _fill_full(s: Tensor, step: Tensor, longest: int, a: Tensor, b: Tensor) -> Tensor:
    """Scan x_t = Abar x_{t-1} + Bbar s_t inside every segment, restarting where step is 0."""
    x, power, shift = s @ b.T, a, 1
    while shift <= longest:
        inside = rearrange(step[:, shift:] >= shift, "b t -> b t 1")
        carried = torch.where(inside, x[:, :-shift] @ power.T, 0)
        x = x + F.pad(carried, (0, 0, shift, 0))
        shift *= 2
        if shift <= longest:
            power = power @ power
    return x


def _check(y: Tensor, visible: Tensor, a_bar: Tensor, b_bar: Tensor) -> None:
    if y.ndim != 3 or not y.is_floating_point() or 0 in y.shape:
        raise ValueError(
            f"y {tuple(y.shape)} {y.dtype} must be a non-empty floating (B, K, C) tensor with K >= 1; "
            "pass the visible tokens only"
        )
    if visible.dtype != torch.bool or visible.ndim != 2 or visible.shape[0] != y.shape[0]:
        raise ValueError(
            f"visible {tuple(visible.shape)} {visible.dtype} must be a bool (B, T) tensor with B = {y.shape[0]}; "
            "flatten the grid in scan order and pass True = visible"
        )
    channels = y.shape[2]
    for name, matrix in (("a_bar", a_bar), ("b_bar", b_bar)):
        if matrix.shape not in ((channels,), (channels, channels)) or not matrix.is_floating_point():
            raise ValueError(
                f"{name} {tuple(matrix.shape)} {matrix.dtype} must be floating, "
                f"({channels},) or ({channels}, {channels}), for y with {channels} channels; "
                "discretise A' and B' for that width"
            )
    if a_bar.ndim != b_bar.ndim:
        raise ValueError(
            f"a_bar {tuple(a_bar.shape)} and b_bar {tuple(b_bar.shape)} must both be diagonal or both be full; "
            "use torch.diag on one"
        )
    counts = visible.sum(1)
    if visible.is_cuda:
        torch._assert_async((counts == y.shape[1]).all(), f"visible must keep K = {y.shape[1]} tokens in every row")
    elif bool((counts != y.shape[1]).any()):
        raise ValueError(
            f"visible keeps {counts.tolist()} tokens per row and must keep exactly K = {y.shape[1]}, the length of y; "
            "draw the mask with masking.random_visible, which keeps the same number in every sample"
        )
