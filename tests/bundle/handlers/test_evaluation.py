"""Rows and pictures of the cases of an evaluation, with an engine that hands out points instead of predicting them."""

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from mambamim_nets.bundle.handlers.landmarks import LandmarkPicture, LandmarkReport
from mambamim_nets.bundle.io.landmarks import read_table

NAMES, LENGTHS = ["a", "b"], {"AB": ["a", "b"]}
TRUTH = torch.tensor(((2.0, 3, 4), (5, 3, 4)), dtype=torch.double)


def run(tmp_path, *handlers, cases=("c", "a", "b"), epochs=1):
    """Evaluate cases whose points are found 1 mm above the true ones."""
    voxels = np.random.default_rng(0).random((8, 9, 10), np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "scan.nii.gz")
    image = MetaTensor(torch.from_numpy(voxels)[None], meta={"filename_or_obj": str(tmp_path / "scan.nii.gz")})
    points = TRUTH + torch.tensor((0, 0, 1))
    engine = Engine(lambda *_: [{"points": points, "confidence": torch.tensor((0.9, 0.2)), "image": image}])
    for handler in handlers:
        handler.attach(engine)
    for _ in range(epochs):
        engine.run([[{"case": case, "landmarks": TRUTH}] for case in cases], max_epochs=1)


def test_a_report_has_a_row_of_every_case_and_pictures_of_the_first(tmp_path):
    report = LandmarkReport(NAMES, LENGTHS, str(tmp_path / "eval"), pictures=2)
    run(tmp_path, report, epochs=2)
    assert list(report.table.rows) == ["a", "b", "c"]
    assert {path.name for path in (tmp_path / "eval").glob("*.png")} == {"c_overlay.png", "a_overlay.png", "sdr.png"}
    table = read_table(tmp_path / "eval" / "landmarks.csv")
    np.testing.assert_allclose(table["b"]["b"], (5, 3, 5))
    assert (tmp_path / "eval" / "summary.md").read_text().startswith("3 cases; ")
    run(tmp_path, report, cases=["d"])
    assert list(report.table.rows) == ["d"], "each run begins with an empty table"


@pytest.mark.parametrize(("pictures", "shares"), [(0, [0, 0, 0]), (1, [1, 0, 0]), (8, [3, 3, 2]), (9, [3, 3, 3])])
def test_processes_share_the_pictures(monkeypatch, pictures, shares):
    monkeypatch.setattr(idist, "get_world_size", lambda: 3)
    found = []
    for rank in range(3):
        monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
        found.append(LandmarkReport(NAMES, LENGTHS, "eval", pictures).pictures)
    assert found == shares


def test_tensorboard_shows_the_first_case_of_a_validation(tmp_path):
    class Writer(list):
        def add_image(self, tag, image, epoch, dataformats):
            self.append((tag, image.shape[2], image.dtype, epoch, dataformats))

    writer = Writer()
    run(tmp_path, LandmarkPicture(NAMES, LENGTHS, writer), LandmarkPicture(NAMES, LENGTHS))
    assert writer == [("validation", 3, np.dtype("uint8"), 1, "HWC")]
