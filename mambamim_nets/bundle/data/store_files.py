"""Where a store lies: a folder with a blosc2 file for each volume, or anything that fsspec reaches, with Zarr arrays.

    /data/store         volumes/<2>/<id>.b2nd: blosc2 with zstd, in chunks of 96^3 and blocks of 32^3 voxels
    s3://bucket/store   volumes/<2>/<id>.zarr: Zarr v3 with zstd, in chunks of 64^3 voxels, all of them in one shard

`files_of` tells them apart by "://". Both hold the same voxels, so crops of them are equal to the byte. A volume of an
object store is two objects, and there is no rename: what makes a volume exist is its line of the index, with the size
and the hash of its content, and that line is written after it.

Zarr takes 64^3 where blosc2 takes 32^3, since each chunk of a crop is a request: 16 on the average for a crop of 96^3.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from mambamim_nets.bundle.files import atomic_write

__all__ = ["BloscFiles", "StoreFiles", "ZarrFiles", "files_of", "masks_of"]

logger = logging.getLogger("mambamim_nets")
LEVEL = 5  # of zstd: above it files shrink by a few per cent and take three times as long to write
INSTALL = "a store at a URL needs further packages; pip install fsspec zarr"
PUT_EVERY = 30.0  # s between writes of an index that grows, where nothing can be appended to


def files_of(place: str | os.PathLike[str]) -> StoreFiles:
    """Return the files of a store: of a path blosc2, of a URL Zarr.

    Raises:
        ValueError: a package that a URL needs is missing.
    """
    return ZarrFiles(str(place)) if "://" in str(place) else BloscFiles(str(place))


def masks_of(name: str) -> str:
    """Return the name of the masks of a volume, uint8 bits that lie beside it like one more volume."""
    return f"{name}.masks"


class StoreFiles(ABC):
    """The files of a store: its volumes by their names, and some small ones by their paths within it.

    Args:
        place: a path or a URL.

    Attributes:
        format: number of it in the recipe of the store.
        folder: where it lies on this machine; None: elsewhere.
    """

    format: ClassVar[int]
    NAME: ClassVar[str]
    folder: Path | None

    def __init__(self, place: str) -> None:
        self.place = place
        self._kept: dict[tuple[int, str, bool], Any] = {}

    def __str__(self) -> str:
        return self.place

    def __reduce__(self) -> Any:
        return type(self), (self.place,)  # what is open stays in its process

    # small files

    @abstractmethod
    def paths(self, folder: str = "") -> list[str]:
        """Return the paths of what lies in a folder of the store, sorted; none where it does not exist."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            FileNotFoundError: it does not exist.
        """

    @abstractmethod
    def write(self, path: str, content: bytes) -> None:
        """Write a file whole or not at all.

        Raises:
            OSError: it cannot be written.
        """

    @abstractmethod
    def append(self, path: str, content: bytes) -> None:
        """Add to a file; what `flush` was not called for may be lost by a kill, from its end."""

    def flush(self) -> None:  # noqa: B027
        """Write what was appended."""

    def lines(self, path: str) -> Iterator[dict[str, Any]]:
        """Yield the lines of an index; one that a kill cut short, which can only be the last, is left out.

        Raises:
            ValueError: a line is no JSON.
        """
        with self.open(path) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    logger.warning("%s/%s: line %d was cut short, and its volume is left out", self, path, number)
                    return
                try:
                    yield json.loads(line)
                except ValueError:
                    raise ValueError(
                        f"{self}/{path}: line {number} is damaged: delete the line, and run the command that wrote it"
                        " again"
                    ) from None

    def indices(self) -> list[str]:
        """Return the paths of the indices of all parts."""
        return [path for path in self.paths("index") if path.endswith(".jsonl")]

    # volumes

    @abstractmethod
    def path(self, name: str) -> str:
        """Return where a volume lies; its folder is the end of the name, a hash, so that none holds too many."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the bytes of a volume; None: it is not there."""

    @abstractmethod
    def names(self) -> Iterator[str]:
        """Yield the names of all volumes that are there, in an index or not."""

    @abstractmethod
    def encoded(self, array: np.ndarray) -> dict[str, bytes]:
        """Return the content of the files of a volume, by their paths within it: the same bytes for the same voxels."""

    @abstractmethod
    def content(self, name: str) -> dict[str, bytes]:
        """Read the content of all files of a volume.

        Raises:
            OSError: it cannot be read.
        """

    @abstractmethod
    def decoded(self, content: Mapping[str, bytes]) -> Any:
        """Return a volume, which can be sliced, from the content of its files."""

    @abstractmethod
    def opened(self, name: str) -> Any:
        """Return a volume, which can be sliced, and reads what is touched."""

    def read(self, name: str, shape: Sequence[int], box: tuple[slice, ...], whole: bool = False) -> np.ndarray:
        """Read a box of voxels of a volume, in the type in which they are stored.

        Args:
            name: of the volume.
            shape: that it must have.
            box: a slice for each axis.
            whole: read the files of the volume as they are, all of them, and keep them until another volume is read:
                for several boxes, where each request is slow.

        Raises:
            OSError: the volume is missing or broken, or is not that of the index.
        """
        try:
            key = os.getpid(), name, whole
            if (stored := self._kept.get(key)) is None:
                own = (masks_of(name), name.removesuffix(".masks"))  # a volume and its masks are read by turns
                self._kept = {known: value for known, value in self._kept.items() if known[1] in own}
                stored = self._kept[key] = self.decoded(self.content(name)) if whole else self.opened(name)
            if tuple(stored.shape) != tuple(shape):
                raise ValueError(f"shape {tuple(stored.shape)} must be {tuple(shape)}, as in the index")
            return np.asarray(stored[box])
        except Exception as error:  # a network has errors of many kinds
            self._kept = {}
            raise OSError(f"{self.path(name)}: {' '.join(str(error).split()) or type(error).__name__}") from error

    def write_volume(self, name: str, array: np.ndarray) -> dict[str, Any]:
        """Write a volume; return the size and the hash of its content, which its line of the index holds.

        Raises:
            OSError: it cannot be written.
        """
        content = self.encoded(array)
        self._write_volume(name, content)
        return {"file_bytes": sum(map(len, content.values())), "sha256": _digest(content)}

    @abstractmethod
    def _write_volume(self, name: str, content: Mapping[str, bytes]) -> None:
        """Write the files of a volume."""

    def holds(self, name: str, line: Mapping[str, Any]) -> bool:
        """Return whether the content of a volume is that which a line of the index describes."""
        try:
            return bool(_digest(self.content(name)) == line["sha256"])
        except Exception:
            return False

    def broken(self, name: str, line: Mapping[str, Any], shape: Sequence[int]) -> str:
        """Read a volume back, all of it; return what is wrong with it, or "".

        Args:
            name: of the volume.
            line: what the index says of it.
            shape: that it must have.
        """
        path = self.path(name)
        try:
            content = self.content(name)
            if _digest(content) != line["sha256"]:
                size = sum(map(len, content.values()))
                return f"{path}: its {size} bytes must be the {line['file_bytes']} that were written"
            array = np.asarray(self.decoded(content)[:])
        except Exception as error:
            return f"{path} cannot be read ({' '.join(str(error).split())[:100]})"
        return "" if list(array.shape) == list(shape) else f"{path}: shape {array.shape} must be {list(shape)}"


def _digest(content: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of the files of a volume, one after another."""
    found = hashlib.sha256()
    for part in content.values():
        found.update(part)
    return found.hexdigest()


def _folder_of(name: str) -> str:
    return f"volumes/{name.removesuffix('.masks')[-2:]}"


class BloscFiles(StoreFiles):
    """A folder with a blosc2 file for each volume.

    Args:
        place: its path.
    """

    format, NAME = 1, "blosc2"
    CHUNK, BLOCK = 96, 32

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.folder: Path = Path(place)

    def paths(self, folder: str = "") -> list[str]:
        """Return the paths of what lies in a folder of the store."""
        root = self.folder / folder
        entries = root.iterdir() if root.is_dir() else ()
        return sorted(path.relative_to(self.folder).as_posix() for path in entries if not path.name.startswith("."))

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading."""
        return (self.folder / path).open("rb")

    def write(self, path: str, content: bytes) -> None:
        """Write a file whole or not at all."""
        atomic_write(self.folder / path, lambda part: part.write_bytes(content))

    def append(self, path: str, content: bytes) -> None:
        """Add to a file, at once."""
        with (self.folder / path).open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def path(self, name: str) -> str:
        """Return the file of a volume."""
        return str(self.folder / _folder_of(name) / f"{name}.b2nd")

    def size(self, name: str) -> int | None:
        """Return the bytes of a volume."""
        try:
            return os.stat(self.path(name)).st_size
        except OSError:
            return None

    def names(self) -> Iterator[str]:
        """Yield the names of all volumes that are there."""
        return (path.stem for path in self.folder.glob("volumes/*/*.b2nd"))

    def encoded(self, array: np.ndarray) -> dict[str, bytes]:
        """Return the content of the file of a volume."""
        import blosc2  # takes a second to import, which runs without a store need not wait

        blosc2.set_nthreads(1)  # with several, blocks lie in the order in which they were done
        stored = blosc2.asarray(
            np.ascontiguousarray(array),
            chunks=(self.CHUNK,) * 3,
            blocks=(self.BLOCK,) * 3,
            cparams={"codec": blosc2.Codec.ZSTD, "clevel": LEVEL, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1},
        )
        return {"": stored.to_cframe()}  # in memory: blosc2 does not say so where a disk is full

    def content(self, name: str) -> dict[str, bytes]:
        """Read the file of a volume."""
        return {"": Path(self.path(name)).read_bytes()}

    def decoded(self, content: Mapping[str, bytes]) -> Any:
        """Return a volume from the content of its file."""
        import blosc2

        blosc2.set_nthreads(1)  # a loader has as many processes as it wants
        return blosc2.ndarray_from_cframe(content[""])

    def opened(self, name: str) -> Any:
        """Return a volume whose file is open."""
        import blosc2

        blosc2.set_nthreads(1)
        return blosc2.open(self.path(name), mode="r")

    def _write_volume(self, name: str, content: Mapping[str, bytes]) -> None:
        atomic_write(self.path(name), lambda part: part.write_bytes(content[""]))


class ZarrFiles(StoreFiles):
    """Zarr v3 arrays, one for each volume, on any file system of fsspec, such as an object store.

    A file system is made in each process when it is first needed: connections do not survive a fork. Credentials and
    endpoints are those of fsspec's own configuration and of the environment.

    Args:
        place: URL of the store, such as s3://bucket/store.

    Raises:
        ValueError: a package is missing.
    """

    format, NAME = 2, "Zarr"
    CHUNK = 64
    KEYS = ("zarr.json", "c/0/0/0")  # the description of an array, and its only shard

    def __init__(self, place: str) -> None:
        super().__init__(place.rstrip("/"))
        try:
            import fsspec
            import zarr  # noqa: F401
        except ImportError as error:
            raise ValueError(f"store {place}: {INSTALL}") from error
        try:
            fsspec.get_filesystem_class(self.place.partition("://")[0])
        except (ImportError, ValueError) as error:  # such as "Install s3fs to access S3"
            raise ValueError(f"store {place}: {error}") from error
        self.folder = Path(self.place.partition("://")[2]) if self.place.startswith(("file://", "local://")) else None
        self._made: tuple[int, Any, str] | None = None
        self._growing: dict[str, bytes] = {}
        self._put_at = time.monotonic()
        self._sizes: dict[str, int] | None = None

    def paths(self, folder: str = "") -> list[str]:
        """Return the paths of what lies in a folder of the store."""
        fs, root = self._fs()
        fs.invalidate_cache()
        try:
            found = fs.ls(f"{root}/{folder}" if folder else root, detail=False)
        except FileNotFoundError:
            return []
        names = sorted(path.rstrip("/").rpartition("/")[2] for path in found)
        return [f"{folder}/{name}" if folder else name for name in names if not name.startswith(".")]

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading."""
        self.flush()
        fs, root = self._fs()
        return io.BytesIO(fs.cat_file(f"{root}/{path}"))

    def write(self, path: str, content: bytes) -> None:
        """Write a file whole or not at all."""
        fs, root = self._fs()
        self._growing.pop(path, None)
        if self.folder is not None:
            atomic_write(self.folder / path, lambda part: part.write_bytes(content))
            return
        try:
            fs.pipe_file(f"{root}/{path}", content)
        except OSError:
            raise
        except Exception as error:  # a network has errors of many kinds
            raise OSError(f"{self}/{path}: {' '.join(str(error).split())}") from error

    def append(self, path: str, content: bytes) -> None:
        """Add to a file, which is written again as a whole, at most every 30 s."""
        if path not in self._growing:
            with self.open(path) as file:
                self._growing[path] = file.read()
        self._growing[path] += content
        if time.monotonic() - self._put_at > PUT_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what was appended."""
        for path, content in list(self._growing.items()):
            self.write(path, content)
        self._put_at = time.monotonic()

    def path(self, name: str) -> str:
        """Return the URL of a volume."""
        return f"{self.place}/{_folder_of(name)}/{name}.zarr"

    def size(self, name: str) -> int | None:
        """Return the bytes of a volume, by one listing of all that were there when it was first asked."""
        if self._sizes is None:
            fs, root = self._fs()
            fs.invalidate_cache()
            self._sizes = {}
            for path, entry in fs.find(f"{root}/volumes", detail=True).items():
                found, ending, key = path.rpartition("/volumes/")[2].partition(".zarr/")
                if ending and key in self.KEYS:
                    volume = found.partition("/")[2]
                    self._sizes[volume] = self._sizes.get(volume, 0) + entry["size"]
        return self._sizes.get(name)

    def names(self) -> Iterator[str]:
        """Yield the names of all volumes that are there."""
        self.size("")
        yield from self._sizes or {}

    def encoded(self, array: np.ndarray) -> dict[str, bytes]:
        """Return the content of the description and of the shard of a volume."""
        import zarr
        from zarr.codecs import BloscCodec

        files: dict[str, Any] = {}
        with zarr.config.set({"array.write_empty_chunks": True}):  # so that what is missing is no voxel of value 0
            stored = zarr.create_array(
                zarr.storage.MemoryStore(files),
                shape=array.shape,
                dtype=array.dtype,
                chunks=(self.CHUNK,) * 3,
                shards=tuple(math.ceil(side / self.CHUNK) * self.CHUNK for side in array.shape),
                compressors=BloscCodec(cname="zstd", clevel=LEVEL, shuffle="shuffle", typesize=array.dtype.itemsize),
                zarr_format=3,
            )
            stored[:] = array
        return {key: files[key].to_bytes() for key in self.KEYS}

    def content(self, name: str) -> dict[str, bytes]:
        """Read the description and the shard of a volume."""
        fs, root = self._fs()
        return {key: fs.cat_file(f"{root}/{_folder_of(name)}/{name}.zarr/{key}") for key in self.KEYS}

    def decoded(self, content: Mapping[str, bytes]) -> Any:
        """Return a volume from the content of its description and its shard."""
        import zarr
        from zarr.buffer import default_buffer_prototype

        made = default_buffer_prototype().buffer.from_bytes
        files = {key: made(part) for key, part in content.items()}
        return zarr.open_array(zarr.storage.MemoryStore(files, read_only=True), mode="r", zarr_format=3)

    def opened(self, name: str) -> Any:
        """Return a volume of which only the description was read."""
        import zarr

        # a chunk that is missing is an error: Zarr would take it for one of value 0
        store = zarr.storage.FsspecStore.from_url(self.path(name), read_only=True, allowed_exceptions=())
        return zarr.open_array(store, mode="r", zarr_format=3)

    def _write_volume(self, name: str, content: Mapping[str, bytes]) -> None:
        for key, part in content.items():
            self.write(f"{_folder_of(name)}/{name}.zarr/{key}", part)

    def _fs(self) -> tuple[Any, str]:
        """Return the file system of this process, and where the store lies in it."""
        import fsspec

        if self._made is None or self._made[0] != os.getpid():
            fs, root = fsspec.url_to_fs(self.place)
            self._made = os.getpid(), fs, root.rstrip("/")
        return self._made[1:]
