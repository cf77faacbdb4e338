"""Data sets of scans with landmarks: where the points of a case are found, and what is checked before training.

- `dataset.json` with a "training" list, {"image", "landmarks", "subject"}: "landmarks" is a .mrk.json or .csv file of
  the case; a "validation" list of the same kind makes the fold "official".
- `landmarks.csv`: a table of all cases. With a dataset.json, its cases without a "landmarks" of their own are looked
  up there; without one, the column `case` or `image` names files in `images`, `imagesTr` or the folder itself.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mambamim_nets.bundle.data.datalists import case_names, listed_subjects
from mambamim_nets.bundle.data.inspection import inspect_image
from mambamim_nets.bundle.data.memory import ScanMemory
from mambamim_nets.bundle.data.verification import Findings, check_cases
from mambamim_nets.bundle.files import NIFTI, read_json, some
from mambamim_nets.bundle.io.landmarks import SIGNS, ordered_points, read_markups, read_table
from mambamim_nets.bundle.names import case_name, path_inside

__all__ = ["landmark_cases", "landmark_findings", "point_names"]

logger = logging.getLogger("mambamim_nets")

TABLE = "landmarks.csv"
FOLDERS = ("images", "imagesTr")
MARGIN = 0.5  # voxels: a point may lie anywhere in the outermost voxel


def point_names(lengths: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the points that lengths connect, each once, in order: the outputs of the network.

    Raises:
        ValueError: a length does not connect two different points.
    """
    for length, ends in lengths.items():
        if len(ends) != 2 or ends[0] == ends[1]:
            raise ValueError(f"length {length!r} of {list(ends)} must connect two different points; name its two ends")
    return list(dict.fromkeys(name for ends in lengths.values() for name in ends))


def landmark_cases(
    folder: str,
    names: Sequence[str],
    allow_missing: bool = False,
    cache_file: str | None = None,
    memory: ScanMemory | None = None,
) -> list[dict[str, Any]]:
    """List the scans of a folder with their points, and check every file of them.

    Args:
        folder: the data set, see the module.
        names: of the points, in the order of the network's outputs.
        allow_missing: whether points may be absent; the loss then leaves them out.
        cache_file: where the check remembers what it found sound.
        memory: what the work on a scan takes, as in `check_labelled`.

    Returns:
        Sorted by case: "image" (path), "case", "landmarks" (N x 3 floats, RAS mm, NaN where missing), "landmark_file",
        and where known "subject" and "listed".

    Raises:
        FileNotFoundError: the folder describes no cases.
        ValueError: a list is malformed; or one or more problems in the cases, up to 20 of them listed: an image as in
            `check_labelled`, a file of points as in `landmark_files`, or a point outside its image.
    """
    root = Path(folder)
    cases = sorted(_listed(root), key=lambda item: item["case"])
    subjects = listed_subjects(root / "split.json")
    repeated = sorted(name for name, count in Counter(item["case"] for item in cases).items() if count > 1)
    if repeated:
        raise ValueError(f"{root}: cases listed more than once: {some(repeated)}; list each once, or give it a 'case'")
    shared = Counter(item["landmark_file"] for item in cases)
    tables = {file: read_table(file) for file, count in shared.items() if count > 1 and file.endswith(".csv")}
    for item in cases:
        if "subject" not in item and item["case"] in subjects:
            item["subject"] = subjects[item["case"]]
        try:
            item["landmarks"] = _points_of(item, names, allow_missing, tables).tolist()
        except (FileNotFoundError, ValueError) as error:
            item["problem"] = str(error)

    def inspect(item: Mapping[str, Any]) -> Findings:
        return landmark_findings(item, names)

    rule = f"landmarks {list(names)}, allow_missing {allow_missing}"
    check_cases(
        cases, ("image", "landmark_file"), inspect, rule, cache_file, title="check images and points", memory=memory
    )
    return cases


def landmark_findings(item: Mapping[str, Any], names: Sequence[str]) -> Findings:
    """Return what is wrong with a case: its image, its file of points, or a point outside of the image."""
    grid, problems, warnings, digests = inspect_image(item["image"], 1, digest=True)
    if "problem" in item:
        return Findings([*problems, item["problem"]], warnings, digests)
    if grid is None:
        return Findings(problems, warnings, digests)
    shape, affine = grid
    last = np.array(shape) - 1 + MARGIN
    points = np.array(item["landmarks"])
    for name, place in zip(names, points, strict=True):
        voxel, turned = nib.affines.apply_affine(np.linalg.inv(affine), [place, place * SIGNS["LPS"]])
        if np.isnan(place).any() or ((voxel >= -MARGIN) & (voxel <= last)).all():
            continue
        inside = ((turned >= -MARGIN) & (turned <= last)).all()
        remedy = "in the other frame it would, so check whether the file means RAS or LPS" if inside else "correct it"
        at = ", ".join(f"{mm:.1f}" for mm in place)
        problems.append(
            f"{item['landmark_file']}: point {name!r} of {item['case']} at RAS {at} mm, voxel {voxel.round(1).tolist()}"
            f" of {shape}, must lie inside its image {item['image']}; {remedy}"
        )
    return Findings(problems, warnings, digests)


def _points_of(item: Mapping[str, Any], names: Sequence[str], missing: bool, tables: Mapping[str, Any]) -> np.ndarray:
    file, case = item["landmark_file"], item["case"]
    if not file.endswith(".csv"):
        return ordered_points(read_markups(file), names, file, missing)
    table = tables[file] if file in tables else read_table(file)
    points = table.get(case, table.get(""))
    if points is None:
        raise ValueError(f"{file} has no row of case {case}, but of {some(sorted(table))}; every case must have points")
    return ordered_points(points, names, f"{file}: {case}", missing)


def _listed(root: Path) -> list[dict[str, Any]]:
    description, table = root / "dataset.json", root / TABLE
    if description.is_file():
        return _decathlon(description, table)
    if table.is_file():
        return _tabled(root, table)
    raise FileNotFoundError(
        f"{root} has neither dataset.json nor {TABLE}; give a folder with one of them (docs/README.md of the bundle),"
        " or try --dataset_dir phantom"
    )


def _decathlon(path: Path, table: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    lists = [content.get(part) or [] for part in ("training", "validation")] if isinstance(content, dict) else [[]]
    entries = [entry for part in lists for entry in part]
    if not lists[0]:
        raise ValueError(f"{path} has no 'training' list; add one with the 'image' and the 'landmarks' of each case")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise ValueError(f"{path}: entry {entry!r} must have an 'image', the path of a file; correct it")
        if not isinstance(entry.get("landmarks", ""), str):
            raise ValueError(f"{path}: entry {entry!r} must have as 'landmarks' the path of a file; correct it")
        if "landmarks" not in entry and not table.is_file():
            raise ValueError(
                f"{path}: entry {entry!r} must have 'landmarks', a .mrk.json or .csv file; add it, or a {TABLE} of all"
            )
    cases = []
    for number, (entry, case) in enumerate(zip(entries, case_names(entries), strict=True)):
        points = path_inside(path.parent, entry["landmarks"], path) if "landmarks" in entry else os.path.abspath(table)
        item = {
            "image": path_inside(path.parent, entry["image"], path),
            "case": case_name(entry.get("case", case), path),
            "landmark_file": points,
        }
        item |= {"subject": str(entry["subject"])} if "subject" in entry else {}
        if lists[-1] and len(lists) > 1:
            item["listed"] = "training" if number < len(lists[0]) else "validation"
        cases.append(item)
    return cases


def _tabled(root: Path, table: Path) -> list[dict[str, Any]]:
    cases = []
    for case in read_table(table):
        files = [root / folder / f"{case}{ending}" for folder in (*FOLDERS, ".") for ending in NIFTI]
        image = next((file for file in files if file.is_file()), files[0])
        cases.append({"image": os.path.normpath(image), "case": case, "landmark_file": str(table)})
    return cases
