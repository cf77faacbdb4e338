"""Images that are there twice are found by path and by voxels, whatever file they lie in."""

import json
import logging
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from mambamim_nets.bundle.data import inspection
from mambamim_nets.bundle.data.duplicates import copies, same_files, voxel_digest
from mambamim_nets.bundle.data.verification import check_images, check_unlabelled


def volume(seed=0, shape=(5, 6, 7)):
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def save(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


@pytest.fixture
def three(tmp_path):
    return [{"image": save(tmp_path / f"{seed}.nii.gz", volume(seed)), "case": f"c{seed}"} for seed in range(3)]


def test_a_digest_is_of_the_values_alone():
    array = volume()
    digest = voxel_digest(array)
    assert voxel_digest(np.asfortranarray(array)) == digest
    assert voxel_digest(array.astype(np.float64)) == digest
    assert voxel_digest(np.where(array == 0, -0.0, array)) == digest
    changed = array.copy()
    changed[4, 5, 6] += 1
    assert voxel_digest(changed) != digest
    assert voxel_digest(array.reshape(6, 5, 7)) != digest
    assert voxel_digest(array.swapaxes(0, 1)) != digest


def test_voxels_are_compared_and_neither_files_nor_headers(tmp_path, three):
    array = volume(1).astype(np.float32)
    copy = save(tmp_path / "copy.nii", array, np.diag([2.0, 2.0, 2.0, 1.0]))
    with pytest.raises(
        ValueError, match=r"1 problems in 1 of 4 cases:\n.*copy\.nii has the same voxels as .*1\.nii\.gz"
    ):
        check_images([*three, {"image": copy, "case": "other"}])
    array[0, 0, 0] += 1
    check_images([*three, {"image": save(tmp_path / "copy.nii", array), "case": "other"}])


@pytest.mark.parametrize("how", ["link", "same path"])
def test_one_file_under_two_names(tmp_path, three, how):
    path = tmp_path / "link.nii.gz" if how == "link" else tmp_path / "." / "1.nii.gz"
    if how == "link":
        path.symlink_to("1.nii.gz")
    with pytest.raises(ValueError, match=r"is the same file as .*cases c1 and other must be different images"):
        check_images([*three, {"image": str(path), "case": "other"}])


def test_one_channel_is_enough(tmp_path, three):
    images = [save(tmp_path / f"{name}.nii.gz", volume(seed)) for name, seed in (("a", 1), ("b", 9), ("c", 8))]
    assert not copies([{"image": images[:2]}, {"image": images[2:]}], [["1", "9"], ["8"]])
    (found,) = copies([{"image": images[:2]}, {"image": [images[2], images[1]]}], [["1", "9"], ["8", "9"]])
    assert (found.first, found.second, found.how) == (0, 1, "is the same file as")
    assert not copies([{"image": images[0]}, {"image": images[1]}], [[], []]), "unread images are not alike"


def test_digests_are_remembered(tmp_path, three, monkeypatch):
    cache = tmp_path / "cache.json"
    check_images(three, cache_file=cache)
    assert all(len(digests) == 1 for _, digests in json.loads(cache.read_text())["clean"].values())
    other = {"image": save(tmp_path / "copy.nii", volume(2)), "case": "other"}
    read = []
    monkeypatch.setattr(inspection, "voxel_digest", lambda data: read.append(1) or voxel_digest(data))
    with pytest.raises(ValueError, match="cases c2 and other"):
        check_images([*three, other], cache_file=cache)
    assert len(read) == 1
    with pytest.raises(ValueError, match="cases c2 and other"):
        check_images([*three, other], cache_file=cache)
    assert len(read) == 1


def test_pretraining_warns_of_copies_and_refuses_those_of_held_out_images(tmp_path, three, caplog):
    copy = {"image": save(tmp_path / "copy.nii", volume(1)), "case": "copy"}
    with caplog.at_level(logging.WARNING):
        assert check_unlabelled([*three, copy]) == [*three, copy]
    assert (
        "1 images are in the sources more than once" in caplog.text and "copy.nii has the same voxels as" in caplog.text
    )
    caplog.clear()
    assert check_unlabelled([copy], unseen=three[:1]) == [copy]
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    words = r"1 images of the held-out fold are in the sources under another name: .*copy\.nii has the same voxels"
    with pytest.raises(ValueError, match=words):
        check_unlabelled([three[0], copy], unseen=three[1:])


def test_same_files_reads_only_compressed_files_of_equal_size(tmp_path, three):
    train = [item["image"] for item in three]
    os.link(train[0], tmp_path / "hard.nii.gz")
    shutil.copy(train[1], tmp_path / "copy.nii.gz")
    save(tmp_path / "other.nii.gz", volume(5))
    (tmp_path / "missing.nii.gz").symlink_to("nowhere")
    tested = [str(tmp_path / f"{name}.nii.gz") for name in ("hard", "copy", "other", "missing")]
    assert same_files(train, tested) == [(train[0], tested[0]), (train[1], tested[1])]
