"""Visible blocks: the sparse form of a feature map, in which hidden voxels do not exist.

Because the mask is constant on 16^3-voxel blocks, a masked feature map is a short list of dense blocks. Their batch
axis runs over the visible blocks of all samples, in raster order within a sample:

    feature map (B, C, D, H, W)   <->   blocks (N, C, b, b, b),   b = D / d,   N = visible.sum()

Pointwise layers and pooling work on blocks as they are. A 3^3 convolution first fetches a halo of one voxel from the 26
neighbouring blocks (zeros where a neighbour is hidden or outside), which makes SparseOp(S, M) = Operator(S) * M of
Algorithm 1 exact, at the cost of the visible voxels alone.

Glossary
    visible     (B, 1, d, h, w) bool, True = kept
    neighbours  (N, 27) int64: for each block the number of the block at each offset of {-1, 0, 1}^3 in raster order;
                N stands for "hidden or outside". It is the same at every stage, since pooling keeps blocks apart.
"""

from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

__all__ = ["halo", "neighbour_table", "pack", "unpack"]

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
    d, h, w = visible.shape[2:]
    blocks = rearrange(x, "b c (d i) (h j) (w k) -> b d h w i j k c", d=d, h=h, w=w)
    return rearrange(blocks[visible[:, 0]], "n i j k c -> n c i j k")


def unpack(blocks: Tensor, visible: Tensor) -> Tensor:
    """Put blocks back in place: the inverse of ``pack``, zero where hidden.

    Args:
        blocks: (N, C, b, b, b).
        visible: (B, 1, d, h, w) bool with N True.

    Returns:
        (B, C, d b, h b, w b), channels-last in memory.
    """
    blocks = rearrange(blocks, "n c i j k -> n i j k c")
    dense = blocks.new_zeros(*visible[:, 0].shape, *blocks.shape[1:])
    dense = dense.index_put((visible[:, 0],), blocks)
    dense = rearrange(dense, "b d h w i j k c -> b (d i) (h j) (w k) c")
    return rearrange(dense, "b d h w c -> b c d h w")


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


@torch.jit.unused  # a scripted network is dense
def halo(blocks: Tensor, neighbours: Tensor) -> Tensor:
    """Surround every block with one voxel of its neighbours.

    Args:
        blocks: (N, C, b, b, b).
        neighbours: (N, 27) from ``neighbour_table``.

    Returns:
        (N, C, b + 2, b + 2, b + 2), zeros where the neighbour is hidden or outside. The gradient is gathered back along
        the mirrored offset, without a scatter.
    """
    return _Halo.apply(blocks, neighbours)


def _slices(offset: tuple[int, int, int], side: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where the voxels of a neighbour at ``offset`` lie in the halo, and where in that neighbour's own block."""
    place = {-1: slice(0, 1), 0: slice(1, side + 1), 1: slice(side + 1, side + 2)}
    origin = {-1: slice(side - 1, side), 0: slice(0, side), 1: slice(0, 1)}
    every = slice(None)
    return (every, every, *(place[o] for o in offset)), (every, every, *(origin[o] for o in offset))


class _Halo(torch.autograd.Function):
    @staticmethod
    def forward(ctx, blocks: Tensor, neighbours: Tensor) -> Tensor:
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
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
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
