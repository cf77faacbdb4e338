"""Write a synthetic data set as NIfTI in the Decathlon layout, once, and recognise it afterwards."""

import csv
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mambamim_nets.phantom.kinds import KINDS
from mambamim_nets.phantom.subjects import Shape, Spacing, complete_grid, landmarks, make

__all__ = ["VERSION", "write"]

logger = logging.getLogger("mambamim_nets")

VERSION = 1
"""Raise whenever the voxels of any subject change, so that old folders are not reused."""


def write(
    folder: str | os.PathLike, kind: str, cases: int = 10, seed: int = 0, shape: Shape = None, spacing: Spacing = None
) -> Path:
    """Write a synthetic data set in the Decathlon layout, or reuse the one that is there.

    The data set is built in a temporary folder beside it and appears at once under its name, so that a reader never
    meets half of it. Of several processes writing the same one, the first wins and the others use its result. Two
    further subjects without labels are the test list. Of the kind "dementia", subjects.csv (subject, image, diagnosis)
    lists the labelled ones. Points, where a kind has them, are in `landmarks.csv`, of all.

    Args:
        folder: a new or empty folder, or one this function wrote with the same arguments.
        kind: as in `make`.
        cases: labelled subjects, 1 or more.
        seed: of the data set; each subject has its own seed drawn from it.
        shape: as in `make`.
        spacing: as in `make`.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder holds anything else.
        ValueError: as in `make`, or if cases is below 1.
    """
    folder = Path(folder)
    if cases < 1:
        raise ValueError(f"cases {cases} must be 1 or more")
    chosen, spaced = complete_grid(kind, shape, spacing)
    record = {"kind": kind, "seed": seed, "cases": cases, "version": VERSION}
    record["shape"] = None if shape is None else list(chosen)
    record["spacing"] = None if spacing is None else list(spaced)
    if _holds(folder, record):
        logger.info("synthetic %s data (not patient data): reusing %s", kind, folder)
        return folder
    logger.info(
        "synthetic %s data (not patient data): writing %d + 2 subjects to %s, reused later", kind, cases, folder
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _build(building, record)
        building.chmod(0o755)  # mkdtemp makes it private
        try:
            if folder.is_dir():
                folder.rmdir()  # an empty one; Windows does not rename onto it
            building.rename(folder)
        except OSError:
            if not _holds(folder, record):  # else another process was first
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _holds(folder: Path, record: dict[str, Any]) -> bool:
    """Return whether the folder holds this data set; False if new or empty, an error if it is anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        listing = json.loads((folder / "dataset.json").read_text())
        same = listing["phantom"] == record
        files = [name for item in listing["training"] for name in item.values()] + listing["test"]
        missing = [name for name in files if not (folder / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FileExistsError(f"folder {folder} holds something else than synthetic data; name a new folder") from None
    if not same:
        raise FileExistsError(
            f"folder {folder} holds synthetic {listing['phantom']}, not {record}; name another folder"
        )
    if missing:
        raise FileExistsError(f"folder {folder} lacks {missing[0]} of its own dataset.json; remove the folder")
    return True


def _build(folder: Path, record: dict[str, Any]) -> None:
    """Write images, labels, dataset.json and, where a kind has them, subjects.csv and landmarks.csv."""
    name, cases = record["kind"], record["cases"]
    kind = KINDS[name]
    dtype = np.int16 if kind.modalities[0].startswith("CT") else np.float32
    files = [f"phantom_{case:03d}.nii.gz" for case in range(cases + 2)]
    subjects: list[Sequence[object]] = []
    points: list[Sequence[object]] = []
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir()
    for case, file in enumerate(files):
        subject, labelled = file.removesuffix(".nii.gz"), case < cases
        seed = int(np.random.SeedSequence([record["seed"], case]).generate_state(1)[0])
        if kind.diagnoses:
            seed += (case - seed) % len(kind.diagnoses)  # the next seed of this case's diagnosis: they take turns
            if labelled:
                subjects.append([subject, f"imagesTr/{file}", kind.diagnoses[seed % len(kind.diagnoses)]])
        image, label, affine = make(name, seed, record["shape"], record["spacing"])
        _save(folder / ("imagesTr" if labelled else "imagesTs") / file, image.astype(dtype), affine)
        if labelled:
            _save(folder / "labelsTr" / file, label, affine)
        for point, place in landmarks(name, seed).items():
            points.append([subject, point, *(f"{mm:.4f}" for mm in place), "RAS"])
    _write_table(folder / "subjects.csv", ["subject", "image", "diagnosis"], subjects, "\n")
    _write_table(folder / "landmarks.csv", ["case", "name", "x", "y", "z", "frame"], points, "\r\n")
    listing = {
        "name": f"Phantom-{name}",
        "description": "Procedural synthetic anatomy; not patient data. Results on it say nothing about patients.",
        "licence": "CC0-1.0",
        "release": f"{VERSION}.0",
        "tensorImageSize": "4D" if len(kind.modalities) > 1 else "3D",
        "modality": {str(channel): text for channel, text in enumerate(kind.modalities)},
        "labels": {"0": "background"} | {str(value): text for value, text in kind.labels.items()},
        "numTraining": cases,
        "numTest": 2,
        "training": [{"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"} for file in files[:cases]],
        "test": [f"./imagesTs/{file}" for file in files[cases:]],
        "phantom": record,
    }
    (folder / "dataset.json").write_text(json.dumps(listing, indent=2) + "\n")


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], end: str) -> None:
    """Write a CSV file, unless there are no rows."""
    if rows:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator=end).writerows([header, *rows])


def _save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
