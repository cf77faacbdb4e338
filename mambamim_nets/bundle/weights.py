"""What a run says of the weights that it writes and of those that it starts from."""

from collections.abc import Mapping, Sequence
from typing import Any

from monai.transforms import Compose, Spacingd
from torch import nn

from mambamim_nets.records import network_record

__all__ = ["other_pretraining", "record", "spacing_of"]

_OF_PRETRAINING = ("spacing", "intensity", "intensity_range", "roi_size")  # what features were learnt at


def record(network: nn.Module, preprocessing: Compose | None = None, **facts: Any) -> dict[str, Any]:
    """Return what weights of a network are, to be written into their file and compared with what a file says.

    What can be read from the network and its preprocessing is read there, since an option need not have reached them.

    Args:
        network: as built.
        preprocessing: of its images, whose ``Spacingd`` says their spacing; None where any will do.
        facts: the rest, from the options: task, channels, labels, intensity.
    """
    spacing = None if preprocessing is None else spacing_of(preprocessing)
    return {**network_record(network), **facts, **({} if spacing is None else {"spacing": spacing})}


def spacing_of(preprocessing: Compose) -> list[float] | None:
    """Return the voxel edges (mm) that a preprocessing resamples to; None if it does not."""
    found = [part for part in preprocessing.flatten().transforms if isinstance(part, Spacingd)]
    return [float(side) for side in found[-1].spacing_transform.pixdim] if found else None


def other_pretraining(held: Mapping[str, Any], run: Mapping[str, Any], roi_size: Sequence[int] | None) -> str:
    """Say in which of spacing, intensity and crop a run differs from the one that its first weights come from.

    Args:
        held: what the weights say of themselves; what they do not say is not compared.
        run: the record of this run.
        roi_size: its crops, in voxels.
    """
    here = {**run, "roi_size": None if roi_size is None else list(roi_size)}
    differing = [key for key in _OF_PRETRAINING if key in held and here.get(key) is not None and held[key] != here[key]]
    return ", ".join(f"{key} {held[key]} (here {here[key]})" for key in differing)
