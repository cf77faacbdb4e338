"""Weights of MambaMIM's public code in this package's names: `python -m mambamim_nets.import_public`.

Reads what that code writes, and writes a file for `load_encoder`, `load_weights` and the bundles:

    *_timm_style.pth    the encoder of a pre-training, `embeddings.*` and `mae.*`
    *_withdecoder_*.pth the whole state of a pre-training, with the encoder below `sparse_encoder.`
    fine-tuning         the segmentation network, `embeddings.*`, `mae.*` and `decoder.*`

The network is `HyMamba(size="base", bidirectional=False)`: the public code holds weights of a backward direction that
it never runs, so they are as they were drawn and are left out, as are the decoder of pre-training and the mask token.
Its positions are fixed and not weights here; they are compared. Everything else must be there, in its shape.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambamim_nets.bundle.files import atomic_write, some
from mambamim_nets.bundle.weights import record
from mambamim_nets.checkpoint import stamped
from mambamim_nets.command_line import run
from mambamim_nets.layers.position import sincos_position
from mambamim_nets.nets.hymamba import HyMamba, HyMambaSeg

__all__ = ["Imported", "convert", "public_network"]

NAMES = (  # what a name here begins with -> what it begins with there; {n} is the first number plus the offset
    (r"stem\.", "embeddings.stem.", 0),
    (r"widen\.(\d)\.", "embeddings.expend{n}.", 1),
    (r"skips\.(\d)\.", "embeddings.encoder{n}.", 1),
    (r"stages\.(\d)\.", "embeddings.layer{n}.", 2),
    (r"mamba\.(\d+)\.", "mae.blocks.{n}.", 0),
    (r"up\.(\d)\.", "decoder.decoder{n}.", 5),
    (r"head\.", "decoder.decoder1.", 0),
    (r"out\.", "decoder.out.conv.", 0),
)
PARTS = {  # names within a block
    "depthwise.": "conv1.",
    "expand.": "conv2.",
    "compress.": "conv3.",
    "mixer.": "mamba.",
    "mlp.0.": "mlp.fc1.",
    "mlp.2.": "mlp.fc2.",
    "shortcut.0.": "conv3.",
    "shortcut.1.": "norm3.",
}
STATES = ("module", "model", "state_dict")  # under which a file may hold its weights
PRETRAINING = ("dense_decoder.", "densify_norms.", "densify_projs.", "mask_tokens.", "A_interpolation", "config")
UNUSED = re.compile(r"mae\.(mask_token|blocks\.\d+\.mamba\.((conv1d|x_proj|dt_proj)_b\.\w+|A_b_log|D_b))")
POSITION = "mae.pos_embed"
RECIPE = {"intensity": "ct", "intensity_range": [-175, 250], "spacing": [1.5, 1.5, 1.5], "roi_size": [96, 96, 96]}
"""What the public code does to its images, whatever its options."""


class Imported(NamedTuple):
    """The network with its weights, and the public names that have no place in it."""

    network: HyMamba | HyMambaSeg
    left_out: list[str]


def public_network(path: str | os.PathLike[str]) -> Imported:
    """Build the network that a file of the public code holds.

    Args:
        path: .pth or .pt file; read as tensors only, so that no code in it runs.

    Returns:
        A `HyMambaSeg` if the file holds a segmentation network, else a `HyMamba`; size "base", one direction.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of the public code, or a tensor is missing, unexpected, of another shape or not
            finite, or positions are not the fixed ones.
    """
    public, others = _public_state(Path(path))
    stem = public["embeddings.stem.weight"]
    classes = public.get("decoder.out.conv.weight")
    channels = stem.shape[1] if stem.ndim == 5 else 1
    network = (
        HyMamba(channels, "base", bidirectional=False)
        if classes is None
        else HyMambaSeg(channels, len(classes), "base", bidirectional=False)
    )
    own = network.state_dict()
    names = {public_name(key): key for key in own}
    left_out = sorted(name for name in public if UNUSED.fullmatch(name))
    problems = [f"missing {name}" for name in names if name not in public]
    problems += [f"unexpected {name}" for name in public if name not in {*names, *left_out, POSITION}]
    problems += [
        f"{name} is {tuple(public[name].shape)} in the file and {tuple(own[key].shape)} in the network"
        for name, key in names.items()
        if name in public and public[name].shape != own[key].shape
    ]
    if problems:
        raise ValueError(
            f"weights {path} are not of the network that the public code builds by default (widths 32, 64, 128, 192, "
            f"384, four Mamba layers), which is the one that can be imported: {some(problems, 5, ';')}"
        )
    _check_values(public, names, path)
    network.load_state_dict({key: public[name] for name, key in names.items()}, strict=True)
    return Imported(network, [*left_out, *others])


def public_name(key: str) -> str:
    """Return the public code's name of a parameter of `HyMamba` or `HyMambaSeg`.

    Raises:
        ValueError: if it has none.
    """
    key = key.removeprefix("encoder.")
    for pattern, there, offset in NAMES:
        if match := re.match(pattern, key):
            number = int(match[1]) if match.groups() else 0
            # the decoder counts down from the deepest, everything else up
            start = there.format(n=offset - number if there.startswith("decoder") else offset + number)
            rest = key[match.end() :]
            for own, public in PARTS.items():
                rest = re.sub(rf"(^|\.){re.escape(own)}", rf"\g<1>{public}", rest, count=1)
            return start + rest
    raise ValueError(f"parameter {key} has no name in the public code")


def _public_state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the encoder's or the segmentation network's part of a file, and what else of a pre-training it holds."""
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} do not exist; give the path of a .pth file")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"weights {path} cannot be read as tensors only: the file is damaged, or holds other objects, which are "
            "never loaded; download it again"
        ) from error
    state = next((content[key] for key in STATES if _is_mapping(content) and _is_mapping(content.get(key))), content)
    names = list(state) if _is_mapping(state) else []
    state = {str(name).removeprefix("module."): state[name] for name in names}
    others: list[str] = []
    if any(name.startswith("sparse_encoder.") for name in state):
        others = [name for name in state if name.startswith(PRETRAINING)]
        state = {name.removeprefix("sparse_encoder."): value for name, value in state.items() if name not in others}
    if "embeddings.stem.weight" not in state:
        if any(name.removeprefix("encoder.") == "stem.weight" for name in state):
            raise ValueError(f"weights {path} are this package's own; give them to --pretrained or --checkpoint as is")
        raise ValueError(
            f"weights {path} are not of MambaMIM's public code, which has embeddings.stem.weight; they have "
            f"{', '.join(list(state)[:3]) or 'no names at all'}"
        )
    if wrong := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"weights {path}: {', '.join(wrong[:5])} must be tensors; download the file again")
    return state, others


def _is_mapping(content: Any) -> bool:
    return isinstance(content, Mapping)


def _check_values(public: Mapping[str, Tensor], names: Iterable[str], path: str | os.PathLike[str]) -> None:
    """Refuse values that are no numbers, and positions that are not the fixed ones."""
    broken = [name for name in names if not public[name].is_floating_point() or not public[name].isfinite().all()]
    if broken:
        raise ValueError(f"weights {path} are not finite in {', '.join(broken[:5])}; download or train them again")
    if POSITION in public:
        held = public[POSITION]
        side = round((held.shape[1] if held.ndim == 3 else 0) ** (1 / 3))
        fixed = sincos_position([side] * 3, 384)[None]
        if held.shape != fixed.shape or not torch.allclose(held.float(), fixed, atol=1e-5):
            raise ValueError(
                f"weights {path}: {POSITION}, {tuple(held.shape)}, must be the public code's fixed sines and cosines "
                "for a cube of positions, since positions are not learnt here either"
            )


def convert(weights: str, output: str) -> str:
    """Write weights of MambaMIM's public code as a file of this package.

    Args:
        weights: file of the public code.
        output: .pt file to write; must not exist.

    Returns:
        What was done, in one sentence.

    Raises:
        FileNotFoundError, ValueError: as `public_network`.
        FileExistsError: the output exists.
    """
    target = Path(str(output)).expanduser()
    if target.exists():
        raise FileExistsError(f"output {target} exists; give another name, or remove it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"output {target}: its folder does not exist; make it first")
    network, left_out = public_network(Path(str(weights)).expanduser())
    pretrained = isinstance(network, HyMamba)
    facts: dict[str, Any] = {"method": "mambamim", **RECIPE} if pretrained else {}
    state = stamped(network.state_dict(), record(network, imported="MambaMIM, public code", **facts))
    atomic_write(target, lambda part: torch.save(state, part))
    named = "an encoder" if pretrained else f"a segmentation network of {network.out_channels} classes"
    option = "--pretrained" if pretrained else "--checkpoint"
    return (
        f"wrote {target}: {len(state)} tensors, {named}; left out: {len(left_out)}, which it does not use. Give it to "
        f"a segmentation bundle with {option} {target} --size base --network_def#bidirectional false"
    )


def main() -> None:
    """Run the command; a refusal is one sentence."""
    run(convert, "python -m mambamim_nets.import_public")


if __name__ == "__main__":
    main()
