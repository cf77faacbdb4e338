"""Probabilities on the scan's own grid, in a file, and those that are too large for it."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, Orientationd, Spacingd

from mambamim_nets import phantom
from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.transforms.labels import RestoreLabelsd
from mambamim_nets.bundle.transforms.probabilities import RestoreProbabilitiesd

SMALL = {"roi_size": [32, 32, 32], "overlap": 0.0, "previews": False, "probabilities": True}


@pytest.mark.parametrize("regions", [None, {"both": [1, 2], "inner": [2]}], ids=["classes", "regions"])
def test_probabilities_lie_on_the_scans_grid_and_decide_its_labels(regions):
    image = MetaTensor(torch.rand(1, 12, 10, 14) + 1, affine=np.diag([-1.5, 1.0, 2.0, 1.0]))
    image[:, :3] = 0  # which is cropped
    image.meta["spatial_shape"] = np.array(image.shape[1:])
    steps = [Orientationd("image", "RAS", labels=None), CropForegroundd("image", "image", allow_smaller=True)]
    preprocessing = Compose([*steps, Spacingd("image", (1.0, 1.0, 1.0))])
    data = preprocessing({"image": image})
    targets = Targets({"outer": 1, "inner": 2}, regions)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(targets.out_channels, *data["image"].shape[1:], generator=generator)
    data["pred"] = MetaTensor(logits.clone(), meta=data["image"].meta)
    out = RestoreProbabilitiesd("pred", targets, preprocessing)(data)
    found = out["probabilities"]
    assert found.shape == (targets.out_channels, 12, 10, 14) and torch.equal(out["pred"].as_tensor(), logits)
    assert found.min() >= 0 and found.max() <= 1 and not found[:, :3].any(), "the network saw nothing there"
    np.testing.assert_allclose(found.affine, image.affine)
    if regions is None:
        torch.testing.assert_close(found[:, 3:].sum(0).as_tensor(), torch.ones(9, 10, 14), atol=1e-4, rtol=0)
    label = RestoreLabelsd("pred", targets, preprocessing)(data)["pred"]
    assert torch.equal(targets.label_map(found).as_tensor(), label.as_tensor()) and label.any()


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = phantom.write(tmp_path_factory.mktemp("data") / "hippocampus", "hippocampus", cases=5) / "imagesTr"
    return sorted(folder.iterdir())[0]


def test_a_run_writes_probabilities_when_asked(bundle_run, scan, tmp_path):
    name, out = scan.name.removesuffix(".nii.gz"), tmp_path / "out"
    infer = {"input": str(scan), "output_dir": str(out), **SMALL}
    assert bundle_run("msd_seg", "inference", **{**infer, "probabilities": False}).status == 0
    assert not (out / f"{name}_probabilities.nii.gz").exists()
    end = bundle_run("msd_seg", "inference", **infer, keep_largest=False)
    assert end.status == 0 and "left out" not in end.log, end.log
    image, label = (nib.load(out / f"{name}_{what}.nii.gz") for what in ("probabilities", "seg"))
    values = image.get_fdata()
    assert image.get_data_dtype() == np.uint16 and values.shape == (*label.shape, 3)
    np.testing.assert_allclose(image.affine, label.affine)
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-4)
    assert (values.argmax(-1) == np.asarray(label.dataobj)).mean() > 0.9999, "but for ties of two steps"


def test_probabilities_that_are_too_large_are_refused_before_the_scan_is_read(bundle_run, scan, tmp_path, reliability):
    out = tmp_path / "out"
    end = bundle_run("msd_seg", "inference", input=str(scan), output_dir=str(out), **SMALL, max_gib=0.0001)
    reliability("Inference", "--probabilities of a scan that take more than --max_gib", end)
    assert "windows" not in end.log
    assert not list(out.glob("*_seg*")) and not (out / "volumes.csv").exists()
