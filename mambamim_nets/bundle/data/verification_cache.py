"""What a check of data remembers from one start to the next: the files found sound, and the digests of their voxels."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mambamim_nets.bundle.files import write_text

__all__ = ["cache_key", "read_cache", "signature_of", "write_cache"]

logger = logging.getLogger("mambamim_nets")

CACHE_VERSION = 3  # one more when a rule is added


def signature_of(item: Mapping[str, Any], keys: Iterable[str]) -> list[list[Any]] | None:
    """Return [path, size, mtime_ns] of each file of an item; None where one is missing."""
    files: list[list[Any]] = []
    for key in keys:
        value = item[key]
        for path in [value] if isinstance(value, (str, os.PathLike)) else value:
            try:
                stat = os.stat(path)
            except OSError:
                return None
            files.append([os.path.abspath(path), stat.st_size, stat.st_mtime_ns])
    return files


def cache_key(signature: list[list[Any]], rule: str) -> str:
    """Return the key of an item in the cache: the rule it was checked by, and its paths."""
    return " + ".join([rule, *(entry[0] for entry in signature)])


def read_cache(path: Path) -> dict[str, tuple[list[list[Any]], list[str]]]:
    """Return, by case and rule, signature and digests of what was found sound."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] == CACHE_VERSION:
            return {key: (signature, digests) for key, (signature, digests) in content["clean"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is not a cache of this check (%s); every file is read again", path, error)
    return {}


def write_cache(path: Path, clean: Mapping[str, tuple[list[list[Any]], list[str]]]) -> None:
    """Write what was found sound, by case and rule; a folder without write permission is logged and not an error."""
    try:  # several processes may write; each replaces a whole file
        write_text(path, json.dumps({"version": CACHE_VERSION, "clean": dict(clean)}))
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next start reads every file again", path, error)
