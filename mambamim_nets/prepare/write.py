"""What a store keeps beside its volumes: its recipe, the index of a part, and tables for people."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mambamim_nets.bundle.data.store import Recipe, read_recipe
from mambamim_nets.bundle.data.store_files import StoreFiles, masks_of
from mambamim_nets.bundle.data.store_filter import Filter
from mambamim_nets.bundle.files import remove_leftovers
from mambamim_nets.prepare.read import Found

__all__ = ["Index", "keep_recipe"]


def keep_recipe(files: StoreFiles, recipe: Recipe) -> None:
    """Write the recipe of a new store, or compare it with that of the store that is there.

    Raises:
        ValueError: the store has another, or the folder holds something else.
    """
    if "store.json" not in (others := files.paths()):
        if others and "store.json" not in files.paths():  # another part may have begun just now
            raise ValueError(f"--store {files} holds other files, such as {others[0]}; give a new or empty folder")
        files.write("store.json", f"{json.dumps(recipe.content(), indent=1)}\n".encode())
    held = read_recipe(files)
    if held != recipe:
        pairs = zip(held.content()["recipe"].items(), recipe.content()["recipe"].values(), strict=True)
        parts = [f"{name} {value} (here {here})" for (name, value), here in pairs if value != here]
        raise ValueError(
            f"--store {files} was prepared with {', '.join(parts)}; give the same options, or another --store"
        )


class Index:
    """The index of one part, and what those of all parts know.

    Lines of one file or folder are appended at once; what a kill cut short is left out at the next start.

    Args:
        files: of the store.
        part: number of this part.
        parts: how many there are.
        asked: options by which a volume may be refused, such as a filter: what they refused is looked at again when
            they change.
    """

    def __init__(self, files: StoreFiles, part: int, parts: int, asked: Sequence[str | None]) -> None:
        self.files, self.asked = files, list(asked)
        self.name = f"part-{part}-of-{parts}"
        self.path = f"index/{self.name}.jsonl"
        if files.folder is not None:
            remove_leftovers(files.folder / "index")
        own = self._newest(files.lines(self.path)) if self.path in files.indices() else {}
        self._write(own)
        everywhere = [line for path in files.indices() for line in files.lines(path)]
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
        self.files.write(self.path, text.encode())

    def has(self, found: Found, signature: tuple[int, int]) -> bool:
        """Return whether a file or folder is done, as it is now and as its table describes it now."""
        lines = [
            line
            for line in self._known.get((found.source, found.path), [])
            if (line["source_bytes"], line["source_time"]) == signature and self._holds(line, found)
        ]
        return bool(lines) and len(lines) >= lines[0]["lines"]

    def _holds(self, line: Mapping[str, Any], found: Found) -> bool:
        """Return whether a line still holds: its volume is there and described so, or it would be refused again."""
        if line.get("stated") != found.modality:
            return False
        if "refused" in line:
            return not line["again"] and line["asked"] == self.asked
        masks = line.get("masks")
        if found.subject not in (None, line["subject"]) or sorted(found.masks) != (masks["names"] if masks else []):
            return False
        if json.dumps(line["metadata"], sort_keys=True) != json.dumps(found.metadata, sort_keys=True):
            return False
        if masks is not None and self.files.size(masks_of(line["id"])) != masks["file_bytes"]:
            return False
        return self.files.size(line["id"]) == line["file_bytes"]

    def unwanted(self, found: Iterable[Found], wanted: Filter) -> int:
        """Return how many volumes of these files or folders were stored before and are not wanted by a filter."""
        lines = (line for one in found for line in self._known.get((one.source, one.path), []))
        return len({line["id"] for line in lines if "refused" not in line and not wanted(Filter.facts(line))})

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add all lines of a file or folder.

        Raises:
            OSError: they cannot be written.
        """
        text = "".join(f"{json.dumps({**line, 'lines': len(lines)})}\n" for line in lines)
        self.files.append(self.path, text.encode())

    def close(self) -> dict[str, int]:
        """Sort the index, drop what newer lines replace, and write the tables; return how many volumes there are."""
        lines = self._newest(self.files.lines(self.path))
        self._write(lines)
        every = [line for group in lines.values() for line in group]
        refused = [line for line in every if "refused" in line]
        stored = [line for line in every if "refused" not in line]
        rows = [[line["source"], line["path"], line["series"], line["refused"]] for line in refused]
        self._table("refused", [["source", "path", "series", "reason"], *rows])
        odd = [(line, *finding) for line in stored for finding in line["findings"].items()]
        rows = [[line["id"], line["source"], line["path"], name, what] for line, name, what in odd]
        self._table("findings", [["id", "source", "path", "finding", "what"], *rows])
        return {"stored": len(stored), "refused": len(refused), "odd": len({line["id"] for line, *_ in odd})}

    def _table(self, kind: str, rows: Iterable[Sequence[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self.files.write(f"tables/{self.name}_{kind}.csv", text.getvalue().encode())
