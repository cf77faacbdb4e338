"""Labelled data sets in the layouts in which people download them.

Recognised by content, never by a flag; nothing here opens an image, `mambamim_nets.bundle.check` does:

- Decathlon: `dataset.json` with a "training" list; labelled cases of its "validation" list (as AMOS22 has) count too.
- nnU-Net v2: `dataset.json` with "channel_names" and "file_ending"; imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz.
- BTCV as downloaded from Synapse: RawData/Training/img/img0001.nii.gz, RawData/Training/label/label0001.nii.gz.
- BraTS: one folder per case, BraTS2021_00000/BraTS2021_00000_{flair,t1ce,t1,t2,seg}.nii.gz, or as of 2023
  BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t2f,t1c,t1n,t2w,seg}.nii.gz.

Glossary:
    case: one image (one file, or one file per channel) with its label; its name is unique in the data set.
    subject: the person scanned; some have several cases.
    listed: the part, "training" or "validation", in which a description itself places a labelled case.
    channel: one modality of the network's input, such as "flair". `CHANNELS` holds the names each is known by.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mambamim_nets.bundle.datalist import NIFTI, case_names, is_nnunet, keys_of, listed_subjects, read_json, some, stem

__all__ = ["CHANNELS", "channel_of", "channel_order", "labelled_cases", "modality_of"]

logger = logging.getLogger(__name__)

# canonical name -> further names: of BraTS 2023 (t2f, t1c, t1n, t2w), of the Decathlon and of BIDS (t1gd, t1w, t2w)
CHANNELS: dict[str, tuple[str, ...]] = {
    "flair": ("t2f",),
    "t1ce": ("t1c", "t1gd"),
    "t1": ("t1n", "t1w"),
    "t2": ("t2w",),
}
_CANONICAL = {known: name for name, others in CHANNELS.items() for known in (name, *others)}
_MODALITY = re.compile(rf"^(?P<case>.+)[-_](?P<channel>{'|'.join(_CANONICAL)})$", re.IGNORECASE)
_BTCV_FOLDERS = (".", "Training", "RawData/Training", "Abdomen/RawData/Training")
_BTCV_FILE = {kind: re.compile(rf"^{kind}(\d+)\.nii(\.gz)?$") for kind in ("img", "label")}
_TIME_POINT = re.compile(r"^(?P<subject>BraTS-[A-Z]+-\d+)-\d{3}$")
_REMEDY = (
    "give an existing folder with --dataset_dir, download a Decathlon task with monai.apps.DecathlonDataset(root_dir,"
    " task, section='training', download=True), or try --dataset_dir phantom"
)


def channel_of(name: str) -> str:
    """Return the canonical name of an image channel ("T1w" -> "t1"); an unknown name comes back in lower case."""
    lower = name.strip().lower()
    return _CANONICAL.get(lower, lower)


def modality_of(filename: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return the case and the canonical modality that a NIfTI file's name ends in.

    "BraTS2021_00000_t1ce.nii.gz" -> ("BraTS2021_00000", "t1ce"), "sub-01_FLAIR.nii.gz" -> ("sub-01", "flair"); None if
    the name ends in no known modality after "_" or "-".
    """
    match = _MODALITY.match(stem(filename))
    return None if match is None else (match["case"], channel_of(match["channel"]))


def labelled_cases(dataset_dir: str | os.PathLike[str], channels: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """List the labelled cases of a data set in one of the layouts above.

    Args:
        dataset_dir: folder that holds `dataset.json`; for BTCV the folder of img and label or one of those above it,
            up to "Abdomen" and its parent; for BraTS the folder of the case folders, or one that holds exactly one such
            folder. A `split.json` in it whose "cases" carry "case" and "subject" adds the subjects, as does a
            "subject" in an entry of `dataset.json` (which wins).
        channels: names of the network's input channels, in its order; images in several files come in this order,
            files of other modalities are left out. None: the order of the data set, for BraTS that of `CHANNELS`. Names
            of which the data set's description knows none leave its order alone.

    Returns:
        One dict per case, sorted by name: "image" (absolute path, or a list of them in channel order), "label"
        (absolute path), "case" (name) and, where it is known, "subject" (str); "listed" ("training" or "validation")
        where `dataset.json` lists labelled cases for validation.

    Raises:
        FileNotFoundError: the folder, a file that a case needs, or any known layout is missing.
        ValueError: `dataset.json` is of no known layout, names no case, one case twice or a path that leaves the
            folder; or the data set has some of the channels and lacks others.
    """
    root = _folder(dataset_dir)
    source = root / "dataset.json"
    if source.is_file():
        content = read_json(source)
        if is_nnunet(content):
            cases = _nnunet_cases(root, content, channels)
        elif isinstance(content, dict) and isinstance(content.get("training"), list):
            cases = _decathlon_cases(root, content, channels)
        else:
            raise ValueError(
                f"{source}: needs a 'training' list (Decathlon) or 'channel_names' and 'file_ending' (nnU-Net v2), "
                f"has {keys_of(content)}"
            )
    elif btcv := [folder for name in _BTCV_FOLDERS if _btcv_files(folder := root / name)]:
        cases = _btcv_cases(btcv[0])
    elif brats := _case_folders(root):
        cases = _brats_cases(brats, channels)
    else:
        raise FileNotFoundError(
            f"dataset_dir {str(dataset_dir)!r} has no dataset.json (Decathlon or nnU-Net v2), no img/img0001.nii.gz and"
            " label/label0001.nii.gz (BTCV) and no case folders such as BraTS2021_00000/BraTS2021_00000_t1.nii.gz"
            f" (BraTS); {_REMEDY}"
        )
    if not cases:
        raise ValueError(f"{source} names no labelled case; {_REMEDY}")
    repeated = sorted(name for name, count in Counter(item["case"] for item in cases).items() if count > 1)
    if repeated:
        raise ValueError(
            f"{source}: case names must be unique, repeated: {some(repeated)}; give each entry its own 'case'"
        )
    subjects = listed_subjects(root / "split.json")
    for item in cases:
        if "subject" not in item and item["case"] in subjects:
            item["subject"] = subjects[item["case"]]
    return sorted(cases, key=lambda item: item["case"])


def channel_order(dataset_dir: str | os.PathLike[str], channels: Sequence[str]) -> list[int]:
    """Return where each of the network's channels lies on the last axis of a Decathlon data set's 4-D files.

    Args:
        dataset_dir: as for `labelled_cases`.
        channels: names of the network's input channels, in its order.

    Returns:
        One index per channel, from "modality" of `dataset.json`; 0, 1, ... where that names none of the channels, or
        where each channel has a file of its own, which `labelled_cases` puts in order.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: "modality" names some of the channels and lacks others.
    """
    path = _folder(dataset_dir) / "dataset.json"
    content = read_json(path) if path.is_file() else None
    identity = list(range(len(channels)))
    if not isinstance(content, dict) or is_nnunet(content):
        return identity
    entries = content.get("training")
    if isinstance(entries, list) and any(isinstance(e, dict) and isinstance(e.get("image"), list) for e in entries):
        return identity
    names = _in_number_order(content.get("modality"))
    positions = _positions(names, channels, f"{path}: 'modality'")
    if positions is None:
        logger.info("%s: 'modality' %s names none of the channels %s: their order is kept", path, names, list(channels))
        return identity
    return positions


# --- Decathlon and nnU-Net ------------------------------------------------------------------------


def _decathlon_cases(root: Path, content: Mapping[str, Any], channels: Sequence[str] | None) -> list[dict[str, Any]]:
    training, others = content["training"], content.get("validation")
    for entry in training:
        if not isinstance(entry, dict) or "image" not in entry or "label" not in entry:
            raise ValueError(f"{root / 'dataset.json'}: training entry {entry!r} must have 'image' and 'label'")
    validation = [entry for entry in others if isinstance(entry, dict)] if isinstance(others, list) else []
    validation = [entry for entry in validation if "image" in entry and entry.get("label")]
    names = _in_number_order(content.get("modality"))
    entries = [*training, *validation]
    cases = []
    for number, (entry, case) in enumerate(zip(entries, case_names(entries), strict=True)):
        image = entry["image"]
        if isinstance(image, list):
            image = _ordered([_inside(root, part) for part in image], names, channels, f"{root}: case {case}")
        else:
            image = _inside(root, image)
        item = {"image": image, "label": _inside(root, entry["label"]), "case": case}
        if "subject" in entry:
            item["subject"] = str(entry["subject"])
        if validation:
            item["listed"] = "training" if number < len(training) else "validation"
        cases.append(item)
    trained = {str(item["image"]) for item in cases[: len(training)]}
    both = [item["case"] for item in cases[len(training) :] if str(item["image"]) in trained]
    if both:
        raise ValueError(
            f"{root / 'dataset.json'}: cases in both 'training' and 'validation': {some(both)}; keep each in one list"
        )
    return cases


def _nnunet_cases(root: Path, content: Mapping[str, Any], channels: Sequence[str] | None) -> list[dict[str, Any]]:
    ending = content["file_ending"]
    names = _in_number_order(content["channel_names"])
    if not names:
        raise ValueError(
            f"{root / 'dataset.json'}: 'channel_names' {content['channel_names']!r} must be {{'0': name, ...}}"
        )
    entries: dict[str, tuple[list[str], str]] = {}
    if isinstance(content.get("dataset"), dict):  # nnU-Net v2 may list its files instead of relying on their names
        for case, entry in content["dataset"].items():
            entries[case] = ([_inside(root, path) for path in entry["images"]], _inside(root, entry["label"]))
    else:
        for label in sorted((root / "labelsTr").glob(f"*{ending}")):
            if label.name.startswith("."):
                continue
            case = label.name.removesuffix(ending)
            images = [str(root / "imagesTr" / f"{case}_{channel:04d}{ending}") for channel in range(len(names))]
            entries[case] = (images, str(label))
    missing = [path for images, label in entries.values() for path in (*images, label) if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{root}: missing {some(missing)}; each case of an nnU-Net folder needs its label and {len(names)} image"
            " file(s)"
        )
    uneven = [case for case, (images, _) in entries.items() if len(images) != len(names)]
    if uneven:
        raise ValueError(
            f"{root / 'dataset.json'}: cases without exactly {len(names)} images: {some(uneven)}; list one per channel"
        )
    declared = content.get("numTraining")
    if declared is not None and int(declared) != len(entries):
        raise ValueError(
            f"{root / 'dataset.json'}: numTraining {declared} must equal the {len(entries)} cases in labelsTr; "
            "complete the download or correct numTraining"
        )
    where = f"{root / 'dataset.json'}: 'channel_names'"
    positions = None if channels is None else _positions(names, channels, where)
    if channels is not None and positions is None:
        logger.info("%s %s names none of the channels %s: their order is kept", where, names, list(channels))
    positions = positions or list(range(len(names)))
    return [
        {"image": _one_or_all([images[p] for p in positions]), "label": label, "case": case}
        for case, (images, label) in entries.items()
    ]


def _inside(root: Path, path: str) -> str:
    """Join a listed path to its data set; links inside the folder may point elsewhere, the path itself may not."""
    joined = os.path.normpath(os.path.join(root, path))
    if os.path.commonpath([joined, root]) != str(root):
        raise ValueError(
            f"{root / 'dataset.json'}: path {path!r} must stay inside {root}; move the file there or link to it"
        )
    return joined


# --- BTCV -----------------------------------------------------------------------------------------


def _btcv_files(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """Return the files of img and label by kind and number; several for one number if it is there .nii and .nii.gz."""
    files = defaultdict(list)
    for kind, pattern in _BTCV_FILE.items():
        for path in _entries(folder / kind):
            if (match := pattern.match(path.name)) is not None:
                files[kind, match[1]].append(path)
    return files


def _btcv_cases(folder: Path) -> list[dict[str, Any]]:
    files = _btcv_files(folder)
    _refuse_twins(folder, files.values())
    numbers = sorted({number for _, number in files})
    missing = [
        f"{kind}/{kind}{number}.nii.gz" for number in numbers for kind in _BTCV_FILE if (kind, number) not in files
    ]
    if missing:
        raise FileNotFoundError(
            f"{folder}: missing {some(missing)}; each img/imgNNNN needs its label/labelNNNN and vice versa: complete"
            " the download, or remove what has no partner"
        )
    return [
        {"image": str(image), "label": str(files["label", number][0]), "case": stem(image)}
        for number in numbers
        for image in files["img", number]
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


def _brats_cases(folders: Mapping[Path, dict[str, list[Path]]], channels: Sequence[str] | None) -> list[dict[str, Any]]:
    root = next(iter(folders)).parent
    present = {name for files in folders.values() for name in files}
    names = [name for name in CHANNELS if name in present]
    positions = None if channels is None else _positions(names, channels, f"{root}: the case folders")
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
        _refuse_twins(folder, files.values())
    cases = []
    for folder, files in folders.items():
        images = [str(files[name][0]) for name in wanted]
        item = {"image": _one_or_all(images), "label": str(files["seg"][0]), "case": folder.name}
        if (match := _TIME_POINT.match(folder.name)) is not None:
            item["subject"] = match["subject"]
        cases.append(item)
    return cases


# --- channels and files ---------------------------------------------------------------------------


def _positions(names: Sequence[str], channels: Sequence[str], where: str) -> list[int] | None:
    """Return where each channel stands among names; None if none does."""
    have, want = [channel_of(name) for name in names], [channel_of(name) for name in channels]
    missing = [channel for channel, name in zip(channels, want, strict=True) if name not in have]
    if len(missing) == len(want):
        return None
    if missing:
        raise ValueError(
            f"{where} {list(names)} must name all of the channels {list(channels)}, or none; missing: {missing}; add"
            " them, or correct their names"
        )
    if any(have.count(name) > 1 for name in want) or len(set(want)) < len(want):
        raise ValueError(f"{where} {list(names)}: each of the channels {list(channels)} must be named once")
    return [have.index(name) for name in want]


def _ordered(images: list[str], names: Sequence[str], channels: Sequence[str] | None, where: str) -> list[str]:
    """Return one case's files in channel order, told by their own names or else by the description's."""
    known = [match[1] for path in images if (match := modality_of(path)) is not None]
    names = known if len(known) == len(images) else names
    if channels is None or len(names) != len(images):
        return images
    positions = _positions(names, channels, where)
    return images if positions is None else [images[p] for p in positions]


def _in_number_order(names: Any) -> list[str]:
    """Return the names of {"0": name, "1": ...}; [] for anything else."""
    if not isinstance(names, Mapping) or not all(str(number).isdigit() for number in names):
        return []
    return [str(names[number]) for number in sorted(names, key=int)]


def _one_or_all(images: list[str]) -> str | list[str]:
    return images[0] if len(images) == 1 else images


def _refuse_twins(folder: Path, groups: Iterable[Sequence[Path]]) -> None:
    twins = [" and ".join(path.name for path in paths) for paths in groups if len(paths) > 1]
    if twins:
        raise ValueError(f"{folder}: several files for one image: {some(twins)}; keep one of each")


def _entries(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted, without hidden entries; [] if it is no folder or closed to us."""
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folder(dataset_dir: str | os.PathLike[str]) -> Path:
    root = Path(os.path.abspath(dataset_dir))
    if not root.is_dir():
        raise FileNotFoundError(f"dataset_dir {str(dataset_dir)!r} is not a folder; {_REMEDY}")
    return root
