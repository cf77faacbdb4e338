"""Weights: what a run starts from, what it ships, and what it says of those that it writes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from monai.transforms import Compose, Spacingd
from torch import nn

from mambamim_nets.bundle.config import bundle_root
from mambamim_nets.bundle.files import write_text
from mambamim_nets.bundle.runtime import checkpoint_activations, process_rank
from mambamim_nets.bundle.transforms.normalisation import scaling_of
from mambamim_nets.checkpoint import LoadReport, load_encoder, load_other_labels, load_weights, read_record
from mambamim_nets.records import network_record

__all__ = [
    "described_weights",
    "file_digest",
    "other_pretraining",
    "record",
    "seen_in_training",
    "shipped_weights",
    "spacing_of",
    "start_classifier",
    "start_network",
    "starting_weights",
    "trained_network",
    "weights_caption",
    "weights_files",
    "weights_note",
]

logger = logging.getLogger("mambamim_nets")
_OF_TRAINING = ("mirrored", "seen")  # of a record: what differs between the folds of one cross-validation
STARTING = "starting_weights.json"
_STAGE = re.compile(r"^([^.]+(?:\.\d+(?=\.))?).*")  # a part of a network, with its number where it has several
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
    output_dir: str | None = None,
    pretrained_part: str = "encoder",
) -> nn.Module:
    """Return a network ready for training; the log says how it starts.

    From scratch, or from ``pretrained``: its encoder, or where a network has no part of that name all its weights.
    Or, with ``pretrained_part`` "network", all of a network for other labels, see ``load_other_labels``.
    Where these were trained at another spacing, intensity or crop, a warning says so. ``starting_weights.json`` in
    ``output_dir`` has it all, see ``starting_weights``.

    Args:
        network: as in ``load_encoder``.
        pretrained: as in ``load_encoder``; None: from scratch.
        adapt_input: as in ``load_encoder``.
        record: what the run's own weights will be.
        roi_size: the run's crops, in voxels.
        activation_checkpointing: see ``checkpoint_activations``.
        output_dir: of the run; None: no file is written.
        pretrained_part: "encoder" or "network".

    Raises:
        FileNotFoundError, ValueError: as ``load_encoder`` or ``load_other_labels``; also if a whole network is asked
            for without ``pretrained``.
    """
    if not pretrained:
        if pretrained_part != "encoder":
            raise ValueError(f"pretrained_part {pretrained_part} needs weights to take it from; give --pretrained too")
        logger.info("starting weights: none, training from scratch")
        return checkpoint_activations(network, activation_checkpointing)
    if pretrained_part == "network":
        report = load_other_labels(network, pretrained, record or {})
        logger.info("starting weights: whole network, %s", report)
    elif hasattr(network, "encoder"):
        report = load_encoder(network, pretrained, adapt_input)
        logger.info("starting weights: encoder, %s", report)
    else:
        report = load_weights(network, pretrained, network_record(network), _networks())
        logger.info("starting weights: %s", report)
    parts = starting_weights(network, report, record or {}, roi_size, whole=pretrained_part == "network")
    for title, part in (("taken", "taken"), ("from scratch", "from_scratch"), ("of the file left out", "left_out")):
        logger.info("starting weights, %s: %s", title, _in_short(parts[part]))
    if output_dir is not None and process_rank() == 0:
        write_text(Path(output_dir, STARTING), json.dumps(parts, indent=2, default=str) + "\n")
    if differing := other_pretraining(report.record, record or {}, roi_size):
        logger.warning("%s was trained at other values than this run: %s", pretrained, differing)
    return checkpoint_activations(network, activation_checkpointing)


def starting_weights(
    network: nn.Module,
    report: LoadReport,
    run: Mapping[str, Any],
    roi_size: Sequence[int] | None,
    whole: bool = False,
) -> dict[str, Any]:
    """Return what a network took from a file and what not, by stages, which are parts such as "stages.0".

    Args:
        network: after loading.
        report: of loading.
        run: the record of this run.
        roi_size: its crops, in voxels.
        whole: whether more than the encoder was loaded, though the network has one.

    Returns:
        "file" with its "sha256" and its own "record"; "taken", "from_scratch" (of the network, not in the file) and
        "left_out" (of the file, not of the network's encoder), each a table of stages with "tensors", "values" and
        "names"; "adapted", which of the taken tensors was changed and how; "learnt_at", for each of spacing, intensity
        and crop what the file says ("file", null where it says nothing) and the run ("run").
    """
    loaded = network if whole else getattr(network, "encoder", network)
    of_loaded = {name: tensor.numel() for name, tensor in loaded.state_dict().items()}
    others = {name: tensor.numel() for name, tensor in network.state_dict().items() if not name.startswith("encoder.")}
    here = {**run, "roi_size": None if roi_size is None else list(roi_size)}
    return {
        "file": report.path,
        "sha256": file_digest(report.path),
        "record": report.record,
        "taken": _by_stage(of_loaded),
        "adapted": report.adapted,
        "from_scratch": {} if loaded is network else _by_stage(others),
        "left_out": _by_stage(report.left_out),
        "learnt_at": {key: {"file": report.record.get(key), "run": here.get(key)} for key in _OF_PRETRAINING},
    }


def _by_stage(sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return the tensors of each stage; name -> number of values."""
    stages: defaultdict[str, list[str]] = defaultdict(list)
    for name in sizes:
        stages[_STAGE.sub(r"\1", name)].append(name)
    return {
        stage: {"tensors": len(names), "values": sum(sizes[name] for name in names), "names": names}
        for stage, names in stages.items()
    }


def _in_short(stages: Mapping[str, Mapping[str, Any]]) -> str:
    if not stages:
        return "nothing"
    tensors, values = (sum(stage[key] for stage in stages.values()) for key in ("tensors", "values"))
    listed = ", ".join(f"{name} {stage['tensors']}" for name, stage in stages.items())
    return f"{tensors} tensors of {values:,} values: {listed}"


def _networks() -> set[str]:
    """Return the names of the networks that the bundle being run has files for."""
    return {path.stem for path in Path(bundle_root(), "configs", "networks").glob("*.json")}


def weights_files(checkpoint: str | Sequence[str] | None) -> list[str]:
    """Return the files of one network, or of an ensemble, as the option ``checkpoint`` names them."""
    if not checkpoint:
        return []
    return [checkpoint] if isinstance(checkpoint, str) else [str(path) for path in checkpoint]


def trained_network(
    network: nn.Module,
    checkpoint: str | Sequence[str],
    record: Mapping[str, Any] | None = None,
    mirror_axes: Sequence[int] = (),
    force: bool = False,
) -> nn.Module:
    """Return a network with all its weights from ``checkpoint``, in evaluation mode; never with random ones.

    Args:
        network: as in ``load_weights``.
        checkpoint: as in ``load_weights``; or the files of an ensemble, such as the folds of a cross-validation. Each
            of them is loaded and checked, and the network is left with the first; ``EnsembleInferer`` calls them all.
        record: as in ``load_weights``.
        mirror_axes: axes along which the network's input will be mirrored; training must have mirrored them too.
        force: whether to mirror other axes all the same, with a warning.

    Raises:
        FileNotFoundError, ValueError: as ``load_weights``.
        ValueError: training did not mirror one of ``mirror_axes``, or the weights do not say so; or the files of an
            ensemble are not of one kind, or one is named twice.
    """
    files = weights_files(checkpoint)
    if repeated := sorted({path for path in files if files.count(path) > 1}):
        raise ValueError(f"checkpoint {repeated[0]} is named twice; name each file of an ensemble once")
    reports = [_load(network, path, record, mirror_axes, force) for path in reversed(files)]
    _require_alike(reports[::-1])
    for note in _notes(files):
        logger.warning(note)
    return network.eval()


def _load(
    network: nn.Module, path: str, record: Mapping[str, Any] | None, mirror_axes: Sequence[int], force: bool
) -> LoadReport:
    report = load_weights(network, path, record, _networks())
    if objection := _mirror_objection(report.record.get("mirrored"), mirror_axes):
        if not force:
            raise ValueError(f"mirror_axes {list(mirror_axes)} {objection} ({path}); leave the option out")
        logger.warning("FORCED, mirror_axes %s %s (%s)", list(mirror_axes), objection, path)
    logger.info("weights: %s", report)
    if record and not report.record:
        logger.warning("%s does not say what its weights are: task and spacing are taken on trust", path)
    return report


def _require_alike(reports: Sequence[LoadReport]) -> None:
    """Refuse the files of an ensemble that say different things of themselves, whatever the run expects.

    Raises:
        ValueError: that names the first two files which differ, and in what.
    """
    first = reports[0]
    for other in reports[1:]:
        keys = [key for key in (*first.record, *other.record) if key not in _OF_TRAINING]
        differing = [key for key in dict.fromkeys(keys) if first.record.get(key) != other.record.get(key)]
        if differing:
            said = "; ".join(
                f"{key} is {first.record.get(key)!r} in {first.path} and {other.record.get(key)!r} in {other.path}"
                for key in differing
            )
            raise ValueError(
                f"checkpoint: the files of an ensemble must be of one kind: {said}. Name the folds of one"
                " cross-validation, or one file alone"
            )


def seen_in_training(checkpoint: str | Sequence[str] | None) -> dict[str, Any]:
    """Return the ranges that the record of weights says training saw; of an ensemble, what any of its members saw.

    What none of them says is not there: see ``TrainingRanges`` for the keys.
    """
    said = [seen for path in weights_files(checkpoint) if (seen := _seen(path, *_state(path)))]
    union: dict[str, Any] = dict(said[0]) if said else {}
    for seen in said[1:]:
        for key, ranges in seen.items():
            union[key] = _joined(union[key], ranges) if key in union else ranges
    return union


def _joined(first: Any, second: Any) -> Any:
    """Return the range that holds two ranges [lowest, highest], of numbers or of lists; or a table of such ranges."""
    if isinstance(first, Mapping):
        both = {name: _joined(first[name], second[name]) for name in first if name in second}
        return {**second, **first, **both}
    (low, high), (other_low, other_high) = first, second
    if isinstance(low, Sequence):
        return [list(map(min, low, other_low)), list(map(max, high, other_high))]
    return [min(low, other_low), max(high, other_high)]


def _mirror_objection(mirrored: Sequence[int] | None, wanted: Sequence[int]) -> str:
    if not set(wanted) - set(mirrored or ()):
        return ""
    if mirrored is None:
        return "cannot be judged: the weights do not say which axes were mirrored in training"
    return f"must be among those that were mirrored when the weights were trained, {list(mirrored) or 'none'}"


def weights_note(checkpoint: str | Sequence[str] | None) -> str:
    """Return what the text beside a file of weights says, such as that they are a demonstration, on one line; or "".

    Of an ensemble, what the texts beside its members say, each once.
    """
    return "; ".join(_notes(weights_files(checkpoint)))


def _notes(files: Sequence[str]) -> list[str]:
    texts = [note for path in files if (note := Path(path).with_suffix(".txt")).is_file()]
    return list(dict.fromkeys(" ".join(note.read_text(encoding="utf-8").split()) for note in texts))


def described_weights(checkpoint: str | Sequence[str] | None) -> str:
    """Return what results say of their weights: the note beside the file; of an ensemble first its members' digests."""
    files = weights_files(checkpoint)
    if len(files) < 2:
        return weights_note(checkpoint)
    named = ", ".join(f"{Path(path).parent.name}/{Path(path).name} sha256 {file_digest(path)[:16]}" for path in files)
    return "; ".join([f"mean of {len(files)} networks: {named}", *_notes(files)])


def file_digest(path: str) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal; it is read again when size or time of change differ."""
    return _digest(path, *_state(path))


def _state(path: str) -> tuple[int, int]:
    """Return size and time of change of a file: while they stay, it is not read again."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


@lru_cache
def _seen(path: str, size: int, changed: int) -> dict[str, Any]:
    found: dict[str, Any] = read_record(path).get("seen", {})
    return found


@lru_cache
def _digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_caption(note: str) -> str:
    """Return the note of a file of weights in the few words that a picture or a DICOM attribute has room for."""
    if not note:
        return ""
    return "demonstration weights" if "demonstration" in note else "weights for research only"


def shipped_weights(bundle_root: str, weights: str | Sequence[str] | None) -> str | list[str]:
    """Return the path of the weights that the bundle ships for a task; of an ensemble, all of its paths.

    Raises:
        ValueError: if it ships none for this task, or a file of them is not there, as in a bundle that was planned and
            is not trained yet.
    """
    paths = [str(Path(bundle_root, path)) for path in weights_files(weights)]
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise ValueError(
            f"this bundle ships no weights yet, there is no {missing[0]}; train first, then give --checkpoint"
            " path/to/model_best.pt, or put them there by promote.json"
        )
    if not paths:
        raise ValueError(
            "this bundle ships no weights for this task; train first, then give --checkpoint path/to/model_best.pt"
        )
    return paths[0] if isinstance(weights, str) else paths


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
