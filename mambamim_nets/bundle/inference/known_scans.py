"""Compare a new scan with what the weights know, before it reaches the network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform

from mambamim_nets.bundle.data.plausibility import extent, range_objections
from mambamim_nets.bundle.io.modalities import modality_objection
from mambamim_nets.bundle.transforms.normalisation import scaling_of
from mambamim_nets.bundle.weights import seen_in_training

__all__ = ["KnownScand"]


class KnownScand(MapTransform):
    """Refuse a scan of another modality, or outside the field of view and spacing that the weights saw in training.

    The image comes as `LoadScand` and ``Orientationd`` to RAS leave it, with the intensities of its file.

    Args:
        keys: of the image.
        scaling: the transform that scales intensities, which says what modality the weights know.
        checkpoint: file of the weights, or files of an ensemble, whose record says what they saw; None: the modality
            alone is judged.
        force: do not refuse, but add what is wrong to the "warnings" of the scan.

    Raises:
        ValueError: when called, if the scan is refused.
    """

    def __init__(
        self,
        keys: KeysCollection,
        scaling: Transform,
        checkpoint: str | Sequence[str] | None = None,
        force: bool = False,
    ) -> None:
        super().__init__(keys)
        self.intensity, self.force = scaling_of([scaling]).get("intensity", ""), force
        self.checkpoint = checkpoint

    @cached_property
    def seen(self) -> dict[str, Any]:
        """What the weights saw, by their record; of an ensemble, what any of its members saw."""
        return seen_in_training(self.checkpoint)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data as they are, with another entry of "warnings" where a scan is segmented all the same."""
        out = dict(data)
        for key in self.key_iterator(out):
            image = out[key]
            said = str(image.meta.get("modality", ""))
            values = np.asarray(image)
            inside = None if self.intensity == "ct" else (values != 0).any(axis=0)
            spacing = [float(edge) for edge in image.pixdim]
            lengths = extent(image.shape[1:], spacing, inside).tolist()
            found = range_objections(self.seen, lengths, spacing)
            if wrong := modality_objection(self.intensity, values, said):
                found.insert(0, wrong)
            if found and not self.force:
                raise ValueError(
                    f"these weights do not know such a scan: {'; '.join(found)}; use weights for it, or crop it;"
                    " --force true segments it all the same, and says so in its results"
                )
            if found:
                warning = f"FORCED, these weights do not know such a scan: {'; '.join(found)}"
                out["warnings"] = [*out.get("warnings", ()), warning]
        return out
