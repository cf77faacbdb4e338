"""What the fast paths are measured against, each written from its definition in plain PyTorch.

    dense-masked     every convolution runs on the whole volume, then times the up-sampled mask (Algorithm 1 taken
                     literally, MambaMIM section 3.2), with the weights of a given network
    looped TOKI      per sample and per gap, z_j = sum_n Abar^(j-n) Bbar s_n with powers of Abar (Eq. 6-8)
    reference scan   exp(Delta A) and Delta B u as (B, D, L, N), then a Python loop over L (mamba_ssm's definition)
    parallel scan    the same two tensors, then a scan of log depth over them (Blelloch 1990), backward likewise
    plain norm       instance norm as a group norm of one channel per group, with PyTorch's gradient

The dense-masked baselines read nothing of a network but its parameters, so they do not change when its code does. They
are given every advantage that does not change the method: channels-last memory, the fewest multiplications by the mask
that keep hidden voxels at zero, and the package's own selective scan and token interpolation.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mambamim_nets import HyMamba, MambaMIM
from mambamim_nets.layers.norm import ChannelsLastInstanceNorm
from mambamim_nets.layers.position import sincos_position
from mambamim_nets.masking import expand_visible, token_grid
from mambamim_nets.ops import scan_order, toki

SKIP_STRIDES = (2, 4, 8)


def convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """Convolve a dense map (B, C, D, H, W) with zero padding; groups follow from the shapes."""
    side = layer.weight.shape[-1]
    return F.conv3d(x, layer.weight, layer.bias, padding=side // 2, groups=x.shape[1] // layer.weight.shape[1])


def normalise(layer: nn.Module, x: Tensor) -> Tensor:
    """Normalise every voxel over its channels."""
    y = F.layer_norm(x.movedim(1, -1), (x.shape[1],), layer.weight, layer.bias, 1e-6)
    return y.movedim(-1, 1)


def times(x: Tensor, mask: Tensor) -> Tensor:
    return x * mask.to(x.dtype)


def masked_mednext(block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    y = normalise(block.norm, convolve(block.depthwise, x))
    return x + times(convolve(block.compress, F.gelu(convolve(block.expand, y))), mask)


def masked_residual(block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    y = times(F.leaky_relu(normalise(block.norm1, convolve(block.conv1, x)), 0.01), mask)
    y = normalise(block.norm2, convolve(block.conv2, y))
    return times(F.leaky_relu(x + y, 0.01), mask)


def dense_masked_cnn(
    encoder: HyMamba, x: Tensor, visible: Tensor, strides: Sequence[int] = SKIP_STRIDES
) -> tuple[dict[int, Tensor], Tensor]:
    """Run the CNN stage on the whole volume and multiply by the mask.

    Args:
        encoder: whose weights to use.
        x: (B, C_in, D, H, W).
        visible: (B, 1, d, h, w) bool.
        strides: where skip maps are computed.

    Returns:
        Skip maps by stride, and the map at stride 16; zero where hidden.
    """
    masks = {stride: expand_visible(visible, 16 // stride).to(x.dtype) for stride in (1, 2, 4, 8, 16)}
    skips: dict[int, Tensor] = {}
    x = times(x, masks[1]).contiguous(memory_format=torch.channels_last_3d)
    x = times(convolve(encoder.stem, x), masks[1])
    for level, (widen, skip, blocks) in enumerate(zip(encoder.widen, encoder.skips, encoder.stages, strict=True)):
        stride = 1 << level
        x = times(convolve(widen, x), masks[stride])
        if stride in strides:
            skips[stride] = masked_residual(skip, x, masks[stride])
        x = F.max_pool3d(x, kernel_size=2)
        for block in blocks:
            x = masked_mednext(block, x, masks[2 * stride])
    return skips, x


def decode(model: MambaMIM, tokens: Tensor, skips: dict[int, Tensor], visible: Tensor) -> Tensor:
    """Run the decoder of Algorithm 2: tokens (B, T, C) in raster order -> reconstruction (B, C_in, D, H, W)."""

    def refine(block: nn.Module, y: Tensor) -> Tensor:
        y = F.leaky_relu(normalise(block.norm1, convolve(block.conv1, y)), 0.01)
        return F.leaky_relu(normalise(block.norm2, convolve(block.conv2, y)), 0.01)

    d, h, w = visible.shape[2:]
    y = rearrange(tokens, "b (d h w) c -> b c d h w", d=d, h=h, w=w)
    y = convolve(model.bottleneck, y.contiguous(memory_format=torch.channels_last_3d))
    for stride, stage in zip((8, 4, 2), model.decoder, strict=True):
        y = refine(stage.refine, F.conv_transpose3d(y, stage.up.weight, stage.up.bias, stride=2))
        kept = expand_visible(visible, 16 // stride)
        filled = torch.where(kept, skips[stride], stage.token.to(skips[stride].dtype))
        y = refine(stage.fuse, torch.cat([convolve(stage.project, filled), y], dim=1))
    return rearrange(convolve(model.predict, y), "b (c i j k) d h w -> b c (d i) (h j) (w k)", i=2, j=2, k=2)


def dense_masked_mim(
    model: MambaMIM,
    x: Tensor,
    visible: Tensor,
    unread_skip: bool = True,
    fill: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = toki,
) -> tuple[Tensor, Tensor]:
    """Compute the pre-training loss with a dense-masked encoder.

    Args:
        model: whose weights to use; TOKI, bottom-up masking, skip maps and the patch_norm target.
        x: (B, C_in, D, H, W).
        visible: (B, 1, d, h, w) bool.
        unread_skip: also compute the skip map at stride 1, which no loss reads, as the public code does.
        fill: token interpolation, with the signature of ``ops.toki``.

    Returns:
        The loss, and the reconstruction (B, C_in, D, H, W).
    """
    encoder, grid = model.encoder, token_grid(x.shape[2:])
    skips, deepest = dense_masked_cnn(encoder, x, visible, (1, *SKIP_STRIDES) if unread_skip else SKIP_STRIDES)
    order, inverse = (index.to(x.device) for index in scan_order(grid, encoder.scan, encoder.scan_seed))
    position = sincos_position(list(grid), deepest.shape[1], x.device)
    tokens = (rearrange(deepest, "b c d h w -> b (d h w) c") + position.to(deepest.dtype))[:, order]
    kept = visible.flatten(1)[:, order]
    y = rearrange(tokens[kept], "(b k) c -> b k c", b=len(x))
    for layer in encoder.mamba:
        y = layer(y)
    filled = fill(y, kept, *model.toki.discretise())[:, inverse]
    reconstruction = decode(model, filled, skips, visible)

    split = {"i": 16, "j": 16, "k": 16}
    patches = rearrange(x.float(), "b c (d i) (h j) (w k) -> b c d h w (i j k)", **split)
    target = (patches - patches.mean((1, -1), keepdim=True)) / (patches.var((1, -1), keepdim=True) + 1e-6).sqrt()
    error = rearrange(reconstruction.float(), "b c (d i) (h j) (w k) -> b c d h w (i j k)", **split) - target
    hidden = ~visible.expand_as(error[..., 0])
    return error.square().mean(-1)[hidden].mean(), reconstruction


def looped_toki(y: Tensor, visible: Tensor, a_bar: Tensor, b_bar: Tensor) -> Tensor:
    """Fill gaps one by one: z_j = sum_n Abar^(j-n) Bbar s_n; arguments and result as in ``ops.toki``."""
    full = a_bar.ndim == 2

    def power(k: int) -> Tensor:
        return torch.linalg.matrix_power(a_bar, k) if full else a_bar**k

    def act(matrix: Tensor, token: Tensor) -> Tensor:
        return matrix @ token if full else matrix * token

    samples = []
    for tokens, mask in zip(y, visible, strict=True):
        kept = mask.nonzero().flatten().tolist()
        filled: list[Tensor] = []
        for i, (start, stop) in enumerate(itertools.pairwise([-1, *kept, mask.numel()])):
            left, right, gap = tokens[max(i - 1, 0)], tokens[min(i, len(kept) - 1)], stop - start - 1
            if gap:
                powers = [power(k) for k in range(gap + 1)]
                inflow = [act(b_bar, ((gap + 2 - n) * left + n * right) / (gap + 2)) for n in range(gap + 1)]
                filled += [sum(act(powers[j - n], inflow[n]) for n in range(j + 1)) for j in range(1, gap + 1)]
            if i < len(kept):
                filled.append(tokens[i])
        samples.append(torch.stack(filled))
    return torch.stack(samples)


def reference_recurrence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, unbind: bool = False) -> Tensor:
    """Loop over the sequence; u, delta (b, d, l), A (d, n), B and C (b, n, l) -> (b, d, l).

    Args:
        unbind: cut the two (b, d, l, n) tensors into steps at once. Without it every step indexes them, as mamba_ssm's
            selective_scan_ref does, and every step's backward pass writes a whole tensor of zeros.
    """
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inflow = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    steps = zip(decay.unbind(2), inflow.unbind(2), C.unbind(2), strict=True) if unbind else None
    h = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    y = []
    for t in range(u.shape[2]):
        decay_t, inflow_t, C_t = next(steps) if steps else (decay[:, :, t], inflow[:, :, t], C[:, :, t])
        h = decay_t * h + inflow_t
        y.append(torch.einsum("bdn,bn->bd", h, C_t))
    return torch.stack(y, dim=2)


def scan_in_place(a: Tensor, x: Tensor) -> None:
    """Overwrite x with h_t = a_t h_{t-1} + x_t along axis 1, in 2 log2(l) vectorised steps; a is used up."""
    length = x.shape[1]
    if length == 1:
        return
    pairs = length - length % 2
    x[:, 1::2].addcmul_(a[:, 1::2], x[:, 0:pairs:2])
    a[:, 1::2].mul_(a[:, 0:pairs:2])
    scan_in_place(a[:, 1::2], x[:, 1::2])
    if length > 2:
        x[:, 2::2].addcmul_(a[:, 2::2], x[:, 1 : length - 1 : 2])


class ParallelScan(torch.autograd.Function):
    """h_t = a_t h_{t-1} + x_t over axis 1 of (b, l, d, n); g_t = dh_t + a_{t+1} g_{t+1}, dx = g, da_t = g_t h_{t-1}."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, x: Tensor) -> Tensor:
        h = x.clone()
        scan_in_place(a.clone(), h)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        g = grad.flip(1)
        scan_in_place(F.pad(a[:, 1:].flip(1), (0, 0, 0, 0, 1, 0)), g)
        g = g.flip(1)
        da = torch.zeros_like(a)
        torch.mul(g[:, 1:], h[:, :-1], out=da[:, 1:])
        return da, g


def parallel_recurrence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Scan in log depth over (b, l, d, n); arguments and result as in ``reference_recurrence``."""
    u, delta, B, C = (tensor.transpose(1, 2) for tensor in (u, delta, B, C))
    decay = torch.exp(delta.unsqueeze(-1) * A)
    inflow = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
    h = ParallelScan.apply(decay, inflow)
    return (h @ C.unsqueeze(-1)).squeeze(-1).transpose(1, 2)


def scan(
    recurrence: Callable[..., Tensor],
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """Do what ``ops.selective_scan`` does with delta_softplus, by another recurrence; B and C (b, n, l)."""
    y = recurrence(u, F.softplus(delta + delta_bias[:, None]), A, B, C)
    return (y + u * D[:, None]) * F.silu(z)


class _PlainNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, x.shape[1])


def with_plain_norms(network: nn.Module) -> nn.Module:
    """Return a copy of a network, weights included, whose instance norms have PyTorch's gradient."""
    network = copy.deepcopy(network)
    found = [
        (parent, name)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, ChannelsLastInstanceNorm)
    ]
    assert found, "the network has no such norm"
    for parent, name in found:
        setattr(parent, name, _PlainNorm())
    return network
