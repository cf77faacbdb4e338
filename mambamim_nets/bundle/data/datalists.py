"""What the readers of data lists share: keys, names of cases, and subjects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambamim_nets.bundle.files import read_json, stem

__all__ = ["DECATHLON_KEYS", "case_names", "is_nnunet", "keys_of", "listed_subjects"]

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


def keys_of(content: Any) -> str:
    """Return the keys of a JSON object in words, for a message; of anything else its type."""
    return f"keys {sorted(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
