"""Small data sets, and planning without measuring real steps and drawing, which have tests of their own."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mambamim_nets import phantom
from mambamim_nets.bundle.files import write_text
from mambamim_nets.plan import __main__ as program
from mambamim_nets.plan.measure import Step


def steps_of(candidates: Sequence[tuple[Sequence[int], int]], *_: Any, **__: Any) -> list[Step]:
    """Return steps as of a network that takes 200 MiB and 2600 bytes a voxel, in the place of measured ones."""
    steps = [Step(tuple(roi), crops, 200 * 2**20 + 2600 * crops * math.prod(roi), 1.0) for roi, crops in candidates]
    return sorted(steps, key=lambda step: step.voxels)


@pytest.fixture
def planned(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Return a function that plans a data set in this process, with options, and gives the bundle."""
    monkeypatch.setattr(program, "measured_steps", steps_of)
    monkeypatch.setattr(program, "fingerprint_picture", lambda _, path: write_text(path, "drawn"))

    def make(data: Path, name: str = "new_seg", **options: Any) -> Path:
        program.plan(str(data), str(tmp_path / name), **{"size": "tiny", "workers": 1, "device": "cpu", **options})
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def spleens(tmp_path_factory) -> Path:
    """Five small CT phantoms with one class."""
    return phantom.write(tmp_path_factory.mktemp("spleens") / "data", "spleen", cases=5, shape=(32, 32, 32))


@pytest.fixture
def written(tmp_path) -> Callable[..., Path]:
    """Return a function that writes a data set of images and label maps with a dataset.json."""

    def write(
        cases: Sequence[tuple[np.ndarray, np.ndarray]],
        labels: dict[str, int],
        spacing: Sequence[float] = (2.0, 2.0, 2.0),
        modality: str = "CT",
        folder: str = "data",
    ) -> Path:
        root, entries = tmp_path / folder, []
        for number, (image, label) in enumerate(cases):
            entry = {"image": f"imagesTr/case_{number:02d}.nii.gz", "label": f"labelsTr/case_{number:02d}.nii.gz"}
            for key, array in (("image", image), ("label", label)):
                (root / entry[key]).parent.mkdir(parents=True, exist_ok=True)
                affine = np.diag([*spacing, 1.0])
                made = nib.Nifti1Image(array, affine)
                made.set_sform(affine, code=1)
                nib.save(made, root / entry[key])
            entries.append(entry)
        names = {"0": "background", **{str(value): name for name, value in labels.items()}}
        listing = {"name": "Made", "modality": {"0": modality}, "labels": names, "training": entries}
        (root / "dataset.json").write_text(json.dumps(listing))
        return root

    return write


def config_of(bundle: Path, name: str = "train") -> dict[str, Any]:
    """Return a configuration of a bundle as it is written."""
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


def boxes(seed: int, classes: Sequence[int], side: int = 32, shape: Sequence[int] | None = None) -> tuple[Any, Any]:
    """Return a CT-like image of noise and a label map with a small box of each class, in a place of its own."""
    random = np.random.default_rng(seed)
    shape = tuple(shape or (side, side, side))
    image, label = random.normal(-900, 20, shape), np.zeros(shape, np.uint8)
    for value in classes:
        corner = [4 * int(n) + 4 for n in np.unravel_index(value % 216, (6, 6, 6))]
        part = tuple(slice(start, start + 3) for start in corner)
        image[part] = random.normal(40 + value, 10, label[part].shape)
        label[part] = value
    return image.astype(np.int16), label
