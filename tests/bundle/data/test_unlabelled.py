"""mambamim_nets.bundle.data.unlabelled: sources of unlabelled images."""

import logging
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import touch, write_json

from mambamim_nets.bundle.data.unlabelled import unlabelled_images


def nifti(path: Path, value: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((3, 4, 5), value, np.uint8), np.eye(4)), path)
    return path


def channel_pairs(root: Path) -> None:
    """Write the images of an nnU-Net folder: two cases of two channels."""
    for case in ("case_0", "case_1"):
        for channel in ("0000", "0001"):
            nifti(root / "imagesTr" / f"{case}_{channel}.nii.gz")
    write_json(root / "dataset.json", {"channel_names": {"0": "t1", "1": "t2"}, "file_ending": ".nii.gz"})


class TestUnlabelledImages:
    def test_decathlon_list_takes_all_images_relative_to_the_file(self, tmp_path):
        content = {"training": [{"image": "a.nii.gz", "label": "l.nii.gz"}], "validation": [{"image": "b.nii.gz"}]}
        path = write_json(tmp_path / "lists" / "d.json", {**content, "test": ["./c.nii.gz", "../d.nii.gz"]})
        items = unlabelled_images([str(path)])
        expected = [tmp_path / "lists" / f"{name}.nii.gz" for name in "abc"] + [tmp_path / "d.nii.gz"]
        assert [item["image"] for item in items] == [str(path) for path in expected]
        assert {item["weight"] for item in items} == {1.0}

    def test_key_and_weight(self, tmp_path):
        path = write_json(tmp_path / "d.json", {"training": [{"image": "a.nii.gz"}], "test": ["b.nii.gz"]})
        items = unlabelled_images([{"path": str(path), "key": "test", "weight": 2}])
        assert items == [{"image": str(tmp_path / "b.nii.gz"), "source": str(path), "weight": 2.0}]

    def test_decathlon_folder_takes_what_its_description_lists(self, tmp_path):
        listed = [{"image": f"./imagesTr/scan_00{i}.nii.gz", "label": f"./labelsTr/scan_00{i}.nii.gz"} for i in (1, 2)]
        write_json(tmp_path / "dataset.json", {"training": listed, "test": ["./imagesTs/t.nii.gz"]})
        names = [Path(item["image"]).name for item in unlabelled_images(str(tmp_path))]
        assert names == ["scan_001.nii.gz", "scan_002.nii.gz", "t.nii.gz"]

    @pytest.mark.parametrize("described", [True, False])
    def test_nnunet_folder_keeps_channels_together(self, tmp_path, described):
        channel_pairs(tmp_path)
        for channel in range(2):
            nifti(tmp_path / "imagesTs" / f"t_{channel:04d}.nii.gz")
        if not described:
            (tmp_path / "dataset.json").unlink()
        images = [[Path(part).name for part in item["image"]] for item in unlabelled_images([str(tmp_path)])]
        assert images[0] == ["case_0_0000.nii.gz", "case_0_0001.nii.gz"]
        assert images[2] == ["t_0000.nii.gz", "t_0001.nii.gz"]
        assert len(unlabelled_images([{"path": str(tmp_path), "key": "test"}])) == 1

    @pytest.mark.parametrize("numbers", [(1, 4, 7), range(12)])
    def test_case_numbers_of_four_digits_are_no_channels(self, tmp_path, numbers):
        for number in numbers:
            nifti(tmp_path / "imagesTr" / f"amos_{number:04d}.nii.gz")
        assert len(unlabelled_images([str(tmp_path)])) == len(numbers)

    def test_incomplete_channels_are_named_and_left_out(self, tmp_path, caplog):
        channel_pairs(tmp_path)
        (tmp_path / "imagesTr" / "case_0_0001.nii.gz").unlink()
        with caplog.at_level(logging.WARNING):
            assert len(unlabelled_images([str(tmp_path)])) == 1
        assert "case_0 is left out: its channels are [0]" in caplog.text

    def test_recursive_folder(self, tmp_path):
        for name in ("b/x.nii.gz", "a/y.nii", "z.nii.gz"):
            nifti(tmp_path / name)
        for name in ("labelsTr/x.nii.gz", "a/Labels_old/x.nii.gz"):
            nifti(tmp_path / name)
        for name in ("a/y_seg.nii.gz", "b/x_label.nii", "b/x_labels.nii.gz"):
            nifti(tmp_path / name)
        (tmp_path / "a" / "notes.txt").write_text("no image")
        (tmp_path / "a" / "._y.nii.gz").write_text("resource fork")
        names = [os.path.relpath(item["image"], tmp_path) for item in unlabelled_images([str(tmp_path)])]
        assert names == ["a/y.nii", "b/x.nii.gz", "z.nii.gz"]

    def test_volumes_that_are_not_read_are_named(self, tmp_path, caplog):
        for name in ("a.nii.gz", "notes.txt", "b_seg.NII.GZ", "labels/c.mha"):
            touch(tmp_path / name)
        with caplog.at_level(logging.WARNING, "mambamim_nets"):
            assert len(unlabelled_images(str(tmp_path))) == 1 and not caplog.records
            for name in ("b.NII.GZ", "below/c.mha", "below/slice.dcm"):
                touch(tmp_path / name)
            assert len(unlabelled_images(str(tmp_path))) == 1
        assert f"3 file(s) are left out, such as {tmp_path / 'b.NII.GZ'}; only .nii and .nii.gz are read" in caplog.text

    def test_symlink_loop_and_linked_folder(self, tmp_path):
        nifti(tmp_path / "root" / "a" / "x.nii.gz")
        nifti(tmp_path / "elsewhere" / "y.nii.gz")
        (tmp_path / "root" / "a" / "loop").symlink_to(tmp_path / "root", target_is_directory=True)
        (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        items = unlabelled_images([str(tmp_path / "root")])
        assert [Path(item["image"]).name for item in items] == ["x.nii.gz", "y.nii.gz"]

    def test_duplicates_are_counted_and_keep_the_first_weight(self, tmp_path, caplog):
        path = nifti(tmp_path / "a" / "x.nii.gz")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "copy.nii.gz").symlink_to(path)
        with caplog.at_level(logging.INFO):
            items = unlabelled_images([{"path": str(tmp_path / "a"), "weight": 3}, str(tmp_path / "b"), str(path)])
        assert [item["weight"] for item in items] == [3.0]
        assert caplog.text.count("1 already listed") == 2

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ({"path": ".", "wieght": 2}, "unknown: \\['wieght'\\]"),
            ({"weight": 2}, "must have 'path'"),
            ({"path": ".", "weight": 0}, "must be positive"),
            ({"path": ".", "key": "training"}, "needs a JSON list or a folder"),
            (".", "source '.' holds no image"),
        ],
    )
    def test_bad_source(self, tmp_path, monkeypatch, source, message):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=message):
            unlabelled_images([source])

    def test_bad_json_sources(self, tmp_path):
        path = write_json(tmp_path / "d.json", {"training": [{"label": "x"}], "other": []})
        with pytest.raises(ValueError, match="must be a path or have an 'image'"):
            unlabelled_images([str(path)])
        with pytest.raises(ValueError, match="needs a list under test"):
            unlabelled_images([{"path": str(path), "key": "test"}])
        with pytest.raises(ValueError, match="holds no image"):
            unlabelled_images([{"path": str(path), "key": "other"}])

    def test_missing_or_no_source(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            unlabelled_images([str(tmp_path / "nowhere")])
        with pytest.raises(ValueError, match="sources is empty"):
            unlabelled_images([])
