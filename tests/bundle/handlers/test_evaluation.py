"""Rows and pictures of the cases of an evaluation, with an engine that hands out points instead of predicting them."""

import hashlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import BUNDLES
from ignite.engine import Engine
from monai.data import MetaTensor

from mambamim_nets import phantom
from mambamim_nets.bundle.handlers.evaluation import trained_cases
from mambamim_nets.bundle.handlers.landmarks import LandmarkPicture, LandmarkReport
from mambamim_nets.bundle.io.landmarks import read_table

SHIPPED = str(BUNDLES / "msd_seg" / "models" / "model.pt")
NAME = json.loads((BUNDLES / "msd_seg" / "configs" / "metadata.json").read_text())["name"]
NAMES, LENGTHS = ["a", "b"], {"AB": ["a", "b"]}
TRUTH = torch.tensor(((2.0, 3, 4), (5, 3, 4)), dtype=torch.double)


class Loader(list):
    """Batches of one case, and the data set that they are of."""

    def __init__(self, cases, image):
        super().__init__([{"case": case, "landmarks": TRUTH}] for case in cases)
        self.dataset = SimpleNamespace(data=[{"case": case, "image": image} for case in cases])


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
        engine.run(Loader(cases, str(tmp_path / "scan.nii.gz")), max_epochs=1)


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


def of_run(folder, data, names):
    """Write what a run that trained on these cases of a folder leaves; return its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"identity": {"data_root": str(data), "training cases": names}}, folder / "checkpoint_last.pt")
    (folder / "model_best.pt").write_bytes(b"weights")
    return folder / "model_best.pt"


def test_cases_that_the_weights_were_trained_on_are_known_by_their_folder_and_name(tmp_path, caplog):
    items = [{"case": case, "image": f"/data/one/imagesTr/{case}.nii.gz"} for case in "abc"]
    weights = of_run(tmp_path / "run", "/data/one", ["a", "c", "z"])
    assert trained_cases(items, weights) == ["a", "c"]
    several = [{"case": "a", "image": ["/data/one/a_0000.nii.gz", "/data/one/a_0001.nii.gz"]}]
    assert trained_cases(several, weights) == ["a"]
    assert trained_cases(items, of_run(tmp_path / "run", "/data/on", ["a"])) == [], "of the same name elsewhere"
    assert trained_cases(items, tmp_path / "alone" / "model.pt") is None and not caplog.records
    assert trained_cases(items, of_run(tmp_path / "run", "/data/one", "9000 of digest a")) is None
    assert (
        "checkpoint_last.pt does not list what it was trained on" in caplog.text and "9000 of digest a" in caplog.text
    )
    caplog.clear()
    (tmp_path / "run" / "checkpoint_last.pt").write_bytes(b"damaged")
    assert trained_cases(items, weights) is None
    assert "checkpoint_last.pt does not list what it was trained on" in caplog.text


def test_an_evaluation_on_cases_that_were_trained_on_says_so_after_its_table(tmp_path, caplog):
    weights = of_run(tmp_path / "run", tmp_path, ["a", "x"])
    with caplog.at_level(logging.INFO, "mambamim_nets"):
        run(tmp_path, LandmarkReport(NAMES, LENGTHS, str(tmp_path / "eval"), 0, checkpoint=str(weights)))
        run(tmp_path, LandmarkReport(NAMES, LENGTHS, str(tmp_path / "eval"), 0))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and caplog.records[-1].levelname == "INFO"
    assert warnings[0].startswith(f"1 of 3 evaluated cases were trained on, by the checkpoint beside {weights}: a; ")


def test_an_evaluation_says_what_was_evaluated(bundle_run, tmp_path):
    folder = phantom.write(tmp_path / "data", "hippocampus", cases=5)
    end = bundle_run(
        "msd_seg", ["train", "evaluate"], dataset_dir=str(folder), checkpoint=SHIPPED, part="train", pictures=0, fold=2
    )
    assert end.status == 0, end.log[-3000:]
    found = json.loads((tmp_path / "out" / "eval" / "evaluation.json").read_text())
    assert len(found["cases"]) == 4 and all(folder in Path(image).parents for image in found["cases"].values())
    digest = hashlib.sha256(Path(SHIPPED).read_bytes()).hexdigest()
    assert found["weights"]["sha256"] == {SHIPPED: digest} and found["weights"]["note"]
    assert found["trained_on"] == {SHIPPED: None}, "no checkpoint beside them says it"
    assert (found["settings"]["fold"], found["settings"]["part"], found["bundle"]["name"]) == (2, "train", NAME)
    last = (tmp_path / "out" / "eval" / "summary.md").read_text().splitlines()[-1]
    assert last == (
        f"fold 2, part train, data `{folder}`; weights `{SHIPPED}` (SHA-256 {digest[:16]}); more in `evaluation.json`"
    )


def test_an_evaluation_of_no_weights_has_no_record_of_them(tmp_path):
    run(tmp_path, LandmarkReport(NAMES, LENGTHS, str(tmp_path / "eval"), 0))
    assert not (tmp_path / "eval" / "evaluation.json").exists()


@pytest.mark.slow
def test_weights_of_one_fold_are_evaluated_on_another(bundle_run, reliability, tmp_path):
    folder = phantom.write(tmp_path / "data", "hippocampus", cases=5)
    small = {"dataset_dir": str(folder), "max_epochs": 1, "val_interval": 1, "network_def#mamba_depth": 1}
    assert bundle_run("msd_seg", fold=0, **small).status == 0
    of_fold = {fold: bundle_run("msd_seg", ["train", "evaluate"], fold=fold, pictures=0, **small) for fold in (0, 1)}
    assert of_fold[0].status == of_fold[1].status == 0
    words = "1 of 1 evaluated cases were trained on, by the checkpoint beside"
    assert words not in of_fold[0].log
    reliability("Training runs", "weights of one fold that are evaluated on another", of_fold[1], warning=words)
