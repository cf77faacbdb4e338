"""Weights: what a run starts from, and what it says of those that it writes."""

import json
import logging

import pytest
import torch
from helpers import refused
from monai.networks.nets import SegResNet
from monai.transforms import Compose, ScaleIntensityd, Spacingd

from mambamim_nets import HyMamba, HyMambaSeg
from mambamim_nets.bundle.weights import (
    described_weights,
    file_digest,
    other_pretraining,
    record,
    seen_in_training,
    shipped_weights,
    spacing_of,
    start_classifier,
    start_network,
    trained_network,
    weights_caption,
    weights_note,
)
from mambamim_nets.checkpoint import stamped


def test_the_spacing_of_a_preprocessing_is_that_of_its_last_resampling():
    inner = Compose([Spacingd("image", (1.0, 2.0, 3.0)), ScaleIntensityd("image")])
    assert spacing_of(Compose([Spacingd("image", (5.0, 5.0, 5.0)), inner])) == [1.0, 2.0, 3.0]
    assert spacing_of(Compose([ScaleIntensityd("image")])) is None


def test_a_record_is_read_from_the_network_and_its_preprocessing():
    network, preprocessing = HyMambaSeg(2, 3, size="tiny"), Compose([Spacingd("image", (1.0, 2.0, 3.0))])
    found = record(network, preprocessing, task="mine")
    assert (found["architecture"], found["size"], found["in_channels"], found["out_channels"]) == (
        "hymamba",
        "tiny",
        2,
        3,
    )
    assert found["spacing"] == [1.0, 2.0, 3.0] and found["task"] == "mine"
    assert "spacing" not in record(network)


def test_only_what_both_say_can_differ_from_pre_training():
    held = {"spacing": [1.0] * 3, "intensity": "ct", "roi_size": [96] * 3}
    run = {"spacing": [2.0] * 3, "intensity": "ct", "intensity_range": [0, 1]}
    assert other_pretraining(held, run, None) == "spacing [1.0, 1.0, 1.0] (here [2.0, 2.0, 2.0])"
    assert "roi_size [96, 96, 96] (here [32, 32, 32])" in other_pretraining(held, run, (32, 32, 32))
    assert other_pretraining({}, run, (32, 32, 32)) == ""


def test_shipped_weights_are_those_that_are_there(tmp_path, reliability):
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    assert shipped_weights(str(tmp_path), "a.pt") == str(tmp_path / "a.pt")
    assert shipped_weights(str(tmp_path), ["a.pt", "b.pt"]) == [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    with pytest.raises(ValueError, match="ships no weights for this task; train first, then give --checkpoint"):
        shipped_weights(str(tmp_path), None)
    with pytest.raises(ValueError, match=r"no weights yet, .*c\.pt; train first, .* by promote\.json") as end:
        shipped_weights(str(tmp_path), ["a.pt", "c.pt"])
    reliability("Weights", "a bundle whose own weights are not there, as one that is only planned", end.value)


def test_a_network_starts_from_an_encoder_or_from_scratch(tmp_path, caplog):
    encoder = HyMamba(1, size="tiny")
    facts = {"encoder": "HyMamba", "size": "tiny", "scan": "raster", "method": "mambamim", "spacing": [1.0] * 3}
    torch.save(stamped(encoder.state_dict(), facts), tmp_path / "encoder.pt")
    network = HyMambaSeg(1, 3, size="tiny")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with caplog.at_level(logging.INFO, "mambamim_nets"):
        assert start_network(network, None) is network
    assert "training from scratch" in caplog.text
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    with caplog.at_level(logging.INFO, "mambamim_nets"):
        start_network(network, str(tmp_path / "encoder.pt"), record={"spacing": [2.0] * 3})
    assert all(torch.equal(value, network.encoder.state_dict()[key]) for key, value in encoder.state_dict().items())
    assert "was trained at other values than this run: spacing [1.0, 1.0, 1.0]" in caplog.text


def test_a_run_says_what_it_took_from_an_encoder_and_what_not(tmp_path, caplog):
    class Pretrained(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = HyMamba(3, size="tiny"), torch.nn.Linear(2, 5)

    facts = {"encoder": "HyMamba", "size": "tiny", "spacing": [1.0] * 3, "intensity": "mr"}
    torch.save(stamped(Pretrained().state_dict(), facts), tmp_path / "encoder.pt")
    network, run = HyMambaSeg(1, 3, size="tiny"), {"spacing": [2.0] * 3, "intensity": "mr"}
    with caplog.at_level(logging.INFO, "mambamim_nets"):
        start_network(network, str(tmp_path / "encoder.pt"), True, run, (32, 32, 32), output_dir=str(tmp_path / "run"))
    said = json.loads((tmp_path / "run" / "starting_weights.json").read_text())
    named = [name for part in ("taken", "from_scratch") for stage in said[part].values() for name in stage["names"]]
    own = list(network.state_dict())
    assert sorted(named) == sorted(name.removeprefix("encoder.") for name in own)
    assert {"stem", "stages.0", "stages.3", "mamba.1"} <= set(said["taken"])
    assert set(said["from_scratch"]) == {"up.0", "up.1", "up.2", "up.3", "head", "out"}
    assert said["from_scratch"]["out"]["values"] == sum(t.numel() for t in network.out.state_dict().values())
    assert said["left_out"] == {"decoder": {"tensors": 2, "values": 15, "names": ["decoder.weight", "decoder.bias"]}}
    assert said["adapted"] == "first convolution adapted from 3 to 1 input channels"
    assert said["learnt_at"]["spacing"] == {"file": [1.0] * 3, "run": [2.0] * 3}
    assert said["learnt_at"]["roi_size"] == {"file": None, "run": [32, 32, 32]}
    assert "starting weights, of the file left out: 2 tensors of 15 values: decoder 2" in caplog.text
    assert "was trained at other values than this run: spacing [1.0, 1.0, 1.0] (here [2.0, 2.0, 2.0])" in caplog.text


def test_a_run_may_start_from_a_whole_network_for_other_labels(tmp_path, caplog):
    theirs = HyMambaSeg(1, 3, size="tiny")
    torch.save(stamped(theirs.state_dict(), {"labels": ["liver", "spleen"]}), tmp_path / "model.pt")
    network, run = HyMambaSeg(1, 2, size="tiny"), {"labels": ["spleen"]}
    options = {"record": run, "output_dir": str(tmp_path / "run"), "pretrained_part": "network"}
    with caplog.at_level(logging.INFO, "mambamim_nets"):
        start_network(network, str(tmp_path / "model.pt"), **options)
    assert torch.equal(network.out.weight, theirs.out.weight[[0, 2]])
    said = json.loads((tmp_path / "run" / "starting_weights.json").read_text())
    assert "out" in said["taken"] and not said["from_scratch"] and not said["left_out"]
    assert said["adapted"] == "of the last layer background, spleen"
    assert "starting weights: whole network" in caplog.text
    with pytest.raises(ValueError, match="pretrained_part network needs weights to take it from; give --pretrained"):
        start_network(network, None, pretrained_part="network")


def test_trained_weights_are_all_of_the_network_or_refused(tmp_path, caplog):
    network = SegResNet(init_filters=8, in_channels=1, out_channels=2)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    (tmp_path / "model.txt").write_text("for research\n")
    other = SegResNet(init_filters=8, in_channels=1, out_channels=2).train()
    loaded = trained_network(other, str(tmp_path / "model.pt"), {"task": "mine"})
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in network.state_dict().items())
    assert "for research" in caplog.messages, "the note that lies beside the weights"
    assert any("does not say what its weights are" in message for message in caplog.messages)
    del (state := network.state_dict())[next(iter(state))]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt"):
        trained_network(other, str(tmp_path / "model.pt"))


def test_a_classifier_may_start_from_another_task(tmp_path, caplog):
    network = torch.nn.Linear(3, 1)
    torch.save(stamped(network.state_dict(), {"task": "one", "size": "tiny"}), tmp_path / "model.pt")
    with caplog.at_level(logging.INFO, "mambamim_nets"):
        start_classifier(torch.nn.Linear(3, 1), str(tmp_path / "model.pt"), {"task": "other", "size": "tiny"})
    assert "starting weights: the whole network, 2 tensors from" in caplog.text
    with pytest.raises(ValueError, match="size is 'tiny' in the file and 'base' in this run"):
        start_classifier(torch.nn.Linear(3, 1), str(tmp_path / "model.pt"), {"task": "other", "size": "base"})


def saved(tmp_path, record: dict) -> str:
    path = tmp_path / "model.pt"
    torch.save(stamped(torch.nn.Linear(1, 1).state_dict(), record), path)
    return str(path)


@pytest.mark.parametrize(
    ("record", "axes", "words"),
    [
        ({"mirrored": [0, 2]}, [2], ""),
        ({"mirrored": []}, [], ""),
        ({}, [], ""),
        ({"mirrored": []}, [0], "must be among those that were mirrored when the weights were trained, none"),
        ({"mirrored": [0]}, [0, 1], r"trained, \[0\]"),
        ({}, [0], "the weights do not say which axes were mirrored in training"),
    ],
)
def test_only_axes_that_training_mirrored_are_mirrored(tmp_path, caplog, record, axes, words):
    weights = saved(tmp_path, record)
    if words:
        with pytest.raises(ValueError, match=words):
            trained_network(torch.nn.Linear(1, 1), weights, None, axes)
        with caplog.at_level("WARNING"):
            trained_network(torch.nn.Linear(1, 1), weights, None, axes, force=True)
        assert "FORCED, mirror_axes" in caplog.text
    else:
        trained_network(torch.nn.Linear(1, 1), weights, None, axes)


def test_the_note_beside_weights_is_one_line(tmp_path):
    weights = saved(tmp_path, {})
    assert weights_note(weights) == "" and weights_caption("") == "" and weights_note(None) == ""
    (tmp_path / "model.txt").write_text("These are\na demonstration.\n")
    assert weights_note(weights) == "These are a demonstration."
    assert weights_caption("a demonstration") == "demonstration weights"
    assert weights_caption("for research") == "weights for research only"


# --- ensembles ------------------------------------------------------------------------------------


@pytest.fixture
def fold(tmp_path):
    """Return a function that writes weights of a network of two layers, with a record; it gives the path."""

    def write(name, **facts):
        network = torch.nn.Conv3d(1, 2, 1)
        network.weight.data.fill_(float(len(name)))
        path = tmp_path / name / "model_best.pt"
        path.parent.mkdir(exist_ok=True)
        torch.save(stamped(network.state_dict(), {"task": "mine", "mirrored": [0], **facts}), path)
        return str(path)

    return write


def test_every_member_of_an_ensemble_is_loaded_and_the_first_stays(fold, caplog):
    files = [fold("one", seen={"spacing_mm": [1, 1]}), fold("second", seen={"spacing_mm": [2, 2]})]
    network = torch.nn.Conv3d(1, 2, 1).train()
    with caplog.at_level(logging.INFO):
        trained_network(network, files, {"task": "mine"}, mirror_axes=[0])
    assert not network.training and network.weight.unique().item() == 3.0
    assert all(f"from {file}" in caplog.text for file in files)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"spacing": [2.0, 2.0, 2.0]}, ["spacing is [1.0, 1.0, 1.0] in", "and [2.0, 2.0, 2.0] in", "of one kind"]),
        ({"spacing": [1.0, 1.0, 1.0], "size": "tiny"}, ["size is None in", "and 'tiny' in"]),
        ({"spacing": [1.0, 1.0, 1.0], "mirrored": []}, ["fold2", "among those that were mirrored", "none"]),
    ],
    ids=["spacing", "said by one alone", "mirrored"],
)
def test_members_that_are_unlike_are_refused(fold, facts, words):
    files = [fold("fold1", spacing=[1.0, 1.0, 1.0]), fold("fold2", **facts)]
    with refused(*words):
        trained_network(torch.nn.Conv3d(1, 2, 1), files, mirror_axes=[0])


def test_a_member_of_another_task_or_named_twice_is_refused(fold):
    files = [fold("fold1"), fold("fold2", task="other")]
    with refused("fold2", "task is 'other' in the file and 'mine' in this run"):
        trained_network(torch.nn.Conv3d(1, 2, 1), files, {"task": "mine"})
    with refused(f"checkpoint {files[0]} is named twice"):
        trained_network(torch.nn.Conv3d(1, 2, 1), [files[0], files[0]])


def test_an_ensemble_has_seen_what_any_of_its_members_has(fold):
    files = [
        fold(
            "1", seen={"field_of_view_mm": [[5, 9, 9], [20, 20, 20]], "spacing_mm": [1, 2], "volumes_ml": {"a": [1, 2]}}
        ),
        fold(
            "2", seen={"field_of_view_mm": [[9, 5, 9], [20, 30, 20]], "spacing_mm": [2, 3], "volumes_ml": {"a": [0, 1]}}
        ),
        fold("3"),
    ]
    assert seen_in_training(files) == {
        "field_of_view_mm": [[5, 5, 9], [20, 30, 20]],
        "spacing_mm": [1, 3],
        "volumes_ml": {"a": [0, 2]},
    }
    assert seen_in_training(files[0])["spacing_mm"] == [1, 2]
    assert seen_in_training(None) == {} == seen_in_training(files[2])


def test_results_name_the_members_of_an_ensemble(fold, tmp_path):
    files = [fold("fold1"), fold("fold2")]
    (tmp_path / "fold1" / "model_best.txt").write_text("For research\nonly.")
    (tmp_path / "fold2" / "model_best.txt").write_text("For research only.")
    one, other = (file_digest(file)[:16] for file in files)
    assert weights_note(files) == "For research only."
    assert described_weights(files) == (
        f"mean of 2 networks: fold1/model_best.pt sha256 {one}, fold2/model_best.pt sha256 {other}; For research only."
    )
    assert one != other and described_weights(files[0]) == weights_note(files[0])
