"""Every pre-training method runs from its configuration, and what it leaves starts fine-tuning."""

import json
from pathlib import Path

import pytest
import torch
from helpers import BUNDLES, existing, finished, refused
from ignite.engine import Events

from mambamim_nets import HyMambaSeg, MambaUNETR, load_encoder

pytestmark = pytest.mark.usefixtures("all_narrow")

CONFIGS = BUNDLES / "pretrain" / "configs"
METHODS = [path.stem for path in existing((CONFIGS / "methods").glob("*.json"))]
SMALL = {"roi_size": [32, 32, 32], "batch_size": 3, "picture_interval": 1}
OWN = {"voco": {"roi_size": [64, 32, 32], "network_def#grid": [2, 1, 1]}}  # two crops of 32^3
EXPECTED = {
    "without_toki": {"fill": "learnable"},
    "without_skip": {"skip": False},
    "without_bottom_up": {"masking": "independent"},
    "spark": {"fill": "learnable", "mask_ratio": 0.6, "target": "patch_norm"},
    "mae": {"mask_ratio": 0.75, "target": "patch_norm"},
    "simmim": {"mask_ratio": 0.6, "target": "raw"},
    "voco": {"crops": 4, "decay": 0.9},
}


def segmentation(encoder):
    if type(encoder).__name__ == "VisionMamba":
        return MambaUNETR(1, 3, size="tiny")
    return HyMambaSeg(1, 3, size="tiny", mamba_depth=len(encoder.mamba))


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[] if name == "mae" else [pytest.mark.slow]) for name in METHODS],
)
def test_a_method_trains_an_epoch_and_leaves_an_encoder(workflow, data, tmp_path, method):
    options = {**SMALL, **OWN.get(method, {}), "dataset_dir": str(data), "output_dir": str(tmp_path), "max_epochs": 1}
    made = workflow("pretrain", ["train", f"methods/{method}"], **options)
    network = made.parser.get_parsed_content("network")
    for name, value in EXPECTED.get(method, {}).items():
        assert getattr(network, name) == value
    before = {key: value.clone() for key, value in network.encoder.state_dict().items()}
    finished(made)
    encoder = torch.load(tmp_path / "encoder.pt", weights_only=True)
    assert encoder.keys() == before.keys() and not torch.equal(encoder["stem.weight"], before["stem.weight"])
    assert load_encoder(segmentation(network.encoder), tmp_path / "encoder.pt").tensors == len(encoder)
    assert (tmp_path / "reconstruction.png").is_file() == (method != "voco")
    identity = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["identity"]
    assert identity["method"] == method and identity["network_def#_target_"].endswith(type(network).__name__)


def test_a_method_is_a_small_file_of_known_keys():
    known, wrong = set(json.loads((CONFIGS / "train.json").read_text())), {}
    for method in METHODS:
        config = json.loads((CONFIGS / "methods" / f"{method}.json").read_text())
        unknown = {key.split("#")[0] for key in config} - known
        if unknown or config["method"] != method or len(config) > 10:
            wrong[method] = f"method {config['method']}, {len(config)} keys, of which unknown: {sorted(unknown)}"
    assert wrong == {}


@pytest.mark.slow
def test_vanilla_mamba_is_pre_trained_by_the_methods_that_fit_it(workflow, data, tmp_path):
    for configs in (["train", "networks/vanilla_mamba"], ["train", "methods/simmim", "networks/vanilla_mamba"]):
        folder = tmp_path / "_".join(Path(name).stem for name in configs)
        options = {**SMALL, "dataset_dir": str(data), "output_dir": str(folder), "max_epochs": 1}
        made = workflow("pretrain", configs, **options)
        finished(made)
        load_encoder(MambaUNETR(1, 3, size="tiny"), folder / "encoder.pt")
    made = workflow("pretrain", ["train", "methods/without_bottom_up", "networks/vanilla_mamba"], dataset_dir=str(data))
    with refused("needs a CNN stage, which VisionMamba has not"):
        made.parser.get_parsed_content("network")


@pytest.mark.slow
def test_another_method_does_not_continue_a_run(workflow, data, tmp_path):
    options = {**SMALL, "dataset_dir": str(data), "output_dir": str(tmp_path), "max_epochs": 1}
    made = workflow("pretrain", ["train", "methods/simmim"], **options)
    finished(made)
    for configs, difference in (
        (["train", "methods/mae"], "method is simmim in the checkpoint and mae here"),
        (
            ["train", "methods/simmim", "networks/vanilla_mamba"],
            "encoder_def#_target_ is mambamim_nets.HyMamba in the",
        ),
    ):
        made = workflow("pretrain", configs, **{**options, "max_epochs": 2})
        with refused(difference):
            made.run()
        made.finalize()


def interrupted(workflow, method, epoch, **options):
    """Train; press Ctrl-C in the first iteration of an epoch."""

    def press(engine):
        if engine.state.epoch == epoch:
            raise KeyboardInterrupt

    made = workflow("pretrain", ["train", f"methods/{method}"], **options)
    made.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED, press)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    made.finalize()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["voco", "models_genesis"])
def test_a_resumed_run_keeps_the_teacher_and_draws_the_same_distortions(workflow, data, tmp_path, method):
    options = {**SMALL, **OWN.get(method, {}), "dataset_dir": str(data), "max_epochs": 2, "learning_rate": 0.001}
    interrupted(workflow, method, 2, output_dir=str(tmp_path / "parts"), **options)
    states = []
    for name in ("parts", "whole"):
        made = workflow("pretrain", ["train", f"methods/{method}"], output_dir=str(tmp_path / name), **options)
        finished(made)
        states.append(torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True))
    assert [state["epoch"] for state in states] == [2, 2]
    parts, whole = (state["model"] for state in states)
    assert parts.keys() == whole.keys() and all(torch.equal(parts[key], whole[key]) for key in whole)
    if method == "voco":
        assert not torch.equal(whole["teacher.0.stem.weight"], whole["encoder.stem.weight"])


@pytest.mark.slow
def test_switches_that_a_method_has_no_use_for_are_refused(command, data, tmp_path):
    configs = [CONFIGS / "train.json", CONFIGS / "methods" / "simmim.json"]
    output = command(configs, "--dataset_dir", str(data), "--fill", "toki", cwd=tmp_path, fails=True)
    assert "option --fill has no effect with" in output and "simmim.json; leave it out" in output
