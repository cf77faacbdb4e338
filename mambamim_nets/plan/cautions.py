"""What a person should look at before training: grids, classes and folds that are possible and unlikely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mambamim_nets.bundle.files import some
from mambamim_nets.plan.names import nested_regions, usual_ml

__all__ = ["cautions_of", "proposals"]

EXTENT_MM = (20.0, 2500.0)  # of what a scan shows along an axis, from a small crop to a whole body
MATRIX = 256  # voxels along two axes: scanners' matrices, whose voxels are not all exactly 1 mm
OTHER_SPACING = 4.0  # times the median
FEW = 5  # cases of a class, or subjects: as many as folds


def cautions_of(fingerprint: Mapping[str, Any], folds: Sequence[Sequence[str]], channels: Sequence[str]) -> list[str]:
    """Return sentences about what is unlikely, with the cases that it is about."""
    return [
        *_grids(fingerprint),
        *_modalities(fingerprint, channels),
        *_classes(fingerprint, folds),
        *_volumes(fingerprint),
    ]


def proposals(labels: Mapping[str, int], regions: Mapping[str, Any] | None) -> list[str]:
    """Return sentences about what may be wanted and is for a person to say."""
    nested = {} if regions and any(len(values) > 1 for values in regions.values()) else nested_regions(labels)
    if not nested:
        return []
    typed = "{" + ", ".join(f"'{name}': {values}" for name, values in nested.items()) + "}"
    return [
        "the names of the labels suggest nested regions, which are learnt one by one; they are not assumed: if each"
        f' lies within the one before, plan with --regions "{typed}"'
    ]


def _grids(fingerprint: Mapping[str, Any]) -> list[str]:
    found, per_case = [], fingerprint["per_case"]
    extent = {case: np.array(held["shape"]) * np.array(held["spacing"]) for case, held in per_case.items()}
    odd = [case for case, mm in extent.items() if mm.min() < EXTENT_MM[0] or mm.max() > EXTENT_MM[1]]
    if odd:
        first = " x ".join(f"{mm:.4g}" for mm in extent[odd[0]])
        every = "every case" if len(odd) == len(per_case) else f"{len(odd)} of {len(per_case)} cases"
        found.append(
            f"{every} shows less than {EXTENT_MM[0]:g} or more than {EXTENT_MM[1]:g} mm along an axis, {odd[0]}"
            f" {first} mm: the spacing in the headers is probably wrong; correct it and plan again ({some(odd)})"
        )
    plain = [
        case
        for case, held in per_case.items()
        if held["spacing"] == [1.0, 1.0, 1.0] and sorted(held["shape"])[1] >= MATRIX
    ]
    if plain and len(plain) == len(per_case):
        found.append(
            f"every case has voxels of exactly 1 mm and a scanner's matrix: a conversion may have lost the spacing;"
            f" compare with the source ({some(plain)})"
        )
    median = np.array(fingerprint["spacing_mm"]["median"])
    far = [
        case
        for case, held in per_case.items()
        if (ratio := np.array(held["spacing"]) / median).max() > OTHER_SPACING or ratio.min() < 1 / OTHER_SPACING
    ]
    if far:
        found.append(
            f"spacing differs more than {OTHER_SPACING:g} times from the median of the data set: {some(far)}; look at"
            " these scans"
        )
    return found


def _modalities(fingerprint: Mapping[str, Any], channels: Sequence[str]) -> list[str]:
    counts = fingerprint["modality"]
    named = [name for name in channels if name.upper() == "CT"]
    if named and counts["other"]:
        return [
            f"channel {named[0]!r} is named CT, and {counts['other']} of {counts['CT'] + counts['other']} scans have no"
            f" value below -500, so they are not in HU or hold no air: {some(fingerprint['not_hu'])}"
        ]
    if counts["CT"] and counts["other"]:
        fewer = fingerprint["not_hu"] if counts["other"] <= counts["CT"] else fingerprint["hu"]
        return [f"{counts['CT']} scans look like CT and {counts['other']} do not; the fewer are {some(fewer)}"]
    return []


def _classes(fingerprint: Mapping[str, Any], folds: Sequence[Sequence[str]]) -> list[str]:
    found = []
    for name, held in fingerprint["classes"].items():
        there = set(fingerprint["per_case"]) - set(held["missing_in"])
        without = [str(number) for number, fold in enumerate(folds) if not there & set(fold)]
        if not there:
            found.append(f"class {name!r} has no voxel in any case; it cannot be learnt: take it out, or add cases")
        elif len(there) < FEW and without:
            found.append(
                f"class {name!r} is in {len(there)} of {fingerprint['cases']} cases only ({some(sorted(there))}):"
                f" validation of fold {', '.join(without)} has none of it"
            )
    if fingerprint["subjects"] < FEW:
        found.append(
            f"{fingerprint['subjects']} subjects ({some(list(fingerprint['per_case']))}) make {len(folds)} folds:"
            " results on so few say little about new scans"
        )
    return found


def _volumes(fingerprint: Mapping[str, Any]) -> list[str]:
    found = []
    for name, held in fingerprint["classes"].items():
        limits = usual_ml(name)
        if limits and held["cases"] and not limits[0] / 3 <= held["median_ml"] <= limits[1] * 3:
            found.append(
                f"class {name!r} has a median volume of {held['median_ml']:g} ml, and whole ones of adults have"
                f" {limits[0]:g} to {limits[1]:g}: the spacing may be wrong, or the scans show a part of it"
            )
    return found
