"""Small stores for tests: phantoms as sources, prepared by the command's own function."""

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mambamim_nets.bundle.data.store_files import files_of
from mambamim_nets.prepare.__main__ import prepare

SPACING = [2.0, 2.0, 2.0]


def write_scan(path: Path, seed: int = 0, shape=(40, 44, 36), kind: str = "ct", spacing=(2.0, 2.0, 2.5)) -> Path:
    """Write noise in a box of air (CT) or zeros (MR), with a smooth gradient so that resampling shows."""
    chance = np.random.default_rng(seed)
    inside = np.zeros(shape, bool)
    inside[4:-4, 5:-3, 3:-6] = True
    ramp = np.linspace(0, 300, shape[0])[:, None, None] + chance.normal(0, 20, shape)
    values = np.where(inside, ramp if kind == "ct" else ramp + 200, -1000 if kind == "ct" else 0)
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = 10, -20, 30
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values.astype(np.int16), affine)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return path


def write_sources(folder: Path, scans: int = 4) -> Path:
    """Write a source of half CT, half MR."""
    for number in range(scans):
        kind = ("ct", "mr")[number % 2]
        write_scan(folder / f"sub-{number:02d}" / f"{kind}_{number}.nii.gz", number, kind=kind)
    return folder


def store_of(folder: Path | str, sources: Any, **options: Any) -> str:
    """Prepare a store; returns what the command says."""
    return prepare(str(folder), **{"sources": str(sources), "spacing": SPACING, **options})


def lines_of(folder: Path | str) -> list[dict[str, Any]]:
    """Return the lines of all indices of a store, by source and path."""
    files = files_of(folder)
    lines = [line for path in files.indices() for line in files.lines(path)]
    return sorted(lines, key=lambda line: json.dumps([line["source"], line["path"], line.get("id")]))


def rows_of(folder: Path, table: str) -> list[dict[str, str]]:
    """Return the rows of a kind of table, of all parts."""
    found = []
    for path in sorted(folder.glob(f"tables/*_{table}.csv")):
        with path.open() as file:
            found += csv.DictReader(file)
    return found
