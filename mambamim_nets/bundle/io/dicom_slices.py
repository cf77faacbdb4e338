"""Read the files of a DICOM series: which of a folder's files are slices, their headers, and whether they are whole.

Files are recognised by content; by name only to tell a slice that cannot be read from a file that is none.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

__all__ = [
    "INSTALL",
    "CutError",
    "Folder",
    "Header",
    "Unreadable",
    "instance_of",
    "is_dicom",
    "made_uid",
    "open_header",
    "read_folder",
    "read_header",
]

INSTALL = 'DICOM needs further packages; pip install "mambamim-nets[dicom]"'
DIRECTORY = "a directory of files"
DEFLATED = "1.2.840.10008.1.2.1.99"
NO_VOLUME = frozenset({"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTIMAGE", "SR", "PR", "KO", "REG", "DOC"})
ENDINGS = frozenset({".dcm", ".dicom", ".ima"})
UNFINISHED = frozenset({".gz", ".part", ".partial", ".filepart", ".crdownload", ".tmp"})  # after one of ENDINGS
NO_SLICE = frozenset({"DICOMDIR", "LOCKFILE", "VERSION"})  # names without an ending that lie beside slices
PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})  # float, double and integer pixel data
ITEM, END_OF_ITEMS, UNDEFINED = 0xFFFEE000, 0xFFFEE0DD, 0xFFFFFFFF
HEADERS = 8192  # that are kept in memory, about 1 kB each


class Header(NamedTuple):
    """What is needed of the header of a slice, or of a multi-frame file."""

    file: str
    uid: str
    instance: str
    number: int | None
    kind: str  # what it is, where it cannot be part of a volume, else ""
    shape: tuple[int, int]  # rows, columns
    origins: np.ndarray  # (frames, 3)
    orientations: np.ndarray  # (frames, 6)
    spacings: np.ndarray  # (frames, 2): between rows, between columns
    instance_number: int | None
    acquisition: str
    in_acquisition: int | None  # ImagesInAcquisition
    in_series: int | None  # NumberOfSeriesRelatedInstances


class Unreadable(NamedTuple):
    """A file that is a slice by its content or its name, and cannot be read."""

    file: str
    uid: str | None  # None: the header does not reach that far
    why: str


class Folder(NamedTuple):
    """What the files of a folder are."""

    headers: list[Header]
    unreadable: list[Unreadable]
    others: list[str]  # names of files that are no DICOM, beside some that are


class CutError(ValueError):
    """A DICOM file that ends too early; ``uid`` is its series, as far as its header says."""

    def __init__(self, why: str, uid: str | None) -> None:
        super().__init__(why)
        self.uid = uid


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as DICOM files do: 128 bytes and "DICM"."""
    return _first_bytes(path)[128:132] == b"DICM"


def made_uid(kind: str, instance: str) -> str:
    """Return a UID that is always the same for one instance, to stand for one that is missing."""
    _pydicom()
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=[kind, instance]))


def instance_of(dataset: Any) -> str:
    """Return the SOPInstanceUID of a header, or the one in its file meta group; "" if there is none."""
    return str(dataset.get("SOPInstanceUID") or dataset.file_meta.get("MediaStorageSOPInstanceUID") or "")


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return pydicom


def read_folder(path: Path) -> Folder:
    """Read the headers of a file, or of a folder's DICOM files."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if _is_file_or_lost_link(file))
    begins = {file: _first_bytes(file) for file in files}
    headers, failed = [], {}
    for file, begin in begins.items():
        # a data set without preamble begins with group 0008, or with a file meta group that lost its preamble
        if begin[128:132] != b"DICM" and begin[:2] not in (b"\x08\x00", b"\x02\x00"):
            continue
        try:
            headers.append(read_header(file))
        except CutError as error:
            failed[file] = Unreadable(str(file), error.uid, str(error))
    names = [Path(header.file).name for header in headers if header.kind != DIRECTORY]
    patterns, bare = {_pattern(name) for name in names}, bool(names) and not any(map(_ending, names))
    unreadable, others, known = [], [], {header.file for header in headers}
    for file, begin in begins.items():
        if str(file) in known:
            continue
        if begin[128:132] == b"DICM" or _named_as_slice(file.name, begin, patterns, bare):
            unreadable.append(failed.get(file) or Unreadable(str(file), None, _why_no_dicom(begin)))
        elif headers:
            others.append(file.name)
    return Folder(headers, unreadable, others)


def _is_file_or_lost_link(path: Path) -> bool:
    return not path.name.startswith(".") and (path.is_file() or (path.is_symlink() and not path.exists()))


def _first_bytes(path: str | os.PathLike[str], number: int = 512) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(number)
    except OSError:
        return b""


def _why_no_dicom(begin: bytes) -> str:
    return "it does not begin as a DICOM file does" if begin else "it is empty, or cannot be opened"


def _ending(name: str) -> str:
    """Return the ending of a name; that of a UID, which ends with a number, is none."""
    ending = Path(name).suffix.lower()
    return "" if ending[1:].isdigit() else ending


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _named_as_slice(name: str, begin: bytes, patterns: set[str], bare: bool) -> bool:
    """Whether a name says DICOM: by its ending, by those of the slices beside it, or as they have none either."""
    endings = [ending.lower() for ending in Path(name).suffixes[-2:]]
    if endings and (endings[-1] in ENDINGS or (endings[0] in ENDINGS and endings[-1] in UNFINISHED)):
        return True
    if "#" in _pattern(name) and _pattern(name) in patterns:
        return True
    return bare and not _ending(name) and name.upper() not in NO_SLICE and not _is_text(begin)


def _is_text(begin: bytes) -> bool:
    return bool(begin) and not any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in begin)


def open_header(path: str | os.PathLike[str]) -> Any:
    """Read a DICOM file up to its pixels; a file without preamble too."""
    return _pydicom().dcmread(path, stop_before_pixels=True, force=not is_dicom(path))


def read_header(path: Path) -> Header:
    """Read the header of a DICOM file.

    Raises:
        CutError: it cannot be read, or ends before its pixel data does.
    """
    try:
        at = path.stat()
    except OSError as error:
        raise CutError(str(error.strerror), None) from error
    return _read_header_once(str(path), at.st_size, at.st_mtime_ns)


@lru_cache(HEADERS)
def _read_header_once(path: str, size: int, mtime: int) -> Header:
    """Read a header that is needed several times: to list, load and preview a series and to refer to it."""
    pydicom = _pydicom()
    # pydicom warns of values that break a rule of form, such as decimal strings above 16 characters, and reads them
    with warnings.catch_warnings(), open(path, "rb") as file:
        warnings.simplefilter("ignore")
        uid = None
        try:
            with_preamble = file.read(132)[128:] == b"DICM"
            file.seek(0)
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=not with_preamble)
            uid = dataset.get("SeriesInstanceUID")
            header = _header(Path(path), dataset)
            why = _cut(file, size, dataset, header)
        except Exception as error:  # whatever pydicom raises on a broken file
            raise CutError("its header is broken", uid) from error
        if why:
            raise CutError(why, uid)
    return header


def _cut(file: BinaryIO, size: int, dataset: Any, header: Header) -> str:
    """Return what a file lacks that was read up to its pixel data, or ""."""
    if header.kind == DIRECTORY or dataset.get("Modality") in NO_VOLUME:
        return ""
    if "Rows" not in dataset or "Columns" not in dataset:
        storage = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or ""
        an_image = not storage or "Image Storage" in _pydicom().uid.UID(storage).name
        cut = an_image or "SeriesInstanceUID" not in dataset  # whatever it is, it has one, empty or not
        return "its header ends before Rows and Columns" if cut else ""
    if dataset.file_meta.get("TransferSyntaxUID") == DEFLATED:
        return ""  # reading of a deflated header has read the whole file
    order: Literal["little", "big"] = "little" if dataset.original_encoding[1] else "big"
    tag, length = _next_element(file, order, explicit=not dataset.original_encoding[0])
    if tag not in PIXELS:
        return "it ends before its pixel data"
    left = size - file.tell()
    if length != UNDEFINED:
        return f"its pixel data ends after {left} of {length} bytes" if left < length else ""
    while tag != END_OF_ITEMS and file.tell() < size:
        tag, length = _next_element(file, "little", explicit=False)
        if tag not in (ITEM, END_OF_ITEMS) or file.tell() + length > size:
            return f"its compressed pixel data ends early, after {left} bytes"
        file.seek(length, os.SEEK_CUR)
    return ""


def _next_element(file: BinaryIO, order: Literal["little", "big"], explicit: bool) -> tuple[int, int]:
    """Return tag and length of the pixel data, or of an item of it; 0 at the end of the file."""
    group, element = (int.from_bytes(file.read(2), order) for _ in range(2))
    if explicit:
        file.read(4)  # OB or OW, and two reserved bytes
    return group << 16 | element, int.from_bytes(file.read(4), order)


def _header(path: Path, dataset: Any) -> Header:
    origins, orientations, spacings = [], [], []
    if "PerFrameFunctionalGroupsSequence" in dataset:
        shared = dataset.get("SharedFunctionalGroupsSequence") or [_pydicom().Dataset()]
        frames = [(group, shared[0]) for group in dataset.PerFrameFunctionalGroupsSequence]
        for groups in frames:
            origins.append(_of_group(groups, "PlanePositionSequence", "ImagePositionPatient"))
            orientations.append(_of_group(groups, "PlaneOrientationSequence", "ImageOrientationPatient"))
            spacings.append(_of_group(groups, "PixelMeasuresSequence", "PixelSpacing"))
    else:
        origins.append(dataset.get("ImagePositionPatient"))
        orientations.append(dataset.get("ImageOrientationPatient"))
        spacings.append(dataset.get("PixelSpacing"))
    modality = str(dataset.get("Modality") or "")
    kind = ""
    if "DirectoryRecordSequence" in dataset:
        kind = DIRECTORY
    elif modality in NO_VOLUME or "Rows" not in dataset or "Columns" not in dataset:
        kind = f"no image ({modality or 'no modality'})"
    elif "LOCALIZER" in (dataset.get("ImageType") or ()):
        kind = "a localiser"
    elif int(dataset.get("SamplesPerPixel") or 1) != 1:
        kind = "colour images"
    elif len(origins) == 1 and int(dataset.get("NumberOfFrames") or 1) > 1:
        kind = "frames without a position each"
    elif not all(value is not None and len(value) for value in (*origins, *orientations, *spacings)):
        kind = "images without a position in the patient"
    places, axes, edges = (np.array([] if kind else values, float) for values in (origins, orientations, spacings))
    return Header(
        file=str(path),
        uid=str(dataset.get("SeriesInstanceUID") or ""),
        instance=instance_of(dataset) or str(path),
        number=_integer(dataset, "SeriesNumber"),
        kind=kind,
        shape=(0, 0) if kind else (int(dataset.Rows), int(dataset.Columns)),
        origins=places,
        orientations=axes,
        spacings=edges,
        instance_number=_integer(dataset, "InstanceNumber"),
        acquisition=str(dataset.get("AcquisitionNumber") or ""),
        in_acquisition=_integer(dataset, "ImagesInAcquisition"),
        in_series=_integer(dataset, "NumberOfSeriesRelatedInstances"),
    )


def _integer(dataset: Any, name: str) -> int | None:
    """Return a number that is of use but not needed; None where it is missing or no number."""
    try:
        return int(dataset.get(name))
    except (TypeError, ValueError):
        return None


def _of_group(groups: Iterable[Any], sequence: str, name: str) -> Any | None:
    """Return a value of a frame's own group, or else of the group shared by all frames."""
    return next((group[sequence][0].get(name) for group in groups if group.get(sequence)), None)
