"""Label maps between disk and network: masks of structures for metrics, and predictions back on the scan's own grid."""

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, MapTransform
from scipy import ndimage
from torch import Tensor

from mambamim_nets.bundle.labels import Targets

__all__ = ["RestoreLabelsd", "StructureMasksd", "keep_largest"]

logger = logging.getLogger("mambamim_nets")

GIB = 2**30


class StructureMasksd(MapTransform):
    """Turn logits under ``pred`` and the label map under ``label`` into masks of the task's structures.

    The prediction goes through the label map that would be written, so that what is measured is what is delivered; the
    two label maps are kept under ``pred_map`` and ``label_map``.
    """

    def __init__(self, targets: Targets, pred: str = "pred", label: str = "label") -> None:
        super().__init__([pred, label])
        self.targets, self.pred, self.label = targets, pred, label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with masks in the place of label maps."""
        out = dict(data)
        found = self.targets.label_map(self.targets.probabilities(_plain(data[self.pred])))
        for key, values in ((self.pred, found), (self.label, _plain(data[self.label]))):
            out[key], out[f"{key}_map"] = self.targets.masks(values), values
        return out


class RestoreLabelsd(MapTransform):
    """Turn logits on the network's grid into a label map on the input's own grid.

    Probabilities are interpolated to the input's grid before the decision, which gives smooth surfaces; where they
    would not fit into ``max_gib`` (whole-body scans, many classes), the decision is taken first and the label map is
    resampled by nearest neighbour.

    Args:
        keys: of the logits.
        targets: of the task.
        preprocessing: the transforms to invert.
        orig_keys: of the image that they were applied to.
        max_gib: memory that the probabilities on the input's grid may take.
        keep_largest: keep only the largest connected component of every label, for organs that are in one piece.

    Raises:
        ValueError: if components are to be kept of overlapping regions.
    """

    def __init__(
        self,
        keys: KeysCollection,
        targets: Targets,
        preprocessing: Compose,
        orig_keys: str = "image",
        max_gib: float = 2.0,
        keep_largest: bool = False,
    ) -> None:
        super().__init__(keys)
        self.keep_largest = keep_largest
        if self.keep_largest and targets.regions:
            raise ValueError(
                f"keep_largest must be false for regions {list(targets.regions)}: tumours have several parts"
            )
        self.targets, self.orig_keys, self.max_gib = targets, orig_keys, max_gib
        self.smooth, self.nearest = (
            Invertd(self.keys, preprocessing, orig_keys, nearest_interp=nearest, to_tensor=True)
            for nearest in (False, True)
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the label map on the grid of the file."""
        out = dict(data)
        voxels = float(np.prod(np.asarray(data[self.orig_keys].meta["spatial_shape"], dtype=float)))
        needed = voxels * self.targets.out_channels * 4 / GIB
        decide_first = needed > self.max_gib
        if decide_first:
            logger.info("probabilities would take %.1f GiB, over max_gib %g: deciding first", needed, self.max_gib)
        for key in self.keys:
            probabilities = self.targets.probabilities(out[key])
            out[key] = self.targets.label_map(probabilities).float() if decide_first else probabilities
        out = dict((self.nearest if decide_first else self.smooth)(out))
        for key in self.keys:
            if not decide_first:
                out[key] = self.targets.label_map(out[key])
            out[key] = out[key].round().to(torch.uint8)
            if self.keep_largest:
                values = _plain(out[key])[0].cpu().numpy()
                keep_largest(values)
                out[key][0] = torch.from_numpy(values).to(out[key].device)
        return out


def keep_largest(label_map: np.ndarray) -> None:
    """Set to 0, in place, what is not in the largest connected component (faces touch) of its label.

    Args:
        label_map: (D, H, W) unsigned integers.
    """
    for value, box in enumerate(ndimage.find_objects(label_map), start=1):
        if box is not None:
            inside = label_map[box] == value
            parts, number = ndimage.label(inside)
            if number > 1:
                sizes = np.bincount(parts.ravel())
                label_map[box][inside & (parts != 1 + sizes[1:].argmax())] = 0


def _plain(values: Tensor) -> Tensor:
    return values.as_tensor() if isinstance(values, MetaTensor) else values
