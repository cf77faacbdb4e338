"""Kinds of options: what each may be, in words and as a function that converts a value or refuses it."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = [
    "DetailError",
    "Option",
    "choice",
    "file",
    "mapping",
    "name",
    "names",
    "number",
    "path",
    "positive",
    "switch",
    "to_axes",
    "to_channel_order",
    "to_count",
    "to_data_folder",
    "to_device",
    "to_file",
    "to_files",
    "to_fold",
    "to_folder",
    "to_intensity",
    "to_label",
    "to_pairs",
    "to_parts",
    "to_path",
    "to_paths",
    "to_resume",
    "to_sides",
    "to_sources",
    "to_spacing",
    "to_store",
    "to_switch",
    "to_text",
    "to_tracking",
    "to_volume",
    "to_whole",
    "whole",
]


INTENSITIES = ("ct", "mr", "ct_or_mr", "zscore")  # of a record of weights, and of pre-training


class Option(NamedTuple):
    """What an option may be.

    Attributes:
        about: what it is, half a sentence.
        rule: completes "must be".
        convert: returns the value as the run takes it; raises ValueError or TypeError if it breaks the rule.
        null: whether it may be null.
        late: its default comes from the data set, the network or an earlier run, and is checked where it is used: only
            a value that is given is checked at the start.
    """

    about: str
    rule: str
    convert: Callable[[Any], Any]
    null: bool = False
    late: bool = False


class DetailError(ValueError):
    """Says more than the rule why a value is refused."""


def finite(value: Any) -> Any:
    """Return a number as it is; raises ValueError for NaN, infinity, true, false and whatever is no number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError
    return value


def to_whole(value: Any, low: float, high: float = math.inf) -> int:
    """Return a whole number from ``low`` to ``high``; raises ValueError for anything else."""
    if finite(value) != int(value) or not low <= value <= high:
        raise ValueError
    return int(value)


def to_count(value: Any) -> int:
    """A whole number of at least 1."""
    return to_whole(value, 1)


def to_label(value: Any) -> int:
    """A label value, which label maps keep as a byte."""
    return to_whole(value, 1, 255)


def whole(about: str, low: int, example: int, high: int | None = None, *, null: bool = False) -> Option:
    """A whole number of at least ``low``."""
    limits = f"of at least {low}" if high is None else f"from {low} to {high}"
    rule = f"a whole number {limits}, e.g. {example}"
    return Option(about, rule, lambda value: to_whole(value, low, math.inf if high is None else high), null)


def number(
    about: str,
    limits: str,
    example: float,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    null: bool = False,
) -> Option:
    """A finite number within ``low`` and ``high``, and strictly between ``above`` and ``below``."""

    def convert(value: Any) -> Any:
        if not (low <= finite(value) <= high and above < value < below):
            raise ValueError
        return value

    return Option(about, f"a number {limits}, e.g. {example}", convert, null)


def positive(about: str, example: float, *, null: bool = False) -> Option:
    """A number above 0."""
    return number(about, "above 0", example, above=0.0, null=null)


def choice(about: str, *values: str, null: bool = False) -> Option:
    """One of some texts."""

    def convert(value: Any) -> Any:
        if value not in values:
            raise ValueError
        return value

    return Option(about, f"one of {', '.join(values)}", convert, null)


def to_switch(value: Any) -> bool:
    """Return true or false as a bool, written as one or as text; raises ValueError for anything else."""
    text = str(value).lower() if isinstance(value, bool | str) else ""
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def switch(about: str, *, null: bool = False) -> Option:
    """True or false."""
    return Option(about, "true or false", to_switch, null)


def to_name(value: Any) -> str:
    """A text that can be the name of a file: not empty, without a slash and without spaces around it."""
    if not isinstance(value, str) or not value.strip() or "/" in value or value != value.strip():
        raise ValueError
    return value


def to_text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def name(about: str) -> Option:
    """A name that may become part of the name of a folder."""
    return Option(about, "a name without '/', e.g. 'BTCV'", to_name)


def names(about: str, *, null: bool = False, late: bool = False) -> Option:
    """A list of different texts that is not empty."""

    def convert(value: Any) -> Any:
        if isinstance(value, str) or not isinstance(value, Sequence) or not value or len(set(value)) < len(value):
            raise ValueError
        if not all(isinstance(item, str) and item.strip() for item in value):
            raise ValueError
        return value

    return Option(about, """a list of different names, e.g. "['CT']\"""", convert, null, late)


def mapping(
    about: str,
    rule: str,
    *,
    item: Callable[[Any], Any] | None = None,
    null: bool = False,
    late: bool = False,
) -> Option:
    """A table that is not empty; ``item`` returns or refuses each of its values."""

    def convert(value: Any) -> Any:
        if not isinstance(value, Mapping) or not value:
            raise ValueError
        return value if item is None else {key: item(held) for key, held in value.items()}

    return Option(about, rule, convert, null, late)


def to_numbers(value: Any) -> list[Any]:
    """A list of finite numbers."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError
    return [finite(item) for item in value]


def to_sides(value: Any) -> Any:
    """Three whole numbers of at least 1."""
    if len(to_numbers(value)) != 3:
        raise ValueError
    sides = [to_whole(side, 1) for side in value]
    return value if sides == list(value) and all(isinstance(side, Integral) for side in value) else sides


def to_spacing(value: Any) -> Any:
    """Three numbers from 0.01 to 50, in mm."""
    if len(to_numbers(value)) != 3 or not all(0.01 <= edge <= 50 for edge in value):
        raise ValueError
    return value


def to_intensity(value: Any) -> Any:
    """The name of a scaling of pre-training, or a transform as a configuration has it."""
    if not (isinstance(value, Mapping) and "_target_" in value) and value not in INTENSITIES:
        raise ValueError
    return value


def to_axes(value: Any) -> Any:
    """Different axes from 0 to 2; the list may be empty."""
    axes = to_numbers(value)
    if not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes):
        raise ValueError
    return value


def to_pairs(value: Any) -> Any:
    """A list of pairs."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError
    if not all(not isinstance(pair, str) and isinstance(pair, Sequence) and len(pair) == 2 for pair in value):
        raise ValueError
    return value


def to_ends(value: Any) -> Any:
    """Two different names."""
    ((first, second),) = to_pairs([value])
    if not all(isinstance(end, str) and end.strip() for end in (first, second)) or first == second:
        raise ValueError
    return value


def to_path(value: Any) -> str:
    """A path, with '~' as the folder of the user."""
    if not isinstance(value, str | os.PathLike) or not str(value).strip():
        raise ValueError
    return os.path.expanduser(value)


def to_file(value: Any) -> str:
    """The path of a file that is there."""
    path = Path(to_path(value))
    if path.is_dir():
        raise DetailError("it is a folder")
    if not path.is_file():
        raise DetailError("there is none of that name")
    return str(path)


def to_paths(value: Any) -> str | list[str]:
    """A path, or a list of different paths."""
    return to_path(value) if isinstance(value, str | os.PathLike) else _each(value, to_path)


def to_files(value: Any) -> str | list[str]:
    """The path of a file that is there, or a list of different ones."""
    return to_file(value) if isinstance(value, str | os.PathLike) else _each(value, to_file)


def _each(values: Any, convert: Callable[[Any], str]) -> list[str]:
    if not isinstance(values, Sequence) or not values:
        raise ValueError
    found = []
    for value in values:
        try:
            found.append(convert(value))
        except DetailError as error:
            raise DetailError(f"{value}: {error}") from error
    if len(set(found)) < len(found):
        raise DetailError("it names a file twice")
    return found


def to_parts(value: Any) -> bool | str | list[str]:
    """True or False, "together", or names."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value or not all(isinstance(name, str) for name in value):
            raise ValueError
        return list(value)
    return value if value == "together" else to_switch(value)


def to_volume(value: Any) -> float:
    """A number above 0."""
    if not finite(value) > 0:
        raise ValueError
    return float(value)


def to_data_folder(value: Any) -> str:
    """The path of a folder that is there, or 'phantom'."""
    if value == "phantom":
        return value
    path = Path(to_path(value))
    if path.is_file():
        raise DetailError("it is a file")
    if not path.is_dir():
        raise DetailError("it does not exist")
    return str(path)


def to_folder(value: Any) -> str:
    """The path of a folder that is there."""
    if not Path(to_path(value)).is_dir():
        raise DetailError("it does not exist")
    return to_path(value)


def to_store(value: Any) -> str:
    """The path of a folder that is there, or a URL."""
    return value if isinstance(value, str) and "://" in value else to_folder(value)


def to_tracking(value: Any) -> str:
    """A URI of MLflow, which must be installed."""
    if importlib.util.find_spec("mlflow") is None:
        raise DetailError("it needs a further package: pip install mlflow")
    if "://" not in (uri := to_text(value)) or uri.startswith("file:"):
        raise DetailError("MONAI keeps no runs of MLflow in plain files")
    return uri


def to_sources(value: Any) -> Any:
    """Paths, or {"path": ..., "weight": ..., "key": ...}; what is in them is checked where they are read."""
    if isinstance(value, str):
        return to_path(value)
    if isinstance(value, Mapping):
        return {**value, "path": to_path(value["path"])}
    if not isinstance(value, Sequence) or not value:
        raise ValueError
    return [to_sources(source) for source in value]


def path(about: str, *, null: bool = False) -> Option:
    """A path; nothing need be there yet."""
    return Option(about, "a path", to_path, null)


def file(about: str, *, null: bool = False, late: bool = False) -> Option:
    """The path of a file that is there."""
    return Option(about, "an existing file", to_file, null, late)


def to_device(value: Any) -> torch.device:
    """A device of PyTorch that this machine has."""
    found = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    try:
        device = torch.device(str(value))
        if device.type != "meta":  # which has no memory
            torch.empty(0, device=device)
            return device
    except (RuntimeError, AssertionError):  # not a device, or not of this machine
        pass
    raise DetailError(f"this machine has {', '.join(found)}")


def to_fold(value: Any) -> int | str:
    """The number of a fold, 'all' or 'official'."""
    return value if value in ("all", "official") else to_whole(int(value) if str(value).isdigit() else value, 0)


def to_resume(value: Any) -> bool | str:
    """True, False or 'auto'."""
    return value if value == "auto" else to_switch(value)


def to_channel_order(value: Any) -> Any:
    """Names of channels in the order of the files; MONAI may hand over numbers as well."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ValueError
    return value
