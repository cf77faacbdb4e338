"""What MONAI's own verbs ask of a bundle, and what its metadata says about itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow, verify_metadata, verify_net_in_out

from mambamim_nets import HyMamba, HyMambaSeg, load_encoder, load_weights

BUNDLES = Path(__file__).parents[2] / "bundles"
NAMES = sorted(path.name for path in BUNDLES.iterdir() if (path / "configs").is_dir())
SHARED = Path(os.environ.get("MAMBAMIM_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
SCHEMA = SHARED.parent / "specs" / "monai" / "meta_schema_20240725.json"
HIPPOCAMPUS = SHARED / "msd_hippocampus"


@pytest.mark.parametrize(
    ("name", "configs", "kind"),
    [
        ("pretrain", ["train"], "train"),
        ("msd_seg", ["train"], "train"),
        ("msd_seg", ["train", "evaluate"], "train"),
        ("msd_seg", ["inference"], "infer"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else value,
)
def test_bundle_properties_are_complete(name, configs, kind, data, tmp_path):
    files = [str(BUNDLES / name / "configs" / f"{config}.json") for config in configs]
    options = {"dataset_dir": str(data), "output_dir": str(tmp_path / "out"), "bundle_root": str(BUNDLES / name)}
    if name == "pretrain":
        options |= {"intensity": "mr", "roi_size": [32, 32, 32]}
    workflow = ConfigWorkflow(config_file=files, workflow_type=kind, logging_file=False, **options)
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("name", NAMES)
def test_metadata_states_version_limits_and_data(name):
    metadata = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert "Not a medical device" in metadata["intended_use"] and "CC-BY-SA" in metadata["data_source"]
    assert metadata["required_packages_version"]["mambamim_nets"] == __import__("mambamim_nets").__version__


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif(not SCHEMA.is_file(), reason="the metadata schema of MONAI is not beside the repository")
def test_metadata_fits_the_schema_of_monai(name, tmp_path):
    copy = tmp_path / "schema.json"
    copy.write_bytes(SCHEMA.read_bytes())
    verify_metadata(meta_file=str(BUNDLES / name / "configs" / "metadata.json"), filepath=str(copy))


def test_network_in_and_out_are_as_the_metadata_say():
    configs = BUNDLES / "msd_seg" / "configs"
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        device="cpu",
        n=2,
    )


def test_shipped_weights_fit_their_networks_and_are_small():
    encoder = BUNDLES / "pretrain" / "models" / "encoder.pt"
    model = BUNDLES / "msd_seg" / "models" / "model.pt"
    for path in (encoder, model):
        assert path.stat().st_size <= 20 * 2**20
        assert "must not be used for diagnosis" in path.with_suffix(".txt").read_text()
    assert load_encoder(HyMamba(size="tiny"), encoder).tensors > 100
    assert load_weights(HyMambaSeg(1, 3, size="tiny"), model).tensors > 100


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="MSD Hippocampus is not there: set MAMBAMIM_DATA to its parent")
def test_shipped_weights_segment_a_real_scan(tmp_path):
    """A training case: this shows that inference and weights belong together, not how good they are."""
    import nibabel as nib

    case = HIPPOCAMPUS / "imagesTr" / "hippocampus_001.nii.gz"
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    line += [str(BUNDLES / "msd_seg" / "configs" / "inference.json"), "--input", str(case)]
    done = subprocess.run([*line, "--output_dir", str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "research" in done.stdout, "every run with shipped weights says what they are"
    result = nib.load(tmp_path / "hippocampus_001_seg.nii.gz")
    reference = nib.load(HIPPOCAMPUS / "labelsTr" / "hippocampus_001.nii.gz")
    assert result.shape == reference.shape and (result.affine == reference.affine).all()
    found, truth = (torch.as_tensor(image.get_fdata()) for image in (result, reference))
    for label in (1, 2):
        overlap = 2 * ((found == label) & (truth == label)).sum() / ((found == label).sum() + (truth == label).sum())
        assert overlap > 0.8
