"""Modalities: the channels of a multi-channel scan by their names, and whether a scan is CT or MR.

Glossary:
    channel: one modality of the network's input, such as "flair". `CHANNELS` holds the names each is known by.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mambamim_nets.bundle.files import stem

__all__ = [
    "CHANNELS",
    "EXPECTED",
    "channel_of",
    "channel_positions",
    "in_number_order",
    "modality_objection",
    "modality_of",
    "one_or_all",
    "ordered",
]

EXPECTED = {"ct": ("CT",), "mr": ("MR",), "zscore": ("MR",), "ct_or_mr": ("CT", "MR")}  # by the scaling of intensities
AIR = (-1100.0, -900.0)  # HU
AIR_SHARE = 0.01  # of the voxels of a scan: more than chance puts there

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
    """Return the position of each channel among names; None if none is there.

    Raises:
        ValueError: some of the channels are there and others not, or one is there twice.
    """
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
    """Return the files of one case in channel order, by their own names or else by those of the description.

    Args:
        images: files, one for each channel.
        names: of the channels, by the description of the data set, in the order of the files.
        channels: of the task, in the network's order; None: the order stays.
        where: what gives the names, for messages.

    Raises:
        ValueError: some of the channels have no file, or several.
    """
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
    """Return the only image of a list, or the list if it has several."""
    return images[0] if len(images) == 1 else images


def modality_objection(intensity: str, values: Any, said: str = "") -> str:
    """Return why a scan is of another modality than a network expects, "" if it is not, or if that is not certain.

    Args:
        intensity: how the network's intensities are scaled: "ct", "mr", "zscore" or "ct_or_mr"; of anything else no
            modality is known.
        values: intensities of the scan, array or tensor, as in its file; decide where the header says nothing.
        said: DICOM Modality; "" where there is none.
    """
    expected = EXPECTED.get(intensity, ())
    if not expected:
        return ""
    wanted = " or ".join(expected)
    if said:
        return "" if said in expected else f"its DICOM Modality is {said}, and must be {wanted}"
    array = np.asarray(values)
    lowest = float(array.min())
    if expected == ("MR",) and lowest < AIR[1]:
        share = float(((array >= AIR[0]) & (array <= AIR[1])).mean())
        if share > AIR_SHARE:
            return f"{share:.0%} of its voxels lie near -1000, as air in CT does, and it must be {wanted}"
    if expected == ("CT",) and lowest >= 0:
        return f"its lowest value is {lowest:g}, and fat and air lie below 0 in CT; it must be {wanted}, in HU"
    return ""
