"""NIfTI and FreeSurfer files: the header as it stands in the file, and the voxels that nibabel reads."""

import gzip
import re
import struct

import nibabel as nib
import numpy as np
import pytest

from mambamim_nets.bundle.io.nifti import nibabel_header, nibabel_voxels

AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 3.0, 7], [0, 0, 0, 1]])
VOXELS = np.arange(120, dtype=np.int16).reshape(4, 5, 6)


@pytest.fixture
def path(tmp_path):
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_sform(AFFINE, code=1)
    nib.save(image, tmp_path / "scan.nii")
    return tmp_path / "scan.nii"


def put(path, offset, form, *values):
    """Put values into the header of a NIfTI file; it is where the standard has the fields."""
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{form}", content, offset, *values)
    path.write_bytes(content)


def test_a_header_has_the_grid_and_accounts_for_every_byte(path):
    header = nibabel_header(str(path))
    assert (header.shape, header.itemsize, header.length) == ((4, 5, 6), 2, path.stat().st_size)
    assert header.spacing == pytest.approx((1.5, 2.0, 3.0)) and header.oriented
    assert header.problems == header.warnings == ()
    put(path, 112, "2f", 0.5, 1.0)  # scl_slope, scl_inter
    assert nibabel_header(str(path)).itemsize == 8, "scaled values are read as float64"


def test_a_file_that_does_not_say_where_its_axes_point(path):
    put(path, 252, "2h", 0, 0)  # qform_code, sform_code
    assert not nibabel_header(str(path)).oriented


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ((80, "f", 0.0), "pixdim, spacing .* must be above 0"),
        ((123, "B", 1), "spacing in metres"),
        ((112, "f", np.nan), "scl_slope nan"),
        ((46, "h", 3000), "bytes are too few for dimensions"),
        ((280, "4f", 0, 0, 0, 0), "must be finite and invertible"),
    ],
    ids=["pixdim", "units", "slope", "dim", "sform"],
)
def test_what_forbids_to_use_a_file(path, field, problem):
    put(path, *field)
    (found,) = nibabel_header(str(path)).problems
    assert re.search(problem, found)


def test_the_header_of_mgz_is_read_before_nibabel_completes_it(tmp_path):
    nib.save(nib.MGHImage(VOXELS, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "a.mgz")
    header = nibabel_header(str(tmp_path / "a.mgz"))
    assert (header.shape, header.spacing, header.oriented) == ((4, 5, 6), (1.0, 2.0, 3.0), True)
    content = bytearray(gzip.decompress((tmp_path / "a.mgz").read_bytes()))
    struct.pack_into(">h", content, 28, 0)  # goodRASFlag
    (tmp_path / "a.mgz").write_bytes(gzip.compress(bytes(content)))
    header = nibabel_header(str(tmp_path / "a.mgz"))
    assert (header.spacing, header.oriented) == ((1.0, 1.0, 1.0), False)


def test_voxels_come_with_the_affine_of_the_file(path):
    array, meta = nibabel_voxels(str(path))
    np.testing.assert_array_equal(array, VOXELS)
    np.testing.assert_allclose(meta["affine"], AFFINE)
