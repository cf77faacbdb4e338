"""mambamim_nets.bundle.datalist: layouts and sources."""

import json
import logging
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mambamim_nets.bundle.datalist import labelled_cases, unlabelled_images


def nifti(path: Path, value: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((3, 4, 5), value, np.uint8), np.eye(4)), path)
    return path


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def decathlon(root: Path, n: int = 4, **more) -> Path:
    names = [f"scan_{i:03d}" for i in range(1, n + 1)]
    for name in names:
        nifti(root / "imagesTr" / f"{name}.nii.gz")
        nifti(root / "labelsTr" / f"{name}.nii.gz")
    training = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    write(root / "dataset.json", {"labels": {"0": "background", "1": "organ"}, "training": training, **more})
    return root


def nnunet(root: Path, n: int = 3, channels: int = 1) -> Path:
    for i in range(n):
        for channel in range(channels):
            nifti(root / "imagesTr" / f"case_{i}_{channel:04d}.nii.gz")
        nifti(root / "labelsTr" / f"case_{i}.nii.gz")
    names = {str(channel): f"m{channel}" for channel in range(channels)}
    write(root / "dataset.json", {"channel_names": names, "file_ending": ".nii.gz", "numTraining": n})
    return root


class TestLabelledCases:
    def test_decathlon(self, tmp_path):
        cases = labelled_cases(decathlon(tmp_path))
        assert [item["case"] for item in cases] == ["scan_001", "scan_002", "scan_003", "scan_004"]
        assert cases[0]["image"] == str(tmp_path / "imagesTr" / "scan_001.nii.gz")
        assert cases[0]["label"] == str(tmp_path / "labelsTr" / "scan_001.nii.gz")
        assert "subject" not in cases[0]

    def test_relative_dataset_dir_gives_absolute_paths(self, tmp_path, monkeypatch):
        decathlon(tmp_path / "set")
        monkeypatch.chdir(tmp_path)
        assert all(os.path.isabs(item["image"]) for item in labelled_cases("set"))

    def test_subjects_come_from_the_entry_and_else_from_split_json(self, tmp_path):
        decathlon(tmp_path, n=2)
        content = json.loads((tmp_path / "dataset.json").read_text())
        content["training"][0]["subject"] = 9
        write(tmp_path / "dataset.json", content)
        known = [{"case": "scan_001", "subject": 1}, {"case": "scan_002", "subject": 2}]
        write(tmp_path / "split.json", {"cases": known})
        assert [item["subject"] for item in labelled_cases(tmp_path)] == ["9", "2"]

    def test_several_files_per_decathlon_image(self, tmp_path):
        write(tmp_path / "dataset.json", {"training": [{"image": ["a_t1.nii.gz", "a_t2.nii.gz"], "label": "a.nii.gz"}]})
        (item,) = labelled_cases(tmp_path)
        assert item["case"] == "a"
        assert item["image"] == [str(tmp_path / "a_t1.nii.gz"), str(tmp_path / "a_t2.nii.gz")]

    def test_equal_file_names_are_told_apart_by_their_folders(self, tmp_path):
        entries = [{"image": f"case_{i}/imaging.nii.gz", "label": f"case_{i}/seg.nii.gz"} for i in range(2)]
        write(tmp_path / "dataset.json", {"training": entries})
        assert [item["case"] for item in labelled_cases(tmp_path)] == ["case_0_imaging", "case_1_imaging"]

    def test_repeated_case_is_refused(self, tmp_path):
        entry = {"image": "a.nii.gz", "label": "b.nii.gz"}
        write(tmp_path / "dataset.json", {"training": [entry, entry]})
        with pytest.raises(ValueError, match="unique, repeated: a"):
            labelled_cases(tmp_path)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_nnunet(self, tmp_path, channels):
        cases = labelled_cases(nnunet(tmp_path, channels=channels))
        assert [item["case"] for item in cases] == ["case_0", "case_1", "case_2"]
        image = cases[1]["image"]
        expected = [str(tmp_path / "imagesTr" / f"case_1_{channel:04d}.nii.gz") for channel in range(channels)]
        assert image == (expected[0] if channels == 1 else expected)

    def test_nnunet_with_its_own_file_list(self, tmp_path):
        nnunet(tmp_path, n=1)
        content = json.loads((tmp_path / "dataset.json").read_text())
        content["dataset"] = {"x": {"images": ["imagesTr/case_0_0000.nii.gz"], "label": "labelsTr/case_0.nii.gz"}}
        write(tmp_path / "dataset.json", content)
        assert [item["case"] for item in labelled_cases(tmp_path)] == ["x"]

    def test_nnunet_missing_channel_is_named(self, tmp_path):
        nnunet(tmp_path, channels=2)
        (tmp_path / "imagesTr" / "case_1_0001.nii.gz").unlink()
        with pytest.raises(FileNotFoundError, match="case_1_0001"):
            labelled_cases(tmp_path)

    def test_nnunet_number_of_cases(self, tmp_path):
        nnunet(tmp_path)
        (tmp_path / "labelsTr" / "case_1.nii.gz").unlink()
        with pytest.raises(ValueError, match="numTraining 3 must equal the 2 cases"):
            labelled_cases(tmp_path)

    def test_missing_folder_names_it_and_the_remedy(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere.*is not a folder.*--dataset_dir phantom"):
            labelled_cases(tmp_path / "nowhere")

    def test_folder_without_description(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no dataset\.json.*--dataset_dir phantom"):
            labelled_cases(tmp_path)

    @pytest.mark.parametrize("path", ["../other/a.nii.gz", "imagesTr/../../a.nii.gz", "/etc/a.nii.gz"])
    @pytest.mark.parametrize("key", ["image", "label"])
    def test_path_that_leaves_the_folder_is_refused(self, tmp_path, path, key):
        entry = {"image": "a.nii.gz", "label": "a.nii.gz", key: path}
        write(tmp_path / "set" / "dataset.json", {"training": [entry]})
        with pytest.raises(ValueError, match="must stay inside"):
            labelled_cases(tmp_path / "set")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"name": "x"}, r"needs a 'training' list .* has keys \['name'\]"),
            ([], "has a list"),
            ({"training": []}, "names no labelled case"),
            ({"training": [{"image": "a.nii.gz"}]}, "must have 'image' and 'label'"),
        ],
        ids=["neither layout", "list", "empty", "entry without label"],
    )
    def test_malformed_description(self, tmp_path, content, message):
        write(tmp_path / "dataset.json", content)
        with pytest.raises(ValueError, match=message):
            labelled_cases(tmp_path)

    def test_invalid_json_is_named(self, tmp_path):
        (tmp_path / "dataset.json").write_text("{")
        with pytest.raises(ValueError, match=r"dataset\.json is not valid JSON"):
            labelled_cases(tmp_path)


class TestUnlabelledImages:
    def test_decathlon_list_takes_all_images_relative_to_the_file(self, tmp_path):
        content = {"training": [{"image": "a.nii.gz", "label": "l.nii.gz"}], "validation": [{"image": "b.nii.gz"}]}
        path = write(tmp_path / "lists" / "d.json", {**content, "test": ["./c.nii.gz", "../d.nii.gz"]})
        items = unlabelled_images([str(path)])
        expected = [tmp_path / "lists" / f"{name}.nii.gz" for name in "abc"] + [tmp_path / "d.nii.gz"]
        assert [item["image"] for item in items] == [str(path) for path in expected]
        assert {item["weight"] for item in items} == {1.0}

    def test_key_and_weight(self, tmp_path):
        path = write(tmp_path / "d.json", {"training": [{"image": "a.nii.gz"}], "test": ["b.nii.gz"]})
        items = unlabelled_images([{"path": str(path), "key": "test", "weight": 2}])
        assert items == [{"image": str(tmp_path / "b.nii.gz"), "source": str(path), "weight": 2.0}]

    def test_decathlon_folder_takes_what_its_description_lists(self, tmp_path):
        decathlon(tmp_path, n=2, test=["./imagesTs/t.nii.gz"])
        names = [Path(item["image"]).name for item in unlabelled_images(str(tmp_path))]
        assert names == ["scan_001.nii.gz", "scan_002.nii.gz", "t.nii.gz"]

    @pytest.mark.parametrize("described", [True, False])
    def test_nnunet_folder_keeps_channels_together(self, tmp_path, described):
        nnunet(tmp_path, n=2, channels=2)
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
        nnunet(tmp_path, n=2, channels=2)
        (tmp_path / "imagesTr" / "case_0_0001.nii.gz").unlink()
        with caplog.at_level(logging.WARNING):
            assert len(unlabelled_images([str(tmp_path)])) == 1
        assert "case_0: channels [0]" in caplog.text

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
        path = write(tmp_path / "d.json", {"training": [{"label": "x"}], "other": []})
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
