"""Planned bundles are bundles: four unlike data sets are planned and trained, and MONAI's verbs accept the outcome."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import finished
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from plan.conftest import boxes, config_of

from mambamim_nets import phantom

RARE = range(36, 41)


def hippocampi(folder: Path, _: Any) -> Path:
    return phantom.write(folder / "hippocampi", "hippocampus", cases=3)


def brains(folder: Path, _: Any) -> Path:
    return phantom.write(folder / "brains", "brain", cases=3, shape=(32, 32, 32))


def thick_slices(folder: Path, _: Any) -> Path:
    return phantom.write(folder / "slices", "abdomen", cases=3, spacing=(2.4, 2.4, 8.4))


def forty_classes(_: Path, written: Callable[..., Path]) -> Path:
    """Classes 36 to 40 are each in the first two of four cases only."""
    cases = [boxes(n, [*range(1, 36), *(RARE if n < 2 else [])]) for n in range(4)]
    return written(cases, {f"structure {value}": value for value in range(1, 41)})


def trained(bundle: Path, output: Path, **options: Any) -> ConfigWorkflow:
    """Train a planned bundle for an epoch of small steps, all else as planned."""
    sides = [min(side, 32) for side in config_of(bundle, "train")["roi_size"]]
    small = {"max_epochs": 1, "roi_size": sides, "crops_per_scan": 1, "overlap": 0.0, "output_dir": str(output)}
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "train.json"),
        workflow_type="train",
        logging_file=False,
        **{**small, "bundle_root": str(bundle), "device": "$torch.device('cpu')", **options},
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    return finished(workflow)


def check_as_the_zoo_does(bundle: Path, weights: Path, folder: Path) -> None:
    """Verify input and output of the network, the names of label values, and the export as TorchScript."""
    files = {"meta_file": bundle / "configs" / "metadata.json", "config_file": bundle / "configs" / "inference.json"}
    arguments = {name: str(path) for name, path in files.items()} | {"bundle_root": str(bundle)}
    verify_net_in_out(net_id="network_def", device="cpu", **arguments)
    ckpt_export(net_id="network_def", filepath=str(folder / "m.ts"), ckpt_file=str(weights), **arguments)
    assert (folder / "m.ts").stat().st_size > 10**6

    parser = ConfigParser()
    parser.read_config(arguments["config_file"])
    parser["bundle_root"] = str(bundle)
    targets = parser.get_parsed_content("targets")
    data = config_of(bundle, "metadata")["network_data_format"]
    certain = torch.eye(targets.out_channels)[:, :, None, None]
    values = {0, *targets.label_map(certain.reshape(targets.out_channels, -1, 1, 1)).unique().tolist()}
    names = {0: "background", **targets.labels}
    result = data["post_processed_outputs"]["pred"]
    assert result["label_def"] == {str(value): names[value] for value in sorted(values)}
    assert data["outputs"]["pred"]["channel_def"] == {str(n): name for n, name in enumerate(targets.channels)}


@pytest.mark.slow
@pytest.mark.parametrize("make", [hippocampi, brains, thick_slices, forty_classes], ids=lambda make: make.__name__)
def test_unlike_data_sets_plan_and_train_without_a_written_line(make, planned, written, tmp_path):
    bundle = planned(make(tmp_path, written))
    trained(bundle, tmp_path / "run")
    check_as_the_zoo_does(bundle, tmp_path / "run" / "model_best.pt", tmp_path)


def test_what_is_unlike_is_planned_so(planned, written, tmp_path, capsys):
    """The decisions for the same sets, without training."""
    slices = config_of(planned(thick_slices(tmp_path, written), "slices_seg"), "train")
    assert slices["augmentation"][0]["rotate_range"] == [0.0, 0.0, 0.26], "thick slices along the last axis"
    assert slices["spacing"][2] == 8.4 and slices["spacing"][0] < 2.8
    flips = [part["spatial_axis"] for part in slices["augmentation"] if part["_target_"] == "RandFlipd"]
    assert flips == [1, 2], "kidneys have sides"
    assert slices["intensity"]["_target_"] == "ScaleIntensityRanged"
    capsys.readouterr()
    many = planned(forty_classes(tmp_path, written), "many_seg")
    shown = capsys.readouterr().out
    for value in RARE:
        assert f"class 'structure {value}' is in 2 of 4 cases only (case_00, case_01): validation of fold" in shown
    assert "structure 35' is in" not in shown
    assert config_of(many, "metadata")["network_data_format"]["outputs"]["pred"]["num_channels"] == 41


@pytest.mark.filterwarnings("ignore:No hash value provided:UserWarning")
def test_metadata_fit_the_schema_of_monai(planned, spleens, real_data, tmp_path):
    schema = real_data("../specs/monai/meta_schema_20240725.json")
    copy = tmp_path / "schema.json"
    copy.write_bytes(schema.read_bytes())
    verify_metadata(meta_file=str(planned(spleens) / "configs" / "metadata.json"), filepath=str(copy))


def test_inference_without_scans_says_what_to_give(planned, spleens):
    parser = ConfigParser()
    bundle = planned(spleens)
    parser.read_config(bundle / "configs" / "inference.json")
    parser["bundle_root"] = str(bundle)
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("source")
    assert "this bundle has no synthetic data" in str(caught.value.__cause__)
