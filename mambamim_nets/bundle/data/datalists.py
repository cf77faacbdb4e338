"""What the readers of data lists share: keys, names of cases, subjects, and what label values mean."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambamim_nets.bundle.files import read_json, some, stem

__all__ = ["DECATHLON_KEYS", "case_names", "compare_labels", "is_nnunet", "keys_of", "listed_subjects"]

logger = logging.getLogger("mambamim_nets")
DECATHLON_KEYS = ("training", "validation", "test", "testing")


def is_nnunet(content: Any) -> bool:
    """Return whether the content of a dataset.json is in the form of nnU-Net version 2."""
    return isinstance(content, dict) and "channel_names" in content and "file_ending" in content


def case_names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name Decathlon entries: "case", else the image's file name, else (where that repeats) with its folders in front.

    Several channels in several files are named after the label.
    """
    paths = [entry["label"] if isinstance(entry["image"], list) else entry["image"] for entry in entries]
    short = [stem(path) for path in paths]
    counts = Counter(short)
    names = []
    for entry, path, name in zip(entries, paths, short, strict=True):
        if counts[name] > 1:
            parts = [part for part in Path(path).parent.parts if part not in (".", "..", "/")]
            name = "_".join([*parts, name])
        names.append(str(entry.get("case", name)))
    return names


def listed_subjects(path: Path) -> dict[str, str]:
    """Read {"cases": [{"case", "subject"}, ...]} of a split file; {} where there is none."""
    content = read_json(path) if path.is_file() else None
    entries = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return {}
    return {e["case"]: str(e["subject"]) for e in entries if isinstance(e, dict) and "case" in e and "subject" in e}


def compare_labels(path: Path, labels: Mapping[str, int]) -> None:
    """Compare what a dataset.json calls label values with what a task does; other words for a value are logged.

    Names are the same if they have the same words, in any order and letters: "kidney_left" is "left kidney".

    Args:
        path: of the dataset.json; without one, or without label names in it, there is nothing to compare.
        labels: of the task, name -> value.

    Raises:
        ValueError: a name has another value there than in the task, so masks would be learnt under wrong names.
    """
    stated = _stated_labels(read_json(path)) if path.is_file() else {}
    values = {_words(name): value for name, value in labels.items()}
    names = {value: name for name, value in labels.items()}
    wrong, otherwise = [], []
    for value, name in sorted(stated.items()):
        meant = values.get(_words(name), value)
        if meant != value:
            wrong.append(f"{name!r} is {value} there and {meant} in this task")
        elif value in names and _words(names[value]) != _words(name):
            otherwise.append(f"{value} {name!r} (here {names[value]!r})")
    if wrong:
        raise ValueError(
            f"{path}: 'labels' contradict this task: {some(wrong)}; use a bundle for this data set, such as"
            " mambamim_nets.plan writes, or give --labels with its names and values, or correct the file if it is wrong"
        )
    if otherwise:
        logger.warning(
            "%s: 'labels' have other names than this task: %s; see that they mean the same", path, some(otherwise)
        )


def _stated_labels(content: Any) -> dict[int, str]:
    """Return the names of label values, of {"1": name} or {name: 1}; regions, of several values, are left out."""
    said = content.get("labels") if isinstance(content, dict) else None
    found = {}
    for key, value in said.items() if isinstance(said, Mapping) else ():
        name, number = (value, key) if str(key).isdecimal() else (key, value)
        if isinstance(name, str) and str(number).isdecimal() and int(number):
            found[int(number)] = name
    return found


def _words(name: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"[^\W_]+", name.lower())))


def keys_of(content: Any) -> str:
    """Return the keys of a JSON object in words, for a message; of anything else its type."""
    return f"keys {sorted(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
