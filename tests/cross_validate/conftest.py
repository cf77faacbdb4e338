"""Ten small cases in two folds, and a stand-in for the bundles that only writes what they would leave."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import BUNDLES, option

from mambamim_nets.checkpoint import stamped
from mambamim_nets.cross_validate.runs import CrossValidation, cross_validation

SIDE = 12
NAMES = [f"hippocampus_{number:03d}" for number in range(1, 11)]  # two of each of five persons


def reference() -> np.ndarray:
    """Two touching boxes, labels 1 and 2."""
    label = np.zeros((SIDE,) * 3, np.uint8)
    label[2:8, 2:8, 2:6], label[2:8, 2:8, 6:10] = 1, 2
    return label


def prediction(wrong: int, speck: bool = True) -> np.ndarray:
    """The reference with some voxels of label 1 missing, and a speck of label 2 far from it."""
    label = reference()
    label[tuple(np.argwhere(label == 1)[:wrong].T)] = 0
    if speck:
        label[11, 11, 9:12] = 2
    return label


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 1.0, 1.0, 1.0])), path)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """The ten cases in the Decathlon layout."""
    folder = tmp_path_factory.mktemp("ten")
    for name in NAMES:
        write(folder / "imagesTr" / f"{name}.nii.gz", reference().astype(np.int16) * 100)
        write(folder / "labelsTr" / f"{name}.nii.gz", reference())
    files = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in NAMES]
    (folder / "dataset.json").write_text(json.dumps({"training": files, "test": []}))
    (folder / "split.json").write_text(json.dumps({"folds": [NAMES[:4], NAMES[4:]]}))
    return folder


@pytest.fixture
def work(data, tmp_path) -> Callable[..., CrossValidation]:
    """Return a function that makes a cross-validation of a bundle of its own, with changes."""

    def make(**changes: Any) -> CrossValidation:
        bundle = tmp_path / "msd_seg"
        if not bundle.exists():
            shutil.copytree(BUNDLES / "msd_seg" / "configs", bundle / "configs")
        usual: dict[str, Any] = {
            "bundle": str(bundle),
            "dataset_dir": str(data),
            "task": None,
            "folds": [0, 1],
            "candidates": ["scratch"],
            "output_dir": str(tmp_path / "out"),
            "options": {},
        }
        return cross_validation(**{**usual, **changes})

    return make


class Fake:
    """Stands for the bundles: writes what a training and an evaluation leave, at once.

    Args:
        wrong: part of the folder's name -> voxels that its networks miss.
        speck: whether their label maps have a speck far from the structures.
    """

    def __init__(self, wrong: dict[str, int] | None = None, speck: bool = True) -> None:
        self.started: list[str] = []
        self.wrong, self.speck = wrong or {}, speck

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        folder = Path(option(arguments, "output_dir"))
        evaluates = "evaluate.json" in option(arguments, "config_file")
        self.started.append(f"{folder.parent.name}/{folder.name} {'evaluate' if evaluates else 'train'}")
        if evaluates:
            fold = int(option(arguments, "fold"))
            wrong = self.wrong.get(folder.parent.name, 4)
            self.evaluate(folder / "eval", NAMES[:4] if fold == 0 else NAMES[4:], wrong)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            network = torch.nn.Conv3d(1, 3, 16)
            torch.save(stamped(network.state_dict(), {"task": "Task04_Hippocampus"}), folder / "model_best.pt")
            (folder / "progress.csv").write_text("epoch,train_loss,val_mean_dice\n1,0.5,0.25\n2,0.25,0.5\n")
        return 0

    def evaluate(self, folder: Path, cases: Sequence[str], wrong: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["case", "label", "name", "dice", "hd95_mm", "surface_dice", "missing", "weights"])
            for number, case in enumerate(cases):
                found = prediction(wrong + number, self.speck)
                write(folder / f"{case}_seg.nii.gz", found)
                for value, name in ((1, "anterior"), (2, "posterior")):
                    a, b = found == value, reference() == value
                    dice = 2 * (a & b).sum() / (a.sum() + b.sum())
                    writer.writerow([case, value, name, f"{dice:.6f}", "1.0", f"{dice:.6f}", 0, ""])
        (folder / "summary.md").write_text("done")

    def stop(self) -> None: ...


@pytest.fixture
def fake() -> type[Fake]:
    return Fake


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """Draw no pictures, which take longer than all else that these tests do."""
    monkeypatch.setattr("mambamim_nets.cross_validate.report._draw", lambda *_: [])
