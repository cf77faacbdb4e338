"""A prepared store: thousands of volumes, resampled and compressed in blocks, from which crops are read one by one.

`python -m mambamim_nets.prepare` writes it. It is a folder, or lies at a URL (see `store_files`):

    store.json             the recipe: what was done to every volume
    volumes/<2>/<id>...    one volume, in blocks, as blosc2 or Zarr
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from mambamim_nets.bundle.data.store_files import BloscFiles, StoreFiles, ZarrFiles, files_of, masks_of
from mambamim_nets.bundle.data.store_filter import Filter
from mambamim_nets.bundle.files import some
from mambamim_nets.bundle.io.modalities import EXPECTED

__all__ = ["BODY", "FACE", "MASKS", "QUANTILES", "Recipe", "Store", "StoredVolume", "read_recipe"]

logger = logging.getLogger("mambamim_nets")

FORMATS = {files.format: files for files in (BloscFiles, ZarrFiles)}  # a new number where an older reader would err
FACE, BODY = 1, 2  # bits of the masks of a volume
MASKS = {"face_mask": FACE, "body_mask": BODY}
"""Columns of a table of sources that name masks: where a face was removed, and where the body is."""

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
        ("bytes", "i8"),
        ("scale", "f8"),
        ("quantiles", "f8", (len(QUANTILES),)),
        ("mean", "f8"),
        ("std", "f8"),
        ("masks", "u1"),  # bits
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
        format: of the store: 1 of blosc2, 2 of Zarr.
    """

    spacing: tuple[float, ...]
    intensity: Literal["ct", "mr", "ct_or_mr"] = "ct_or_mr"
    air: float = -500.0
    interpolation: str = "bilinear"
    format: int = BloscFiles.format

    def content(self) -> dict[str, Any]:
        """Return the recipe in plain values, with a hash of them."""
        values = {**asdict(self), "spacing": [float(edge) for edge in self.spacing]}
        return {"recipe": values, "hash": hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]}


class StoredVolume(NamedTuple):
    """What reading needs of a volume.

    Attributes:
        id: its name in the store.
        files: of the store.
        shape: in voxels.
        scale: what a stored value is multiplied by; 1 in CT.
        modality: "CT", or what else it is.
        quantiles: percentile -> value, of the whole volume.
        mean: of the voxels that are not 0.
        std: their standard deviation.
        masks: bits of those that are there, `FACE` and `BODY`.
    """

    id: str
    files: StoreFiles
    shape: tuple[int, int, int]
    scale: float
    modality: str
    quantiles: dict[float, float]
    mean: float
    std: float
    masks: int = 0

    @property
    def has_body(self) -> bool:
        """Whether it is known where the body is."""
        return bool(self.masks & BODY)

    def read(self, start: Sequence[int], size: Sequence[int], whole: bool = False) -> np.ndarray:
        """Read a box of voxels, (D, H, W) float32 in HU or the units of the source.

        Args:
            start: its first voxel.
            size: its sides, at most as far as the volume goes.
            whole: see `StoreFiles.read`.

        Raises:
            OSError: the volume is missing or broken, or not that of the index.
        """
        stored = self.files.read(self.id, self.shape, _box(start, size), whole)
        return stored.astype(np.float32) * np.float32(self.scale)

    def read_mask(self, mask: int, start: Sequence[int], size: Sequence[int], whole: bool = False) -> np.ndarray:
        """Read a box of a mask, (D, H, W) uint8 of 0 and 1; of one that the volume has not, 0.

        Args:
            mask: `FACE` or `BODY`.
            start: as in `read`.
            size: as in `read`.
            whole: as in `read`.

        Raises:
            OSError: as in `read`.
        """
        if not self.masks & mask:
            return np.zeros(size, np.uint8)
        stored = self.files.read(masks_of(self.id), self.shape, _box(start, size), whole)
        return ((stored & mask) > 0).astype(np.uint8)


def _box(start: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + side) for first, side in zip(start, size, strict=True))


def read_recipe(files: StoreFiles) -> Recipe:
    """Read the recipe of a store.

    Raises:
        FileNotFoundError: there is no store.
        OSError: it cannot be reached.
        ValueError: the recipe is damaged, or of a later version.
    """
    path = f"{files}/store.json"
    try:
        with files.open("store.json") as file:
            held = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"store {files} has no store.json: it must be one that python -m mambamim_nets.prepare wrote"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    values = held.get("recipe", {}) if isinstance(held, Mapping) else {}
    if (number := values.get("format", files.format)) != files.format:
        if number not in FORMATS:
            raise ValueError(f"{path} is of format {number}, and this version reads {list(FORMATS)}: prepare it again")
        kind = "at a URL, such as file:///data/store" if number == ZarrFiles.format else "by the path of its folder"
        raise ValueError(f"{path} is of format {number}, {FORMATS[number].NAME}: a store of it is named {kind}")
    try:
        recipe = Recipe(**{**values, "spacing": tuple(values["spacing"])})
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no recipe of a store ({error}): write it again by the command that made it"
        ) from None
    if recipe.content() != held:
        raise ValueError(f"{path} was changed by hand, its hash says: put it back as it was, or prepare another store")
    return recipe


class Store(Sequence[dict[str, str]]):
    """The volumes of a prepared store, in the order of their ids; what it holds of each is a few hundred bytes.

    Args:
        folder: path or URL, see `mambamim_nets.prepare`.
        filter: which volumes to take, such as "modality == 'CT' and not duplicate"; see `Filter`. None: all.
        held_out: share of the subjects that is held out, from 0 to below 1, by a hash of the subject: the same
            whatever else is in the store. Volumes of equal voxels count as one subject.
        part: "training", all that is not held out, or "held_out".
        intensity: how crops will be scaled: "ct" takes CT alone, "mr" and "zscore" take all but CT; of anything else
            every volume is taken.

    Attributes:
        files: of the store.
        recipe: what was done to the volumes.
        sources: names of the sources.

    Raises:
        FileNotFoundError: the folder holds no store.
        ValueError: no volume is left, some are of another modality than is scaled, or a line of the index or the filter
            is refused.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        filter: str | None = None,
        held_out: float = 0.0,
        part: Literal["training", "held_out"] = "training",
        intensity: str | None = None,
    ) -> None:
        if folder is None:
            raise ValueError(
                "option --store is missing: give the folder or URL that python -m mambamim_nets.prepare --store wrote"
            )
        self.files = files_of(folder)
        self.recipe = read_recipe(self.files)
        indices = self.files.indices()
        self.sources: list[str] = []
        self._modalities: list[str] = []
        self._rows = rows = self._read(indices, None if filter is None else Filter(filter))
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
        self._refuse_modalities(intensity)
        logger.info(
            "store %s: %d of %d volumes%s, %d of them duplicates",
            *(folder, len(self._places), len(rows), what, int(duplicate[self._places].sum())),
        )

    def _refuse_modalities(self, intensity: str | None) -> None:
        """Refuse volumes that the scaling of intensities is not made for."""
        expected = EXPECTED.get(intensity or "", ())
        if len(expected) != 1:  # any, or nothing is known of it
            return
        numbers, counts = np.unique(self._rows["modality"][self._places], return_counts=True)
        held = {self._modalities[number]: int(count) for number, count in zip(numbers, counts, strict=True)}
        if wrong := {name: count for name, count in held.items() if (name == "CT") != ("CT" in expected)}:
            said = ", ".join(f"{count} {name}" for name, count in wrong.items())
            only = f"modality {'==' if 'CT' in expected else '!='} 'CT'"
            raise ValueError(
                f"store {self.files}: {said} among {len(self)} volumes, and --intensity {intensity} is not for them:"
                f' give --intensity ct_or_mr for both kinds, or leave them out by --filter "{only}"'
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
            self.files,
            tuple(int(side) for side in row["shape"]),  # type: ignore[arg-type]
            float(row["scale"]),
            self._modalities[row["modality"]],
            dict(zip(QUANTILES, row["quantiles"].tolist(), strict=True)),
            float(row["mean"]),
            float(row["std"]),
            int(row["masks"]),
        )

    @property
    def has_faces(self) -> bool:
        """Whether it is known of any volume where a face was removed."""
        return bool((self._rows["masks"][self._places] & FACE).any())

    @property
    def file_bytes(self) -> int:
        """Bytes of all volumes, as the index has them."""
        return int(self._rows["bytes"][self._places].sum())

    def _read(self, indices: Sequence[str], chosen: Filter | None) -> np.ndarray:
        """Read the lines of all volumes; of two for one id, that which describes the file."""
        asked = set[str]() if chosen is None else chosen.names - {"duplicate"}
        rows = np.zeros(sum(self._lines(path) for path in indices), _ROW)
        places: dict[bytes, int] = {}
        sources: dict[str, int] = {}
        modalities: dict[str, int] = {}
        for path in indices:
            for line in self.files.lines(path):
                if "refused" in line:
                    continue
                known = len(places)
                place = places.setdefault(line["id"].encode(), known)
                wanted = (True, True)
                if chosen is not None:
                    facts = Filter.facts(line)
                    asked -= facts.keys()
                    wanted = chosen({**facts, "duplicate": False}), chosen({**facts, "duplicate": True})
                if place == known or rows["sha256"][place] == _content(line) or self.files.holds(line["id"], line):
                    rows[place] = (
                        line["id"].encode(),
                        bytes.fromhex(line["digest"]),
                        _content(line).tobytes(),
                        int.from_bytes(hashlib.sha256(line["subject"].encode()).digest()[:8], "big"),
                        sources.setdefault(line["source"], len(sources)),
                        modalities.setdefault(line["modality"], len(modalities)),
                        *(line[key] for key in ("shape", "file_bytes", "scale", "quantiles", "mean", "std")),
                        sum(MASKS[name] for name in line.get("masks", {}).get("names", ())),
                        wanted,
                    )
        if chosen is not None and asked and places:
            raise ValueError(
                f"filter {chosen.expression!r} names {some(sorted(asked))}, which no volume of {self.files} has; known"
                f" are {', '.join(sorted({*facts, 'duplicate'}))}"
            )
        self.sources, self._modalities = list(sources), list(modalities)
        return rows[: len(places)]

    def _lines(self, path: str) -> int:
        with self.files.open(path) as file:
            return sum(1 for _ in file)


def _content(line: Mapping[str, Any]) -> np.void:
    """Return what tells the files of two lines for one volume apart."""
    return np.void(bytes.fromhex(line["sha256"][:32]))
