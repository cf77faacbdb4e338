"""Weights in and out: strict loading with errors that say what the file holds and what to do.

Every file is a plain state dict of tensors, or a training checkpoint that holds one under "model"; both are read with
`weights_only=True`, so no code runs on load. A record of what the weights are (architecture, size, task, spacing)
travels in the state dict's own `_metadata`, where every reader that does not know it leaves it alone; so does what
modules say of themselves there, such as the eps of `layers.mamba.TokenNorm`. Shipped weights are stored in half
precision (`half_precision`); reading makes float32 of them.
"""

import json
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mambamim_nets.nets.hymamba import SIZES
from mambamim_nets.nets.mamba_unetr import UNETR_SIZES
from mambamim_nets.nets.protocols import Encoder
from mambamim_nets.records import SETTINGS, summary

__all__ = [
    "LoadReport",
    "encoder_state",
    "half_precision",
    "load_encoder",
    "load_other_labels",
    "load_weights",
    "non_finite",
    "read_record",
    "read_state",
    "record_of",
    "stamped",
]

_FIRST_CONV = "stem.weight"  # of every encoder
_RECORD = "mambamim_nets"  # its key in _metadata, which is otherwise by module
_OPTIONS = ("size", "scan", "seq_head", "stem_scan", "mlp_width")  # settings of networks that have options of their own
_RANGE_OPTIONS = {"ct": ("a_min", "a_max"), "mr": ("lower", "upper")}  # of transforms that scale intensities
_TASK = ("task", "channels", "classes", "labels", "points", "regions", "in_channels", "out_channels")
_SMALL = 8192  # values; holds norms, biases, A_log and D, and the first convolutions
_BACKGROUND, _LAST = "background", "out"
_DEFAULT_ARCHITECTURE = "hymamba"  # has no file in configs/networks


class LoadReport(NamedTuple):
    """What loading did.

    Attributes:
        path: the file.
        tensors: how many were taken.
        adapted: which was adapted how; "" if none.
        record: what the file says of itself.
        left_out: tensors of the file that are of no part that was loaded: name -> number of values.
    """

    path: str
    tensors: int
    adapted: str
    record: dict[str, Any]
    left_out: Mapping[str, int] = {}

    def __str__(self) -> str:
        facts = summary(self.record)
        text = f"{self.tensors} tensors from {self.path}" + (f" ({facts})" if facts else "")
        return text + (f"; {self.adapted}" if self.adapted else "")


def stamped(state: dict[str, Tensor], record: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Put a record into a module's state dict, in place, and return it; None leaves it without.

    Raises:
        TypeError: if the record holds anything that JSON cannot.
    """
    if record is not None:
        metadata: dict[str, Any] = state._metadata  # type: ignore[attr-defined]
        metadata[_RECORD] = json.loads(json.dumps(record))
    return state


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict as bundles ship it, half as large, with its metadata.

    Float32 tensors become float16, except those of at most 8192 values: norms, their running statistics, biases,
    ``A_log``, ``D`` and the first convolutions take 2 % of the file, and rounding them too would move the outputs ten
    times as far. A tensor with a value beyond float16's range stays as well.
    """
    largest = torch.finfo(torch.float16).max
    stored: dict[str, Tensor] = OrderedDict()
    for key, value in state.items():
        halved = value.dtype == torch.float32 and value.numel() > _SMALL and bool(value.abs().max() <= largest)
        stored[key] = value.half() if halved else value
    stored._metadata = getattr(state, "_metadata", {})  # type: ignore[attr-defined]
    return stored


def record_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the record in a state dict; empty if it has none."""
    return getattr(state, "_metadata", {}).get(_RECORD, {})


def read_record(path: str | PathLike) -> dict[str, Any]:
    """Return what a file says its weights are; empty if it says nothing.

    Raises:
        FileNotFoundError, ValueError: as `read_state`.
    """
    return _read(path)[1]


def read_state(path: str | PathLike) -> dict[str, Tensor]:
    """Read a state dict, or the "model" entry of a training checkpoint, onto the CPU; float16 becomes float32.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read as tensors only, holds no tensors, or a value that is not finite.
    """
    return _read(path)[0]


def non_finite(state: Mapping[str, Tensor]) -> str:
    """Name the first tensor with NaN or infinite values, and how many it has; "" if every value is finite."""
    for key, value in state.items():
        count = int(value.numel() - torch.isfinite(value).sum())
        if count:
            return f"{key} has {count} of {value.numel()} values NaN or infinite"
    return ""


def _read(path: str | PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} do not exist; give the path of a .pt file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"weights {path} cannot be read as a state dict of tensors: {error}") from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights {path} hold no state dict of tensors (nor one under 'model')")
    if found := non_finite(state):
        raise ValueError(
            f"weights {path} must be finite, but {found}; give weights of an earlier epoch, or train again with a lower"
            " --learning_rate or --amp false"
        )
    for name, entry in getattr(state, "_metadata", {}).items():
        if "eps" in entry and not (isinstance(entry["eps"], float) and 0 < entry["eps"] < 1):
            raise ValueError(
                f"weights {path} say that eps of {name} is {entry['eps']!r}, which must lie between 0 and 1; the file "
                "is damaged, copy or download it again"
            )
    record = record_of(state)
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    whole = _below(state, prefix)
    whole |= {key: value.float() for key, value in whole.items() if value.dtype == torch.float16}
    return whole, record


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it, and what modules say of themselves in metadata.

    A file without metadata was not written by `torch.save` of a whole state dict; its modules are given an entry that
    says nothing, as in an old file.
    """
    part: dict[str, Tensor] = OrderedDict()
    part |= {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    said = getattr(state, "_metadata", None) or {key.rpartition(".")[0]: {"version": 1} for key in state}
    part._metadata = {  # type: ignore[attr-defined]
        key.removeprefix(prefix): value for key, value in said.items() if f"{key}.".startswith(prefix)
    }
    return part


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's part of a state dict: keys below "encoder.", or all of them if there are none."""
    return _below(state, _encoder_prefix(state))


def _encoder_prefix(state: Mapping[str, Tensor]) -> str:
    prefixes = ("encoder.", "network.encoder.")
    return next((prefix for prefix in prefixes if any(key.startswith(prefix) for key in state)), "")


def _held(state: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Name the encoder and the size that have the widths of these weights, if any."""
    widths = [state[key].shape[0] for level in range(4) if (key := f"widen.{level}.weight") in state]
    for name, size in SIZES.items():
        if list(size.widths) == widths:
            return "HyMamba", name
    for name, plain in UNETR_SIZES.items():
        if not widths and "mamba.0.norm1.weight" in state and len(state["mamba.0.norm1.weight"]) == plain.width:
            return "VisionMamba", name
    return None


def _mamba_depth(state: Mapping[str, Tensor]) -> int:
    return sum(key.startswith("mamba.") and key.endswith(".norm1.weight") for key in encoder_state(state))


def _conv_depth(state: Mapping[str, Tensor]) -> int:
    return sum(key.startswith("stages.3.") and key.endswith(".expand.weight") for key in encoder_state(state))


def _directions(state: Mapping[str, Tensor]) -> int:
    """Return in how many directions the Mamba layers of an encoder scan, 0 if it has none."""
    encoder = encoder_state(state)
    return ("mamba.0.mixer.A_log" in encoder) + ("mamba.0.mixer.A_b_log" in encoder)


def _check(network: nn.Module, state: Mapping[str, Tensor], path: str | PathLike) -> None:
    """Raise one ValueError that lists how state and network differ, with the remedy."""
    own = network.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own]
    shaped = [key for key, value in state.items() if key in own and own[key].shape != value.shape]
    same_layers = not problems
    problems += [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the network" for key in shaped
    ]
    if not problems:
        return
    held, wanted = _held(encoder_state(state)), _held(encoder_state(own))
    remedy = "they are of another network; choose the network that they were trained with"
    if held and wanted and held[0] != wanted[0]:
        remedy = f"the file holds a {held[0]}, the network needs a {wanted[0]}: choose the network of these weights"
    elif held and wanted and held[1] != wanted[1]:
        remedy = f"the file holds size {held[1]!r}, the network is size {wanted[1]!r}: use --size {held[1]}"
    elif held and held == wanted and _mamba_depth(state) != _mamba_depth(own):
        depth = _mamba_depth(state)
        remedy = f"the file holds {depth} Mamba layers, the network has {_mamba_depth(own)}: "
        remedy += f"use --network_def#mamba_depth {depth}"
    elif held and held == wanted and _conv_depth(state) != _conv_depth(own):
        depth = _conv_depth(state)
        remedy = f"the file holds {depth} MedNeXt blocks at stride 16, the network has {_conv_depth(own)}: "
        remedy += f"use --network_def#conv_depth {depth}"
    elif held and held == wanted and _directions(state) != _directions(own):
        both = str(_directions(state) == 2).lower()
        remedy = f"the file holds Mamba layers that scan in {_directions(state)} direction(s), the network's scan in "
        remedy += f"{_directions(own)}: use --network_def#bidirectional {both}"
    elif state.keys() <= {key.removeprefix("encoder.") for key in own if key.startswith("encoder.")}:
        remedy = f"the file holds an encoder alone, which cannot do the task; train with --pretrained {path}, and use "
        remedy += "the model_best.pt of that run"
    elif held and not wanted:
        remedy = f"the file holds a {held[0]}, which this network has no place for; train it from weights of its own "
        remedy += "kind, or without --pretrained"
    elif all(problem.startswith("mlp.") for problem in problems):
        width = len(state["mlp.0.weight"])
        remedy = f"the file holds an MLP of width {width}, the network one of {len(own['mlp.0.weight'])}: "
        remedy += f"use --mlp_width {width}"
    elif same_layers and all(key.endswith(_FIRST_CONV) for key in shaped):
        remedy = "the number of image channels differs; load_encoder(..., adapt_input=True), or --adapt_input true "
        remedy += "with --pretrained, adapts the first layer"
    elif same_layers and all("out." in key for key in shaped):
        remedy = "the number of classes differs: use the task of these weights, or --pretrained for their encoder"
    listed = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
    raise ValueError(f"weights {path} do not fit {type(network).__name__}: {remedy}. {listed}")


def _check_record(
    held: Mapping[str, Any], wanted: Mapping[str, Any], path: str | PathLike, networks: Collection[str]
) -> None:
    """Raise one ValueError that lists how two records differ in what both hold, with the remedy for what matters most.

    Old files say less, and are compared in that.
    """
    wanted = json.loads(json.dumps(wanted))
    if "encoder" in held and "architecture" in wanted:
        raise ValueError(
            f"weights {path} are those of a pre-trained encoder ({summary(held)}), which cannot do the task alone; "
            f"train with --pretrained {path}, and use the model_best.pt of that run"
        )
    differing = [key for key, value in wanted.items() if key in held and held[key] != value]
    if differing:
        listed = "; ".join(f"{key} is {held[key]!r} in the file and {wanted[key]!r} in this run" for key in differing)
        remedy = _remedy(differing, held, networks)
        raise ValueError(f"weights {path} belong to something else: {listed}. Use other weights, or {remedy}")


def _remedy(differing: Sequence[str], held: Mapping[str, Any], networks: Collection[str]) -> str:
    if any(key in _TASK for key in differing):
        own = f", with its configs/tasks/{held['task']}.json if it has one" if "task" in held else ""
        return f"run the bundle of these weights{own}"
    first = differing[0]
    value = f'"{held[first]}"' if isinstance(held[first], list | dict) else str(held[first])
    if first == "architecture":
        if value in networks:
            return f"choose it with --config_file \"[..., 'configs/networks/{value}.json']\""
        if value == _DEFAULT_ARCHITECTURE:
            return "leave the file of configs/networks, or --network_def, out"
        return "give --network_def as it was when they were trained"
    if first == "width":
        return f"give --network_def, or --width, as it was when they were trained: {value} channels in the first layer"
    if first in ("intensity", "intensity_range"):
        return f"give {_intensity_options(held, first)}"
    if first in SETTINGS and first not in _OPTIONS:
        return f"give --network_def#{first} {value}"
    return f"give --{first} {value}"


def _intensity_options(held: Mapping[str, Any], differing: str) -> str:
    """Return the options that make a bundle's transform of intensities the one of a record."""
    kind, span = held.get("intensity", ""), held.get("intensity_range", [])
    if differing == "intensity_range" and kind == "ct_or_mr":
        return f'--intensity#hu "{span}"'
    names = _RANGE_OPTIONS.get(kind, ())
    if differing == "intensity" or len(names) != len(span):
        return "--intensity, the transform, as it was when they were trained"
    return " ".join(f"--intensity#{name} {value}" for name, value in zip(names, span, strict=True))


def load_weights(
    network: nn.Module,
    path: str | PathLike,
    record: Mapping[str, Any] | None = None,
    networks: Collection[str] = (),
) -> LoadReport:
    """Load all weights of a network, strictly.

    Args:
        network: any network.
        path: .pt file, a state dict or a training checkpoint.
        record: what the weights must be, see `stamped`; compared with what the file says it holds, if it says so.
        networks: architectures that the user can choose by a file of configs/networks, for the remedy.

    Raises:
        FileNotFoundError, ValueError: see `read_state`; also on another record and on any missing, unexpected or
            differently shaped tensor.
    """
    state, held = _read(path)
    _check_record(held, record or {}, path, networks)
    _check(network, state, path)
    network.load_state_dict(state, strict=True)
    return LoadReport(str(path), len(state), "", held)


def load_encoder(network: nn.Module, path: str | PathLike, adapt_input: bool = False) -> LoadReport:
    """Load pre-trained encoder weights, strictly.

    Args:
        network: an `Encoder` (HyMamba, VisionMamba), or a network with one as `.encoder`.
        path: .pt file of an encoder, of a whole network with an encoder, or a training checkpoint.
        adapt_input: the one named exception: if the file has another number of input channels, its first convolution
            is averaged over them, repeated, and scaled to keep the response to equal channels.

    Returns:
        LoadReport, which says so if the first convolution was adapted.

    Raises:
        FileNotFoundError, ValueError: see `read_state`; also on any missing, unexpected or differently shaped tensor.
    """
    encoder = getattr(network, "encoder", network)
    if not isinstance(encoder, Encoder) or not isinstance(encoder, nn.Module):
        raise ValueError(
            f"network {type(network).__name__} has no encoder to load {path} into; a HyMambaSeg or a MambaUNETR has, "
            "any other trains without --pretrained"
        )
    whole, held = _read(path)
    state, adapted = encoder_state(whole), ""
    first = state.get(_FIRST_CONV)
    wanted = encoder.state_dict().get(_FIRST_CONV)
    if adapt_input and first is not None and wanted is not None and first.shape[1] != wanted.shape[1]:
        own, needed = first.shape[1], wanted.shape[1]
        state[_FIRST_CONV] = first.mean(1, keepdim=True).repeat(1, needed, 1, 1, 1) * (own / needed)
        adapted = f"first convolution adapted from {own} to {needed} input channels"
    _check(encoder, state, path)
    encoder.load_state_dict(state, strict=True)
    prefix = _encoder_prefix(whole)
    others = {key: value.numel() for key, value in whole.items() if not key.startswith(prefix)}
    return LoadReport(str(path), len(state), adapted, held, others)


def load_other_labels(network: nn.Module, path: str | PathLike, record: Mapping[str, Any]) -> LoadReport:
    """Load all weights of a network that was trained for other labels, strictly but for its last layer, `out`.

    Of that layer, whose outputs are background and labels, or regions, those are taken which have the same name in
    both; others keep the values that they have.

    Args:
        network: as built for the labels of this run, with `out` as its only layer that depends on them.
        path: .pt file of a whole network of the same kind, with a record.
        record: of this run's weights, see `stamped`.

    Raises:
        FileNotFoundError, ValueError: see `read_state`; also if the network has no such layer, if the file does not say
            what its outputs are, or none of them has a name of this run, and on any missing, unexpected or differently
            shaped tensor of other layers.
    """
    if not hasattr(network, _LAST):
        raise ValueError(
            f"network {type(network).__name__} has no single last layer {_LAST!r} whose outputs could be told apart by"
            f" label, so it cannot take {path} as a whole; leave --pretrained_part out"
        )
    state, held = _read(path)
    here, there = _outputs(record), _outputs(held)
    shared = [name for name in here if name in there]
    if not set(shared) - {_BACKGROUND}:
        known = f"its outputs are {', '.join(there)}" if there else "it does not say what its outputs are"
        raise ValueError(
            f"weights {path} have no label of this run ({', '.join(here)}): {known}; take their encoder alone, with"
            " --pretrained_part encoder"
        )
    fitted = dict(state)
    for key, value in network.state_dict().items():
        if key.startswith(f"{_LAST}.") and key in state and len(state[key]) == len(there):
            fitted[key] = value.clone()
            fitted[key][[here.index(name) for name in shared]] = state[key][[there.index(name) for name in shared]]
    _check(network, fitted, path)
    network.load_state_dict(fitted, strict=True)
    new = [name for name in here if name not in there]
    adapted = f"of the last layer {', '.join(shared)}" + (f"; {', '.join(new)} at random" if new else "")
    return LoadReport(str(path), len(fitted), adapted, held)


def _outputs(record: Mapping[str, Any]) -> list[str]:
    """Return what each output of a segmentation network stands for, [] if a record does not say it."""
    if record.get("regions"):
        return list(record["regions"])
    return [_BACKGROUND, *record["labels"]] if record.get("labels") else []
