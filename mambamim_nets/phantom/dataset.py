"""Write a synthetic data set as NIfTI in the Decathlon layout, once, and recognise it afterwards."""

import csv
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from mambamim_nets.phantom.anatomy import LABELS, MODALITIES
from mambamim_nets.phantom.dementia import diagnosis, seed_of
from mambamim_nets.phantom.render import Shape, Spacing, complete_grid, landmarks, make

logger = logging.getLogger(__name__)

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
        kind, shape, spacing: as in `make`.
        cases: labelled subjects, 1 or more.
        seed: of the data set; each subject has its own seed drawn from it.

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


def _holds(folder: Path, record: dict) -> bool:
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


def _build(folder: Path, record: dict) -> None:
    """Write images, labels, dataset.json, and what a kind has besides: subjects.csv, landmarks.csv."""
    kind, cases = record["kind"], record["cases"]
    names = [f"phantom_{case:03d}.nii.gz" for case in range(cases + 2)]
    table = ["subject,image,diagnosis"]
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir()
    points: list[list[object]] = []
    for case, name in enumerate(names):
        seed = int(np.random.SeedSequence([record["seed"], case]).generate_state(1)[0])
        if kind == "dementia":
            seed = seed_of(seed, case)
            table += [f"{name.split('.')[0]},imagesTr/{name},{diagnosis(seed)}"] if case < cases else []
        subject = make(kind, seed, record["shape"], record["spacing"])
        dtype = np.int16 if MODALITIES[kind][0].startswith("CT") else np.float32
        _save(folder / ("imagesTr" if case < cases else "imagesTs") / name, subject.image.astype(dtype), subject.affine)
        if case < cases:
            _save(folder / "labelsTr" / name, subject.label, subject.affine)
        for point, place in landmarks(kind, seed).items():
            points.append([name.removesuffix(".nii.gz"), point, *(f"{mm:.4f}" for mm in place), "RAS"])
    if points:
        with (folder / "landmarks.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["case", "name", "x", "y", "z", "frame"], *points])
    listing = {
        "name": f"Phantom-{kind}",
        "description": "Procedural synthetic anatomy; not patient data. Results on it say nothing about patients.",
        "licence": "CC0-1.0",
        "release": f"{VERSION}.0",
        "tensorImageSize": "4D" if len(MODALITIES[kind]) > 1 else "3D",
        "modality": {str(channel): name for channel, name in enumerate(MODALITIES[kind])},
        "labels": {"0": "background"} | {str(value): name for value, name in LABELS[kind].items()},
        "numTraining": cases,
        "numTest": 2,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names[:cases]],
        "test": [f"./imagesTs/{name}" for name in names[cases:]],
        "phantom": record,
    }
    if kind == "dementia":
        (folder / "subjects.csv").write_text("\n".join(table) + "\n")
    (folder / "dataset.json").write_text(json.dumps(listing, indent=2) + "\n")


def _save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
