"""The pre-training bundle gives the encoder's features of new scans, with the grid they lie on."""

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mambamim_nets import HyMamba, HyMambaFeatures


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return HyMamba(size="tiny").eval()


@pytest.mark.parametrize("scan", ["raster", "hilbert"])
@torch.no_grad()
def test_network_returns_the_deepest_map_of_the_encoder(scan):
    encoder = HyMamba(size="tiny", scan=scan).eval()
    network = HyMambaFeatures(size="tiny", scan=scan).eval()
    network.load_state_dict(encoder.state_dict())
    image = torch.rand(2, 1, 32, 16, 48)
    assert_close(network(image), encoder(image)[4])
    assert network(image).shape == (2, 128, 2, 1, 3)


def world(affine: np.ndarray, index: tuple) -> np.ndarray:
    return affine[:3, :3] @ index + affine[:3, 3]


def test_features_of_a_folder_lie_where_the_scan_is(encoder, bundle_run, tmp_path):
    """One bright block in a dark scan with flipped axes; its features are those of the block alone."""
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    rng = np.random.default_rng(0)
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = 40, -30, 10
    array = np.zeros((40, 36, 50), dtype=np.float32)
    array[3:35, 2:34, 5:37] = rng.uniform(1, 2, (32, 32, 32))
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "scans" / "one.nii.gz")
    odd = rng.uniform(1, 2, (50, 20, 33)).astype("float32")
    odd[20:45] = 0
    nib.save(nib.Nifti1Image(odd, affine), tmp_path / "scans" / "two.nii.gz")

    options = {"input": str(tmp_path / "scans"), "checkpoint": str(tmp_path / "encoder.pt")}
    limits = {"intensities#ct#a_min": 0, "intensities#ct#a_max": 2}
    outcome = bundle_run("pretrain", "inference", **options, intensity="ct", **limits, force=True)  # no HU
    assert outcome.status == 0, outcome.log[-4000:]
    assert f"tensors from {tmp_path / 'encoder.pt'}" in outcome.log
    made = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".")
    assert made == ["features.csv", "one_features.npz", "report.html", "report.json", "two_features.npz"]

    one, two = (np.load(tmp_path / "out" / f"{name}_features.npz") for name in ("one", "two"))
    crop = np.flip(array[3:35, 2:34, 5:37], 0).copy() / 2  # RAS
    with torch.no_grad():
        alone = encoder(torch.from_numpy(crop)[None, None])[4][0]
    assert_close(torch.from_numpy(one["features"]), alone, atol=1e-4, rtol=0)
    assert one["inside"].all() and one["inside"].shape == (2, 2, 2)
    np.testing.assert_allclose(one["mean"], alone.mean((1, 2, 3)), atol=1e-4)
    # block (0, 0, 0) has its centre between the 8th and 9th voxel from the left, which is the array's far end
    np.testing.assert_allclose(world(one["affine"], (0, 0, 0)), world(affine, (34 - 7.5, 2 + 7.5, 5 + 7.5)), atol=1e-4)
    np.testing.assert_allclose(one["affine"][:3, :3], 16 * np.eye(3), atol=1e-5)
    np.testing.assert_allclose(one["spacing"], 1, atol=1e-6)

    assert two["features"].shape == (128, 4, 2, 3) and np.isfinite(two["features"]).all()
    # sides are padded to 64, 32 and 48, half before and half after; the second slab of blocks lies in the dark gap
    assert [bool(slab.all()) for slab in two["inside"]] == [True, False, True, True] and not two["inside"][1].any()
    np.testing.assert_allclose(two["mean"], two["features"][:, [0, 2, 3]].mean((1, 2, 3)), atol=1e-5)
