"""Weights that a network cannot take, by what they say of themselves or by their shapes: refused with the option."""

import pytest
import torch

from mambamim_nets import HyMamba, HyMambaSeg, NNMambaClassifier


def saved(path, network):
    torch.save(network.state_dict(), path)
    return str(path)


def test_an_encoder_that_scans_in_one_direction(bundle_run, reliability, data, tmp_path):
    path = saved(tmp_path / "encoder.pt", HyMamba(1, "tiny", bidirectional=False))
    outcome = bundle_run("msd_seg", dataset_dir=str(data), pretrained=path, max_epochs=1)
    assert outcome.last.count("--network_def#bidirectional false") == 1
    reliability("Weights", "--pretrained: an encoder that scans in one direction", outcome)


def test_an_encoder_that_scans_in_both_directions(bundle_run, reliability, data, tmp_path):
    path = saved(tmp_path / "encoder.pt", HyMamba(1, "tiny"))
    options = {"pretrained": path, "network_def#bidirectional": "false", "max_epochs": 1}  # as the command line has it
    outcome = bundle_run("msd_seg", dataset_dir=str(data), **options)
    assert outcome.last.count("--network_def#bidirectional true") == 1
    reliability("Weights", "--pretrained: an encoder that scans in both directions", outcome)


@pytest.mark.slow
def test_a_classifier_with_another_mlp(bundle_run, reliability, tmp_path):
    path = saved(tmp_path / "model.pt", NNMambaClassifier(width=4, mlp_width=8))
    outcome = bundle_run("brain_cls", pretrained=path, max_epochs=1, phantom={"kind": "dementia", "cases": 20})
    assert "use --mlp_width 8" in outcome.last
    reliability("Weights", "--pretrained: a classifier whose MLP has another width", outcome)


@pytest.mark.parametrize("eps", [float("nan"), "1e-5"])
def test_weights_with_a_damaged_eps(bundle_run, reliability, data, tmp_path, eps):
    state = HyMambaSeg(1, 3, "tiny").state_dict()
    state._metadata["encoder.mamba.0.norm1"]["eps"] = eps
    torch.save(state, tmp_path / "model.pt")
    outcome = bundle_run("msd_seg", dataset_dir=str(data), pretrained=str(tmp_path / "model.pt"), max_epochs=1)
    assert "which must lie between 0 and 1; the file is damaged" in outcome.last
    reliability("Weights", f"weights that give eps {eps!r} for a layer norm", outcome)


def test_a_switch_of_the_network_that_is_neither_true_nor_false(bundle_run, reliability, data):
    outcome = bundle_run("msd_seg", dataset_dir=str(data), **{"network_def#bidirectional": "no"})
    assert "option --network_def#bidirectional 'no' must be true or false" in outcome.last
    reliability("Options", "a switch inside the network that is neither true nor false", outcome)
