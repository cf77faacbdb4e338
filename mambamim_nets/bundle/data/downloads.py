"""Labelled data sets that are nothing but folders and file names, as people download them.

Recognised by their names, in this order; `mambamim_nets.bundle.data.labelled` has the layouts with a description.

- BTCV (Synapse): RawData/Training/img/img0001.nii.gz, RawData/Training/label/label0001.nii.gz.
- CT-ORG (TCIA): OrganSegmentations/volume-0.nii.gz, OrganSegmentations/labels-0.nii.gz. The first 21 volumes, 0 to 20,
  are its own test set and come as "listed" for validation, all others for training.
- BraTS: one folder per case, BraTS2021_00000/BraTS2021_00000_{flair,t1ce,t1,t2,seg}.nii.gz, or as of 2023
  BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t2f,t1c,t1n,t2w,seg}.nii.gz.
- KiTS23: dataset/case_00000/{imaging,segmentation}.nii.gz; what else a case folder holds is left out.
- imagesTr/CASE.nii.gz, or imagesTr/CASE_0000.nii.gz and so on for each channel, with labelsTr/CASE.nii.gz: the folders
  of the Decathlon and of nnU-Net without their description.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mambamim_nets.bundle.files import NIFTI, some, stem
from mambamim_nets.bundle.io.modalities import CHANNELS, channel_positions, modality_of, one_or_all

__all__ = ["folder_cases"]

logger = logging.getLogger("mambamim_nets")

Case = dict[str, Any]


class Pairs(NamedTuple):
    """A layout in which every image has a label of the same number."""

    folders: tuple[str, ...]
    """Where it may lie below the folder that is given."""
    image: str
    """What stands before the number in the path of an image."""
    label: str


BTCV = Pairs((".", "Training", "RawData/Training", "Abdomen/RawData/Training"), "img/img", "label/label")
CT_ORG = Pairs(
    (".", "OrganSegmentations", "CT-ORG/OrganSegmentations", "PKG - CT-ORG/CT-ORG/OrganSegmentations"),
    "volume-",
    "labels-",
)
CT_ORG_TESTED = range(21)
"""Numbers of CT-ORG's own test set, by its description."""
_TIME_POINT = re.compile(r"^(?P<subject>BraTS-[A-Z]+-\d+)-\d{3}$")
_KITS_CASE = re.compile(r"^case_\d{5}$")
_KITS_ROLES = ("imaging", "segmentation")
_CHANNEL = re.compile(r"^(?P<case>.+)_\d{4}$")


def folder_cases(root: Path, channels: Sequence[str] | None) -> list[Case] | None:
    """List the labelled cases of one of the layouts above; None if the folder has none of them.

    Args:
        root: the folder of the files, or one of those above it that come with the download.
        channels: as in `labelled_cases`; of BraTS.

    Raises:
        FileNotFoundError: a case lacks a file.
        ValueError: a file is there twice, or the case folders have not the channels.
    """
    for layout in (BTCV, CT_ORG):
        for name in layout.folders:
            if files := _files_of(layout, folder := root / name):
                return _pairs(layout, folder, files)
    if brats := _case_folders(root):
        return _brats_cases(brats, channels)
    for folder in (root, root / "dataset"):
        if kits := [path for path in _entries(folder) if path.is_dir() and _KITS_CASE.match(path.name)]:
            return _kits_cases(folder, kits)
    if labels := _nifti_files(root / "labelsTr"):
        return _plain_cases(root, labels)
    return None


# --- BTCV and CT-ORG ------------------------------------------------------------------------------


def _files_of(layout: Pairs, folder: Path) -> dict[tuple[str, str], list[Path]]:
    """Return the images and labels by kind and number; several for one number if it is there .nii and .nii.gz."""
    files = defaultdict(list)
    for kind, prefix in (("image", layout.image), ("label", layout.label)):
        below, _, start = prefix.rpartition("/")
        for path in _entries(folder / below):
            if (match := re.match(rf"{start}(\d+)\.nii(\.gz)?$", path.name)) is not None:
                files[kind, match[1]].append(path)
    return files


def _pairs(layout: Pairs, folder: Path, files: Mapping[tuple[str, str], list[Path]]) -> list[Case]:
    _refuse_repeated(folder, files.values())
    numbers = sorted({number for _, number in files})
    names = {"image": layout.image, "label": layout.label}
    missing = [
        f"{name}{number}.nii.gz" for number in numbers for kind, name in names.items() if (kind, number) not in files
    ]
    if missing:
        raise FileNotFoundError(
            f"{folder}: missing {some(missing)}; each {layout.image}N needs its {layout.label}N and vice versa: "
            "complete the download, or remove what has no partner"
        )
    cases = []
    for number in numbers:
        (image,), (label,) = files["image", number], files["label", number]
        item: Case = {"image": str(image), "label": str(label), "case": stem(image)}
        if layout is CT_ORG:
            item["listed"] = "validation" if int(number) in CT_ORG_TESTED else "training"
        cases.append(item)
    return cases


# --- KiTS23 ---------------------------------------------------------------------------------------


def _kits_cases(root: Path, folders: Sequence[Path]) -> list[Case]:
    found = {
        folder: {
            role: [path for path in _entries(folder) if path.name in (f"{role}.nii.gz", f"{role}.nii")]
            for role in _KITS_ROLES
        }
        for folder in folders
    }
    missing = [f"{f.name}/{role}.nii.gz" for f, files in found.items() for role in _KITS_ROLES if not files[role]]
    if missing:
        raise FileNotFoundError(
            f"{root}: missing {some(missing)}; each case folder needs imaging.nii.gz and segmentation.nii.gz: run the"
            " data set's own download of the images (kits23_download_data), or remove the folder"
        )
    for folder, files in found.items():
        _refuse_repeated(folder, files.values())
    return [
        {"image": str(files["imaging"][0]), "label": str(files["segmentation"][0]), "case": folder.name}
        for folder, files in found.items()
    ]


# --- imagesTr and labelsTr alone ------------------------------------------------------------------


def _nifti_files(folder: Path) -> dict[str, list[Path]]:
    """Return the NIfTI files of a folder by their names without the ending."""
    files = defaultdict(list)
    for path in _entries(folder):
        if path.name.endswith(NIFTI):
            files[stem(path)].append(path)
    return files


def _plain_cases(root: Path, labels: Mapping[str, list[Path]]) -> list[Case]:
    images = _nifti_files(root / "imagesTr")
    _refuse_repeated(root, [*images.values(), *labels.values()])
    channels: dict[str, list[Path]] = defaultdict(list)  # sorted by name, so by the number of the channel
    for name, (path,) in images.items():
        match = _CHANNEL.match(name)
        channels[match["case"] if match and name not in labels else name].append(path)
    alone = sorted(set(labels) ^ set(channels))
    if alone:
        raise FileNotFoundError(
            f"{root}: images without a label or labels without an image: {some(alone)}; labelsTr/CASE.nii.gz belongs to"
            " imagesTr/CASE.nii.gz, or to CASE_0000.nii.gz, CASE_0001.nii.gz and so on: add what is missing, or remove"
            " what has no partner"
        )
    most = max(len(paths) for paths in channels.values())
    uneven = sorted(case for case, paths in channels.items() if len(paths) != most)
    if uneven:
        raise FileNotFoundError(f"{root}: cases with less than {most} channels: {some(uneven)}; add their files")
    return [
        {"image": one_or_all([str(path) for path in channels[case]]), "label": str(path), "case": case}
        for case, (path,) in labels.items()
    ]


# --- BraTS ----------------------------------------------------------------------------------------


def _case_files(folder: Path) -> dict[str, list[Path]]:
    """Return the files that are named after their folder, by canonical modality or "seg"."""
    files = defaultdict(list)
    for path in _entries(folder):
        if path.name.endswith(NIFTI):
            if stem(path) in (f"{folder.name}_seg", f"{folder.name}-seg"):
                files["seg"].append(path)
            elif (known := modality_of(path)) is not None and known[0] == folder.name:
                files[known[1]].append(path)
    return files


def _case_folders(root: Path, deeper: bool = True) -> dict[Path, dict[str, list[Path]]]:
    """Return the case folders in root, or in the one folder of root that has some, with their files."""
    folders = [path for path in _entries(root) if path.is_dir()]
    found = {folder: _case_files(folder) for folder in folders}
    if any(set(files) & set(CHANNELS) for files in found.values()):
        # an emptied case folder is recognised by the form of its name, so that it is reported and not left out
        forms = {re.sub(r"\d", "0", folder.name) for folder, files in found.items() if files}
        cases = {f: files for f, files in found.items() if files or re.sub(r"\d", "0", f.name) in forms}
        if len(cases) < len(folders):
            logger.info("%s: left out, no case folders: %s", root, some([f.name for f in folders if f not in cases]))
        return cases
    below = [cases for folder in folders if (cases := _case_folders(folder, deeper=False))] if deeper else []
    if len(below) > 1:
        names = [next(iter(cases)).parent.name for cases in below]
        raise ValueError(f"{root}: several folders hold cases: {some(names)}; give one of them with --dataset_dir")
    return below[0] if below else {}


def _brats_cases(folders: Mapping[Path, dict[str, list[Path]]], channels: Sequence[str] | None) -> list[Case]:
    root = next(iter(folders)).parent
    present = {name for files in folders.values() for name in files}
    names = [name for name in CHANNELS if name in present]
    positions = None if channels is None else channel_positions(names, channels, f"{root}: the case folders")
    if channels is not None and positions is None:
        raise ValueError(
            f"{root}: the case folders hold {names}, not the channels {list(channels)}; use a task for them"
        )
    wanted = names if positions is None else [names[p] for p in positions]
    missing = [f"{f.name} {role}" for f, files in folders.items() for role in (*wanted, "seg") if role not in files]
    if missing:
        raise FileNotFoundError(
            f"{root}: missing {some(missing)}; each case folder needs a file NAME_MODALITY.nii.gz for each of {wanted}"
            " and its label NAME_seg.nii.gz: complete the download, or remove the folder"
        )
    for folder, files in folders.items():
        _refuse_repeated(folder, files.values())
    cases = []
    for folder, files in folders.items():
        images = [str(files[name][0]) for name in wanted]
        item = {"image": one_or_all(images), "label": str(files["seg"][0]), "case": folder.name}
        if (match := _TIME_POINT.match(folder.name)) is not None:
            item["subject"] = match["subject"]
        cases.append(item)
    return cases


# --- files ----------------------------------------------------------------------------------------


def _refuse_repeated(folder: Path, groups: Iterable[Sequence[Path]]) -> None:
    repeated = [" and ".join(path.name for path in paths) for paths in groups if len(paths) > 1]
    if repeated:
        raise ValueError(f"{folder}: several files for one image: {some(repeated)}; keep one of each")


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted, without hidden entries; [] if it is no folder or closed to us."""
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
