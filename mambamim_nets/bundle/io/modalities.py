"""Names of image channels: the modalities of a multi-channel scan, by file name and by description.

Glossary:
    channel: one modality of the network's input, such as "flair". `CHANNELS` holds the names each is known by.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mambamim_nets.bundle.files import stem

__all__ = ["CHANNELS", "channel_of", "channel_positions", "in_number_order", "modality_of", "one_or_all", "ordered"]

# canonical name -> further names: of BraTS 2023 (t2f, t1c, t1n, t2w), of the Decathlon and of BIDS (t1gd, t1w, t2w)
CHANNELS: dict[str, tuple[str, ...]] = {
    "flair": ("t2f",),
    "t1ce": ("t1c", "t1gd"),
    "t1": ("t1n", "t1w"),
    "t2": ("t2w",),
}
_CANONICAL = {known: name for name, others in CHANNELS.items() for known in (name, *others)}
_MODALITY = re.compile(rf"^(?P<case>.+)[-_](?P<channel>{'|'.join(_CANONICAL)})$", re.IGNORECASE)


def channel_of(name: str) -> str:
    """Return the canonical name of an image channel ("T1w" -> "t1"); an unknown name comes back in lower case."""
    lower = name.strip().lower()
    return _CANONICAL.get(lower, lower)


def modality_of(filename: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return the case and the canonical modality that a NIfTI file's name ends in.

    "BraTS2021_00000_t1ce.nii.gz" -> ("BraTS2021_00000", "t1ce"), "sub-01_FLAIR.nii.gz" -> ("sub-01", "flair"); None if
    the name ends in no known modality after "_" or "-".
    """
    match = _MODALITY.match(stem(filename))
    return None if match is None else (match["case"], channel_of(match["channel"]))


def channel_positions(names: Sequence[str], channels: Sequence[str], where: str) -> list[int] | None:
    """Return where each channel stands among names; None if none does."""
    have, want = [channel_of(name) for name in names], [channel_of(name) for name in channels]
    missing = [channel for channel, name in zip(channels, want, strict=True) if name not in have]
    if len(missing) == len(want):
        return None
    if missing:
        raise ValueError(
            f"{where} {list(names)} must name all of the channels {list(channels)}, or none; missing: {missing}; add"
            " them, or correct their names"
        )
    if any(have.count(name) > 1 for name in want) or len(set(want)) < len(want):
        raise ValueError(f"{where} {list(names)}: each of the channels {list(channels)} must be named once")
    return [have.index(name) for name in want]


def ordered(images: list[str], names: Sequence[str], channels: Sequence[str] | None, where: str) -> list[str]:
    """Return one case's files in channel order, told by their own names or else by the description's."""
    known = [match[1] for path in images if (match := modality_of(path)) is not None]
    names = known if len(known) == len(images) else names
    if channels is None or len(names) != len(images):
        return images
    found = channel_positions(names, channels, where)
    return images if found is None else [images[p] for p in found]


def in_number_order(names: Any) -> list[str]:
    """Return the names of {"0": name, "1": ...}; [] for anything else."""
    if not isinstance(names, Mapping) or not all(str(number).isdigit() for number in names):
        return []
    return [str(names[number]) for number in sorted(names, key=int)]


def one_or_all(images: list[str]) -> str | list[str]:
    return images[0] if len(images) == 1 else images
