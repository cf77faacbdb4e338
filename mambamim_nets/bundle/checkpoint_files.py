"""The files that a training run leaves: how they are called, read and written."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mambamim_nets.bundle.files import atomic_write
from mambamim_nets.checkpoint import non_finite, read_state

__all__ = ["BEST", "ENCODER", "LAST", "holds", "keep_copy", "load_state", "read_checkpoint", "save"]

LAST, BEST, ENCODER = "checkpoint_last.pt", "model_best.pt", "encoder.pt"
KEPT = "checkpoint_{step:08d}.pt"  # of a step, beside the last one
PARTS = {"model", "optimizer", "lr_scheduler", "trainer", "epoch", "best_metric", "best_epoch", "identity"}


def read_checkpoint(path: Path, export: str) -> dict[str, Any]:
    """Read a checkpoint of a run, beside which the run exports weights of a name.

    Raises:
        ValueError: if it is damaged, or something else.
    """
    remedy = (
        f"move the weights in {path.parent} away to start anew, or give another --output_dir, where --pretrained "
        f"{path.parent / export} starts from the weights of this run if that file is whole"
    )
    earlier = [one for one in _kept(path.parent) if not (path.exists() and one.samefile(path))]
    if earlier:
        remedy = f"copy {earlier[0]}, which is earlier, to {path} to go on from there, or {remedy}"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        words = " ".join(str(error).split()).split(". ")[0][:120] or type(error).__name__
        raise ValueError(f"{path} is damaged and cannot be resumed ({words}); {remedy}") from error
    missing = sorted(PARTS - set(state)) if isinstance(state, Mapping) else sorted(PARTS)
    if missing:
        raise ValueError(f"{path} is no checkpoint of a training run: it lacks {', '.join(missing)}; {remedy}")
    for name in ("model", "average"):
        if found := non_finite(state.get(name, {})):
            raise ValueError(f"{path}: {name}: {found}; {remedy}")
    return state


def _kept(folder: Path) -> list[Path]:
    """Return the kept checkpoints of a folder, the newest first."""
    found = folder.glob(f"{KEPT.partition('{')[0]}[0-9]*.pt")
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def keep_copy(last: Path, step: int, most: int) -> None:
    """Keep a checkpoint that the next one will replace, under the name of its step, and delete the oldest such files.

    Where the file system has hard links, the copy takes no time and no room until then.

    Args:
        last: the checkpoint.
        step: of the run at which it was written.
        most: how many are kept, this one among them.
    """

    def link(part: Path) -> None:
        try:
            os.link(last, part)
        except OSError:
            shutil.copyfile(last, part)

    kept = last.with_name(KEPT.format(step=step))
    atomic_write(kept, link)
    for path in _kept(last.parent)[most:]:
        path.unlink(missing_ok=True)


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load the weights of a checkpoint, strictly.

    Raises:
        ValueError: if they are of another network.
    """
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        words = " ".join(str(error).splitlines()[1:2])[:120].strip()
        raise ValueError(
            f"{path} holds another network than this {type(network).__name__} ({words}...); give another --output_dir"
        ) from error


def holds(path: Path, state: Mapping[str, Tensor]) -> bool:
    """Return whether a file of weights is readable and holds just these."""
    try:
        held = read_state(path)
    except (OSError, ValueError):
        return False
    return held.keys() == state.keys() and all(torch.equal(held[key], value.cpu()) for key, value in state.items())


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of tensors whole or not at all.

    Raises:
        OSError: that says what is left, if it cannot be written.
    """

    def write(part: Path) -> None:
        with part.open("wb") as file:
            torch.save(content, file)

    try:
        atomic_write(path, write)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{path} cannot be written ({error}); what was there before is whole: make room or give rights, and the "
            "same command goes on from it"
        ) from error
