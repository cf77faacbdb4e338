"""The weights of several folds in one run: inference and evaluation of a bundle."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from mambamim_nets import HyMambaSeg
from mambamim_nets.checkpoint import stamped

pytestmark = pytest.mark.usefixtures("all_narrow")


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """Weights of two folds, random but sure of themselves, that say what they are."""
    files = []
    for number in range(2):
        torch.manual_seed(number)
        network = HyMambaSeg(1, 3, size="tiny")
        record = {"task": "Task04_Hippocampus", "size": "tiny", "spacing": [1.0, 1.0, 1.0], "mirrored": []}
        path = tmp_path_factory.mktemp(f"fold{number}") / "model_best.pt"
        torch.save(stamped(network.state_dict(), record), path)
        files.append(str(path))
    return files


def label_map(folder):
    (path,) = folder.glob("*_seg.nii.gz")
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def scan(data):
    return str(sorted((data / "imagesTr").iterdir())[0])


@pytest.mark.slow
def test_inference_takes_one_network_or_several(bundle_run, tmp_path, scan, folds):
    found = {}
    for name, checkpoint in (("one", folds[0]), ("list", folds[:1]), ("both", folds)):
        folder = tmp_path / name
        options = {"input": scan, "output_dir": str(folder), "checkpoint": checkpoint, "amp": False, "previews": False}
        options |= {"overlap": 0.0}
        assert bundle_run("msd_seg", "inference", **options).status == 0
        with (folder / "volumes.csv").open() as file:
            (row,) = csv.DictReader(file)
        found[name] = label_map(folder), row["weights"]
    assert np.array_equal(found["one"][0], found["list"][0]) and found["one"][1] == found["list"][1] == ""
    assert not np.array_equal(found["one"][0], found["both"][0])
    assert found["both"][1].startswith("mean of 2 networks: fold") and found["both"][1].count("sha256") == 2


@pytest.mark.slow
def test_evaluation_measures_and_keeps_what_inference_delivers(bundle_run, tmp_path, data, folds, scan):
    case = scan.rpartition("/")[2].removesuffix(".nii.gz")
    (tmp_path / "folds.json").write_text(json.dumps([[case], [f"{n}" for n in names(data) if n != case]]))
    shared = {
        "checkpoint": folds,
        "amp": False,
        "overlap": 0.0,
        "keep_largest": "together",
        "min_volume_ml": {"anterior": 0.01},
    }
    options = {"dataset_dir": str(data), "fold_file": str(tmp_path / "folds.json"), "predictions": True, "pictures": 0}
    outcome = bundle_run("msd_seg", ["train", "evaluate"], **shared, **options)
    assert outcome.status == 0, outcome.log[-3000:]
    bundle_run("msd_seg", "inference", **shared, input=scan, output_dir=str(tmp_path / "new"), previews=False)
    delivered = label_map(tmp_path / "new")
    assert np.array_equal(label_map(tmp_path / "out" / "eval"), delivered) and set(np.unique(delivered)) > {0}


def names(data):
    return [path.name.removesuffix(".nii.gz") for path in (data / "imagesTr").iterdir()]


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        ([], "must be an existing file, or a list of them"),
        (["gone.pt"], "gone.pt: there is none of that name"),
    ],
    ids=["none", "gone"],
)
def test_a_list_without_files_is_refused(bundle_run, scan, checkpoint, words):
    outcome = bundle_run("msd_seg", "inference", input=scan, checkpoint=checkpoint)
    assert outcome.status == 1 and words in outcome.last
