"""Instance normalisation of channels-last bfloat16 maps whose gradient is computed in rows of channels on the CPU.

PyTorch's backward kernel takes a group of one channel one value at a time where channels lie last. That is slow in
bfloat16, and in float32 no slower than what follows. With
x^ = (x - mean) / s, s^2 = var + eps, and means over the voxels of a sample's channel,

    dx = (dy - mean(dy) - x^ mean(dy x^)) / s
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["instance_norm"]

VOXELS = (2, 3, 4)


def instance_norm(x: Tensor, eps: float) -> Tensor:
    """Normalise every channel of every sample over its voxels; the order of the result in memory is that of x.

    Args:
        x: (B, C, D, H, W).
        eps: added to the variance.

    Returns:
        The shape of x, as `F.group_norm` with one channel per group and no parameters.
    """
    ours = x.device.type == "cpu" and torch.is_grad_enabled() and not torch.jit.is_tracing()
    fitting = x.dtype == torch.bfloat16 and x.is_contiguous(memory_format=torch.channels_last_3d)
    if ours and fitting:
        return _InstanceNorm.apply(x, eps)
    return F.group_norm(x, x.shape[1], eps=eps)


class _InstanceNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        voxels = x.shape[2] * x.shape[3] * x.shape[4]
        y, mean, rstd = torch.native_group_norm(x, None, None, x.shape[0], x.shape[1], voxels, x.shape[1], eps)
        ctx.save_for_backward(x, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        x, mean, rstd = ctx.saved_tensors
        mean, rstd = (value.float()[..., None, None, None] for value in (mean, rstd))
        dx, centred = dy.float(), x.float() - mean
        along = (dx * centred).mean(VOXELS, keepdim=True) * rstd**2
        dx = torch.addcmul(dx - dx.mean(VOXELS, keepdim=True), centred, along, value=-1).mul_(rstd)
        return dx.to(x.dtype), None
