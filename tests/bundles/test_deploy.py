"""A bundle inside MONAI Deploy: what its MonaiBundleInferenceOperator does, emulated, and the example in its real SDK.

The SDK runs in an environment of its own, see docs/DEPLOYMENT.md; MONAI_DEPLOY_PYTHON names its interpreter.
"""

import os
import subprocess

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import rebuilt
from helpers import BUNDLES, REPOSITORY, environment
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from pydicom import dcmread
from pydicom.uid import CTImageStorage, generate_uid

from mambamim_nets import phantom, segment
from mambamim_nets.bundle import label_table
from mambamim_nets.checkpoint import read_state


def without_files(compose):
    """Drop transforms by name, as the SDK does, in place."""
    names = ("LoadImage", "SaveImage")
    compose.transforms = tuple(t for t in compose.transforms if not any(name in type(t).__name__ for name in names))
    return compose


@pytest.mark.slow
def test_an_image_in_memory_goes_through_a_bundle_without_its_workflow(tmp_path, monkeypatch):
    """An emulation of the operator: configuration without overrides, image without channel, transforms by name."""
    bundle = BUNDLES / "msd_seg"
    scan = next((phantom.write(tmp_path, "hippocampus", cases=1) / "imagesTr").iterdir())
    expected = np.asarray(segment(scan, bundle=str(bundle), device="cpu", previews=False).labels.dataobj)
    monkeypatch.chdir(bundle)
    parser = ConfigParser()
    parser.read_config([bundle / "configs" / "inference.json"])
    parser.parse()
    before, after = (without_files(parser.get_parsed_content(name)) for name in ("preprocessing", "postprocessing"))
    network = parser.get_parsed_content("network").eval()
    network.load_state_dict(read_state(bundle / "models" / "model.pt"), strict=True)
    stored = nib.load(scan)
    meta = {"original_channel_dim": "no_channel", "spatial_shape": np.array(stored.shape)}
    meta |= {"original_affine": stored.affine.copy()}
    image = MetaTensor(torch.from_numpy(np.asarray(stored.dataobj)), affine=torch.from_numpy(stored.affine), meta=meta)
    with torch.no_grad():
        data = before({"image": image})
        data["pred"] = parser.get_parsed_content("ensemble_inferer")(data["image"][None], network)[0]
        found = after(data)["pred"]
    np.testing.assert_array_equal(found[0], expected)
    assert expected.any()


def identified(series, folder):
    """Copy a DICOM series whose identifiers were blanked, with new ones: the SDK needs them."""
    folder.mkdir()
    study, own, frame = generate_uid(), generate_uid(), generate_uid()
    for path in series.iterdir():
        dataset = dcmread(path)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, own, frame
        dataset.SeriesNumber, dataset.SOPClassUID = 1, CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.save_as(folder / path.name)
    return folder


@pytest.mark.slow
def test_the_example_in_the_sdk_gives_the_dicom_seg_of_the_bundle(real_data, tmp_path):
    python = os.environ.get("MONAI_DEPLOY_PYTHON")
    if not python:
        pytest.skip("MONAI_DEPLOY_PYTHON must name the Python of an environment with monai-deploy-app-sdk")
    series = identified(real_data("totalsegmentator/ct_dicom/series"), tmp_path / "series")
    bundle = BUNDLES / "btcv_seg"
    example = REPOSITORY / "docs" / "deploy" / "segment_dicom.py"
    command = [python, str(example), "-i", str(series), "-m", str(bundle), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (file,) = (tmp_path / "out").glob("*.dcm")
    ours = segment(series, bundle=str(bundle), device="cpu", previews=False).labels
    np.testing.assert_array_equal(rebuilt(file, ours.shape, ours.affine), np.asarray(ours.dataobj))
    names = [one.SegmentLabel for one in dcmread(file).SegmentSequence]
    assert names == list(label_table(bundle))
