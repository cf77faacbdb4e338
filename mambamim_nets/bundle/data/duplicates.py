"""Images that a data set has twice: one that trains and validates under two names makes scores that say nothing.

Two images are the same if a path leads to the same file, or if their voxels are equal as float32: compressed files of
one image differ in their bytes, and the header of a copy may have been touched.
"""

import filecmp
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Copy", "copies", "same_files", "two_cases", "voxel_digest"]


class Copy(NamedTuple):
    """Two items that are one image: their places in the list, their files, and how it shows."""

    first: int
    second: int
    first_file: str
    second_file: str
    how: str

    def __str__(self) -> str:
        return f"{self.second_file} {self.how} {self.first_file}"


def voxel_digest(data: np.ndarray) -> str:
    """Return a digest of shape and values (as float32) of an image, whatever its voxel type and order in memory.

    Goes along the last axis, so that there is never more than a slice beside the image.
    """
    digest = hashlib.blake2b(repr(data.shape).encode(), digest_size=16)
    with np.errstate(over="ignore", invalid="ignore"):
        for index in range(data.shape[-1]):
            # adding 0 makes one of the two zeros; first axis fastest, as in NIfTI files, is the order of the digest
            digest.update(np.add(data[..., index].T, 0.0, dtype=np.float32, order="C", casting="unsafe"))
    return digest.hexdigest()


def copies(items: Sequence[Mapping[str, Any]], digests: Sequence[Sequence[str]]) -> list[Copy]:
    """Find items that share an image, or one of their channels.

    Args:
        items: with "image", a path or one per channel.
        digests: of each item, one per file as from `voxel_digest`; empty where it could not be read.

    Returns:
        One Copy per item and earlier item that it repeats.
    """
    by_path: dict[str, tuple[int, str]] = {}
    by_voxels: dict[str, tuple[int, str]] = {}
    found: dict[tuple[int, int], Copy] = {}
    for place, (item, known) in enumerate(zip(items, digests, strict=True)):
        image = item["image"]
        files = [os.fspath(image)] if isinstance(image, str | os.PathLike) else [os.fspath(path) for path in image]
        hashed = known if len(known) == len(files) else [""] * len(files)
        for file, digest in zip(files, hashed, strict=True):
            for key, seen, how in (
                (os.path.realpath(file), by_path, "is the same file as"),
                (digest, by_voxels, "has the same voxels as"),
            ):
                first, first_file = seen.setdefault(key, (place, file)) if key else (place, file)
                if first != place:
                    found.setdefault((first, place), Copy(first, place, first_file, file, how))
    return list(found.values())


def two_cases(copy: Copy, cases: Sequence[Mapping[str, Any]]) -> str:
    """Return the problem that two cases of a data set are one image, named by "case" where they have it."""
    first, second = (cases[place].get("case", f"number {place}") for place in (copy.first, copy.second))
    return (
        f"{copy}: cases {first} and {second} must be different images, or one would train and validate: take one of "
        "the two out of the data set"
    )


def same_files(first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of files that are the same: one file by links, or compressed files of equal bytes.

    Opens only compressed files of equal size, and skips what does not exist.
    """
    by_inode: dict[tuple[int, int], str] = {}
    by_size: dict[int, list[str]] = {}
    for path in first:
        if os.path.isfile(path):
            stat = os.stat(path)
            by_inode[stat.st_dev, stat.st_ino] = path
            if path.endswith(".gz"):
                by_size.setdefault(stat.st_size, []).append(path)
    pairs = []
    for path in second:
        if not os.path.isfile(path):
            continue
        stat = os.stat(path)
        equal = [by_inode[key]] if (key := (stat.st_dev, stat.st_ino)) in by_inode else []
        if not equal and path.endswith(".gz"):
            equal = [one for one in by_size.get(stat.st_size, []) if stat.st_size and filecmp.cmp(one, path, False)]
        pairs += [(one, path) for one in equal[:1]]
    return pairs
