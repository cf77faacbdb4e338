"""VoCo: volume contrast, learning where in the body a crop lies (Wu et al. 2024).

    crop     a volume is divided into base crops; random crops of the same size are placed anywhere
    label    y_ij, the share of random crop i that lies in base crop j
    predict  s_ij = ReLU(cos(q_i, p_j)), q of the student, p of the teacher
    loss     position: -y log(1 - |y - s|) where y > 0, s^2 where y = 0
             separation: ReLU(cos)^2 of every pair of base crops
    teacher  the student's exponential moving average, without gradient

Published: the grid of 4 x 4 x 1, the decay 0.9, the equations. Ours, since the paper does not say: coarser grids for
smaller volumes; the number of random crops; an embedding is the mean of the encoder's deepest map behind two linear
layers; each of the three losses is a mean (the first weighted by y) and they are summed; nothing is augmented
differently for student and teacher.

Glossary
    grid     base crops on each axis; a volume of D x H x W voxels gives crops of D x H x W / grid
    start    first voxel of a random crop on each axis
"""

import copy
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mambamim_nets.masking import STRIDE, token_grid
from mambamim_nets.nets.protocols import Encoder
from mambamim_nets.pretraining.base import MIMOutput

__all__ = ["VoCo", "overlap", "position_loss", "separation_loss"]

_EPS = 1e-6


def overlap(starts: Tensor, crop: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Return the share of every random crop that lies in every base crop.

    Args:
        starts: (..., 3) first voxels of crops.
        crop: voxels of a crop on each axis, the same for random and base crops.
        grid: base crops on each axis.

    Returns:
        (..., prod(grid)) in [0, 1], base crops in raster order.
    """
    position = starts / torch.tensor(crop, device=starts.device)
    shares = [
        F.relu(1 - (position[..., axis, None] - torch.arange(n, device=starts.device)).abs())
        for axis, n in enumerate(grid)
    ]
    return torch.einsum("...i,...j,...k->...ijk", *shares).flatten(-3)


def position_loss(similarity: Tensor, label: Tensor) -> Tensor:
    """Compare s with y: the mean of -log(1 - |y - s|) weighted by y, plus the mean of s^2 where y is 0."""
    similarity, outside = similarity.float(), (label == 0).float()
    near = -label * torch.log((1 - (label - similarity).abs()).clamp(min=_EPS))
    far = outside * similarity.square()
    return near.sum() / label.sum().clamp(min=_EPS) + far.sum() / outside.sum().clamp(min=1)


def separation_loss(bases: Tensor) -> Tensor:
    """Return the mean of ReLU(cos)^2 over the pairs of different base crops of a volume; bases (B, G, C)."""
    similarity = F.relu(_cosine(bases, bases)).square()
    pairs = bases.shape[1] * (bases.shape[1] - 1)
    return (similarity.sum((1, 2)) - similarity.diagonal(dim1=1, dim2=2).sum(1)).mean() / max(1, pairs)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of every row of (B, N, C) with every row of (B, M, C): (B, N, M), in float32."""
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).transpose(1, 2)


class VoCo(nn.Module):
    """Volume contrast around an encoder.

    Args:
        encoder: a `HyMamba` or `VisionMamba`, the student; the skip maps of the former are not used, and so not
            trained.
        grid: base crops on each axis (d, h, w); fewer where a side cannot be divided into that many multiples of 16.
        crops: random crops of each volume.
        width: channels of an embedding.
        decay: share of the teacher that every training step keeps.

    Raises:
        ValueError: on a grid of fewer than two base crops, no random crops, or a decay outside [0, 1).
    """

    def __init__(
        self,
        encoder: Encoder,
        grid: Sequence[int] = (4, 4, 1),
        crops: int = 4,
        width: int = 128,
        decay: float = 0.9,
    ) -> None:
        super().__init__()
        if len(grid) != 3 or min(grid) < 1 or max(grid) < 2:
            raise ValueError(f"grid {tuple(grid)} must be three numbers, at least one above 1; VoCo's is (4, 4, 1)")
        if crops < 1:
            raise ValueError(f"crops {crops} must be at least 1")
        if not 0 <= decay < 1:
            raise ValueError(f"decay {decay} must lie in [0, 1); VoCo's is 0.9")
        self.grid, self.crops, self.decay = tuple(grid), crops, decay
        channels = encoder.widths[-1]
        self.encoder = encoder
        self.project = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, width))
        self.teacher = copy.deepcopy(nn.ModuleList([cast(nn.Module, encoder), self.project])).requires_grad_(False)

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Move the teacher towards the student: decay * teacher + (1 - decay) * student."""
        student = [*self.encoder.parameters(), *self.project.parameters()]
        for theirs, ours in zip(self.teacher.parameters(), student, strict=True):
            theirs.lerp_(ours, 1 - self.decay)

    def fit(self, x: Tensor) -> list[int]:
        """Return the base crops on each axis of volumes (B, C_in, D, H, W): at most `grid`, sides multiples of 16.

        Raises:
            ValueError: on sides that are no multiples of 16, or so small that one base crop is all there is.
        """
        tokens = token_grid(x.shape[2:])
        fitting = [
            max(n for n in range(1, most + 1) if side % n == 0) for side, most in zip(tokens, self.grid, strict=True)
        ]
        if fitting == [1, 1, 1]:
            best = tuple(STRIDE * n for n in self.grid)
            raise ValueError(
                f"roi_size {tuple(x.shape[2:])} has no two base crops with sides that are multiples of {STRIDE}, where "
                f"the grid is at most {self.grid}; enlarge it, best to multiples of {best}"
            )
        return fitting

    def crop_shape(self, x: Tensor) -> list[int]:
        """Return the voxels of a crop of volumes (B, C_in, D, H, W); raises as `fit`."""
        return [side // n for side, n in zip(x.shape[2:], self.fit(x), strict=True)]

    def draw_starts(self, x: Tensor) -> Tensor:
        """Draw where random crops lie in volumes (B, C_in, D, H, W): (B, crops, 3) int64, on the CPU."""
        ranges = [side - crop + 1 for side, crop in zip(x.shape[2:], self.crop_shape(x), strict=True)]
        return torch.stack([torch.randint(n, (x.shape[0], self.crops)) for n in ranges], dim=-1)

    def forward(self, x: Tensor, starts: Tensor | None = None) -> MIMOutput:
        """Score how well the places of random crops are known; in training mode, the teacher moves first.

        Args:
            x: (B, C_in, D, H, W) float, sides multiples of 16.
            starts: (B, N, 3) int64, first voxels of the random crops; drawn if None.

        Returns:
            MIMOutput with a loss only.

        Raises:
            ValueError: as `fit`.
        """
        (i, j, k), crop = self.fit(x), self.crop_shape(x)
        if self.training:
            self.update_teacher()
        starts = self.draw_starts(x) if starts is None else starts
        bases = rearrange(x, "b c (i d) (j h) (k w) -> b (i j k) c d h w", i=i, j=j, k=k)
        d, h, w = crop
        randoms = [
            torch.stack([volume[:, a : a + d, b : b + h, c : c + w] for a, b, c in places])
            for volume, places in zip(x, starts.tolist(), strict=True)
        ]
        ours = _embed(self.encoder, self.project, bases)
        queries = _embed(self.encoder, self.project, torch.stack(randoms))
        with torch.no_grad():
            prototypes = _embed(cast(Encoder, self.teacher[0]), self.teacher[1], bases)
        similarity = F.relu(_cosine(queries, prototypes))
        label = overlap(starts.to(x.device), crop, (i, j, k))
        return MIMOutput(position_loss(similarity, label) + separation_loss(ours), None, None)


def _embed(encoder: Encoder, project: nn.Module, crops: Tensor) -> Tensor:
    """Embed crops (B, N, C_in, d, h, w): the mean of their tokens, projected, (B, N, C)."""
    tokens = encoder.encode(crops.flatten(0, 1), strides=()).tokens
    return project(tokens.mean(1)).unflatten(0, crops.shape[:2])
