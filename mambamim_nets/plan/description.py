"""What a data set says of itself: the names of its channels and labels, its regions, its licence.

A data set without a description has names that are known from its layout (BTCV, CT-ORG, KiTS23, BraTS), or those that
the user gives; else its labels are named by their values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mambamim_nets.bundle.data.datalists import is_nnunet
from mambamim_nets.bundle.files import read_json
from mambamim_nets.bundle.io.modalities import channel_of, in_number_order, modality_of
from mambamim_nets.phantom.kinds import KINDS

__all__ = ["Description", "channel_names", "named_labels", "read_description"]

BACKGROUND = ("background", "bg", "unlabelled", "unlabeled")
# the form of case names, and the kind of phantom whose labels are those of the data set
KNOWN_LAYOUTS = ((r"img\d{4}", "abdomen"), (r"volume-\d+", "ctorg"), (r"case_\d{5}", "kits"), (r"BraTS.*", "brain"))
TEXT_LIMIT = 80  # characters of a name


class Description(NamedTuple):
    """What a data set says of itself; empty where it says nothing.

    Attributes:
        name: of the data set.
        channels: names of the image channels in the order of the files.
        labels: name -> label value, without background.
        regions: name -> label values, where the data set itself defines overlapping regions, as nnU-Net's do.
        licence: as stated.
        reference: as stated.
    """

    name: str = ""
    channels: tuple[str, ...] = ()
    labels: Mapping[str, int] = {}
    regions: Mapping[str, Sequence[int]] = {}
    licence: str = ""
    reference: str = ""


def read_description(dataset_dir: str | os.PathLike[str]) -> Description:
    """Read `dataset.json` of a data set in the form of the Decathlon or of nnU-Net; empty if there is none.

    Raises:
        ValueError: its labels are of no known form.
    """
    path = Path(dataset_dir) / "dataset.json"
    content = read_json(path) if path.is_file() else None
    if not isinstance(content, dict):
        return Description()
    nnunet = is_nnunet(content)
    labels, regions = _labels(content.get("labels") or {}, content, path)
    return Description(
        name=_text(content.get("name")),
        channels=tuple(_distinct(in_number_order(content.get("channel_names" if nnunet else "modality")))),
        labels=labels,
        regions=regions,
        licence=_text(content.get("licence", content.get("license"))),
        reference=_text(content.get("reference")),
    )


def _labels(said: Any, content: Mapping[str, Any], path: Path) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Return labels and regions of {"1": name}, {name: 1} or {name: [1, 2]}."""
    if not isinstance(said, Mapping):
        raise ValueError(f"{path}: 'labels' {said!r} must be {{'1': 'liver', ...}} or {{'liver': 1, ...}}; correct it")
    labels: dict[str, int] = {}
    regions: dict[str, list[int]] = {}
    for key, value in said.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            regions[_text(key)] = [int(item) for item in value]
            continue
        name, number = (key, value) if not str(key).isdigit() else (value, key)
        if not str(number).isdigit():
            raise ValueError(f"{path}: label {key!r}: {value!r} must be a name with a whole number; correct it")
        if _text(name) in labels:
            raise ValueError(f"{path}: 'labels' names {_text(name)!r} twice; give each value a name of its own")
        if int(number) and _text(name).lower() not in ("ignore", *BACKGROUND):
            labels[_text(name)] = int(number)
    if regions:  # nnU-Net: regions_class_order names the label that each region is written with
        written = content.get("regions_class_order") or []
        names = dict(zip((int(value) for value in written), regions, strict=False))
        regions |= {name: [value] for name, value in labels.items()}
        values = sorted({value for region in regions.values() for value in region})
        labels = {f"{names.get(value, 'label')} ({value})": value for value in values}
    if len(set(labels.values())) < len(labels):
        raise ValueError(f"{path}: 'labels' {dict(said)} must have a name of its own for each value; correct it")
    return labels, regions


def named_labels(found: Sequence[int], cases: Sequence[str], description: Description) -> tuple[dict[str, int], str]:
    """Return names for label values, and where the names are from.

    Args:
        found: label values of the data set, without 0.
        cases: case names.
        description: of the data set.
    """
    if description.labels:
        return dict(description.labels), "dataset.json"
    for pattern, kind in KNOWN_LAYOUTS:
        known = KINDS[kind].labels
        if all(re.fullmatch(pattern, case) for case in cases) and set(found) <= set(known):
            return {name: value for value, name in known.items()}, "the published names of this layout"
    return {f"label {value}": value for value in found}, "their values, since the data set names none"


def channel_names(image: str | Sequence[str], channels: int, description: Description, modality: str) -> list[str]:
    """Return the names of the image channels.

    Args:
        image: path or paths of one case.
        channels: how many there are.
        description: of the data set.
        modality: "CT", "MR" or "CT or MR", the name of a single channel that has none.

    Raises:
        ValueError: the description names another number of them.
    """
    if description.channels:
        if len(description.channels) != channels:
            raise ValueError(
                f"dataset.json names {len(description.channels)} channels, {list(description.channels)}, and the images"
                f" have {channels}; correct 'modality' or 'channel_names'"
            )
        return list(description.channels)
    paths = [image] if isinstance(image, str) else list(image)
    known = [match[1] for path in paths if (match := modality_of(path))]
    if len(known) == channels == len(paths) > 1:
        return known
    return [modality] if channels == 1 else [f"channel {number}" for number in range(channels)]


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names of channels, with their numbers where two are the same."""
    canonical = [channel_of(name) for name in names]
    repeated = len(set(canonical)) < len(canonical)
    return [f"{number} {_text(name)}" if repeated else _text(name) for number, name in enumerate(names)]


def _text(value: Any) -> str:
    """Return a name as MONAI's configurations take it: on one line, without what they would evaluate."""
    plain = " ".join(str(value or "").replace("#", "").split()).lstrip("$@%_")
    return plain[:TEXT_LIMIT].strip()
