"""What a configuration asks of its surroundings: the bundle's folder, the task, switches, and what a run announces."""

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import ConfigWorkflow
from torch import nn

__all__ = ["announce", "bundle_root", "callers", "flag"]

logger = logging.getLogger("mambamim_nets")


def bundle_root() -> str:
    """Return the absolute folder of the bundle whose configuration is being evaluated, whatever the working directory.

    MONAI hands no such value to expressions, so it is found on the call stack: the running ConfigWorkflow knows its
    configuration's folder, and the verbs without a workflow (verify_net_in_out, ckpt_export) hold the file's path as
    ``config_file_``. Without either, it is the working directory.
    """
    for frame in callers():
        owner, file = frame.f_locals.get("self"), frame.f_locals.get("config_file_")
        folder = None
        if isinstance(owner, ConfigWorkflow) and hasattr(owner, "config_root_path"):
            folder = Path(owner.config_root_path)
        elif frame.f_globals.get("__name__") == "monai.bundle.scripts" and file:
            folder = Path(file if isinstance(file, str) else file[0]).parent
        if folder is not None:
            folder = folder.resolve()
            return str(folder.parent if folder.name == "configs" else folder)
    return str(Path.cwd())


def callers() -> Iterator[FrameType]:
    """Yield the frames of the call stack, innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def flag(value: bool | str, name: str = "switch") -> bool:
    """Return a switch as a bool: the command line hands ``--amp true`` over as a string.

    Raises:
        ValueError: if it is neither true nor false.
    """
    text = str(value).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{name} {value!r} must be true or false")
    return text == "true"


def announce(title: str, **facts: Any) -> None:
    """Log what a run is about to do, one fact per line."""
    width = max(map(len, facts), default=0)
    lines = [f"  {name:<{width}}  {_short(value)}" for name, value in facts.items()]
    logger.info("\n".join([title, *lines]))


def _short(value: Any) -> str:
    if isinstance(value, nn.Module):
        return f"{type(value).__name__}, {sum(p.numel() for p in value.parameters()) / 1e6:.2f} M parameters"
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str) and len(value) > 20:
        return f"{len(value)} items"
    return str(value)
