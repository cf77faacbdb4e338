"""Small hospitals: CT series of patients with DICOM-SEG or RTSTRUCT objects, written by the project's own writers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_series import write_volume

from mambamim_nets.bundle.io.dicom_seg import write_dicom_seg
from mambamim_nets.bundle.io.rtstruct import write_rtstruct

SHAPE = (24, 20, 8)
WRITERS = {"SEG": write_dicom_seg, "RTSTRUCT": write_rtstruct}
Boxes = Mapping[str, tuple[int, int]]


def voxels(seed: int) -> np.ndarray:
    """Return a CT of noise in HU."""
    return np.random.default_rng(seed).normal(0, 100, SHAPE).clip(-1000, 1000).astype(np.int16)


def box(low: int, high: int) -> np.ndarray:
    """Return the voxels of a box that is not the same after any flip."""
    mask = np.zeros(SHAPE, bool)
    mask[low:high, low + 1 : high + 3, 1 : low % 3 + 4] = True
    return mask


@pytest.fixture
def hospital(tmp_path) -> Path:
    """An empty folder for patients."""
    (tmp_path / "hospital").mkdir()
    return tmp_path / "hospital"


@pytest.fixture
def admit(hospital) -> Callable[..., Any]:
    """Return a function that writes a patient's CT, and a label object for each kind with boxes; gives the series."""

    def write(patient: str, seed: int = 0, *, change: Any = None, **drawn: Boxes) -> Any:
        folder = hospital / patient
        series = write_volume(
            folder / "ct", voxels(seed or len(list(hospital.iterdir()))), patient=patient, change=change
        )
        for kind, boxes in drawn.items():
            draw(folder / f"{kind.lower()}.dcm", series, boxes, kind)
        return series

    return write


def draw(path: Path, series: Any, boxes: Boxes, kind: str = "SEG") -> Path:
    """Write boxes by name as a label object of a series."""
    label = np.zeros(series.shape, "uint8")
    for value, limits in enumerate(boxes.values(), start=1):
        label[box(*limits)] = value
    return WRITERS[kind](label, series.affine, series, dict(enumerate(boxes, start=1)), path, "x")
