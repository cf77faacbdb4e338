"""Files that are whole or not there, what a kill left of them, one run at a time in a folder, and names of files.

A file is written under a temporary name, `.part-<host>-<process>-<name>`, flushed to the disk and then renamed. The
name keeps the ending, which some writers go by, and says whose it is, so that the next run can tell what a kill left
from what another process is just writing.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "atomic_write",
    "first_lines",
    "only_run",
    "read_json",
    "release",
    "remove_leftovers",
    "some",
    "stem",
    "write_csv",
    "write_text",
]

logger = logging.getLogger("mambamim_nets")
NIFTI = (".nii.gz", ".nii")
HOST = re.sub(r"\W", "_", platform.node()) or "host"
_PART = re.compile(r"\.part-(?P<host>\w+)-(?P<process>\d+)-.+")
_OF_IGNITE = re.compile(r"tmp[a-z0-9_]{8}")  # DiskSaver's temporary files of earlier versions
_OF_REPORTS = re.compile(  # of inference in earlier versions
    r"\.\d+\.((volumes|predictions|biometry)\.csv|.+_(seg\.nii\.gz|features\.npz|landmarks\.(csv|mrk\.json)))"
    r"|.+_seg\.dcm\.\d+\.part"
)
_FOREIGN_AGE = 24 * 3600.0  # seconds after which another machine's part, whose process cannot be asked for, is no more
_EARLIER_AGE = 3600.0
_writing: set[Path] = set()
_held: dict[Path, int] = {}  # lock file -> descriptor


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Write a file whole or not at all; its folder is made where it does not exist.

    Args:
        path: the file; replaced if it exists.
        write: gets the path of a temporary file in the same folder, with the same ending, and writes it.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{HOST}-{os.getpid()}-{path.name}")
    _writing.add(part.absolute())
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        _writing.discard(part.absolute())
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file whole or not at all, in UTF-8 with the line ends of the text."""
    return atomic_write(path, lambda part: part.write_text(text, encoding="utf-8", newline=""))


def write_csv(path: str | os.PathLike[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a table whole or not at all; the first row names its columns."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)

    return atomic_write(path, write)


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Delete the temporary files in a folder (not below it) that nobody writes any more, and say so in the log.

    They are those of processes of this machine that are gone, those of other machines after a day, and those that
    earlier versions used, after an hour: of the name and content of ignite's DiskSaver, or the names of reports of
    scans. Nothing else is touched.

    Returns:
        What was deleted.
    """
    folder = Path(folder)
    removed = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        with contextlib.suppress(OSError):  # another process may clean the same folder
            if not path.is_symlink() and path.is_file() and _is_left(path):
                path.unlink()
                removed.append(path)
    if removed:
        logger.info("removed %d temporary files that a killed run left in %s", len(removed), folder)
    return removed


def _is_left(path: Path) -> bool:
    age = time.time() - path.stat().st_mtime
    if _OF_IGNITE.fullmatch(path.name):
        with path.open("rb") as file:
            start = file.read(64)
        return age > _EARLIER_AGE and (not start or (start[:2] == b"PK" and b"archive/" in start))
    if _OF_REPORTS.fullmatch(path.name):
        return age > _EARLIER_AGE
    found = _PART.fullmatch(path.name)
    if found is None or path.absolute() in _writing:
        return False
    if found["host"] != HOST:
        return age > _FOREIGN_AGE
    process = int(found["process"])
    return process == os.getpid() or not _alive(process)


def _alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere asking with signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True


def only_run(folder: str | os.PathLike[str], work: str = "training") -> None:
    """Keep other processes from doing the same work in a folder, until this one ends or calls `release`.

    The lock is one of the operating system (`lockf`) on the file `.<work>.lock`, so it ends with the process,
    however that ends, and the file that stays does nothing. It holds between machines on network file systems that
    have locks; where there are none (some Lustre mounts, Windows) the log says so and nothing is kept out. Training
    takes it in its output folder. Inference takes its own, `work="inference"`, in the folder of its table, since two
    runs that write one table would lose each other's rows; training and inference do not keep each other out.

    Args:
        folder: made where it does not exist.
        work: what is to be done by one process only, a word.

    Raises:
        ValueError: if another process is at it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / f".{work}.lock").resolve()
    if path in _held:
        return
    try:
        import fcntl
    except ImportError:
        logger.warning("%s: this system has no lockf; see to it that one %s at a time runs here", folder, work)
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            who = f" ({holder})" if holder else ""
            raise ValueError(
                f"output_dir {folder}: another {work} is at work there{who}; wait for its end, or give another "
                "--output_dir"
            ) from None
        logger.warning("%s: no locks here (%s); see to it that one %s at a time runs here", folder, error, work)
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
    _held[path] = descriptor


def release(folder: str | os.PathLike[str], work: str = "training") -> None:
    """Let other processes do the work in a folder again; see `only_run`. Without a lock nothing happens."""
    descriptor = _held.pop((Path(folder) / f".{work}.lock").resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


# --- names and JSON --------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: if it is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def stem(path: str | os.PathLike[str], endings: Sequence[str] = NIFTI) -> str:
    """Return the name of a file without its folder and its ending, which must be one of `endings` to be taken off."""
    name = os.path.basename(path)
    for ending in endings:
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name


def some(names: Sequence[str], most: int = 10, separator: str = ",") -> str:
    """Return the first names on one line, and how many more there are."""
    return f"{separator} ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_lines(lines: Sequence[str], most: int = 20) -> str:
    """Return the first lines, and how many more there are."""
    return "\n".join(lines[:most]) + (f"\n... and {len(lines) - most} more" if len(lines) > most else "")
