"""Labelled data sets in the layouts in which people download them.

Recognised by content, never by a flag; nothing here opens an image, `mambamim_nets.bundle.data.verification` does:

- Decathlon: `dataset.json` with a "training" list; labelled cases of its "validation" list (as AMOS22 has) count too.
- nnU-Net v2: `dataset.json` with "channel_names" and "file_ending"; imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz.
- BTCV, BraTS, KiTS23 and CT-ORG as downloaded, without a description: see `mambamim_nets.bundle.data.downloads`.

DICOM series with DICOM-SEG or RTSTRUCT labels are converted first, by `mambamim_nets.convert_dicom`.

Glossary:
    case: one image (one file, or one file per channel) with its label; its name is unique in the data set.
    subject: the person scanned; some have several cases.
    listed: the part, "training" or "validation", in which a data set itself places a labelled case.
    channel: one modality of the network's input, such as "flair"; see `mambamim_nets.bundle.io.modalities`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambamim_nets.bundle.data.datalists import case_names, is_nnunet, keys_of, listed_subjects
from mambamim_nets.bundle.data.downloads import folder_cases
from mambamim_nets.bundle.data.duplicates import same_files
from mambamim_nets.bundle.files import read_json, some
from mambamim_nets.bundle.io.dicom_files import first_dicom
from mambamim_nets.bundle.io.modalities import channel_positions, in_number_order, one_or_all, ordered
from mambamim_nets.bundle.names import case_name, path_inside

__all__ = ["channel_order", "labelled_cases"]

logger = logging.getLogger("mambamim_nets")

_REMEDY = (
    "give an existing folder with --dataset_dir, download a Decathlon task with monai.apps.DecathlonDataset(root_dir,"
    " task, section='training', download=True), or try --dataset_dir phantom"
)


def labelled_cases(dataset_dir: str | os.PathLike[str], channels: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """List the labelled cases of a data set in one of the layouts above.

    Args:
        dataset_dir: folder that holds `dataset.json`; for BTCV the folder of img and label or one of those above it,
            up to "Abdomen" and its parent; for BraTS the folder of the case folders, or one that holds exactly one such
            folder; for KiTS23 that of the case folders or the one above; for CT-ORG that of the files or one of those
            above. A `split.json` in it whose "cases" carry "case" and "subject" adds the subjects, as does a
            "subject" in an entry of `dataset.json` (which wins).
        channels: names of the network's input channels, in its order; images in several files come in this order,
            files of other modalities are left out. None: the order of the data set, for BraTS that of `CHANNELS`. Names
            of which the data set's description knows none leave its order alone.

    Returns:
        One dict per case, sorted by name: "image" (absolute path, or a list of them in channel order), "label"
        (absolute path), "case" (name) and, where it is known, "subject" (str); "listed" ("training" or "validation")
        where `dataset.json` lists labelled cases for validation, and of CT-ORG.

    Raises:
        FileNotFoundError: the folder, a file that a case needs, or any known layout is missing.
        ValueError: `dataset.json` is of no known layout, names no case, one case twice, a case by a name that cannot
            name files (see `names.case_name`) or a path that leaves the folder; or the data set has some of the
            channels and lacks others.
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
    elif (found := folder_cases(root, channels)) is not None:
        cases = found
    elif (dicom := first_dicom(root)) is not None:
        raise FileNotFoundError(
            f"dataset_dir {str(dataset_dir)!r} holds DICOM, such as {dicom}; convert it once by python -m"
            f" mambamim_nets.convert_dicom --dataset_dir {dataset_dir} --output DATA, and give DATA as --dataset_dir"
        )
    else:
        raise FileNotFoundError(
            f"dataset_dir {str(dataset_dir)!r} has no dataset.json (Decathlon or nnU-Net v2), no img/img0001.nii.gz and"
            " label/label0001.nii.gz (BTCV), no volume-0.nii.gz and labels-0.nii.gz (CT-ORG) and no case folders such"
            " as BraTS2021_00000/BraTS2021_00000_t1.nii.gz (BraTS) or case_00000/imaging.nii.gz (KiTS23);"
            f" {_REMEDY}"
        )
    if not cases:
        raise ValueError(f"{source} names no labelled case; {_REMEDY}")
    for item in cases:
        item["case"] = case_name(item["case"], source if source.is_file() else root)
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
    names = in_number_order(content.get("modality"))
    positions = channel_positions(names, channels, f"{path}: 'modality'")
    if positions is None:
        logger.info("%s: 'modality' %s names none of the channels %s: their order is kept", path, names, list(channels))
        return identity
    return positions


# --- Decathlon and nnU-Net ------------------------------------------------------------------------


def _decathlon_cases(root: Path, content: Mapping[str, Any], channels: Sequence[str] | None) -> list[dict[str, Any]]:
    source = root / "dataset.json"
    training, others = content["training"], content.get("validation")
    for entry in training:
        if not isinstance(entry, dict) or "image" not in entry or "label" not in entry:
            raise ValueError(f"{source}: training entry {entry!r} must have 'image' and 'label'")
    validation = [entry for entry in others if isinstance(entry, dict)] if isinstance(others, list) else []
    validation = [entry for entry in validation if "image" in entry and entry.get("label")]
    for entry in (*training, *validation):
        files = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        if not files or not all(isinstance(file, str) for file in (*files, entry["label"])):
            raise ValueError(
                f"{source}: entry {entry!r} must have as 'image' a path or a list of them, and as 'label' a path"
            )
        if "case" in entry:
            case_name(entry["case"], source)
    names = in_number_order(content.get("modality"))
    entries = [*training, *validation]
    cases = []
    for number, (entry, case) in enumerate(zip(entries, case_names(entries), strict=True)):
        image = entry["image"]
        if isinstance(image, list):
            image = ordered([_inside(root, part) for part in image], names, channels, f"{root}: case {case}")
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
        raise ValueError(f"{source}: cases in both 'training' and 'validation': {some(both)}; keep each in one list")
    tested = content.get("test")
    entries = tested if isinstance(tested, list) else []
    images = [entry["image"] if isinstance(entry, dict) and "image" in entry else entry for entry in entries]
    paths = [path for image in images for path in _files(image) if isinstance(path, str)]
    _warn_of_tested(cases, [os.path.normpath(os.path.join(root, path)) for path in paths], f"{source}: 'test'")
    return cases


def _warn_of_tested(cases: Sequence[Mapping[str, Any]], tested: Sequence[str], where: str) -> None:
    """Log which labelled cases are among the images kept for testing: of those a model would have seen the answer."""
    case_of = {file: item["case"] for item in cases for file in _files(item["image"])}
    pairs = [f"{case_of[image]} ({os.path.basename(test)})" for image, test in same_files(case_of, tested)]
    if pairs:
        logger.warning(
            "%s has images of labelled cases too: %s; scores on them say nothing about new scans, take them out there",
            where,
            some(pairs),
        )


def _files(image: Any) -> list[Any]:
    return image if isinstance(image, list) else [image]


def _nnunet_cases(root: Path, content: Mapping[str, Any], channels: Sequence[str] | None) -> list[dict[str, Any]]:
    ending = content["file_ending"]
    names = in_number_order(content["channel_names"])
    if not names:
        raise ValueError(
            f"{root / 'dataset.json'}: 'channel_names' {content['channel_names']!r} must be {{'0': name, ...}}"
        )
    entries: dict[str, tuple[list[str], str]] = {}
    if isinstance(content.get("dataset"), dict):  # nnU-Net v2 may list its files instead of relying on their names
        for case, entry in content["dataset"].items():
            case_name(case, root / "dataset.json")
            if not isinstance(entry, dict) or not isinstance(entry.get("images"), list) or "label" not in entry:
                raise ValueError(
                    f"{root / 'dataset.json'}: entry {case!r} of 'dataset' is {entry!r}; it must have a list 'images' "
                    "and a 'label'"
                )
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
    positions = None if channels is None else channel_positions(names, channels, where)
    if channels is not None and positions is None:
        logger.info("%s %s names none of the channels %s: their order is kept", where, names, list(channels))
    positions = positions or list(range(len(names)))
    cases = [
        {"image": one_or_all([images[p] for p in positions]), "label": label, "case": case}
        for case, (images, label) in entries.items()
    ]
    tested = root / "imagesTs"
    _warn_of_tested(cases, [str(path) for path in sorted(tested.glob(f"*{ending}"))], str(tested))
    return cases


def _inside(root: Path, path: object) -> str:
    return path_inside(root, path, root / "dataset.json")


def _folder(dataset_dir: str | os.PathLike[str]) -> Path:
    root = Path(os.path.abspath(dataset_dir))
    if not root.is_dir():
        raise FileNotFoundError(f"dataset_dir {str(dataset_dir)!r} is not a folder; {_REMEDY}")
    return root
