"""mambamim_nets.bundle.data.verification: each kind of broken file is named once, with its remedy."""

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mambamim_nets.bundle.data.verification import check_labelled, check_unlabelled

LABELS = {0: "background", 1: "anterior", 2: "posterior"}
SHAPE = (6, 7, 5)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine), path)
    return str(path)


def image(path: Path, shape=SHAPE, affine=None) -> str:
    return save(path, np.random.default_rng(0).normal(size=shape).astype(np.float32), affine)


def label(path: Path, shape=SHAPE, dtype=np.uint8, affine=None) -> str:
    array = np.zeros(shape, dtype)
    array[1:3], array[3:5] = 1, 2
    return save(path, array, affine)


def pair(folder: Path, name: str = "a") -> dict:
    return {"image": image(folder / f"{name}.nii.gz"), "label": label(folder / f"{name}_l.nii.gz"), "case": name}


def truncate(path: str) -> str:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    return path


def shifted(mm: float) -> np.ndarray:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 3] = mm
    return affine


def with_value(shape, value) -> np.ndarray:
    array = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    array[1, 2, 3] = value
    return array


BROKEN_IMAGES = {
    "missing": (lambda p: str(p), "is missing"),
    "truncated": (lambda p: truncate(image(p, (20, 20, 20))), "cannot be read as NIfTI"),
    "no gzip": (lambda p: (p.write_bytes(b"text"), str(p))[1], "cannot be read as NIfTI"),
    "4-D": (lambda p: image(p, (*SHAPE, 3)), r"shape \(6, 7, 5, 3\) must be 3-D"),
    "NaN": (lambda p: save(p, with_value(SHAPE, np.nan)), r"1 of \d+ voxels are NaN or infinite"),
    "infinite": (lambda p: save(p, with_value(SHAPE, -np.inf)), r"1 of \d+ voxels are NaN or infinite"),
    "constant": (lambda p: save(p, np.full(SHAPE, 3, np.int16)), "every voxel is 3, so it is empty"),
    "2-D": (lambda p: image(p, SHAPE[:2]), r"shape \(6, 7\) must be 3-D"),
    "complex": (lambda p: save(p, np.ones(SHAPE, np.complex64)), "voxel type complex64 must be a real number"),
    "singular affine": (
        lambda p: (save(p, with_value(SHAPE, 0)), _break_affine(p), str(p))[2],
        "affine .* must be finite and invertible",
    ),
}


def _break_affine(path: Path) -> None:
    volume = nib.load(path)
    data, header = np.asarray(volume.dataobj), volume.header.copy()
    header.set_sform(np.diag([0.0, 1.0, 1.0, 1.0]), code=2)
    header.set_qform(None, code=0)
    nib.save(nib.Nifti1Image(data, None, header), path)


@pytest.mark.parametrize("kind", BROKEN_IMAGES)
def test_broken_image_is_an_error_with_labels_and_an_exclusion_without(tmp_path, caplog, kind):
    make, message = BROKEN_IMAGES[kind]
    good = pair(tmp_path, "good")
    bad = {"image": make(tmp_path / "bad.nii.gz"), "label": label(tmp_path / "bad_l.nii.gz"), "case": "bad"}
    with pytest.raises(ValueError, match=rf"1 problems in 1 of 2 cases:\n.*bad\.nii\.gz:? (.*{message})"):
        check_labelled([good, bad], 1, LABELS)
    with caplog.at_level(logging.WARNING):
        kept = check_unlabelled([good, bad])
    assert kept == [good]
    (record,) = caplog.records
    assert "1 of 2 images left out" in record.getMessage()
    assert "bad.nii.gz" in record.getMessage()


@pytest.mark.parametrize(
    ("intensity", "lowest", "kept"),
    [("ct", -1000, True), ("ct", 0, False), ("mr", 0, True), ("mr", -1000, False), ("ct_or_mr", -1000, True)],
)
def test_an_image_of_another_modality_is_left_out_of_pretraining(tmp_path, caplog, intensity, lowest, kept):
    values = with_value(SHAPE, 0)
    values[0], values[1:] = lowest, 50 + np.abs(values[1:])
    item = {"image": save(tmp_path / "a.nii.gz", values)}
    cache = tmp_path / "check.json"
    assert check_unlabelled([item], cache_file=cache) == [item], "where nothing is known of the scaling"
    with caplog.at_level(logging.WARNING):
        assert check_unlabelled([item], cache_file=cache, min_keep=0, intensity=intensity) == ([item] if kept else [])
    assert ("a.nii.gz" in caplog.text and "or give another --intensity" in caplog.text) != kept


class TestLabelled:
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
    def test_good_cases_pass_whatever_the_label_type(self, tmp_path, dtype):
        case = pair(tmp_path)
        label(Path(case["label"]), dtype=dtype)
        check_labelled([case], 1, LABELS)

    def test_labels_from_json_have_string_keys(self, tmp_path):
        check_labelled([pair(tmp_path)], 1, {"1": "anterior", "2": "posterior"})

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda p: str(p), "is missing"),
            (lambda p: truncate(label(p, (20, 20, 20))), "cannot be read as NIfTI"),
            (lambda p: label(p, (6, 7, 6)), r"shape \(6, 7, 6\) must equal the image's, \(6, 7, 5\)"),
            (lambda p: label(p, (*SHAPE, 1)), r"shape \(6, 7, 5, 1\) of a label map must be 3-D"),
            (lambda p: label(p, affine=shifted(1.0)), "corners lie 1 voxels from the image's"),
            (lambda p: save(p, np.full(SHAPE, 0.5, np.float32)), "label values 0.5 must be integers"),
            (lambda p: save(p, np.full(SHAPE, 7, np.uint8)), r"label values 7 must be among \[0, 1, 2\]"),
            (lambda p: save(p, np.full(SHAPE, -1, np.int8)), "label values -1 must be among"),
            (lambda p: save(p, np.full(SHAPE, np.nan, np.float32)), "label values nan must be integers"),
            (lambda p: save(p, np.ones(SHAPE, np.complex64)), "must be integers and are of type complex64"),
        ],
        ids=["missing", "truncated", "shape", "4-D", "affine", "fraction", "unknown", "negative", "NaN", "complex"],
    )
    def test_broken_label(self, tmp_path, make, message):
        case = {"image": image(tmp_path / "a.nii.gz"), "label": make(tmp_path / "l.nii.gz"), "case": "a"}
        with pytest.raises(ValueError, match=rf"l\.nii\.gz:? .*{message}"):
            check_labelled([case], 1, LABELS)

    def test_small_affine_difference_is_logged_and_rounding_is_silent(self, tmp_path, caplog):
        case = pair(tmp_path)
        label(Path(case["label"]), affine=shifted(0.05))
        check_labelled([case], 1, LABELS)
        assert "corners lie 0.05 voxels from the image's" in caplog.text
        caplog.clear()
        label(Path(case["label"]), affine=shifted(1e-4))
        check_labelled([case], 1, LABELS)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    def test_background_only_is_logged(self, tmp_path, caplog):
        case = pair(tmp_path)
        save(Path(case["label"]), np.zeros(SHAPE, np.uint8))
        check_labelled([case], 1, LABELS)
        assert "a_l.nii.gz: the whole map is background" in caplog.text

    def test_all_problems_are_collected_and_twenty_listed(self, tmp_path):
        cases = [{"image": f"{tmp_path}/i{i}.nii.gz", "label": f"{tmp_path}/l{i}.nii.gz"} for i in range(13)]
        with pytest.raises(ValueError, match="26 problems in 13 of 13 cases") as caught:
            check_labelled(cases, 1, LABELS)
        lines = str(caught.value).splitlines()
        assert len(lines) == 22
        assert lines[-1] == "... and 6 more"
        assert all(".nii.gz is missing; " in line for line in lines[1:-1])


class TestChannels:
    def test_channel_last_file(self, tmp_path):
        case = {"image": image(tmp_path / "a.nii.gz", (*SHAPE, 4)), "label": label(tmp_path / "l.nii.gz")}
        check_labelled([case], 4, LABELS)
        assert check_unlabelled([case], 4) == [case]
        with pytest.raises(ValueError, match="4 channels, but in_channels is 2"):
            check_labelled([case], 2, LABELS)
        with pytest.raises(ValueError, match="must be 3-D"):
            check_labelled([case], 1, LABELS)

    def test_one_file_per_channel(self, tmp_path):
        images = [image(tmp_path / f"a_{c:04d}.nii.gz") for c in range(2)]
        case = {"image": images, "label": label(tmp_path / "l.nii.gz")}
        check_labelled([case], 2, LABELS)
        for channels in (1, 3):
            with pytest.raises(ValueError, match=f"2 files, but in_channels is {channels}"):
                check_labelled([case], channels, LABELS)

    def test_one_volume_for_a_network_of_two_channels(self, tmp_path):
        with pytest.raises(ValueError, match="must be 4-D with in_channels 2 as its last axis"):
            check_labelled([pair(tmp_path)], 2, LABELS)

    @pytest.mark.parametrize(
        ("shape", "affine", "message"),
        [((6, 7, 6), None, "must equal the first channel's"), (SHAPE, shifted(3.0), "from the first channel's")],
    )
    def test_channels_on_different_grids(self, tmp_path, shape, affine, message):
        images = [image(tmp_path / "a_0000.nii.gz"), image(tmp_path / "a_0001.nii.gz", shape, affine)]
        with pytest.raises(ValueError, match=message):
            check_unlabelled([{"image": images}], 2)

    def test_empty_channel_is_named(self, tmp_path):
        array = np.random.default_rng(0).normal(size=(*SHAPE, 3)).astype(np.float32)
        array[..., 1] = 0
        with pytest.raises(ValueError, match=r"every voxel is 0 in channel \[1\]"):
            check_unlabelled([{"image": save(tmp_path / "a.nii.gz", array)}], 3)


class TestUnlabelled:
    def test_min_keep(self, tmp_path):
        items = [{"image": image(tmp_path / "a.nii.gz")}, {"image": str(tmp_path / "b.nii.gz")}]
        with pytest.raises(ValueError, match=r"1 of 2 images can be used(.|\n)*b\.nii\.gz is missing"):
            check_unlabelled(items, min_keep=2)

    def test_order_and_other_keys_are_kept(self, tmp_path):
        items = [{"image": image(tmp_path / f"{i}.nii.gz"), "weight": i} for i in range(5)]
        assert check_unlabelled(items, workers=3) == items


class TestCache:
    def test_only_good_files_are_remembered_and_changes_are_seen(self, tmp_path, caplog):
        cache = tmp_path / "new" / "cache.json"
        items = [{"image": image(tmp_path / "a.nii.gz")}, {"image": truncate(image(tmp_path / "b.nii.gz"))}]
        with caplog.at_level(logging.INFO):
            check_unlabelled(items, cache_file=cache)
            assert "2 read, 0 known" in caplog.text
            caplog.clear()
            check_unlabelled(items, cache_file=cache)
            assert "1 read, 1 known" in caplog.text
            assert "b.nii.gz" in caplog.text
            caplog.clear()
            save(tmp_path / "a.nii.gz", np.zeros((9, 9, 9), np.uint8))
            with pytest.raises(ValueError, match="every voxel is 0"):
                check_unlabelled(items, cache_file=cache)

    def test_other_rules_are_checked_again(self, tmp_path):
        cache = tmp_path / "cache.json"
        cases = [pair(tmp_path)]
        check_unlabelled(cases, cache_file=cache)
        check_labelled(cases, 1, LABELS, cache_file=cache)
        assert len(json.loads(cache.read_text())["clean"]) == 2
        with pytest.raises(ValueError, match=r"values 2 must be among \[0, 1\]"):
            check_labelled(cases, 1, {1: "all"}, cache_file=cache)

    def test_spoilt_cache_is_rebuilt(self, tmp_path, caplog):
        cache = tmp_path / "cache.json"
        cache.write_text("[1")
        check_labelled([pair(tmp_path)], 1, LABELS, cache_file=cache)
        assert "every file is read again" in caplog.text
        assert json.loads(cache.read_text())["clean"]

    def test_unwritable_cache_is_only_logged(self, tmp_path, caplog):
        (tmp_path / "file").write_text("")
        check_labelled([pair(tmp_path)], 1, LABELS, cache_file=tmp_path / "file" / "cache.json")
        assert "cannot be written" in caplog.text
