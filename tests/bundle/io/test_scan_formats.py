"""Reading a scan: channels on one grid, in the network's order, named after the scan."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mambamim_nets.bundle.io.scan_formats import LoadScand, read_scan, scan_header

AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 3.0, 7], [0, 0, 0, 1]])


@pytest.fixture
def write(tmp_path):
    """Return a function that writes voxels and gives them and the path."""

    def write(name, *shape, affine=AFFINE):
        array = np.random.default_rng(sum(map(ord, name))).integers(-500, 500, shape).astype(np.int16)
        nib.save(nib.Nifti1Image(array, affine), tmp_path / name)
        return array, str(tmp_path / name)

    return write


def test_one_file_is_one_channel_as_it_is_stored(write):
    array, path = write("a.nii.gz", 4, 5, 6)
    scan = read_scan(path)
    assert scan.shape == (1, 4, 5, 6) and scan.dtype == torch.float32
    np.testing.assert_array_equal(scan[0], array)
    np.testing.assert_allclose(scan.affine, AFFINE)


def test_files_are_channels_of_one_grid(write):
    (first, a), (second, b) = write("a.nii.gz", 4, 5, 6), write("b.nii.gz", 4, 5, 6)
    np.testing.assert_array_equal(read_scan([a, b]), np.stack([first, second]))
    for shape, affine in (((4, 5, 7), AFFINE), ((4, 5, 6), AFFINE + np.eye(4, k=3) * 9)):
        _, other = write("c.nii.gz", *shape, affine=affine)
        with pytest.raises(ValueError, match=r"c\.nii\.gz.*channels must have one grid"):
            read_scan([a, other])


def test_channels_of_one_file_come_in_the_order_that_is_asked_for(write):
    array, path = write("a.nii.gz", 4, 5, 6, 3)
    out = LoadScand("image", order=[2, 0])({"image": path, "name": "case"})
    np.testing.assert_array_equal(out["image"], np.moveaxis(array[..., [2, 0]], -1, 0))
    assert out["image"].meta["filename_or_obj"].endswith("/case.nii.gz"), "results are named after the scan"
    _, alone = write("b.nii.gz", 4, 5, 6)
    assert LoadScand("image", order=[1, 0])({"image": [alone, alone]})["image"].shape[0] == 2, "files have theirs"


def test_an_image_in_memory_is_taken_as_it_is(write):
    _, path = write("a.nii.gz", 4, 5, 6)
    scan = LoadScand("image")({"image": path})["image"]
    bare = MetaTensor(scan[0].short(), affine=scan.affine, meta={"original_channel_dim": "no_channel"})
    out = LoadScand("image")({"image": bare})
    np.testing.assert_array_equal(out["image"], scan[:].short())
    np.testing.assert_array_equal(out["image"].affine, scan.affine)
    assert out["image"].dtype == scan.dtype and list(out) == ["image"]


def test_voxels_that_are_not_finite_in_float32_are_counted(tmp_path):
    array = np.ones((3, 3, 3))
    array[0, 0, :2] = np.nan, 1e39
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"a\.nii: 2 of 27 voxels are NaN or infinite"):
        read_scan(str(tmp_path / "a.nii"))


def test_a_header_tells_the_grid_without_the_voxels(write):
    _, path = write("a.nii.gz", 4, 5, 6)
    header = scan_header([path, "unread.nii.gz"])
    assert header.shape == (4, 5, 6) and header.spacing == pytest.approx((1.5, 2.0, 3.0))
