"""Weights: what a run starts from, what it ships, and what it says of those that it writes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.transforms import Compose, Spacingd
from torch import nn

from mambamim_nets.bundle.config import bundle_root
from mambamim_nets.bundle.runtime import checkpoint_activations
from mambamim_nets.bundle.transforms.normalisation import scaling_of
from mambamim_nets.checkpoint import load_encoder, load_weights
from mambamim_nets.records import network_record

__all__ = [
    "other_pretraining",
    "record",
    "shipped_weights",
    "spacing_of",
    "start_classifier",
    "start_network",
    "trained_network",
    "weights_caption",
    "weights_note",
]

logger = logging.getLogger("mambamim_nets")
_OF_PRETRAINING = ("spacing", "intensity", "intensity_range", "roi_size")  # what features were learnt at


def record(network: nn.Module, preprocessing: Compose | None = None, **facts: Any) -> dict[str, Any]:
    """Return what weights of a network are, to be written into their file and compared with what a file says.

    What can be read from the network and its preprocessing is read there, since an option need not have reached them:
    settings of the network, how intensities are scaled, and the spacing.

    Args:
        network: as built.
        preprocessing: of its images; None where any will do.
        facts: the rest, from the options: task, channels, labels; of a table its names.
    """
    said = {key: value if isinstance(value, str | int | float) else list(value or []) for key, value in facts.items()}
    read: dict[str, Any] = {}
    if preprocessing is not None:
        spacing = spacing_of(preprocessing)
        read = scaling_of(preprocessing.flatten().transforms) | ({} if spacing is None else {"spacing": spacing})
    return {**network_record(network), **said, **read}


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


def start_network(
    network: nn.Module,
    pretrained: str | None,
    adapt_input: bool = False,
    record: Mapping[str, Any] | None = None,
    roi_size: Sequence[int] | None = None,
    activation_checkpointing: bool = False,
) -> nn.Module:
    """Return a network ready for training; the log says how it starts.

    From scratch, or from ``pretrained``: its encoder, or where a network has no part of that name all its weights.
    Where these were trained at another spacing, intensity or crop, a warning says so.

    Args:
        network: as in ``load_encoder``.
        pretrained: as in ``load_encoder``; None: from scratch.
        adapt_input: as in ``load_encoder``.
        record: what the run's own weights will be.
        roi_size: the run's crops, in voxels.
        activation_checkpointing: see ``checkpoint_activations``.
    """
    if not pretrained:
        logger.info("starting weights: none, training from scratch")
        return checkpoint_activations(network, activation_checkpointing)
    if hasattr(network, "encoder"):
        report = load_encoder(network, pretrained, adapt_input)
        logger.info("starting weights: encoder, %s", report)
    else:
        report = load_weights(network, pretrained, network_record(network), _networks())
        logger.info("starting weights: %s", report)
    if differing := other_pretraining(report.record, record or {}, roi_size):
        logger.warning("%s was trained at other values than this run: %s", pretrained, differing)
    return checkpoint_activations(network, activation_checkpointing)


def _networks() -> set[str]:
    """Return the names of the networks that the bundle being run has files for."""
    return {path.stem for path in Path(bundle_root(), "configs", "networks").glob("*.json")}


def trained_network(
    network: nn.Module,
    checkpoint: str,
    record: Mapping[str, Any] | None = None,
    mirror_axes: Sequence[int] = (),
    force: bool = False,
) -> nn.Module:
    """Return a network with all its weights from ``checkpoint``, in evaluation mode; never with random ones.

    Args:
        network: as in ``load_weights``.
        checkpoint: as in ``load_weights``.
        record: as in ``load_weights``.
        mirror_axes: axes along which the network's input will be mirrored; training must have mirrored them too.
        force: whether to mirror other axes all the same, with a warning.

    Raises:
        FileNotFoundError, ValueError: as ``load_weights``.
        ValueError: training did not mirror one of ``mirror_axes``, or the weights do not say so.
    """
    report = load_weights(network, checkpoint, record, _networks())
    if objection := _mirror_objection(report.record.get("mirrored"), mirror_axes):
        if not force:
            raise ValueError(f"mirror_axes {list(mirror_axes)}: {objection}; leave the option out")
        logger.warning("FORCED, mirror_axes %s: %s", list(mirror_axes), objection)
    logger.info("weights: %s", report)
    if record and not report.record:
        logger.warning("%s does not say what its weights are: task and spacing are taken on trust", checkpoint)
    if note := weights_note(checkpoint):
        logger.warning(note)
    return network.eval()


def _mirror_objection(mirrored: Sequence[int] | None, wanted: Sequence[int]) -> str:
    if not set(wanted) - set(mirrored or ()):
        return ""
    if mirrored is None:
        return "the weights do not say which axes were mirrored in training"
    return f"must be among those that were mirrored when the weights were trained, {list(mirrored) or 'none'}"


def weights_note(checkpoint: str | None) -> str:
    """Return the text that lies beside a file of weights, such as that they are a demonstration, on one line; or ""."""
    note = Path(checkpoint).with_suffix(".txt") if checkpoint else None
    return " ".join(note.read_text(encoding="utf-8").split()) if note is not None and note.is_file() else ""


def weights_caption(note: str) -> str:
    """Return the note of a file of weights in the few words that a picture or a DICOM attribute has room for."""
    if not note:
        return ""
    return "demonstration weights" if "demonstration" in note else "weights for research only"


def shipped_weights(bundle_root: str, weights: str | None) -> str:
    """Return the path of the weights that the bundle ships for a task.

    Raises:
        ValueError: if it ships none for this task.
    """
    if not weights:
        raise ValueError(
            "this bundle ships no weights for this task; train first, then give --checkpoint path/to/model_best.pt"
        )
    return str(Path(bundle_root, weights))


def start_classifier(network: nn.Module, pretrained: str | None, record: Mapping[str, Any]) -> nn.Module:
    """Return a network ready for training: all of it from ``pretrained``, or from scratch; the log says which.

    Args:
        network: as defined.
        pretrained: path of weights of any task of this network, or None.
        record: what the run's own weights will be; all but task and classes must be true of ``pretrained``.

    Raises:
        FileNotFoundError, ValueError: as ``load_weights``.
    """
    if pretrained:
        wanted = {key: value for key, value in record.items() if key not in ("task", "classes")}
        logger.info("starting weights: the whole network, %s", load_weights(network, pretrained, wanted))
    else:
        logger.info("starting weights: none, training from scratch")
    return network
