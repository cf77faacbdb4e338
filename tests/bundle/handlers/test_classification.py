"""Decision thresholds beside weights, and reports of new scans."""

import json

import pytest
import torch
from monai.data import Dataset

from mambamim_nets import NNMambaClassifier
from mambamim_nets import bundle as mb

CLASSES = ["NC", "AD"]


def test_a_threshold_is_the_given_one_or_lies_beside_its_weights(tmp_path):
    weights = str(tmp_path / "model_best.pt")
    (tmp_path / "model_best.json").write_text(json.dumps({"threshold": 0.3, "classes": CLASSES}))
    assert mb.decision_threshold(None, weights, CLASSES) == 0.3
    assert mb.decision_threshold(0.6, weights, CLASSES) == 0.6
    assert mb.decision_threshold(0.0, str(tmp_path / "none.pt"), CLASSES) == 0.0


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("no json", "holds no decision threshold"),
        ('{"classes": ["NC", "AD"]}', "holds no decision threshold .*'threshold'.*or give --threshold a probability"),
        ('{"threshold": 0.5, "classes": ["sMCI", "pMCI"]}', r"is for the classes \['sMCI', 'pMCI'\]"),
        ('{"threshold": -0.5, "classes": ["NC", "AD"]}', "-0.5 must be a probability from 0 to 1"),
        ('{"threshold": NaN, "classes": ["NC", "AD"]}', "nan must be a probability from 0 to 1"),
    ],
)
def test_files_that_hold_no_threshold_of_this_task(tmp_path, held, message):
    (tmp_path / "model.json").write_text(held)
    with pytest.raises(ValueError, match=message):
        mb.decision_threshold(None, str(tmp_path / "model.pt"), CLASSES)
    with pytest.raises(FileNotFoundError, match=r"other\.json, the decision threshold of .*other\.pt, does not exist"):
        mb.decision_threshold(None, str(tmp_path / "other.pt"), CLASSES)


def report(tmp_path, network, classes=CLASSES):
    loader = mb.ScanLoader(Dataset([{"image": f"{name}.nii", "name": name, "series": None} for name in "abc"]))
    return mb.DecisionReport(loader, network, classes, str(tmp_path), "none.pt", (3, 3, 3), threshold=0.5)


def test_saliency_has_the_images_grid_and_leaves_no_gradients(tmp_path):
    torch.manual_seed(0)
    network = NNMambaClassifier(width=4).eval()
    image = torch.rand(1, 32, 48, 32)
    heat = report(tmp_path, network).heat(image)
    assert heat.shape == (32, 48, 32) and heat.min() >= 0 and heat.max() in (0, pytest.approx(1))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_folder_of_another_task_is_refused(tmp_path):
    network = NNMambaClassifier(width=4).eval()
    made = report(tmp_path, network)
    made.pictures = False

    def write(name, probability):
        made.done(name, {"image": torch.rand(1, 32, 32, 32), "pred": torch.tensor([probability])})

    write("b", 0.7)
    write("a", 0.2)
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "scan,probability (AD),decision,threshold,warnings,weights,made from"
    assert lines[1:] == ["a,0.200000,NC,0.500000,,,", "b,0.700000,AD,0.500000,,,"]
    assert sorted(report(tmp_path, network).rows) == ["a", "b"], "a folder may be filled in several runs"
    with pytest.raises(ValueError, match=r"has the columns .*which must be this task's .*give another --output_dir"):
        report(tmp_path, network, ["sMCI", "pMCI"])
    with pytest.raises(ValueError, match="the probability is nan, which must be a finite number"):
        write("c", float("nan"))
