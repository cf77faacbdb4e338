"""A prepared store: thousands of volumes, resampled and compressed in blocks, from which crops are read one by one.

`python -m mambamim_nets.prepare` writes it. It is a folder:

    store.json             the recipe: what was done to every volume
    volumes/<2>/<id>.b2nd  one volume, blosc2 with zstd, in chunks of 96^3 and blocks of 32^3 voxels
    index/<part>.jsonl     a line for each volume, or for what was refused, written by one part of the work
    tables/                what was refused, and what was found, for people

Volumes are in RAS at one spacing, cropped to their foreground: CT as int16 in HU, everything else as float16 times a
scale of the volume. A crop reads and decompresses the blocks that it touches, and no other.

Glossary
    part: what one of several independent jobs writes; it has an index of its own, so jobs need to share nothing.
    held out: volumes, chosen by their subjects, that are never trained on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mambamim_nets.bundle.data.store_filter import Filter
from mambamim_nets.bundle.files import read_json, some

__all__ = [
    "BLOCK",
    "CHUNK",
    "QUANTILES",
    "Recipe",
    "Store",
    "StoredVolume",
    "index_lines",
    "read_recipe",
    "volume_path",
]

logger = logging.getLogger("mambamim_nets")

FORMAT = 1  # one more when an older reader would read a store wrongly
CHUNK, BLOCK = 96, 32
QUANTILES = (0.0, 0.5, 1.0, 2.0, 5.0, 25.0, 50.0, 75.0, 95.0, 98.0, 99.0, 99.5, 100.0)
"""Percentiles of each whole volume that its line of the index holds, for scaling crops of it."""

_ROW = np.dtype(
    [
        ("id", "S80"),
        ("digest", "V16"),
        ("sha256", "V16"),  # the first half of it, to tell two lines for one volume apart
        ("subject", "u8"),
        ("source", "i4"),
        ("modality", "i4"),
        ("shape", "i4", (3,)),
        ("scale", "f8"),
        ("quantiles", "f8", (len(QUANTILES),)),
        ("mean", "f8"),
        ("std", "f8"),
        ("wanted", "?", (2,)),  # by the filter: if it is no duplicate, if it is one
    ]
)


@dataclass(frozen=True)
class Recipe:
    """What is done to every volume of a store.

    Attributes:
        spacing: edges of a voxel in mm, along right, anterior and superior.
        intensity: "ct", "mr" or "ct_or_mr": what the volumes are; the last asks each volume.
        air: HU up to which a voxel of CT is no foreground.
        interpolation: of the resampling.
        format: of the store.
    """

    spacing: tuple[float, ...]
    intensity: Literal["ct", "mr", "ct_or_mr"] = "ct_or_mr"
    air: float = -500.0
    interpolation: str = "bilinear"
    format: int = FORMAT

    def content(self) -> dict[str, Any]:
        """Return the recipe in plain values, with a hash of them."""
        values = {**asdict(self), "spacing": [float(edge) for edge in self.spacing]}
        return {"recipe": values, "hash": hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]}


class StoredVolume(NamedTuple):
    """What reading needs of a volume.

    Attributes:
        id: its name in the store.
        path: of its file.
        shape: in voxels.
        scale: what a stored value is multiplied by; 1 in CT.
        modality: "CT", or what else it is.
        quantiles: percentile -> value, of the whole volume.
        mean: of the voxels that are not 0.
        std: their standard deviation.
    """

    id: str
    path: Path
    shape: tuple[int, int, int]
    scale: float
    modality: str
    quantiles: dict[float, float]
    mean: float
    std: float

    def read(self, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """Read a box of voxels, (D, H, W) float32 in HU or the units of the source.

        Args:
            start: its first voxel.
            size: its sides, at most as far as the volume goes.

        Raises:
            OSError, RuntimeError, ValueError: the file is missing or broken, or not that of the index.
        """
        import blosc2  # takes a second to import, which runs without a store need not wait

        blosc2.set_nthreads(1)  # a loader has as many processes as it wants
        stored = blosc2.open(str(self.path), mode="r")
        if tuple(stored.shape) != self.shape:
            raise ValueError(f"{self.path}: shape {tuple(stored.shape)} must be {self.shape}, as in the index")
        box = tuple(slice(first, first + side) for first, side in zip(start, size, strict=True))
        return stored[box].astype(np.float32) * np.float32(self.scale)


def volume_path(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the file of a volume; its folder is the end of the name, a hash, so that none holds too many files."""
    return Path(folder, "volumes", name[-2:], f"{name}.b2nd")


def read_recipe(folder: str | os.PathLike[str]) -> Recipe:
    """Read the recipe of a store.

    Raises:
        FileNotFoundError: the folder holds no store.
        ValueError: the recipe is damaged, or of a later version.
    """
    path = Path(folder, "store.json")
    if not path.is_file():
        raise FileNotFoundError(
            f"store {folder} has no store.json: it must be a folder that python -m mambamim_nets.prepare wrote"
        )
    held = read_json(path)
    values = held.get("recipe", {}) if isinstance(held, Mapping) else {}
    if values.get("format", FORMAT) != FORMAT:
        raise ValueError(f"{path} is of format {values['format']}, and this version reads {FORMAT}: prepare it again")
    try:
        recipe = Recipe(**{**values, "spacing": tuple(values["spacing"])})
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no recipe of a store ({error}): write it again by the command that made it"
        ) from None
    if recipe.content() != held:
        raise ValueError(f"{path} was changed by hand, its hash says: put it back as it was, or prepare another store")
    return recipe


def index_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of an index; one that a kill cut short, which can only be the last, is left out.

    Raises:
        ValueError: a line is no JSON.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                logger.warning("%s: line %d was cut short, and its volume is left out", path, number)
                return
            try:
                yield json.loads(line)
            except ValueError:
                raise ValueError(
                    f"{path}: line {number} is damaged: delete the line, and run the command that wrote it again"
                ) from None


class Store(Sequence[dict[str, str]]):
    """The volumes of a prepared store, in the order of their ids; what it holds of each is a few hundred bytes.

    Args:
        folder: see `mambamim_nets.prepare`.
        filter: which volumes to take, such as "modality == 'CT' and not duplicate"; see `Filter`. None: all.
        held_out: share of the subjects that is held out, from 0 to below 1, by a hash of the subject: the same
            whatever else is in the store. Volumes of equal voxels count as one subject.
        part: "training", all that is not held out, or "held_out".

    Attributes:
        recipe: what was done to the volumes.
        sources: names of the sources.

    Raises:
        FileNotFoundError: the folder holds no store.
        ValueError: no volume is left, or a line of the index or the filter is refused.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        filter: str | None = None,
        held_out: float = 0.0,
        part: Literal["training", "held_out"] = "training",
    ) -> None:
        if folder is None:
            raise ValueError(
                "option --store is missing: give the folder that python -m mambamim_nets.prepare --store wrote"
            )
        self.folder = Path(folder)
        self.recipe = read_recipe(folder)
        files = sorted(self.folder.glob("index/*.jsonl"))
        self.sources: list[str] = []
        self._modalities: list[str] = []
        self._rows = rows = self._read(files, None if filter is None else Filter(filter))
        if not len(rows):
            raise ValueError(f"store {folder} holds no volume: see its tables/ for what was refused")
        order = np.argsort(rows["id"], kind="stable")
        _, first, same = np.unique(rows["digest"][order].view("S16"), return_index=True, return_inverse=True)
        duplicate = np.zeros(len(rows), bool)
        duplicate[order] = first[same] != np.arange(len(rows))
        subject = rows["subject"][order[first[same]]]  # of the first of equal volumes
        keep = (subject < np.uint64(held_out * 2**64)) == (part == "held_out")
        keep &= rows["wanted"][order, duplicate[order].astype(int)]
        self._places = order[keep]
        what = f", {'held out' if part == 'held_out' else 'not held out'} of held_out {held_out:g}" if held_out else ""
        if not len(self._places):
            raise ValueError(
                f"store {folder}: none of {len(rows)} volumes is left by filter {filter!r}{what}; change the filter, or"
                " held_out"
            )
        logger.info(
            "store %s: %d of %d volumes%s, %d of them duplicates",
            *(folder, len(self._places), len(rows), what, int(duplicate[self._places].sum())),
        )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        row = self._rows[self._places[index]]
        return {"case": row["id"].decode(), "source": self.sources[row["source"]]}

    @property
    def spacing(self) -> list[float]:
        """Edges of a voxel in mm."""
        return list(self.recipe.spacing)

    @property
    def source_numbers(self) -> np.ndarray:
        """(volumes,) int32, the place of each volume's source in `sources`."""
        return self._rows["source"][self._places]

    def volume(self, index: int) -> StoredVolume:
        """Return what reading needs of a volume."""
        row = self._rows[self._places[index]]
        name = row["id"].decode()
        return StoredVolume(
            name,
            volume_path(self.folder, name),
            tuple(int(side) for side in row["shape"]),  # type: ignore[arg-type]
            float(row["scale"]),
            self._modalities[row["modality"]],
            dict(zip(QUANTILES, row["quantiles"].tolist(), strict=True)),
            float(row["mean"]),
            float(row["std"]),
        )

    def _read(self, files: Sequence[Path], chosen: Filter | None) -> np.ndarray:
        """Read the lines of all volumes; of two for one id, that which describes the file."""
        asked = set[str]() if chosen is None else chosen.names - {"duplicate"}
        rows = np.zeros(sum(_lines(path) for path in files), _ROW)
        places: dict[bytes, int] = {}
        sources: dict[str, int] = {}
        modalities: dict[str, int] = {}
        for path in files:
            for line in index_lines(path):
                if "refused" in line:
                    continue
                known = len(places)
                place = places.setdefault(line["id"].encode(), known)
                wanted = (True, True)
                if chosen is not None:
                    facts = Filter.facts(line)
                    asked -= facts.keys()
                    wanted = chosen({**facts, "duplicate": False}), chosen({**facts, "duplicate": True})
                if place == known or rows["sha256"][place] == _content(line) or self._holds(line):
                    rows[place] = (
                        line["id"].encode(),
                        bytes.fromhex(line["digest"]),
                        _content(line).tobytes(),
                        int.from_bytes(hashlib.sha256(line["subject"].encode()).digest()[:8], "big"),
                        sources.setdefault(line["source"], len(sources)),
                        modalities.setdefault(line["modality"], len(modalities)),
                        *(line[key] for key in ("shape", "scale", "quantiles", "mean", "std")),
                        wanted,
                    )
        if chosen is not None and asked and places:
            raise ValueError(
                f"filter {chosen.expression!r} names {some(sorted(asked))}, which no volume of {self.folder} has; known"
                f" are {', '.join(sorted({*facts, 'duplicate'}))}"
            )
        self.sources, self._modalities = list(sources), list(modalities)
        return rows[: len(places)]

    def _holds(self, line: Mapping[str, Any]) -> bool:
        """Return whether the file of a volume is the one that a line of the index describes."""
        try:
            content = volume_path(self.folder, line["id"]).read_bytes()
        except OSError:
            return False
        return hashlib.sha256(content).hexdigest() == line["sha256"]


def _content(line: Mapping[str, Any]) -> np.void:
    """Return what tells the files of two lines for one volume apart."""
    return np.void(bytes.fromhex(line["sha256"][:32]))


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
