"""Weights in and out: strict loading with errors that say what the file holds and what to do.

Every file is a plain state dict of tensors, or a training checkpoint that holds one under "model"; both are read with
``weights_only=True``, so no code runs on load. A record of what the weights are (architecture, size, task, spacing)
travels in the state dict's own ``_metadata``, where every reader that does not know it leaves it alone.
"""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mambamim_nets.nets.hymamba import SIZES, HyMamba
from mambamim_nets.nets.mamba_unetr import UNETR_SIZES, VisionMamba

__all__ = ["LoadReport", "encoder_state", "load_encoder", "load_weights", "read_record", "read_state", "stamped"]

_FIRST_CONV = "stem.weight"  # of every encoder
_RECORD = "mambamim_nets"  # its key in _metadata, which is otherwise by module
_CHOICE = {
    "architecture": "choose it with --config_file \"[..., 'configs/networks/{0}.json']\"",
    **dict.fromkeys(("task", "channels", "classes", "labels", "regions"), "use the bundle and --task of these weights"),
}
_DEFAULT_ARCHITECTURE = "hymamba"  # has no file in configs/networks


class LoadReport(NamedTuple):
    """What loading did: the file, how many tensors were taken, which was adapted how ("" if none), the record."""

    path: str
    tensors: int
    adapted: str
    record: dict[str, Any]

    def __str__(self) -> str:
        named = ("architecture", "encoder", "method", "size", "task")
        facts = ", ".join(f"{key} {self.record[key]}" for key in named if key in self.record)
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


def read_record(path: str | PathLike) -> dict[str, Any]:
    """Return what a file says its weights are; empty if it says nothing.

    Raises:
        FileNotFoundError, ValueError: as ``read_state``.
    """
    return _read(path)[1]


def read_state(path: str | PathLike) -> dict[str, Tensor]:
    """Read a state dict, or the "model" entry of a training checkpoint, onto the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read as tensors only, or holds no tensors.
    """
    return _read(path)[0]


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
    record = getattr(state, "_metadata", {}).get(_RECORD, {})
    return {key.removeprefix("module."): value for key, value in state.items()}, record


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's part of a state dict: keys below "encoder.", or all of them if there are none."""
    for prefix in ("encoder.", "network.encoder."):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if part:
            return part
    return dict(state)


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


def _check(network: nn.Module, state: Mapping[str, Tensor], path: str | PathLike) -> None:
    """Raise one ValueError that lists how state and network differ, with the remedy."""
    own = network.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(value.shape)} in the file and {tuple(own[key].shape)} in the network"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    if not problems:
        return
    held, wanted = _held(encoder_state(state)), _held(encoder_state(own))
    remedy = "use the weights of this very network"
    if held and wanted and held[0] != wanted[0]:
        remedy = f"the file holds a {held[0]}, the network needs a {wanted[0]}: choose the network of these weights"
    elif held and wanted and held[1] != wanted[1]:
        remedy = f"the file holds size {held[1]!r}, the network is size {wanted[1]!r}: use --size {held[1]}"
    elif held and held == wanted and _mamba_depth(state) != _mamba_depth(own):
        depth = _mamba_depth(state)
        remedy = f"the file holds {depth} Mamba layers, the network has {_mamba_depth(own)}: "
        remedy += f"use --network_def#mamba_depth {depth}"
    elif held and not wanted:
        remedy = f"the file holds a {held[0]}, which this network has no place for; train it from weights of its own "
        remedy += "kind, or without --pretrained"
    elif any(_FIRST_CONV in problem for problem in problems):
        remedy = "the number of image channels differs; load_encoder(..., adapt_input=True) adapts the first layer"
    elif any("out." in problem for problem in problems):
        remedy = "the number of classes differs: use the task of these weights, or --pretrained for their encoder"
    listed = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
    raise ValueError(f"weights {path} do not fit {type(network).__name__}: {remedy}. {listed}")


def _check_record(held: Mapping[str, Any], wanted: Mapping[str, Any], path: str | PathLike) -> None:
    """Raise one ValueError that lists how two records differ in what both hold, with the remedy for the first."""
    wanted = json.loads(json.dumps(wanted))
    differing = [key for key, value in wanted.items() if key in held and held[key] != value]
    if not differing:
        return
    first = differing[0]
    value = held[first] if isinstance(held[first], str) else f'"{held[first]}"'
    remedy = _CHOICE.get(first, f"give --{first} {value}").format(value)
    if first == "architecture" and held[first] == _DEFAULT_ARCHITECTURE:
        remedy = "leave the file of configs/networks out"
    listed = "; ".join(f"{key} is {held[key]!r} in the file and {wanted[key]!r} in this run" for key in differing)
    raise ValueError(f"weights {path} belong to something else: {listed}. Use other weights, or {remedy}")


def load_weights(network: nn.Module, path: str | PathLike, record: Mapping[str, Any] | None = None) -> LoadReport:
    """Load all weights of a network, strictly.

    Args:
        network: any network.
        path: .pt file, a state dict or a training checkpoint.
        record: what the weights must be, see ``stamped``; compared with what the file says it holds, if it says so.

    Raises:
        FileNotFoundError, ValueError: see ``read_state``; also on another record and on any missing, unexpected or
            differently shaped tensor.
    """
    state, held = _read(path)
    _check_record(held, record or {}, path)
    _check(network, state, path)
    network.load_state_dict(state, strict=True)
    return LoadReport(str(path), len(state), "", held)


def load_encoder(network: nn.Module, path: str | PathLike, adapt_input: bool = False) -> LoadReport:
    """Load pre-trained encoder weights, strictly.

    Args:
        network: an encoder (HyMamba, VisionMamba), or a network with one as ``.encoder``.
        path: .pt file of an encoder, of a whole network with an encoder, or a training checkpoint.
        adapt_input: the one named exception: if the file has another number of input channels, its first convolution
            is averaged over them, repeated, and scaled to keep the response to equal channels.

    Returns:
        LoadReport, which says so if the first convolution was adapted.

    Raises:
        FileNotFoundError, ValueError: see ``read_state``; also on any missing, unexpected or differently shaped tensor.
    """
    encoder = network if isinstance(network, HyMamba | VisionMamba) else getattr(network, "encoder", None)
    if not isinstance(encoder, nn.Module):
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
    return LoadReport(str(path), len(state), adapted, held)
