"""What a store keeps on disk: volumes, the index of a part, and tables for people."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mambamim_nets.bundle.data.store import BLOCK, CHUNK, Recipe, index_lines, read_recipe, volume_path
from mambamim_nets.bundle.files import atomic_write, remove_leftovers, write_csv, write_text

__all__ = ["Index", "broken", "keep_recipe", "write_volume"]

LEVEL = 5  # of zstd: above it files shrink by a few per cent and take three times as long to write


def keep_recipe(folder: Path, recipe: Recipe) -> None:
    """Write the recipe of a new store, or compare it with that of the store that is there.

    Raises:
        ValueError: the store has another, or the folder holds something else.
    """
    path = folder / "store.json"
    if not path.exists():
        others = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")] if folder.is_dir() else []
        if others and not path.exists():  # another part may have begun just now
            raise ValueError(f"--store {folder} holds other files, such as {others[0]}; give a new or empty folder")
        write_text(path, json.dumps(recipe.content(), indent=1) + "\n")
    held = read_recipe(folder)
    if held != recipe:
        pairs = zip(held.content()["recipe"].items(), recipe.content()["recipe"].values(), strict=True)
        parts = [f"{name} {value} (here {here})" for (name, value), here in pairs if value != here]
        raise ValueError(
            f"--store {folder} was prepared with {', '.join(parts)}; give the same options, or another --store"
        )


def write_volume(folder: Path, name: str, array: np.ndarray) -> dict[str, Any]:
    """Write a volume whole or not at all; return the size and the hash of its file.

    Raises:
        OSError: it cannot be written.
    """
    import blosc2

    blosc2.set_nthreads(1)  # with several, blocks lie in the order in which they were done, and no file is like another
    stored = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=(CHUNK,) * 3,
        blocks=(BLOCK,) * 3,
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": LEVEL, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1},
    )
    content = stored.to_cframe()  # in memory: blosc2 does not say so where a disk is full
    atomic_write(volume_path(folder, name), lambda part: part.write_bytes(content))
    return {"file_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


class Index:
    """The index of one part, and what those of all parts know.

    Lines of one file or folder are appended at once; what a kill cut short is left out at the next start.

    Args:
        folder: of the store.
        part: number of this part.
        parts: how many there are.
        asked: options by which a volume may be refused, such as a filter: what they refused is looked at again when
            they change.
    """

    def __init__(self, folder: Path, part: int, parts: int, asked: Sequence[str | None]) -> None:
        self.folder, self.asked = folder, list(asked)
        self.path = folder / "index" / f"part-{part}-of-{parts}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path.parent)
        own = self._newest(index_lines(self.path)) if self.path.is_file() else {}
        self._write(own)
        everywhere = [line for path in sorted(self.path.parent.glob("*.jsonl")) for line in index_lines(path)]
        self._known: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self.roots: dict[str, str] = {}
        for line in everywhere:
            self._known[line["source"], line["path"]].append(line)
            self.roots[line["source"]] = line["root"]

    @staticmethod
    def _newest(lines: Iterable[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Return the last lines of each file or folder, as far as all of them are there."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for line in lines:
            key = line["source"], line["path"]
            if key not in found or len(found[key]) == found[key][0]["lines"]:
                found[key] = []
            found[key].append(line)
        return {key: group for key, group in found.items() if len(group) == group[0]["lines"]}

    def _write(self, lines: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> None:
        text = "".join(f"{json.dumps(line)}\n" for key in sorted(lines) for line in lines[key])
        write_text(self.path, text)

    def has(self, source: str, path: str, signature: tuple[int, int]) -> bool:
        """Return whether a file or folder is done, as it is now."""
        lines = [
            line
            for line in self._known.get((source, path), [])
            if (line["source_bytes"], line["source_time"]) == signature and self._holds(line)
        ]
        return bool(lines) and len(lines) >= lines[0]["lines"]

    def _holds(self, line: Mapping[str, Any]) -> bool:
        """Return whether a line still holds: its volume is there, or it would be refused again."""
        if "refused" in line:
            return not line["again"] and line["asked"] == self.asked
        with contextlib.suppress(OSError):
            return volume_path(self.folder, line["id"]).stat().st_size == line["file_bytes"]
        return False

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add all lines of a file or folder.

        Raises:
            OSError: they cannot be written.
        """
        text = "".join(f"{json.dumps({**line, 'lines': len(lines)})}\n" for line in lines)
        with self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> dict[str, int]:
        """Sort the index, drop what newer lines replace, and write the tables; return how many volumes there are."""
        lines = self._newest(index_lines(self.path))
        self._write(lines)
        every = [line for group in lines.values() for line in group]
        refused = [line for line in every if "refused" in line]
        stored = [line for line in every if "refused" not in line]
        tables = self.folder / "tables"
        rows = [[line["source"], line["path"], line["series"], line["refused"]] for line in refused]
        write_csv(tables / f"{self.path.stem}_refused.csv", [["source", "path", "series", "reason"], *rows])
        odd = [(line, *finding) for line in stored for finding in line["findings"].items()]
        rows = [[line["id"], line["source"], line["path"], name, what] for line, name, what in odd]
        write_csv(tables / f"{self.path.stem}_findings.csv", [["id", "source", "path", "finding", "what"], *rows])
        return {"stored": len(stored), "refused": len(refused), "odd": len({line["id"] for line, *_ in odd})}


def broken(folder: Path, line: Mapping[str, Any]) -> str:
    """Read a volume back, all of it; return what is wrong with it, or "".

    Args:
        folder: of the store.
        line: of its index.
    """
    import blosc2

    path = volume_path(folder, line["id"])
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != line["sha256"]:
            return f"{path}: its {len(content)} bytes must be the {line['file_bytes']} that were written"
        array = blosc2.ndarray_from_cframe(content)[:]
    except (OSError, RuntimeError, ValueError) as error:
        return f"{path} cannot be read ({' '.join(str(error).split())[:100]})"
    return "" if list(array.shape) == line["shape"] else f"{path}: shape {array.shape} must be {line['shape']}"
