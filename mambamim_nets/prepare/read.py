"""The volumes of sources: which there are, without opening them, and their voxels with what their headers say."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor

from mambamim_nets.bundle.data.inspection import Volume, image_problems, read_volume
from mambamim_nets.bundle.data.store import MASKS
from mambamim_nets.bundle.data.unlabelled import (
    image_folders,
    is_label,
    is_other,
    unlabelled_images,
    warn_of_others,
)
from mambamim_nets.bundle.files import stem
from mambamim_nets.bundle.io.dicom_series import Series, series_of
from mambamim_nets.bundle.io.headers import Header, assumed
from mambamim_nets.bundle.io.modalities import modality_of
from mambamim_nets.bundle.io.scan_formats import ENDINGS, NIBABEL, format_of, read_header, read_scan, scan_header

__all__ = [
    "Found",
    "Refused",
    "Scan",
    "Source",
    "found_in",
    "read_masks",
    "read_voxels",
    "sources_of",
    "stated_modality",
    "subject_of",
    "volumes_of",
]

DICOM = (".dcm", ".dicom", ".ima")
PROBED = 3  # files of a folder that are opened to see if it holds DICOM
TABLES = {".csv": ",", ".tsv": "\t"}
RESERVED = {"image", "subject", "modality", *MASKS}  # columns of a table that mean something here
_SUBJECT = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+)(?=[_/])")
_CHANNEL = re.compile(r"_\d{4}$")
_PLAIN = re.compile(r"[^A-Za-z0-9._-]+")


class Source(NamedTuple):
    """A source as it was asked for.

    Attributes:
        name: in the store.
        path: absolute.
        key: of a Decathlon list; None: all of them.
        named: whether the name was given.
    """

    name: str
    path: Path
    key: str | None
    named: bool


@dataclass(frozen=True)
class Found:
    """A file, or a folder of DICOM, that holds a volume or several.

    Attributes:
        source: name of its source.
        root: folder of the source.
        path: relative to that, with slashes.
        dicom: whether it is a folder of DICOM.
        subject: who was scanned; None where only the file may say it.
        modality: "CT", "MR", ... where a table says it.
        metadata: further columns of the table.
        masks: "face_mask" and "body_mask", absolute paths.
    """

    source: str
    root: str
    path: str
    dicom: bool = False
    subject: str | None = None
    modality: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Absolute path."""
        return os.path.normpath(os.path.join(self.root, self.path))

    def signature(self) -> tuple[int, int]:
        """Return bytes and time of the last change, in ns, of its files.

        Raises:
            OSError: it is gone.
        """
        paths = [entry.path for entry in os.scandir(self.file) if entry.is_file()] if self.dicom else [self.file]
        states = [os.stat(path) for path in (*paths, *self.masks.values())]
        return sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)

    def id(self, series: str = "") -> str:
        """Return the name of a volume in the store: what the file is called, and a hash of where it comes from."""
        digest = hashlib.sha256("\n".join((self.source, self.path, series)).encode()).hexdigest()[:16]
        name = _PLAIN.sub("-", stem(self.path, ENDINGS)).strip("-.")[:60]
        return f"{name or 'volume'}-{digest}"


class Refused(NamedTuple):
    """A volume, or what should have been one, that is not stored.

    Attributes:
        series: SeriesInstanceUID, where it is one of several of a folder.
        reason: one line.
        again: whether it may be sound at another time, on another machine or by other options.
    """

    series: str
    reason: str
    again: bool = False


class Scan(NamedTuple):
    """A volume before its voxels are read.

    Attributes:
        header: its grid.
        series: of DICOM.
        findings: name of a finding -> what was found.
    """

    header: Header
    series: Series | None
    findings: dict[str, str]


def sources_of(sources: Any) -> list[Source]:
    """Return the sources that were asked for.

    Args:
        sources: each a path, or {"path": ..., "name": ..., "key": ...}; a path is what `unlabelled_images` takes, a
            folder with files of any format or with DICOM below it, or a table (.csv, .tsv) with a column `image`.

    Raises:
        FileNotFoundError: one does not exist.
        ValueError: one is malformed, or two have one name.
    """
    listed = [sources] if isinstance(sources, str | Mapping) else list(sources or [])
    if not listed:
        raise ValueError("option --sources is empty; name at least one folder, file or list")
    found = []
    for source in listed:
        entry = dict(source) if isinstance(source, Mapping) else {"path": source}
        if unknown := sorted(set(entry) - {"path", "name", "key"}) or ([] if "path" in entry else ["no path"]):
            raise ValueError(f"source {entry} must have a 'path', and may have 'name' and 'key'; unknown: {unknown}")
        path = Path(os.path.abspath(Path(str(entry["path"])).expanduser()))
        if not path.exists():
            raise FileNotFoundError(f"source {entry['path']!r} does not exist; name a folder, a file or a list")
        usual = path.parent.name if path.name == "dataset.json" else stem(path.name, (*ENDINGS, ".json", *TABLES))
        found.append(Source(str(entry.get("name", usual)), path, entry.get("key"), "name" in entry))
    if twice := sorted(name for name, count in Counter(source.name for source in found).items() if count > 1):
        raise ValueError(
            f"sources must have different names in a store, and several are called {twice}; give each its own, as in"
            " {'path': '/data/a/images', 'name': 'a'}"
        )
    return found


def found_in(source: Source) -> Iterator[Found]:
    """Yield what a source holds, without opening images.

    Raises:
        ValueError: a list is malformed.
    """
    path = source.path
    root = str(path if path.is_dir() else path.parent)

    def of(file: str, **facts: Any) -> Found:
        relative = os.path.relpath(file, root).replace(os.sep, "/")
        return Found(source.name, root, relative, **{"subject": _subject(relative), **facts})

    if path.suffix in TABLES:
        yield from (of(file, **facts) for file, facts in _listed(path))
    elif path.is_file() and path.name.endswith(ENDINGS):
        yield of(str(path))
    elif path.is_file() or (path / "dataset.json").is_file() or (path / "imagesTr").is_dir():
        for item in unlabelled_images([{"path": str(path), "key": source.key}]):
            images = [item["image"]] if isinstance(item["image"], str) else item["image"]
            yield from map(of, images)  # each channel is a volume
    else:
        others: list[str] = []
        for folder, files in image_folders(path):
            others += [os.path.join(folder, file) for file in files if is_other(file, ENDINGS)]
            scans = [file for file in files if file.endswith(ENDINGS) and not is_label(stem(file, ENDINGS))]
            yield from (of(os.path.join(folder, file)) for file in scans)
            if _holds_dicom(folder, [file for file in files if not file.endswith(ENDINGS)]):
                yield of(folder, dicom=True, subject=None)
        warn_of_others(path, others, f"names must end in {', '.join(ENDINGS)}: rename them, or convert them")


def _subject(path: str) -> str:
    """Return who was scanned by the path of a file: BIDS's sub-..., or the path without channel or modality."""
    if named := _SUBJECT.search(path):
        return named[1]
    name = stem(path, ENDINGS)
    known = modality_of(name)
    return "/".join((*path.split("/")[:-1], known[0] if known else _CHANNEL.sub("", name)))


def _holds_dicom(folder: str, files: Sequence[str]) -> bool:
    """Return whether a folder holds DICOM: by the endings of its files, or by the first bytes of some without one."""
    if any(file.lower().endswith(DICOM) for file in files):
        return True
    for file in [file for file in files if "." not in file or file.replace(".", "").isdigit()][:PROBED]:
        with open(os.path.join(folder, file), "rb") as content:
            if content.read(132)[128:] == b"DICM":
                return True
    return False


def _listed(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files of a table, relative to its folder, and what their rows say."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file, delimiter=TABLES[path.suffix])
        if "image" not in (table.fieldnames or []):
            raise ValueError(f"{path}: must have a column 'image' with a path in each row; it has {table.fieldnames}")
        for number, row in enumerate(table, 2):
            if not (row["image"] or "").strip() or None in row:
                raise ValueError(f"{path}: line {number} must have a path under 'image' and no more cells than columns")
            image = str(path.parent / row["image"].strip())
            facts: dict[str, Any] = {key: row[key] for key in ("subject", "modality") if row.get(key)}
            facts["metadata"] = {key: _value(value) for key, value in row.items() if key not in RESERVED}
            named = {key: (row.get(key) or "").strip() for key in MASKS}
            facts["masks"] = {key: os.path.abspath(path.parent / name) for key, name in named.items() if name}
            yield image, {**facts, "dicom": os.path.isdir(image)}


def _value(text: str | None) -> Any:
    """Return a cell as a number where it is one, None where it is empty."""
    for kind in (int, float):
        try:
            return kind(text or "")
        except ValueError:
            continue
    return text or None


# --- one volume -----------------------------------------------------------------------------------


def volumes_of(found: Found, axes: str | None) -> tuple[list[Scan], list[Refused]]:
    """Read the headers of what was found.

    Args:
        found: a file or a folder of DICOM.
        axes: where the axes of files point that do not say so, such as "RAS"; None: those are refused.

    Returns:
        The volumes whose headers are sound, and those that are refused.
    """
    try:
        if not found.dicom:
            header = read_header(found.file)
            if header.problems:
                return [], [Refused("", f"{found.path}: {'; '.join(header.problems)}")]
            findings = {"header": "; ".join(header.warnings)} if header.warnings else {}
            if not header.oriented and axes is not None:
                findings["header"] = assumed(axes, header)
            return [Scan(header, None, findings)], []
        series, left_out = series_of(found.file)
    except Exception as error:  # whatever a reader raises on a broken file is the reason
        return [], [Refused("", f"{found.path} cannot be read ({_why(error)})", isinstance(error, OSError))]
    refused = [Refused("", line) for line in left_out]
    scans = []
    for one in series:
        if one.error:
            refused.append(Refused(one.uid, f"{found.path}: {one.error}"))
            continue
        findings = {"incomplete": "; ".join(one.warnings)} if one.warnings else {}
        if str(one.dataset.get("BurnedInAnnotation") or "").upper() == "YES":
            findings["burnt_in"] = "BurnedInAnnotation is YES"
        scans.append(Scan(scan_header("", one), one, findings))
    return scans, refused


def read_voxels(found: Found, scan: Scan, axes: str | None) -> tuple[MetaTensor | None, str]:
    """Read the voxels of a volume, all of it, and judge them.

    Args:
        found: the file or folder.
        scan: the volume in it.
        axes: as in `volumes_of`.

    Returns:
        (1, D, H, W) float32 with its affine in RAS mm, or None; and why the volume cannot be used, "" if it can.
    """
    try:
        if scan.series is None and format_of(found.file) is NIBABEL:
            volume, problems, _ = read_volume(found.file, axes)
            problems = problems or image_problems(found.file, volume, 1, alone=True)  # type: ignore[arg-type]
            if problems or volume is None:
                return None, "; ".join(problems)
            voxels = torch.from_numpy(np.array(volume.data, np.float32, order="C")[None])
            return MetaTensor(voxels, affine=torch.from_numpy(volume.affine)), ""
        image = read_scan(found.file, scan.series, axes)
    except Exception as error:
        return None, f"{found.path} cannot be read ({_why(error)})"
    data = image.numpy()
    volume = Volume(data[0] if len(data) == 1 else np.moveaxis(data, 0, -1), np.asarray(image.affine))
    return image, "; ".join(image_problems(found.path, volume, 1, alone=True))


def read_masks(found: Found, image: MetaTensor, axes: str | None) -> dict[str, MetaTensor]:
    """Read the masks of a volume, which must lie on its grid.

    Args:
        found: the file or folder.
        image: the volume, (1, D, H, W) with its affine.
        axes: as in `volumes_of`.

    Returns:
        "face_mask" and "body_mask", as far as there are any: (1, D, H, W).

    Raises:
        ValueError: one cannot be read, or lies on another grid.
    """
    masks = {}
    for name, path in found.masks.items():
        try:
            mask = read_scan(path, None, axes)
        except Exception as error:
            raise ValueError(f"{found.path}: {name} {path} cannot be read ({_why(error)})") from error
        if mask.shape != image.shape or not np.allclose(mask.affine, image.affine, atol=0.01):
            raise ValueError(
                f"{found.path}: {name} {path} of shape {tuple(mask.shape[1:])} must lie on the grid of the image,"
                f" {tuple(image.shape[1:])} voxels with the same affine: resample it"
            )
        masks[name] = mask
    return masks


def stated_modality(found: Found, scan: Scan) -> str | None:
    """Return the modality that a table or a DICOM header gives; None where neither does."""
    dataset = None if scan.series is None else scan.series.dataset
    return (found.modality or "").upper() or (str(dataset.get("Modality") or "") if dataset is not None else "") or None


def subject_of(found: Found, scan: Scan) -> str:
    """Return who was scanned, a DICOM PatientID as a hash, since a store is copied about more freely than DICOM is."""
    if found.subject is not None:
        return found.subject
    dataset = None if scan.series is None else scan.series.dataset
    patient = str(dataset.get("PatientID") or "") if dataset is not None else ""
    return hashlib.sha256(f"{found.source}/{patient or found.path}".encode()).hexdigest()[:16]


def _why(error: BaseException) -> str:
    """Return the kind of an error and what it says, on one line of at most about 200 characters."""
    return f"{type(error).__name__}, {' '.join(str(error).split())[:200] or 'no reason given'}"
