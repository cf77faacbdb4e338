"""Weights that are not those of a run: refused with what to give instead, whatever made them something else."""

from pathlib import Path

import pytest
import torch
from monai.networks.nets import BasicUNet, SegResNet

from mambamim_nets import HyMamba, HyMambaSeg, NNMambaClassifier
from mambamim_nets.bundle.weights import record
from mambamim_nets.checkpoint import read_state, record_of, stamped

pytestmark = pytest.mark.usefixtures("all_narrow")

FACTS = {
    **{"task": "Task04_Hippocampus", "channels": ["MRI"], "labels": ["anterior", "posterior"], "regions": []},
    **{"intensity": "mr", "intensity_range": [0.5, 99.5], "spacing": [1.0, 1.0, 1.0]},
}
SEGRESNET = "configs/networks/segresnet.json"
OTHER = {  # fault -> network of the weights, facts that differ, configurations after inference, words of the remedy
    "weights of a network that --network_def chose": (
        lambda: SegResNet(in_channels=1, out_channels=3, init_filters=8),
        {},
        [],
        ["architecture is 'segresnet' in the file and 'hymamba' in this run", f"[..., '{SEGRESNET}']"],
    ),
    "weights of a network that has no file in the bundle": (
        lambda: BasicUNet(3, 1, 3, features=(4, 4, 4, 4, 4, 4)),
        {},
        [],
        ["architecture is 'BasicUNet' in the file", "give --network_def as it was when they were trained"],
    ),
    "HyMamba weights in a run with another network": (
        lambda: HyMambaSeg(1, 3, size="tiny"),
        {},
        ["networks/segresnet"],
        ["architecture is 'hymamba' in the file", "leave the file of configs/networks, or --network_def, out"],
    ),
    "weights of another width of a MONAI network": (
        lambda: SegResNet(in_channels=1, out_channels=3, init_filters=16),
        {},
        ["networks/segresnet"],
        ["width is 16 in the file and 8 in this run", "--network_def"],
    ),
    "weights of another number of Mamba layers": (
        lambda: HyMambaSeg(1, 3, size="tiny", mamba_depth=1),
        {},
        [],
        ["mamba_depth is 1 in the file and 2 in this run", "give --network_def#mamba_depth 1"],
    ),
    "weights that read their tokens in another order": (
        lambda: HyMambaSeg(1, 3, size="tiny", scan="hilbert"),
        {},
        [],
        ["scan is 'hilbert' in the file and 'raster' in this run", "give --scan hilbert"],
    ),
    "weights of another task": (
        lambda: HyMambaSeg(1, 3, size="tiny"),
        {"task": "Task05_Prostate", "channels": ["T2"]},
        [],
        ["task is 'Task05_Prostate' in the file", "run the bundle of these weights, with its configs/tasks/Task05"],
    ),
    "weights that were trained at another spacing": (
        lambda: HyMambaSeg(1, 3, size="tiny"),
        {"spacing": [2.0, 2.0, 2.0]},
        [],
        ["spacing is [2.0, 2.0, 2.0] in the file and [1.0, 1.0, 1.0] in this run", 'give --spacing "[2.0, 2.0, 2.0]"'],
    ),
    "weights that were trained with another intensity rule": (
        lambda: HyMambaSeg(1, 3, size="tiny"),
        {"intensity": "ct"},
        [],
        ["intensity is 'ct' in the file and 'mr' in this run", "give --intensity, the transform, as"],
    ),
    "a pre-trained encoder as --checkpoint": (
        lambda: HyMamba(size="tiny"),
        {},
        [],
        ["those of a pre-trained encoder (encoder HyMamba, size tiny", "train with --pretrained"],
    ),
}


def written(path: Path, network: torch.nn.Module, **facts) -> Path:
    torch.save(stamped(network.state_dict(), record(network, **{**FACTS, **facts})), path)
    return path


@pytest.mark.parametrize("fault", OTHER)
def test_other_weights_are_refused_with_what_to_give(bundle_run, reliability, data, tmp_path, fault):
    network, facts, configs, words = OTHER[fault]
    path = written(tmp_path / "weights.pt", network(), **facts)
    options = {"input": str(data / "imagesTs"), "checkpoint": str(path), "previews": False}
    outcome = bundle_run("msd_seg", ["inference", *configs], **options)
    for text in (str(path), *words):
        assert text in outcome.last
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    reliability("Weights", fault, outcome)


def test_weights_without_a_record_and_of_another_network_are_called_that(bundle_run, reliability, data, tmp_path):
    torch.save(SegResNet(in_channels=1, out_channels=3, init_filters=8).state_dict(), tmp_path / "weights.pt")
    options = {"input": str(data / "imagesTs"), "checkpoint": str(tmp_path / "weights.pt")}
    outcome = bundle_run("msd_seg", "inference", **options)
    assert "they are of another network" in outcome.last and "channels" not in outcome.last.split(". ")[0]
    reliability("Weights", "another network's weights that do not say what they are", outcome)


def test_weights_of_another_classifier_are_refused(bundle_run, reliability, tmp_path, data):
    facts = {"task": "nc_ad", "channels": ["T1"], "classes": ["NC", "AD"], "labels": [], "input_size": [34, 40, 34]}
    path = written(tmp_path / "weights.pt", NNMambaClassifier(width=8, mlp_width=32), **facts, spacing=[5.0, 5.0, 5.0])
    scan = sorted((data / "imagesTs").glob("*.nii.gz"))[0]
    outcome = bundle_run("brain_cls", "inference", input=str(scan), checkpoint=str(path), threshold=0.5)
    assert "width is 8 in the file and 4 in this run" in outcome.last and "--width" in outcome.last
    reliability("Weights", "weights of a classifier of another width", outcome)


@pytest.mark.slow
def test_what_is_trained_with_another_network_says_so_and_is_found_again(bundle_run, data, tmp_path):
    """What was recorded as HyMamba before: a network that the command line chooses."""
    chosen = {"_target_": "SegResNet", "in_channels": 1, "out_channels": 3, "init_filters": 8}
    outcome = bundle_run("msd_seg", dataset_dir=str(data), network_def=chosen, max_epochs=1, val_interval=1)
    assert outcome.status == 0, outcome.log[-3000:]
    weights = tmp_path / "out" / "model_best.pt"
    held = record_of(read_state(weights))
    assert (held["architecture"], held["size"], held["width"], held["in_channels"]) == ("segresnet", "tiny", 8, 1)
    assert "scan" not in held, "an option that the network never saw"
    options = {"input": str(data / "imagesTs"), "checkpoint": str(weights), "previews": False}
    outcome = bundle_run("msd_seg", ["inference", "networks/segresnet"], output_dir=str(tmp_path / "found"), **options)
    assert outcome.status == 0, outcome.log[-3000:]


@pytest.mark.slow
def test_weights_say_the_spacing_that_their_preprocessing_had(bundle_run, reliability, data, tmp_path):
    options = {"dataset_dir": str(data), "max_epochs": 1, "val_interval": 1}
    outcome = bundle_run("msd_seg", **options, **{"train#preprocessing#transforms#3#pixdim": [1.5, 1.5, 1.5]})
    assert outcome.status == 0, outcome.log[-3000:]
    weights = tmp_path / "out" / "model_best.pt"
    assert record_of(read_state(weights))["spacing"] == [1.5, 1.5, 1.5]
    outcome = bundle_run("msd_seg", "inference", input=str(data / "imagesTs"), checkpoint=str(weights))
    assert "spacing is [1.5, 1.5, 1.5] in the file" in outcome.last
    reliability("Weights", "weights whose spacing was changed in their preprocessing alone", outcome)


@pytest.mark.slow
def test_fine_tuning_at_other_values_than_the_pre_training_says_so_in_one_line(bundle_run, reliability, data, tmp_path):
    outcome = bundle_run("pretrain", sources=[str(data)], max_epochs=1, output_dir=str(tmp_path / "pretrained"))
    assert outcome.status == 0, outcome.log[-3000:]
    path = tmp_path / "pretrained" / "encoder.pt"
    held = record_of(read_state(path))
    assert held["encoder"] == "HyMamba" and held["in_channels"] == 1 and held["mamba_depth"] == 2
    assert (held["spacing"], held["intensity"], held["roi_size"]) == ([1.0, 1.0, 1.0], "mr", [32, 32, 32])
    options = {"dataset_dir": str(data), "max_epochs": 1, "pretrained": str(path)}
    outcome = bundle_run("msd_seg", **options)
    assert outcome.status == 0 and "was trained at other values" not in outcome.log
    outcome = bundle_run("msd_seg", **options, spacing=[1.5, 1.5, 1.5], output_dir=str(tmp_path / "coarse"))
    line = "was trained at other values than this run: spacing [1.0, 1.0, 1.0] (here [1.5, 1.5, 1.5])"
    assert sum(line in text for text in outcome.lines) == 1
    reliability("Weights", "fine-tuning at another spacing than the pre-training", outcome, warning=line)


def test_an_encoder_of_another_size_is_refused(bundle_run, reliability, data, tmp_path):
    path = written(tmp_path / "encoder.pt", HyMamba(size="tiny"))
    outcome = bundle_run("msd_seg", dataset_dir=str(data), pretrained=str(path), size="base")
    assert "use --size tiny" in outcome.last
    reliability("Weights", "fine-tuning from an encoder of another size", outcome)
