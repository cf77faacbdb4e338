"""Lists of unlabelled images for pre-training.

Nothing here opens an image: `mambamim_nets.bundle.data.verification` does. Labelled cases are listed by
`mambamim_nets.bundle.data.labelled`.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mambamim_nets.bundle.data.datalists import DECATHLON_KEYS, is_nnunet, keys_of
from mambamim_nets.bundle.files import NIFTI, read_json, stem
from mambamim_nets.bundle.io.dicom_files import ENDINGS as DICOM_ENDINGS
from mambamim_nets.bundle.io.scan_formats import VOLUMES

__all__ = ["image_folders", "is_label", "is_other", "unlabelled_images", "warn_of_others"]

logger = logging.getLogger("mambamim_nets")
MAX_CHANNELS = 8  # of an nnU-Net case whose folder has no dataset.json
_CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
_LABEL_NAME = re.compile(r"_(seg|labels?)$", re.IGNORECASE)


def unlabelled_images(sources: Sequence[Any] | str | Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the images of any number of sources for pre-training; labels are left out.

    Args:
        sources: each a path, or {"path": ..., "weight": 1.0, "key": "training"}. A path is one of
            - a Decathlon-style JSON list: its training, validation and test images, or those under `key` only; a
              relative path is relative to the folder of the JSON file, and a list may name files anywhere, since
              nothing is written under their names;
            - a Decathlon folder: the images that its `dataset.json` lists, as above;
            - an nnU-Net folder, or any folder with imagesTr: imagesTr and imagesTs (`key` "training" or "test" for one
              of them), files CASE_0000, CASE_0001, ... kept together as one item;
            - another folder: every .nii and .nii.gz below it, links followed, without what lies below a folder labels*
              and without files named *_seg, *_label or *_labels;
            - one .nii or .nii.gz file.
            `weight` is the relative weight of the source when samples are drawn.

    Returns:
        One dict per image: "image" (absolute path, or list of them in channel order), "source" (the path as given),
        "weight". An image reached twice (the same real path) is listed once, with the weight of the first source.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a source is malformed or holds no image.
    """
    if isinstance(sources, (str, os.PathLike, Mapping)):
        sources = [sources]
    if not sources:
        raise ValueError("sources is empty; name at least one folder, file or Decathlon JSON list")
    items: list[dict[str, Any]] = []
    seen: set[tuple[str, ...]] = set()
    for source in sources:
        name, weight, key = _source(source)
        path = Path(os.path.abspath(name))
        if not path.exists():
            raise FileNotFoundError(
                f"source {name!r} does not exist; name a folder, a NIfTI file or a Decathlon JSON list"
            )
        images = list(_source_images(path, key))
        if not images:
            where = name if key is None else f"{name} (key {key!r})"
            raise ValueError(
                f"source {where!r} holds no image; expected .nii or .nii.gz files, or a JSON list that names some"
            )
        repeated = 0
        for image in images:
            identity = tuple(os.path.realpath(part) for part in ([image] if isinstance(image, str) else image))
            if identity in seen:
                repeated += 1
                continue
            seen.add(identity)
            items.append({"image": image, "source": name, "weight": weight})
        logger.info(
            "source %s: %d images, weight %g, %d already listed and left out", name, len(images), weight, repeated
        )
    return items


def _source(source: Any) -> tuple[str, float, str | None]:
    if not isinstance(source, Mapping):
        return os.fspath(source), 1.0, None
    unknown = sorted(set(source) - {"path", "weight", "key"})
    if unknown or "path" not in source:
        raise ValueError(
            f"source {dict(source)!r} must have 'path' and may have 'weight' and 'key'; unknown: {unknown}"
        )
    weight = float(source.get("weight", 1.0))
    if not 0 < weight < float("inf"):
        raise ValueError(
            f"source {source['path']!r}: weight {weight} must be positive and finite; leave the source out instead"
        )
    return os.fspath(source["path"]), weight, source.get("key")


def _source_images(path: Path, key: str | None) -> Iterator[str | list[str]]:
    if path.is_file():
        if path.suffix == ".json":
            yield from _listed_images(path, key)
        elif path.name.endswith(NIFTI):
            yield str(path)
        else:
            raise ValueError(f"source {str(path)!r} must be a folder, a .json list or a .nii/.nii.gz file")
        return
    description = path / "dataset.json"
    content = read_json(description) if description.is_file() else None
    if content is not None and not is_nnunet(content):
        yield from _listed_images(description, key)
    elif content is not None or (path / "imagesTr").is_dir():
        yield from _nnunet_images(path, content, key)
    elif key is not None:
        raise ValueError(
            f"source {str(path)!r}: key {key!r} needs a JSON list or a folder with dataset.json or imagesTr"
        )
    else:
        yield from _found_images(path)


def _listed_images(path: Path, key: str | None) -> Iterator[str | list[str]]:
    content = read_json(path)
    if isinstance(content, list) and key is None:
        entries = content
    elif isinstance(content, dict):
        keys = [name for name in DECATHLON_KEYS if name in content] if key is None else [key]
        if not keys or any(not isinstance(content.get(name), list) for name in keys):
            raise ValueError(
                f"{path}: needs a list under {key or ' or '.join(DECATHLON_KEYS)}; it has {keys_of(content)}"
            )
        entries = [entry for name in keys for entry in content[name]]
    else:
        raise ValueError(f"{path} must be a Decathlon JSON list, and has no key {key!r}; correct the list")
    for entry in entries:
        image = entry.get("image") if isinstance(entry, dict) else entry
        parts = [part for part in (image if isinstance(image, list) else [image]) if isinstance(part, str)]
        if not all(part.strip() and "\0" not in part for part in parts):
            raise ValueError(f"{path}: entry {entry!r} must name files; correct or remove it")
        if not parts or (isinstance(image, list) and len(parts) < len(image)):
            raise ValueError(f"{path}: entry {entry!r} must be a path or have an 'image'")
        absolute = [os.path.normpath(os.path.join(path.parent, part)) for part in parts]
        yield absolute if len(absolute) > 1 else absolute[0]


def _nnunet_images(root: Path, content: Mapping[str, Any] | None, key: str | None) -> Iterator[str | list[str]]:
    folders = {None: ("imagesTr", "imagesTs"), "training": ("imagesTr",), "test": ("imagesTs",)}
    if key not in folders:
        raise ValueError(
            f"source {str(root)!r}: key {key!r} must be 'training' (imagesTr) or 'test' (imagesTs), or left out"
        )
    endings = NIFTI if content is None else (content["file_ending"],)
    for folder in folders[key]:
        files = sorted(p for p in (root / folder).glob("*") if p.name.endswith(endings) and not p.name.startswith("."))
        channels: dict[str, dict[int, str]] = defaultdict(dict)
        for file in files:
            match = _CHANNEL.match(stem(file.name, endings))
            if match is not None:
                channels[match["case"]][int(match["channel"])] = str(file)
        found = sorted({number for by_channel in channels.values() for number in by_channel})
        n_named = sum(map(len, channels.values()))
        # without a description, names such as amos_0004 end in the number of a case: then one file is one image
        if content is None and (n_named < len(files) or found != list(range(len(found))) or len(found) > MAX_CHANNELS):
            yield from map(str, files)
            continue
        if n_named < len(files):
            logger.warning(
                "%s: %d files that are not named CASE_0000 are left out", root / folder, len(files) - n_named
            )
        numbers = found if content is None else list(range(len(content["channel_names"])))
        for case, by_channel in sorted(channels.items()):
            if set(by_channel) != set(numbers):
                logger.warning(
                    "%s is left out: its channels are %s and must be %s",
                    root / folder / case,
                    sorted(by_channel),
                    numbers,
                )
                continue
            images = [by_channel[number] for number in numbers]
            yield images if len(images) > 1 else images[0]


def _found_images(root: Path) -> Iterator[str]:
    found, labels, others = [], 0, []
    for folder, files in image_folders(root):
        others += [os.path.join(folder, file) for file in files if is_other(file, NIFTI) or is_slice(file)]
        for file in files:
            if not file.endswith(NIFTI):
                continue
            if is_label(stem(file)):
                labels += 1
            else:
                found.append(os.path.join(folder, file))
    if labels:
        logger.info("%s: %d files named *_seg or *_label left out", root, labels)
    if found:
        warn_of_others(root, others, "only .nii and .nii.gz are read here; mambamim_nets.prepare makes a store of all")
    yield from sorted(found)


def image_folders(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder below a root with the names of its files, links followed, without hidden ones and labels*."""
    visited: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link back to where we have been
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not name.lower().startswith("labels")
        )
        yield folder, sorted(file for file in files if not file.startswith("."))


def is_other(file: str, read: tuple[str, ...]) -> bool:
    """Return whether a file is a volume by its name, but of none of the endings that are read, and no label map."""
    name = file.lower()
    return not file.endswith(read) and name.endswith(VOLUMES) and not is_label(stem(name, VOLUMES))


def is_slice(file: str) -> bool:
    """Return whether a file is DICOM by the ending of its name."""
    return os.path.splitext(file)[1].lower() in DICOM_ENDINGS


def warn_of_others(root: Path, files: Sequence[str], remedy: str) -> None:
    """Log that files of a source are left out for their names."""
    if files:
        logger.warning("%s: %d file(s) are left out, such as %s; %s", root, len(files), files[0], remedy)


def is_label(name: str) -> bool:
    """Return whether a file is a label map by its name without ending."""
    return bool(_LABEL_NAME.search(name))
