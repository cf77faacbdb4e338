"""The field of view of a scan: cut to what is not background, and varied at random in training.

Skull-stripped brains come on frames of zeros, and crops of a scan come larger or smaller than those of training. What
surrounds the anatomy must not change what is found in it: percentiles, windows and results would all depend on it.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, Transform
from torch import Tensor

__all__ = ["RandFieldOfViewd"]


class RandFieldOfViewd(Randomizable, MapTransform):
    """Cut faces off an image and its label, or put a border around them, as another field of view would.

    A border of zeros is what `CropForegroundd` takes away again before intensities are normalised, so it is put on
    afterwards; the other borders (one value, the outermost voxels repeated, faint noise) take part in normalisation.
    What the label of a border is: 0.

    Args:
        keys: of the image (C, D, H, W), on the scale that the network expects, and of its label map.
        border: largest border of each face, in voxels per axis.
        cut: largest share of an axis that is cut off at each of its faces.
        border_prob: probability of a border.
        cut_prob: probability of a cut.
        normalise: transform that normalises the intensities of the new field of view; None: they stay.
    """

    def __init__(
        self,
        keys: KeysCollection,
        border: Sequence[int],
        cut: float = 0.15,
        border_prob: float = 0.5,
        cut_prob: float = 0.3,
        normalise: Transform | None = None,
    ) -> None:
        super().__init__(keys)
        self.border, self.cut = list(border), cut
        self.border_prob, self.cut_prob, self.normalise = border_prob, cut_prob, normalise

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with another field of view of all keys."""
        out = dict(data)
        image, *labels = self.keys
        kind, width, box = self._drawn(out[image].shape[1:])
        cut = (slice(None), *box)
        for key in self.keys:
            out[key] = out[key][cut]
        if kind not in (None, "zeros"):
            out[image] = self._bordered(out[image], width, kind)
        if self.normalise is not None and (kind not in (None, "zeros") or cut != (slice(None),) * 4):
            out[image] = torch.as_tensor(np.asarray(self.normalise({image: out[image]})[image]))
        if kind == "zeros":
            out[image] = _padded(out[image], width)
        if kind is not None:
            for key in labels:
                out[key] = _padded(out[key], width)
        return out

    def _drawn(self, shape: Sequence[int]) -> tuple[str | None, list[tuple[int, int]], tuple[slice, ...]]:
        """Draw the kind of border, its widths, and the box that is kept."""
        box = (slice(None),) * len(shape)
        if self.R.random() < self.cut_prob:
            most = [int(side * self.cut) for side in shape]
            ends = [(self.R.randint(0, n + 1), self.R.randint(0, n + 1)) for n in most]
            box = tuple(slice(low, side - high) for side, (low, high) in zip(shape, ends, strict=True))
        if self.R.random() >= self.border_prob:
            return None, [], box
        width = [(self.R.randint(0, n + 1), self.R.randint(0, n + 1)) for n in self.border]
        return str(self.R.choice(["zeros", "value", "edge", "noise"], p=[0.4, 0.2, 0.2, 0.2])), width, box

    def _bordered(self, image: Tensor, width: Sequence[tuple[int, int]], kind: str) -> Tensor:
        if kind == "edge":
            return _padded(image, width, "edge")
        border = _padded(torch.zeros_like(image, dtype=torch.bool), width, value=True)
        image = _padded(image, width)
        values = torch.full_like(image, self.R.uniform(0.05, 1.0))
        if kind == "noise":
            noise = np.abs(self.R.normal(0.0, self.R.uniform(0.01, 0.1), size=tuple(image.shape)))
            values = torch.as_tensor(noise, dtype=image.dtype)
        return torch.where(border, values, image)


def _padded(image: Tensor, width: Sequence[tuple[int, int]], mode: str = "constant", value: Any = 0) -> Tensor:
    array, widths = np.asarray(image), [(0, 0), *width]
    more = {"constant_values": value} if mode == "constant" else {}
    return torch.as_tensor(np.pad(array, widths, mode=mode, **more))  # type: ignore[call-overload]
