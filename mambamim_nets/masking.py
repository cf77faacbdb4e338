"""Which blocks of a volume are kept: drawing, expanding and checking the visibility mask.

MambaMIM section 3.2: the mask M_n is drawn on the coarsest grid (stride 16) and expanded to every finer stage, so that
CNN and Mamba hide the same anatomy ("bottom-up").

Glossary
    visible  bool, True = kept. Never "mask", so that its polarity cannot be confused.
    grid     (d, h, w), the token grid: spatial shape / 16
    K        visible tokens of one sample, round((1 - mask_ratio) * d * h * w)

Deviation from the public code: K is exact for every sample; there it is summed over the batch, so that from batch 4 on
nothing is hidden from Mamba at mask ratio 0.75.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["STRIDE", "check_visible", "expand_visible", "place_tokens", "random_visible", "token_grid"]

STRIDE = 16
"""Voxels per token and axis: the total stride of the encoder and the side of a masked block."""


def token_grid(spatial_shape: Sequence[int], name: str = "input") -> tuple[int, int, int]:
    """Return the token grid (d, h, w) of a spatial shape.

    Args:
        spatial_shape: three lengths in voxels.
        name: what the shape belongs to, for the message.

    Raises:
        ValueError: if there are not three axes, or one is no positive multiple of 16.
    """
    shape = tuple(int(n) for n in spatial_shape)
    if len(shape) != 3:
        raise ValueError(f"{name} has {len(shape)} spatial axes {shape}; it must have 3: (D, H, W)")
    if any(n < STRIDE or n % STRIDE for n in shape):
        suggestion = tuple(max(1, math.ceil(n / STRIDE)) * STRIDE for n in shape)
        raise ValueError(f"{name} spatial shape {shape} must be divisible by {STRIDE} on every axis; try {suggestion}")
    return shape[0] // STRIDE, shape[1] // STRIDE, shape[2] // STRIDE


def random_visible(
    batch: int,
    grid: Sequence[int],
    mask_ratio: float,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    avoid: Tensor | None = None,
) -> Tensor:
    """Draw which blocks of every sample are kept, uniformly and independently per sample.

    Args:
        batch: number of samples B.
        grid: token grid (d, h, w).
        mask_ratio: share of hidden blocks, in [0, 1).
        generator: source of randomness; the default generator of `device` if None.
        device: where to draw; the generator's device, else CPU.
        avoid: (B, 1, d, h, w) bool, blocks that are kept only where there are too few others; None: none.

    Returns:
        (B, 1, d, h, w) bool, exactly round((1 - mask_ratio) * d * h * w) True per sample.

    Raises:
        ValueError: if mask_ratio is outside [0, 1) or so high that no block stays visible.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio {mask_ratio} must lie in [0, 1); the paper uses 0.75")
    d, h, w = grid
    tokens = d * h * w
    keep = round((1 - mask_ratio) * tokens)
    if keep < 1:
        raise ValueError(
            f"mask_ratio {mask_ratio} hides all {tokens} blocks of grid {tuple(grid)}; lower it or enlarge the crop"
        )
    if device is None and generator is not None:
        device = generator.device
    noise = torch.rand(batch, tokens, generator=generator, device=device)
    if avoid is not None:
        noise = noise - avoid.view(batch, tokens).to(noise)
    visible = torch.zeros(batch, tokens, dtype=torch.bool, device=noise.device)
    visible.scatter_(1, noise.topk(keep, dim=1).indices, True)
    return visible.view(batch, 1, d, h, w)


def expand_visible(visible: Tensor, factor: int) -> Tensor:
    """Repeat every entry `factor` times along d, h and w: (B, 1, d, h, w) -> (B, 1, factor d, factor h, factor w)."""
    for axis in (2, 3, 4):
        visible = visible.repeat_interleave(factor, dim=axis)
    return visible


def place_tokens(tokens: Tensor, visible: Tensor, fill: Tensor) -> Tensor:
    """Put visible tokens (B, K, C) in their places and `fill` (C,) everywhere else.

    Args:
        tokens: (B, K, C).
        visible: (B, T) bool, K True per row, in the order of the tokens.
        fill: (C,), or anything that broadcasts to (B, T, C).

    Returns:
        (B, T, C) in the type of the tokens.
    """
    filled = fill.to(tokens.dtype).expand(*visible.shape, tokens.shape[-1])
    return filled.index_put((visible,), rearrange(tokens, "b k c -> (b k) c"))


def check_visible(visible: Tensor, batch: int, grid: Sequence[int]) -> int:
    """Check a visibility mask against a batch and return K, its visible tokens per sample.

    Args:
        visible: (B, 1, d, h, w) bool.
        batch: expected B.
        grid: expected (d, h, w).

    Raises:
        ValueError: on another dtype or shape, or if samples keep different numbers of blocks, or none.
    """
    expected = (batch, 1, *grid)
    if visible.dtype != torch.bool or tuple(visible.shape) != expected:
        raise ValueError(f"visible is {visible.dtype} {tuple(visible.shape)}; it must be bool {expected}, True = kept")
    kept = visible.flatten(1).sum(1)
    counts = sorted(set(kept.tolist()))
    if len(counts) != 1 or counts[0] < 1:
        raise ValueError(
            f"visible keeps {kept.tolist()} blocks per sample; all samples must keep the same number, at least 1"
        )
    return counts[0]
