"""What MONAI's own verbs ask of a bundle, and what its metadata says about itself."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import BUNDLES, existing
from monai.bundle import ConfigParser, ConfigWorkflow

import mambamim_nets
from mambamim_nets import load_encoder, load_weights, phantom

NAMES = [path.parent.name for path in existing(BUNDLES.glob("*/configs"))]


def workflows() -> list[tuple[str, tuple[str, ...], str]]:
    """List bundle, configurations and kind of every workflow in the repository."""
    kinds = ((("train",), "train"), (("train", "evaluate"), "train"), (("inference",), "infer"))
    return [
        (name, configs, kind)
        for name in NAMES
        for configs, kind in kinds
        if all((BUNDLES / name / "configs" / f"{config}.json").is_file() for config in configs)
    ]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that gives a few small labelled phantoms and two new ones of the kind that a bundle names."""
    folder = tmp_path_factory.mktemp("phantoms")

    def write(name: str) -> Path:
        kind = json.loads((BUNDLES / name / "configs" / "train.json").read_text())["phantom"]["kind"]
        cases = 20 if kind == "dementia" else 5  # five folds of two classes, which are half of the subjects
        return phantom.write(folder / kind, kind, cases=cases, shape=(32, 32, 32))

    return write


@pytest.mark.parametrize(
    ("name", "configs", "kind"), workflows(), ids=lambda value: "+".join(value) if isinstance(value, tuple) else value
)
def test_bundle_properties_are_complete(name, configs, kind, phantoms, tmp_path):
    files = [str(BUNDLES / name / "configs" / f"{config}.json") for config in configs]
    options = {"dataset_dir": str(phantoms(name)), "output_dir": str(tmp_path), "bundle_root": str(BUNDLES / name)}
    if "train" in configs:
        options["cache_rate"] = 0.0  # what it is made of, not what it computes
    (tmp_path / "model_best.pt").touch()  # what is evaluated must be there
    workflow = ConfigWorkflow(config_file=files, workflow_type=kind, logging_file=False, **options)
    workflow.initialize()
    assert workflow.check_properties() == []


def test_metadata_states_version_limits_and_data():
    wrong = []
    for name in NAMES:
        metadata = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())
        licence = (BUNDLES / name / "docs" / "data_license.txt").read_text()
        stated = {
            "version": metadata["version"] in metadata["changelog"],
            "limits": "Not a medical device" in metadata["intended_use"],
            "data": bool(metadata["data_source"]),
            "licence": "licence" in licence,
            "package": metadata["required_packages_version"]["mambamim_nets"] == mambamim_nets.__version__,
        }
        wrong += [f"{name}: {fact}" for fact, held in stated.items() if not held]
    assert wrong == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_seg")])
def test_metadata_name_the_channels_of_the_network_and_the_values_of_label_maps(name):
    """A program that reads metadata alone gives every voxel of a result its right name."""
    data = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())["network_data_format"]
    parser = ConfigParser()
    parser.read_config(BUNDLES / name / "configs" / "inference.json")
    parser["bundle_root"] = str(BUNDLES / name)
    targets = parser.get_parsed_content("targets")
    channels, written = data["outputs"]["pred"], data["post_processed_outputs"]["pred"]
    assert channels["channel_def"] == {str(index): channel for index, channel in enumerate(targets.channels)}
    assert channels["num_channels"] == targets.out_channels and written["num_channels"] == 1
    certain = torch.eye(targets.out_channels)[:, :, None, None]  # one voxel for each channel that is found alone
    values = {int(value) for value in targets.label_map(certain.reshape(targets.out_channels, -1, 1, 1)).unique()}
    names = {0: "background", **targets.labels}
    assert written["label_def"] == {str(value): names[value] for value in sorted(values | {0})}
    assert written["value_range"] == [0, max(values)]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_fit_their_networks_and_are_in_half_precision(name):
    path = BUNDLES / name / "models" / "model.pt"
    assert path.stat().st_size < 12e6
    state = torch.load(path, weights_only=True)
    assert {value.dtype for value in state.values() if value.numel() > 8192} == {torch.float16}
    assert "must not be used for diagnosis" in path.with_suffix(".txt").read_text()
    parser = ConfigParser()
    parser.read_config(BUNDLES / name / "configs" / "inference.json")
    parser["bundle_root"] = str(BUNDLES / name)
    network = parser.get_parsed_content("network_def")
    if name == "pretrain":
        assert load_encoder(network, path).record["encoder"] == "HyMamba"
    else:
        record = json.loads(json.dumps(parser.get_parsed_content("record")))
        held = load_weights(network, path, record).record
        assert {"architecture", "task", "channels", "spacing", "intensity"} <= set(held)
        known = {key: value for key, value in held.items() if key not in ("mirrored", "seen")}  # by their training
        assert known == {key: record[key] for key in known}, "they say what they are"


@pytest.mark.slow
def test_shipped_weights_segment_a_real_scan(command, real_data, tmp_path):
    """A training case: this shows that inference and weights belong together, not how good they are."""
    import nibabel as nib

    hippocampus = real_data("msd_hippocampus")
    case = hippocampus / "imagesTr" / "hippocampus_001.nii.gz"
    config = BUNDLES / "msd_seg" / "configs" / "inference.json"
    output = command(config, "--input", str(case), "--output_dir", str(tmp_path), cwd=tmp_path)
    assert "research" in output, "every run with shipped weights says what they are"
    result = nib.load(tmp_path / "hippocampus_001_seg.nii.gz")
    reference = nib.load(hippocampus / "labelsTr" / "hippocampus_001.nii.gz")
    assert result.shape == reference.shape and (result.affine == reference.affine).all()
    found, truth = (torch.as_tensor(image.get_fdata()) for image in (result, reference))
    for label in (1, 2):
        overlap = 2 * ((found == label) & (truth == label)).sum() / ((found == label).sum() + (truth == label).sum())
        assert overlap > 0.8
