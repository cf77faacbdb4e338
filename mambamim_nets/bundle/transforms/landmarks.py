"""Heat maps: points as targets of a network, and a network's outputs back to points.

A point is carried in RAS mm. Whatever a transform does to an image, it does to the affine of that image's MetaTensor
too, so that `inverse(affine) @ point` is where the point lies in the voxels that are left: no transform needs to know
about points, and none can forget them. Only a reflection asks for more: in a mirrored head the patient's right end of
a structure looks like the left one, so the two names change places.

A network's map of a point is a Gaussian of `sigma` voxels of the network's own grid and of height `peak`, the same in
every image. (The public code scales each batch to 0 .. 255 by its own minimum and maximum.) The default peak is about
what the last batch normalisation gives such a map at unit weight, so that training need not first learn the scale: of
unit variance over 64^3 voxels a Gaussian of sigma 2.5 is 55 high.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from torch import Tensor, nn

__all__ = [
    "DecodeLandmarksd",
    "HeatmapLoss",
    "KeepAffined",
    "LandmarkTargetsd",
    "decode_heatmaps",
    "heatmaps",
    "radial_errors",
    "warmup_quadratic",
    "with_affine",
]

CUT = 0.1  # of the maximum: lower voxels do not take part in decoding


def heatmaps(points: Tensor, shape: Sequence[int], sigma: float, peak: float = 1.0) -> Tensor:
    """Return a Gaussian around each point: peak * exp(-|x - point|^2 / (2 sigma^2)).

    Args:
        points: (..., 3) in voxels; may lie outside, where only the tail reaches in.
        shape: (D, H, W).
        sigma: voxels.
        peak: value at the point.

    Returns:
        (..., D, H, W) float, on the device of the points.
    """
    profiles = []
    for axis, side in enumerate(shape):
        steps = torch.arange(side, device=points.device, dtype=points.dtype) - points[..., axis, None]
        profiles.append(torch.exp(-(steps**2) / (2 * sigma**2)))
    d, h, w = profiles
    return peak * d[..., :, None, None] * h[..., None, :, None] * w[..., None, None, :]


def decode_heatmaps(maps: Tensor, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the point of each heat map, between voxels.

    Around the highest voxel the logarithm of a Gaussian is a paraboloid; a round one, a + b . d + q |d|^2, is fitted by
    least squares over the voxels up to sigma away that reach a tenth of the maximum, weighted by the map's square, so
    that low and noisy voxels count little. Its top is at -b / 2q: exact for a round Gaussian of any width anywhere, at
    the border too, where a centre of mass is not. The top stays within a voxel of the highest one.

    Args:
        maps: (N, D, H, W).
        sigma: of the targets, voxels.

    Returns:
        (N, 3) float64 in voxels, and (N,) the maximum of each map.
    """
    arrays = maps.detach().cpu().double().numpy()
    radius = max(2, math.ceil(sigma))
    found = [_top(array, radius) for array in arrays]
    return np.array([place for place, _ in found]), np.array([height for _, height in found])


def _top(array: np.ndarray, radius: int) -> tuple[np.ndarray, float]:
    highest = np.unravel_index(int(array.argmax()), array.shape)
    centre, height = np.array(highest, dtype=float), float(array[highest])
    low = [max(0, int(i) - radius) for i in highest]
    near = array[tuple(slice(start, int(i) + radius + 1) for start, i in zip(low, highest, strict=True))]
    offset = np.indices(near.shape).transpose(1, 2, 3, 0) + low - centre
    square = (offset**2).sum(-1)
    kept = (near > CUT * height) & (square <= radius**2)
    if height <= 0 or kept.sum() < 8:
        return centre, height
    unknowns = np.column_stack([np.ones(kept.sum()), offset[kept], square[kept]])
    weight = near[kept] / height
    fitted, *_ = np.linalg.lstsq(unknowns * weight[:, None], np.log(weight) * weight, rcond=None)
    if fitted[4] >= 0:
        return centre, height
    return centre + np.clip(-fitted[1:4] / (2 * fitted[4]), -1, 1), height


class HeatmapLoss(nn.Module):
    """Mean squared error between heat maps and Gaussians around the points; points that are NaN are left out.

    Args:
        sigma: voxels.
        peak: height of the Gaussians.

    Raises:
        ValueError: one of them is not above 0.
    """

    def __init__(self, sigma: float, peak: float = 50.0) -> None:
        super().__init__()
        if not sigma > 0 or not peak > 0:
            raise ValueError(f"sigma {sigma} and peak {peak} must be positive")
        self.sigma, self.peak = sigma, peak

    def forward(self, pred: Tensor, points: Tensor) -> Tensor:
        """Compare heat maps (B, N, D, H, W) with points (B, N, 3) in their voxels; returns a scalar.

        Raises:
            ValueError: if the number of maps is not the number of points.
        """
        if pred.shape[:2] != points.shape[:2]:
            raise ValueError(f"pred {tuple(pred.shape)} must have one map for each of points {tuple(points.shape)}")
        known = points.isfinite().all(-1)
        targets = heatmaps(points.nan_to_num().to(pred), pred.shape[2:], self.sigma, self.peak)
        error = ((pred - targets) ** 2).mean((2, 3, 4))
        return torch.where(known, error, 0).sum() / known.sum().clamp(min=1)


class KeepAffined(Transform):
    """Put the affine of "image" (a MetaTensor) beside it as a tensor, "affine": a cache on disk keeps plain tensors.

    `with_affine` gives it back.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the affine of its image beside it."""
        return {**data, "affine": data["image"].affine.clone()}


def with_affine(data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
    """Make "image" a MetaTensor with "affine" again; a plain function, before which MONAI's caches end."""
    image = data["image"]
    return {**data, "image": image if isinstance(image, MetaTensor) else MetaTensor(image, affine=data["affine"])}


class LandmarkTargetsd(MapTransform):
    """Place points in the voxels of an image, after all transforms of it: (N, 3) RAS mm to "label", (N, 3) voxels.

    In an image that was brought to RAS, a negative determinant of the affine says that it was mirrored since, along
    whichever axis.

    Args:
        keys: of the points.
        image: key of the image, a MetaTensor.
        names: of the points.
        swaps: pairs of names that are told apart by the patient's side.

    Raises:
        ValueError: a swap is no pair of the names.
    """

    def __init__(
        self, keys: str, names: Sequence[str], swaps: Sequence[Sequence[str]] = (), image: str = "image"
    ) -> None:
        super().__init__(keys)
        self.image, order = image, list(names)
        for pair in swaps:
            if len(pair) != 2 or not set(pair) <= set(names):
                raise ValueError(f"swap {list(pair)} must be two of {', '.join(names)}")
            first, second = (names.index(name) for name in pair)
            order[first], order[second] = order[second], order[first]
        self.mirrored = [names.index(name) for name in order]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the points as targets in voxels."""
        out = dict(data)
        affine = np.asarray(out[self.image].affine, dtype=float)
        for key in self.key_iterator(out):
            points = np.asarray(out[key], dtype=float)
            out[key] = torch.as_tensor(points)
            if np.linalg.det(affine[:3, :3]) < 0:
                points = points[self.mirrored]
            voxels = nib.affines.apply_affine(np.linalg.inv(affine), points)
            out["label"] = torch.as_tensor(voxels, dtype=torch.float32)
        return out


class DecodeLandmarksd(Transform):
    """Decode heat maps "pred" of "image" (a MetaTensor): adds "points", (N, 3) in RAS mm, and "confidence", (N,).

    Confidence is the height of the map, 1 where it is that of a target; it is no probability. Where there are
    "landmarks", (N, 3) in RAS mm, adds "error", (N,) in mm, NaN for points that are missing.

    Args:
        sigma: of the targets, voxels.
        peak: of the targets.
    """

    def __init__(self, sigma: float, peak: float = 50.0) -> None:
        self.sigma, self.peak = sigma, peak

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the points that its heat maps show."""
        out = dict(data)
        voxels, heights = decode_heatmaps(out["pred"], self.sigma)
        points = nib.affines.apply_affine(np.asarray(out["image"].affine.cpu(), dtype=float), voxels)
        out["points"], out["confidence"] = torch.as_tensor(points), torch.as_tensor(heights / self.peak)
        if "landmarks" in out:
            out["error"] = torch.linalg.vector_norm(out["points"] - out["landmarks"].cpu(), dim=-1)
        return out


def radial_errors(output: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean radial error in mm over the cases of a batch, each by the mean of its points."""
    return float(torch.stack([item["error"].nanmean() for item in output]).mean())


def warmup_quadratic(warmup_epochs: int, max_epochs: int, steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate by step: a straight rise in the warm-up, then (1 - progress)^2.

    The public code takes this decay every 10 epochs, and is 50 epochs long; beyond, its square rises again. Here it is
    taken at every step, and is 0 from the last step on.

    Args:
        warmup_epochs: epochs of the rise.
        max_epochs: epochs of the run.
        steps: of one epoch.

    Raises:
        ValueError: the warm-up is not shorter than the whole.
    """
    if not 0 <= warmup_epochs < max_epochs:
        raise ValueError(f"warmup_epochs {warmup_epochs} must be fewer than the {max_epochs} epochs of the run")
    warmup, total = warmup_epochs * steps, max_epochs * steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, 1 - (step - warmup) / (total - warmup)) ** 2

    return factor
