"""Label maps between disk and network: masks for metrics, predictions back on the scan's own grid, and their parts.

`KeepPartsd` does what MONAI's `KeepLargestConnectedComponentd` and `RemoveSmallObjectsd` are for. These need
scikit-image, search the whole scan once for each label, where a label's box is enough, and the second takes all voxels
of a label in a label map for one object, so it can neither see its parts nor have a volume for each label.
"""

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from scipy import ndimage
from torch import Tensor

from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.transforms.inversion import by_parts, invert

__all__ = ["KeepPartsd", "RestoreLabelsd", "StructureMasksd"]

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

    Probabilities are interpolated to the input's grid before the decision, which gives smooth surfaces. That is done
    slab by slab: never are all of them there at once. Where they would be larger than ``max_gib`` (whole-body scans,
    many classes), the decision is taken first and the label map is resampled by nearest neighbour, which is faster.

    Args:
        keys: of the logits.
        targets: of the task.
        preprocessing: the transforms to invert.
        orig_keys: of the image that they were applied to.
        max_gib: size in float32 that the probabilities on the input's grid may have.
    """

    def __init__(
        self,
        keys: KeysCollection,
        targets: Targets,
        preprocessing: Compose,
        orig_keys: str = "image",
        max_gib: float = 2.0,
    ) -> None:
        super().__init__(keys)
        self.targets, self.orig_keys, self.max_gib = targets, orig_keys, max_gib
        self.smooth = invert(self.keys, preprocessing, orig_keys, False, targets.label_map)
        self.nearest = invert(self.keys, preprocessing, orig_keys, True, _rounded)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the label map on the grid of the file."""
        out = dict(data)
        voxels = float(np.prod(np.asarray(data[self.orig_keys].meta["spatial_shape"], dtype=float)))
        needed = voxels * self.targets.out_channels * 4 / GIB
        decide_first = needed > self.max_gib
        if decide_first:
            logger.info("probabilities would take %.1f GiB, over max_gib %g: deciding first", needed, self.max_gib)
        # probabilities in float64 at once, in which they are resampled
        what, dtype = (self._decided, None) if decide_first else (self.targets.probabilities, torch.float64)
        for key in self.keys:
            out[key] = MetaTensor(by_parts(what, _plain(out[key]), dtype))
        return dict((self.nearest if decide_first else self.smooth)(out))

    def _decided(self, logits: Tensor) -> Tensor:
        return self.targets.label_map(self.targets.probabilities(logits))


class KeepPartsd(MapTransform):
    """Leave out of a label map, on the scan's own grid, what is no part of its structures: set it to 0.

    Parts are connected where voxels share a face. The largest part is looked for first; a volume is then asked of what
    is left.

    Args:
        keys: of label maps (1, D, H, W) with an affine in mm.
        targets: of the task.
        keep_largest: true keeps only the largest part of every label, for organs in one piece; a list of names does so
            for these labels; "together" keeps the largest part of all labels taken as one; false keeps all.
        min_volume_ml: name of a label -> ml; parts of less than that are left out.

    Raises:
        ValueError: a name is no label, a volume is not above 0, or the task has regions, whose label maps show only
            what no smaller region covers.
    """

    def __init__(
        self,
        keys: KeysCollection,
        targets: Targets,
        keep_largest: bool | Literal["together"] | Sequence[str] = False,
        min_volume_ml: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(keys)
        if (keep_largest or min_volume_ml) and targets.regions:
            name = "keep_largest must be false" if keep_largest else "min_volume_ml must be empty"
            raise ValueError(f"{name} for regions {list(targets.regions)}: tumours have several parts")
        values = {name: value for value, name in targets.labels.items()}
        self.together = keep_largest == "together"
        named = list(values) if isinstance(keep_largest, bool | str) else list(keep_largest)
        self.min_volume_ml = dict(min_volume_ml or {})
        for option, names in (("keep_largest", named), ("min_volume_ml", list(self.min_volume_ml))):
            if unknown := [name for name in names if name not in values]:
                raise ValueError(f"{option} {unknown[0]!r} is no label of this task: it has {', '.join(values)}")
        for name, volume in self.min_volume_ml.items():
            if not volume > 0:
                raise ValueError(f"min_volume_ml of {name!r} is {volume}: must be above 0, in ml; else leave it out")
        self.largest = {values[name] for name in named} if keep_largest and not self.together else set()
        self.least = {values[name]: float(volume) for name, volume in self.min_volume_ml.items()}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with label maps of the same shape and type."""
        out = dict(data)
        if self.together or self.largest or self.least:
            for key in self.key_iterator(out):
                label_map = _plain(out[key])[0].cpu().numpy().astype(np.uint8)  # a copy
                ml = float(np.prod([float(edge) for edge in out[key].pixdim])) / 1000
                self._clean(label_map, ml)
                kept = out[key].clone()
                kept[0] = torch.from_numpy(label_map).to(kept)
                out[key] = kept
        return out

    def _clean(self, label_map: np.ndarray, ml: float) -> None:
        """Set to 0, in place, what is left out of a label map (D, H, W) with voxels of so many ml."""
        if self.together:
            _keep_parts(label_map, label_map != 0, 0.0)
        for value, box in enumerate(ndimage.find_objects(label_map), start=1):
            if box is not None and (value in self.largest or value in self.least):
                part = label_map[box]
                least = self.least.get(value, 0.0) / ml * (1 - 1e-6)  # ml and voxels are rounded
                _keep_parts(part, part == value, least, largest=value in self.largest)


def _keep_parts(label_map: np.ndarray, inside: np.ndarray, least: float, largest: bool = True) -> None:
    """Set to 0, in place, parts of a mask of fewer voxels than `least`, and all but the largest where that is asked."""
    parts, number = ndimage.label(inside)
    sizes = np.zeros(number + 1, np.int64)
    for part in parts:  # a plane at a time: bincount, and indices below, take 8 bytes for each voxel
        sizes += np.bincount(part.ravel(), minlength=number + 1)
    kept = sizes >= least
    if largest and number:
        kept &= np.arange(number + 1) == 1 + sizes[1:].argmax()
    for plane, mask, part in zip(label_map, inside, parts, strict=True):
        plane[mask & ~kept[part]] = 0


def _rounded(label_map: Tensor) -> Tensor:
    return label_map.round().to(torch.uint8)


def _plain(values: Tensor) -> Tensor:
    return values.as_tensor() if isinstance(values, MetaTensor) else values
