"""Read the DICOM files of a folder: which of them are slices, what their headers say, and whether they are whole.

Every file is opened once, and only its header is read. Files are recognised by their content; names only tell a slice
that cannot be read from a file that is no DICOM.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

__all__ = [
    "INSTALL",
    "Folder",
    "SliceHeader",
    "Unreadable",
    "dicom_among",
    "first_dicom",
    "frame_geometry",
    "frame_rescaling",
    "made_uid",
    "probed_folders",
    "read_folder",
]

INSTALL = "DICOM, NRRD and MHA need further packages; pip install highdicom itk pydicom"
DIRECTORY = "a directory of files"
DEFLATED = "1.2.840.10008.1.2.1.99"
NO_VOLUME = frozenset({"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTIMAGE", "SR", "PR", "KO", "REG", "DOC"})
ENDINGS = frozenset({".dcm", ".dicom", ".ima"})
UNFINISHED = frozenset({".gz", ".part", ".partial", ".filepart", ".crdownload", ".tmp"})  # after one of ENDINGS
NO_SLICE = frozenset({"DICOMDIR", "LOCKFILE", "VERSION"})  # names without an ending that lie beside slices
PROBED_FOLDERS, PROBED_FILES = 200, 3
PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})  # float, double and integer pixel data
ITEM, END_OF_ITEMS, UNDEFINED = 0xFFFEE000, 0xFFFEE0DD, 0xFFFFFFFF


class SliceHeader(NamedTuple):
    """What is needed of the header of a slice, or of a multi-frame file; about 2 kB without its dataset.

    Attributes:
        file: its path.
        state: size in bytes and time of change in ns, to notice that the file was replaced since.
        uid: SeriesInstanceUID; "" if de-identification emptied it, as for the other identifiers.
        instance: SOPInstanceUID.
        sop_class: SOPClassUID.
        study: StudyInstanceUID.
        frame_of_reference: FrameOfReferenceUID.
        number: SeriesNumber.
        kind: what the file holds, if it cannot be part of a volume, else "".
        shape: rows and columns.
        origins: (frames, 3) ImagePositionPatient, LPS mm.
        orientations: (frames, 6) ImageOrientationPatient.
        spacings: (frames, 2) mm between rows and between columns.
        instance_number: InstanceNumber.
        acquisition: AcquisitionNumber.
        in_acquisition: ImagesInAcquisition.
        in_series: NumberOfSeriesRelatedInstances.
        dataset: the whole header. It is kept of multi-frame files and of one slice of each series, since those of
            thousands of slices would fill the memory.
    """

    file: str
    state: tuple[int, int]
    uid: str
    instance: str
    sop_class: str
    study: str
    frame_of_reference: str
    number: int | None
    kind: str
    shape: tuple[int, int]
    origins: np.ndarray
    orientations: np.ndarray
    spacings: np.ndarray
    instance_number: int | None
    acquisition: str
    in_acquisition: int | None
    in_series: int | None
    dataset: Any = None


class Unreadable(NamedTuple):
    """A file that is a slice by its content or its name, and cannot be read.

    Attributes:
        file: its path.
        uid: SeriesInstanceUID; None if the header does not reach that far.
        why: the reason, for a person.
    """

    file: str
    uid: str | None
    why: str


class Folder(NamedTuple):
    """What the files of a folder are.

    Attributes:
        headers: of the files that can be read, images or not.
        unreadable: slices that cannot be read.
        others: names of files that are no DICOM, beside some that are.
    """

    headers: list[SliceHeader]
    unreadable: list[Unreadable]
    others: list[str]


def made_uid(kind: str, instance: str) -> str:
    """Return a UID that stands for a missing one, and is always the same for one instance.

    Args:
        kind: name of the attribute that is missing.
        instance: SOPInstanceUID of the first slice, or its path.

    Raises:
        ImportError: pydicom is not installed.
    """
    return str(_pydicom().uid.generate_uid(entropy_srcs=[kind, instance]))


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return pydicom


def read_folder(path: Path) -> Folder:
    """Read the headers of a file, or of a folder's DICOM files.

    Raises:
        ImportError: there are DICOM files, and pydicom is not installed.
    """
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if _is_file_or_lost_link(file))
    begins: dict[Path, bytes] = {}
    failed: dict[Path, Unreadable] = {}
    headers: list[SliceHeader] = []
    with_dataset = set()
    for file in files:
        begins[file], found = _read(file)
        if isinstance(found, Unreadable):
            failed[file] = found
        elif found is not None:
            if found.kind or (len(found.origins) == 1 and found.uid in with_dataset):
                found = found._replace(dataset=None)
            elif len(found.origins) == 1:
                with_dataset.add(found.uid)
            headers.append(found)
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


def first_dicom(root: Path) -> Path | None:
    """Return a DICOM file in a folder or below it, by the first bytes of three files of each folder; None without one.

    Args:
        root: the folder; of those below it the first 200 are looked into, links are not followed.
    """
    for folder, files in probed_folders(root):
        if (found := dicom_among(folder, files)) is not None:
            return found
    return None


def probed_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and those below it, the first 200, with the files in each, sorted; links are not followed."""
    for folder, folders, files in islice(os.walk(root), PROBED_FOLDERS):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(folder), sorted(name for name in files if not name.startswith("."))


def dicom_among(folder: Path, files: Iterable[str]) -> Path | None:
    """Return a DICOM file among some of a folder, by the first bytes of three whose names allow it."""
    for path in (folder / name for name in [n for n in files if _ending(n) in {"", *ENDINGS}][:PROBED_FILES]):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                return path
    return None


# --- which files are slices -----------------------------------------------------------------------


def _is_file_or_lost_link(path: Path) -> bool:
    return not path.name.startswith(".") and (path.is_file() or (path.is_symlink() and not path.exists()))


def _why_no_dicom(begin: bytes) -> str:
    return "it does not begin as a DICOM file does" if begin else "it is empty, or cannot be opened"


def _ending(name: str) -> str:
    """Return the ending of a name; that of a UID, which ends with a number, is none."""
    ending = Path(name).suffix.lower()
    return "" if ending[1:].isdigit() else ending


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _named_as_slice(name: str, begin: bytes, patterns: set[str], bare: bool) -> bool:
    """Return whether a name says DICOM: by its ending, like the slices beside it, or without an ending as they are."""
    endings = [ending.lower() for ending in Path(name).suffixes[-2:]]
    if endings and (endings[-1] in ENDINGS or (endings[0] in ENDINGS and endings[-1] in UNFINISHED)):
        return True
    if "#" in _pattern(name) and _pattern(name) in patterns:
        return True
    return bare and not _ending(name) and name.upper() not in NO_SLICE and not _is_text(begin)


def _is_text(begin: bytes) -> bool:
    return bool(begin) and not any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in begin)


# --- one file -------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[bytes, SliceHeader | Unreadable | None]:
    """Open a file once: return its first bytes, and its header, why that cannot be read, or None if it is no DICOM."""
    try:
        with open(path, "rb") as file:
            begin = file.read(512)
            with_preamble = begin[128:132] == b"DICM"
            # a data set without preamble begins with group 0008, or with a file meta group that lost its preamble
            if not with_preamble and begin[:2] not in (b"\x08\x00", b"\x02\x00"):
                return begin, None
            file.seek(0)
            return begin, _read_dicom(path, file, with_preamble)
    except OSError:
        return b"", None


def _read_dicom(path: Path, file: BinaryIO, with_preamble: bool) -> SliceHeader | Unreadable:
    pydicom, uid, at = _pydicom(), None, os.fstat(file.fileno())
    with warnings.catch_warnings():
        # pydicom warns of values that break a rule of form, such as decimal strings above 16 characters, and reads them
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=not with_preamble)
            uid = dataset.get("SeriesInstanceUID")
            header = _header(path, (at.st_size, at.st_mtime_ns), dataset)
            why = _cut(file, at.st_size, dataset, header)
        except Exception:  # whatever pydicom raises on a broken file
            return Unreadable(str(path), uid, "its header is broken")
    return Unreadable(str(path), uid, why) if why else header


def _cut(file: BinaryIO, size: int, dataset: Any, header: SliceHeader) -> str:
    """Return what a file lacks that was read up to its pixel data, or ""."""
    if header.kind == DIRECTORY or dataset.get("Modality") in NO_VOLUME:
        return ""
    if "Rows" not in dataset or "Columns" not in dataset:
        an_image = not header.sop_class or "Image Storage" in _pydicom().uid.UID(header.sop_class).name
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


def _header(path: Path, state: tuple[int, int], dataset: Any) -> SliceHeader:
    geometry = frame_geometry(dataset)
    kind = _kind(dataset, geometry)
    origins, orientations, spacings = (np.array([] if kind else values, float) for values in geometry)
    meta = dataset.file_meta
    return SliceHeader(
        file=str(path),
        state=state,
        uid=str(dataset.get("SeriesInstanceUID") or ""),
        instance=str(dataset.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID") or ""),
        sop_class=str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""),
        study=str(dataset.get("StudyInstanceUID") or ""),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
        number=_integer(dataset, "SeriesNumber"),
        kind=kind,
        shape=(0, 0) if kind else (int(dataset.Rows), int(dataset.Columns)),
        origins=origins,
        orientations=orientations,
        spacings=spacings,
        instance_number=_integer(dataset, "InstanceNumber"),
        acquisition=str(dataset.get("AcquisitionNumber") or ""),
        in_acquisition=_integer(dataset, "ImagesInAcquisition"),
        in_series=_integer(dataset, "NumberOfSeriesRelatedInstances"),
        dataset=dataset,
    )


def frame_geometry(dataset: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Return position, orientation and pixel spacing of each frame, as they stand; None where there is none.

    Args:
        dataset: a pydicom Dataset, of one slice or of several frames.
    """
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        names = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        origin, orientation, spacing = (dataset.get(name) for name in names)
        return [origin], [orientation], [spacing]
    shared = dataset.get("SharedFunctionalGroupsSequence") or [_pydicom().Dataset()]
    frames = [(group, shared[0]) for group in dataset.PerFrameFunctionalGroupsSequence]
    return (
        [_of_group(groups, "PlanePositionSequence", "ImagePositionPatient") for groups in frames],
        [_of_group(groups, "PlaneOrientationSequence", "ImageOrientationPatient") for groups in frames],
        [_of_group(groups, "PixelMeasuresSequence", "PixelSpacing") for groups in frames],
    )


def frame_rescaling(dataset: Any) -> set[tuple[float, float]]:
    """Return the different slopes and intercepts of the frames of a file; none where its frames have no header each.

    Args:
        dataset: a pydicom Dataset.
    """
    shared = dataset.get("SharedFunctionalGroupsSequence") or [_pydicom().Dataset()]
    frames = [(group, shared[0]) for group in dataset.get("PerFrameFunctionalGroupsSequence") or ()]
    sequence = "PixelValueTransformationSequence"
    values = [(_of_group(f, sequence, "RescaleSlope"), _of_group(f, sequence, "RescaleIntercept")) for f in frames]
    return {(1.0 if slope is None else float(slope), float(intercept or 0)) for slope, intercept in values}


def _of_group(groups: Iterable[Any], sequence: str, name: str) -> Any | None:
    """Return a value of a frame's own group, or else of the group shared by all frames."""
    return next((group[sequence][0].get(name) for group in groups if group.get(sequence)), None)


def _kind(dataset: Any, geometry: Sequence[Sequence[Any]]) -> str:
    """Return what a file holds that cannot be part of a volume, or ""."""
    modality = str(dataset.get("Modality") or "")
    if "DirectoryRecordSequence" in dataset:
        return DIRECTORY
    if modality in NO_VOLUME or "Rows" not in dataset or "Columns" not in dataset:
        return f"no image ({modality or 'no modality'})"
    if "LOCALIZER" in (dataset.get("ImageType") or ()):
        return "a localiser"
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        return "colour images"
    if len(geometry[0]) == 1 and int(dataset.get("NumberOfFrames") or 1) > 1:
        return "frames without a position each"
    if not all(value is not None and len(value) for values in geometry for value in values):
        return "images without a position in the patient"
    return ""


def _integer(dataset: Any, name: str) -> int | None:
    """Return a number that is of use but not needed; None where it is missing or no number."""
    try:
        return int(dataset.get(name))
    except (TypeError, ValueError):
        return None
