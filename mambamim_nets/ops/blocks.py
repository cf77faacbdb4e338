"""Visible blocks: the sparse form of a feature map, in which hidden voxels do not exist.

Because the mask is constant on 16^3-voxel blocks, a masked feature map is a short list of dense blocks. Their batch
axis runs over the visible blocks of all samples, in raster order within a sample:

    feature map (B, C, D, H, W)   <->   blocks (N, C, b, b, b),   b = D / d,   N = visible.sum()

Pointwise layers and pooling work on blocks as they are. A 3^3 convolution first fetches what surrounds a block, a halo
of one voxel from its 26 neighbours (zeros where a neighbour is hidden or outside), which makes SparseOp(S, M) =
Operator(S) * M of Algorithm 1 exact, at the cost of the visible voxels alone. Blocks of side 1 or 2 are mostly halo:
there the 27 surroundings of every voxel become the rows of a matrix product.

Glossary
    visible     (B, 1, d, h, w) bool, True = kept
    fill        (1, C, 1, 1, 1), what hidden voxels become in a dense map
    neighbours  (N, 27) int64: for each block the number of the block at each offset of {-1, 0, 1}^3 in raster order;
                N stands for "hidden or outside". It is the same at every stage, since pooling never joins two blocks.
"""

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["halo", "neighbour_table", "pack", "surroundings", "unpack"]

_OFFSETS = tuple(product((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)))
_CENTRE = _OFFSETS.index((0, 0, 0))


def pack(x: Tensor, visible: Tensor) -> Tensor:
    """Cut the visible blocks out of a feature map.

    Args:
        x: (B, C, D, H, W), sides multiples of the grid's.
        visible: (B, 1, d, h, w) bool.

    Returns:
        (N, C, b, b, b), blocks of all samples, sample by sample in raster order; channels-last in memory.
    """
    side = x.shape[2] // visible.shape[2]
    inside, number = _voxels(visible, side)
    rows = _Gather.apply(rearrange(x, "b c d h w -> (b d h w) c"), inside, number[:, None])
    return rearrange(rows, "(n i j k) c -> n c i j k", i=side, j=side, k=side)


def unpack(blocks: Tensor, visible: Tensor, fill: Tensor | None = None) -> Tensor:
    """Put blocks back in place: the inverse of `pack`.

    Args:
        blocks: (N, C, b, b, b).
        visible: (B, 1, d, h, w) bool with N True.
        fill: (1, C, 1, 1, 1), the value of hidden voxels; zero if None.

    Returns:
        (B, C, d b, h b, w b), channels-last in memory.
    """
    side = blocks.shape[-1]
    inside, number = _voxels(visible, side)
    rows = _Gather.apply(rearrange(blocks, "n c i j k -> (n i j k) c"), number, inside[:, None])
    if fill is not None:
        hidden = (number == len(inside)).to(rows.dtype)
        rows = torch.addmm(rows, hidden[:, None], fill.to(rows.dtype).view(1, -1))
    batch, _, d, h, w = visible.shape
    return rearrange(rows, "(b d h w) c -> b c d h w", b=batch, d=d * side, h=h * side, w=w * side)


def _voxels(visible: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Number voxels both ways.

    Returns:
        The voxel of the dense map (raster order, sample by sample) under every voxel of the blocks, (N b^3,), and the
        voxel of the blocks at every voxel of the dense map, (B D H W,), N b^3 where hidden; int64.
    """
    batch, _, d, h = visible.shape[:4]
    position = torch.arange(visible.numel() * side**3, device=visible.device)
    position = rearrange(position, "(b d i h j w k) -> b d h w i j k", b=batch, d=d, h=h, i=side, j=side, k=side)
    inside = position[visible[:, 0]].flatten()
    number = torch.full((position.numel(),), inside.numel(), device=visible.device)
    number[inside] = torch.arange(inside.numel(), device=visible.device)
    return inside, number


class _Gather(torch.autograd.Function):
    """Rows (R, C) at the numbers of `table`, zero where one is R; the gradient is gathered too, not scattered.

    `back` (R, k) lists for every row where in `table` (flattened) it went, the length of `table` where nowhere.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return F.embedding(table, _with_zero(rows))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        found = F.embedding(back, _with_zero(grad.reshape(-1, grad.shape[-1])))
        return found.squeeze(1) if back.shape[1] == 1 else found.sum(1), None, None


def _with_zero(rows: Tensor) -> Tensor:
    """Append a row of zeros, for numbers that point nowhere."""
    return F.pad(rows, (0, 0, 0, 1))


def neighbour_table(visible: Tensor) -> Tensor:
    """Number the 27 neighbours (itself included) of every visible block; N where a neighbour is hidden or outside.

    Args:
        visible: (B, 1, d, h, w) bool.

    Returns:
        (N, 27) int64.
    """
    kept = visible[:, 0]
    count = int(kept.sum())
    number = torch.full(kept.shape, count, dtype=torch.int64, device=kept.device)
    number[kept] = torch.arange(count, device=kept.device)
    padded = F.pad(number, (1, 1, 1, 1, 1, 1), value=count)
    d, h, w = kept.shape[1:]
    shifted = [padded[:, 1 + i : 1 + i + d, 1 + j : 1 + j + h, 1 + k : 1 + k + w][kept] for i, j, k in _OFFSETS]
    return torch.stack(shifted, dim=1)


def halo(blocks: Tensor, neighbours: Tensor) -> Tensor:
    """Surround every block with one voxel of its neighbours.

    Args:
        blocks: (N, C, b, b, b).
        neighbours: (N, 27) from `neighbour_table`.

    Returns:
        (N, C, b + 2, b + 2, b + 2), zeros where the neighbour is hidden or outside. The gradient is gathered back along
        the mirrored offset, without a scatter.
    """
    return _Halo.apply(blocks, neighbours)


def _slices(offset: tuple[int, int, int], side: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where the voxels of a neighbour at `offset` lie in the halo, and where in that neighbour's own block."""
    place = {-1: slice(0, 1), 0: slice(1, side + 1), 1: slice(side + 1, side + 2)}
    origin = {-1: slice(side - 1, side), 0: slice(0, side), 1: slice(0, 1)}
    every = slice(None)
    return (every, every, *(place[o] for o in offset)), (every, every, *(origin[o] for o in offset))


class _Halo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blocks: Tensor, neighbours: Tensor) -> Tensor:
        ctx.save_for_backward(neighbours)
        side = blocks.shape[-1]
        shape = (*blocks.shape[:2], side + 2, side + 2, side + 2)
        out = torch.empty(shape, dtype=blocks.dtype, device=blocks.device, memory_format=torch.channels_last_3d)
        for index, offset in enumerate(_OFFSETS):
            place, origin = _slices(offset, side)
            if index == _CENTRE:
                out[place] = blocks
            else:
                source = F.pad(blocks[origin], (0,) * 9 + (1,))  # one block of zeros, number N
                out[place] = source[neighbours[:, index]]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (neighbours,) = ctx.saved_tensors
        side = grad.shape[-1] - 2
        out = grad[_slices((0, 0, 0), side)[0]].clone()
        for index, offset in enumerate(_OFFSETS):
            if index == _CENTRE:
                continue
            place, origin = _slices(offset, side)
            source = F.pad(grad[place], (0,) * 9 + (1,))
            # block n gave its face to block m at offset o exactly if m lies at -o of n: offset 26 - index
            out[origin] += source[neighbours[:, 26 - index]]
        return out, None


def surroundings(blocks: Tensor, neighbours: Tensor) -> Tensor:
    """List the 3^3 surroundings of every voxel, as rows for a matrix product.

    Args:
        blocks: (N, C, b, b, b), b small: the result is 27 times as large.
        neighbours: (N, 27) from `neighbour_table`.

    Returns:
        (N b^3, 27 C), offsets in raster order; zeros where hidden or outside. The gradient is gathered, not scattered.
    """
    side = blocks.shape[-1]
    table = _voxel_table(neighbours, side)
    # voxel v went to its neighbour m at offset o as what lies at -o of m: offset 26 - o
    back = (table * 27 + torch.arange(26, -1, -1, device=table.device)).clamp(max=table.numel())
    return _Gather.apply(rearrange(blocks, "n c i j k -> (n i j k) c"), table, back).flatten(1)


def _voxel_table(neighbours: Tensor, side: int) -> Tensor:
    """Number the 27 neighbours of every voxel: (N b^3, 27) int64, N b^3 where hidden or outside."""
    count, size = neighbours.shape[0], side**3
    place = torch.arange(side, device=neighbours.device)[:, None] + torch.arange(-1, 2, device=neighbours.device)
    block, local = place.div(side, rounding_mode="floor") + 1, place.remainder(side)  # (b, 3) on each axis

    def combine(axis: Tensor, base: int) -> Tensor:
        d, h, w = (
            rearrange(axis, pattern) for pattern in ("b o -> b 1 1 o 1 1", "b o -> 1 b 1 1 o 1", "b o -> 1 1 b 1 1 o")
        )
        return ((d * base + h) * base + w).flatten()

    table = neighbours[:, combine(block, 3)] * size + combine(local, side)
    return table.clamp(max=count * size).view(count * size, 27)
