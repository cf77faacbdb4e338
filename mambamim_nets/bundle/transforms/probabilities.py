"""Probabilities on the scan's own grid, for those who want more than the label map."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from torch import Tensor

from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.transforms.inversion import by_parts, invert

__all__ = ["RestoreProbabilitiesd"]


class RestoreProbabilitiesd(MapTransform):
    """Bring the probabilities of logits to the input's own grid, under "probabilities"; the logits stay.

    Where the network saw nothing, such as outside of a crop, all probabilities are 0.

    Args:
        keys: of the logits, one.
        targets: of the task.
        preprocessing: the transforms to invert.
        orig_keys: of the image that they were applied to.
    """

    def __init__(
        self, keys: KeysCollection, targets: Targets, preprocessing: Compose, orig_keys: str = "image"
    ) -> None:
        super().__init__(keys)
        self.targets = targets
        self.invert = invert("probabilities", preprocessing, orig_keys, False, _clamped)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with "probabilities" (channels, D, H, W) in [0, 1], float32."""
        out = dict(data)
        for key in self.keys:
            logits = out[key].as_tensor() if isinstance(out[key], MetaTensor) else out[key]
            out["probabilities"] = MetaTensor(by_parts(self.targets.probabilities, logits, torch.float64))
            out = dict(self.invert(out))
            out["probabilities"] = out["probabilities"].cpu()
        return out


def _clamped(probabilities: Tensor) -> Tensor:
    return torch.clamp(probabilities.float(), 0.0, 1.0)
