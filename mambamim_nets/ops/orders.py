"""Scan orders: the order in which a D x H x W grid of tokens is read, as an index permutation and its inverse.

Glossary
    raster   idx = (d H + h) W + w
    zigzag   serpentine (PlainMamba, the paper's reference 66): h runs backwards when d is odd, w runs backwards when
             the number of rows already read is odd, so every step goes to a face neighbour on any grid. Not the
             anti-diagonal zigzag of JPEG.
    hilbert  Hilbert curve of the enclosing 2^p cube, cropped to the grid (Skilling, AIP Conf. Proc. 707, 2004); every
             step goes to a face neighbour when D = H = W = 2^p, a few short jumps remain otherwise. The paper does not
             say how it handled 6^3.
    shuffle  a fixed random permutation from a seed, the same in every process and on every machine
"""

from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

ScanKind = Literal["raster", "zigzag", "hilbert", "shuffle"]


class ScanOrder(NamedTuple):
    """A scan order of T tokens.

    Attributes:
        order: (T,) int64; order[i] is the raster index of the token read i-th.
        inverse: (T,) int64; inverse[r] is the place in the scan of the token with raster index r.
    """

    order: Tensor
    inverse: Tensor


def scan_order(shape: tuple[int, int, int], kind: ScanKind, seed: int | None = None) -> ScanOrder:
    """Return the permutation that reads a grid in the given order, and its inverse.

    tokens[order] goes from raster to scan order, scanned[inverse] back.

    Args:
        shape: grid size (D, H, W), each >= 1.
        kind: "raster", "zigzag", "hilbert" or "shuffle".
        seed: seed of "shuffle", >= 0; required there and without effect elsewhere.

    Returns:
        order and inverse, each (D * H * W,) int64 on the CPU; the caller owns them.

    Raises:
        ValueError: if the shape is not three positive sizes, the kind is unknown, or "shuffle" has no seed.
    """
    grid = tuple(int(size) for size in shape)
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(
            f"shape {grid} must be three sizes (D, H, W), each >= 1; pass the token grid, without batch and channels"
        )
    kinds = get_args(ScanKind)
    if kind not in kinds:
        raise ValueError(f"kind {kind!r} must be one of {', '.join(kinds)}; the paper's default is raster")
    if kind == "shuffle" and (seed is None or seed < 0):
        raise ValueError(f"seed {seed} must be an integer >= 0 for kind 'shuffle'; pass seed=0 for a fixed permutation")
    order, inverse = _cached(grid, kind, seed if kind == "shuffle" else None)
    return ScanOrder(torch.from_numpy(order.copy()), torch.from_numpy(inverse.copy()))


@lru_cache(maxsize=64)
def _cached(grid: tuple[int, int, int], kind: ScanKind, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Compute once, as arrays: torch.jit.trace would record the making of a tensor, but on the first call only."""
    depth, height, width = grid
    raster = np.arange(depth * height * width)
    if kind == "raster":
        order = raster
    elif kind == "zigzag":
        order = _zigzag(raster.reshape(grid))
    elif kind == "hilbert":
        order = np.argsort(_hilbert_codes(grid), kind="stable")
    else:
        # Sorting raw bits: NumPy promises the bit stream of PCG64 for ever, but not the order of Generator.permutation.
        order = np.argsort(np.random.PCG64(seed).random_raw(raster.size), kind="stable")
    inverse = np.empty_like(raster)
    inverse[order] = raster
    return order.astype(np.int64), inverse.astype(np.int64)


def _zigzag(index: np.ndarray) -> np.ndarray:
    serpentine = index.copy()
    serpentine[1::2] = serpentine[1::2, ::-1]
    lines = serpentine.reshape(-1, index.shape[2])
    lines[1::2] = lines[1::2, ::-1].copy()
    return lines.reshape(-1)


def _hilbert_codes(grid: tuple[int, int, int]) -> np.ndarray:
    """Number the voxels, in raster order, on the Hilbert curve of the enclosing cube (Skilling's AxestoTranspose)."""
    bits = (max(grid) - 1).bit_length()
    axes = list(np.indices(grid).reshape(3, -1).astype(np.int64))
    for level in reversed(range(1, bits)):
        bit, low = 1 << level, (1 << level) - 1
        for i in range(3):
            is_set = (axes[i] & bit) != 0
            swap = np.where(is_set, 0, (axes[0] ^ axes[i]) & low)
            axes[0] = axes[0] ^ np.where(is_set, low, swap)
            axes[i] = axes[i] ^ swap if i else axes[0]
    for i in (1, 2):  # Gray encode
        axes[i] = axes[i] ^ axes[i - 1]
    flip = np.zeros_like(axes[0])
    for level in range(1, bits):
        flip ^= np.where((axes[2] >> level) & 1, (1 << level) - 1, 0)
    code = np.zeros_like(axes[0])
    for level in reversed(range(bits)):
        for axis in axes:
            code = (code << 1) | (((axis ^ flip) >> level) & 1)
    return code
