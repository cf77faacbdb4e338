"""Reading one image whole: its grid, its digests, and what is wrong with it."""

import nibabel as nib
import numpy as np
import pytest

from mambamim_nets.bundle.data.inspection import Volume, image_problems, inspect_image, read_volume

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


@pytest.fixture
def write(tmp_path):
    """Return a function that writes voxels and gives the path."""

    def write(name, array, affine=AFFINE):
        image = nib.Nifti1Image(np.asarray(array), affine)
        image.set_qform(affine, 1)
        nib.save(image, tmp_path / name)
        return str(tmp_path / name)

    return write


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_a_sound_image_has_a_grid_and_a_digest_for_each_file(write):
    paths = [write(name, draw(4, 5, 6)) for name in ("a.nii.gz", "b.nii")]
    found = inspect_image(paths, 2, digest=True)
    assert (found.problems, found.warnings) == ([], [])
    assert found.grid[0] == (4, 5, 6) and np.allclose(found.grid[1], AFFINE)
    assert len(found.digests) == 2 and len(set(found.digests)) == 1, "the voxels are the same in both formats"
    assert inspect_image(paths, 2).digests == [], "they were not asked for"


def test_a_problem_leaves_no_digest(write):
    paths = [write("a.nii.gz", draw(4, 5, 6)), write("b.nii.gz", draw(4, 5, 7))]
    found = inspect_image(paths, 2, digest=True)
    assert len(found.problems) == 1 and "shape (4, 5, 7)" in found.problems[0] and found.digests == []
    (problem,) = inspect_image(paths, 3).problems
    assert "in_channels is 3" in problem


def test_damage_at_the_end_of_a_compressed_file_is_found(write, tmp_path):
    path = tmp_path / "a.nii.gz"
    write("a.nii.gz", draw(4, 5, 6))
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # of the checksum
    path.write_bytes(bytes(data))
    volume, (problem,), _ = read_volume(str(path))
    assert volume is None and str(path) in problem
    assert "missing" in read_volume(str(tmp_path / "none.nii"))[1][0]


@pytest.mark.parametrize(
    ("array", "in_channels", "words"),
    [
        (np.zeros((3, 3, 3)), 1, "every voxel is 0"),
        (np.where(np.arange(27).reshape(3, 3, 3) == 5, np.nan, 1.0), 1, "1 of 27 voxels are NaN or infinite"),
        (np.full((3, 3, 3), 1e39) * np.arange(3), 1, "float32"),
        (1e9 + np.arange(27.0).reshape(3, 3, 3), 1, "steps of float32"),
        (np.ones((3, 3, 3), complex) * np.arange(3), 1, "voxel type complex128"),
        (draw(3, 3, 3, 2), 1, "must be 3-D"),
        (draw(3, 3, 3), 2, "must be 4-D"),
        (draw(3, 3, 3, 3), 2, "3 channels"),
        (draw(0, 3, 3), 1, "must have voxels on every axis"),
    ],
)
def test_voxels_that_no_network_can_learn_from(array, in_channels, words):
    (problem,) = image_problems("x.nii", Volume(array, AFFINE), in_channels, alone=True)
    assert problem.startswith("x.nii: ") and words in problem
    sound = draw(*(3, 3, 3, in_channels)[: 3 if in_channels == 1 else 4])
    assert image_problems("x.nii", Volume(sound, AFFINE), in_channels, alone=True) == []
    assert "affine" in image_problems("x.nii", Volume(sound, AFFINE * 0), in_channels, alone=True)[0]
