"""Targets and losses of masked image modelling (MambaMIM section 3.3).

A patch is standardised as in MAE, SparK and MambaMIM's public code, where the paper only says mean squared error: by
one mean and one unbiased variance over the voxels of all its channels, which keeps the contrast between them.

Glossary
    patch    16^3 voxels of all channels, a masked block
    visible  (B, 1, d, h, w) bool, True = kept
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from mambamim_nets.masking import STRIDE, expand_visible

__all__ = ["masked_l1", "masked_mse", "patch_norm", "patch_statistics", "reconstruction_target"]


def _patches(x: Tensor) -> Tensor:
    return rearrange(x, "b c (d i) (h j) (w k) -> b d h w (c i j k)", i=STRIDE, j=STRIDE, k=STRIDE)


def patch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, sqrt(variance + 1e-6), of every patch of (B, C, D, H, W), as (B, 1, D, H, W)."""
    patches = _patches(x.float())
    mean = patches.mean(-1).unsqueeze(1)
    std = (patches.var(-1) + 1e-6).sqrt().unsqueeze(1)
    return expand_visible(mean, STRIDE), expand_visible(std, STRIDE)


def patch_norm(x: Tensor) -> Tensor:
    """Standardise every patch of (B, C, D, H, W) by its own mean and deviation; float32."""
    mean, std = patch_statistics(x)
    return (x.float() - mean) / std


def reconstruction_target(x: Tensor, target: Literal["patch_norm", "raw"]) -> Tensor:
    """Return what the decoder has to predict for an image (B, C, D, H, W): its standardised patches, or itself."""
    return patch_norm(x) if target == "patch_norm" else x.float()


def masked_mse(prediction: Tensor, target: Tensor, visible: Tensor) -> Tensor:
    """Mean squared error over hidden voxels only, in float32.

    Args:
        prediction: (B, C, D, H, W).
        target: (B, C, D, H, W).
        visible: (B, 1, d, h, w) bool.

    Returns:
        Scalar; zero if nothing is hidden.
    """
    return _over_hidden((prediction.float() - target.float()).square(), visible)


def masked_l1(prediction: Tensor, target: Tensor, visible: Tensor) -> Tensor:
    """Mean absolute error over hidden voxels only; arguments and result as of `masked_mse`."""
    return _over_hidden((prediction.float() - target.float()).abs(), visible)


def _over_hidden(error: Tensor, visible: Tensor) -> Tensor:
    error = _patches(error).mean(-1)
    hidden = (~visible[:, 0]).to(error.dtype)
    return (error * hidden).sum() / hidden.sum().clamp(min=torch.ones((), device=error.device))
