"""mambamim_nets.bundle.data.labelled: every layout, its channels, and what is missing in it."""

import json
import logging
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import touch, write_json

from mambamim_nets.bundle.data.labelled import channel_order, labelled_cases
from mambamim_nets.bundle.data.splits import split
from mambamim_nets.bundle.data.verification import check_labelled
from mambamim_nets.bundle.io.modalities import channel_of, modality_of

NETWORK = ["flair", "t1ce", "t1", "t2"]
BRATS21 = ("flair", "t1", "t1ce", "t2", "seg")
BRATS23 = ("t2f", "t1n", "t1c", "t2w", "seg")


def decathlon(root: Path, n: int = 4, **more) -> Path:
    names = [f"scan_{i:03d}" for i in range(1, n + 1)]
    for name in names:
        touch(root / "imagesTr" / f"{name}.nii.gz")
        touch(root / "labelsTr" / f"{name}.nii.gz")
    training = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    write_json(root / "dataset.json", {"labels": {"0": "background", "1": "organ"}, "training": training, **more})
    return root


def nnunet(root: Path, n: int = 3, channels: int = 1) -> Path:
    for i in range(n):
        for channel in range(channels):
            touch(root / "imagesTr" / f"case_{i}_{channel:04d}.nii.gz")
        touch(root / "labelsTr" / f"case_{i}.nii.gz")
    names = {str(channel): f"m{channel}" for channel in range(channels)}
    write_json(root / "dataset.json", {"channel_names": names, "file_ending": ".nii.gz", "numTraining": n})
    return root


def btcv(folder: Path, numbers=(1, 2, 21), ending: str = ".nii.gz") -> Path:
    for number in numbers:
        touch(folder / "img" / f"img{number:04d}{ending}")
        touch(folder / "label" / f"label{number:04d}{ending}")
    return folder


def brats(root: Path, names=("BraTS2021_00000", "BraTS2021_00002"), separator: str = "_", roles=BRATS21) -> Path:
    for name in names:
        for role in roles:
            touch(root / name / f"{name}{separator}{role}.nii.gz")
    return root


def file_names(item: dict) -> list[str]:
    return [Path(path).name for path in item["image"]]


class TestDescribed:
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
        write_json(tmp_path / "dataset.json", content)
        known = [{"case": "scan_001", "subject": 1}, {"case": "scan_002", "subject": 2}]
        write_json(tmp_path / "split.json", {"cases": known})
        assert [item["subject"] for item in labelled_cases(tmp_path)] == ["9", "2"]

    def test_several_files_per_decathlon_image(self, tmp_path):
        entry = {"image": ["a_t1.nii.gz", "a_t2.nii.gz"], "label": "a.nii.gz"}
        write_json(tmp_path / "dataset.json", {"training": [entry]})
        (item,) = labelled_cases(tmp_path)
        assert item["case"] == "a"
        assert item["image"] == [str(tmp_path / "a_t1.nii.gz"), str(tmp_path / "a_t2.nii.gz")]

    def test_equal_file_names_are_told_apart_by_their_folders(self, tmp_path):
        entries = [{"image": f"case_{i}/imaging.nii.gz", "label": f"case_{i}/seg.nii.gz"} for i in range(2)]
        write_json(tmp_path / "dataset.json", {"training": entries})
        assert [item["case"] for item in labelled_cases(tmp_path)] == ["case_0_imaging", "case_1_imaging"]

    def test_repeated_case_is_refused(self, tmp_path):
        entry = {"image": "a.nii.gz", "label": "b.nii.gz"}
        write_json(tmp_path / "dataset.json", {"training": [entry, entry]})
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
        write_json(tmp_path / "dataset.json", content)
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
        touch(tmp_path / "a" / "scan.nii.gz")
        with pytest.raises(FileNotFoundError, match=r"no dataset\.json.*BTCV.*BraTS.*--dataset_dir phantom"):
            labelled_cases(tmp_path)

    @pytest.mark.parametrize("path", ["../other/a.nii.gz", "imagesTr/../../a.nii.gz", "/etc/a.nii.gz"])
    @pytest.mark.parametrize("key", ["image", "label"])
    def test_path_that_leaves_the_folder_is_refused(self, tmp_path, path, key):
        entry = {"image": "a.nii.gz", "label": "a.nii.gz", key: path}
        write_json(tmp_path / "set" / "dataset.json", {"training": [entry]})
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
        write_json(tmp_path / "dataset.json", content)
        with pytest.raises(ValueError, match=message):
            labelled_cases(tmp_path)

    def test_invalid_json_is_named(self, tmp_path):
        (tmp_path / "dataset.json").write_text("{")
        with pytest.raises(ValueError, match=r"dataset\.json is not valid JSON"):
            labelled_cases(tmp_path)

    def test_labelled_validation_list_counts_and_is_listed(self, tmp_path):
        validation = [
            {"image": f"./imagesVa/amos_{i:04d}.nii.gz", "label": f"./labelsVa/amos_{i:04d}.nii.gz"} for i in (8, 13)
        ]
        cases = labelled_cases(decathlon(tmp_path, n=2, validation=validation, test=[{"image": "./imagesTs/t.nii.gz"}]))
        listed = [("amos_0008", "validation"), ("amos_0013", "validation"), ("scan_001", "training")]
        assert [(item["case"], item["listed"]) for item in cases] == [*listed, ("scan_002", "training")]
        assert cases[0]["label"] == str(tmp_path / "labelsVa" / "amos_0008.nii.gz")

    @pytest.mark.parametrize("validation", [[], ["./imagesVa/a.nii.gz"], [{"image": "a.nii.gz"}], None, "none"])
    def test_validation_list_without_labels_is_ignored(self, tmp_path, validation):
        cases = labelled_cases(decathlon(tmp_path, n=2, validation=validation))
        assert [item["case"] for item in cases] == ["scan_001", "scan_002"]
        assert not any("listed" in item for item in cases)

    def test_same_file_name_in_both_lists_is_told_apart(self, tmp_path):
        content = {
            "training": [{"image": "imagesTr/1.nii.gz", "label": "labelsTr/1.nii.gz"}],
            "validation": [{"image": "imagesVa/1.nii.gz", "label": "labelsVa/1.nii.gz"}],
        }
        write_json(tmp_path / "dataset.json", content)
        assert [item["case"] for item in labelled_cases(tmp_path)] == ["imagesTr_1", "imagesVa_1"]

    def test_case_in_both_lists_is_refused(self, tmp_path):
        entry = {"image": "./imagesTr/scan_002.nii.gz", "label": "./labelsTr/scan_002.nii.gz"}
        with pytest.raises(ValueError, match=r"both 'training' and 'validation': .*scan_002; keep each in one list"):
            labelled_cases(decathlon(tmp_path, n=2, validation=[entry]))

    @pytest.mark.parametrize(
        ("files", "modality", "expected"),
        [
            (["a_t1.nii.gz", "a_t1ce.nii.gz", "a_t2.nii.gz", "a_flair.nii.gz"], {}, [3, 1, 0, 2]),
            (
                ["0.nii.gz", "1.nii.gz", "2.nii.gz", "3.nii.gz"],
                dict(enumerate(["FLAIR", "T1w", "t1gd", "T2w"])),
                [0, 2, 1, 3],
            ),
            (["0.nii.gz", "1.nii.gz", "2.nii.gz", "3.nii.gz"], {}, [0, 1, 2, 3]),
        ],
        ids=["file names", "modality", "unknown"],
    )
    def test_several_files_per_decathlon_image_come_in_channel_order(self, tmp_path, files, modality, expected):
        entry = {"image": files, "label": "a.nii.gz"}
        write_json(tmp_path / "dataset.json", {"modality": modality, "training": [entry]})
        (item,) = labelled_cases(tmp_path, NETWORK)
        assert file_names(item) == [files[i] for i in expected]
        assert channel_order(tmp_path, NETWORK) == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("names", "channels", "expected"),
        [
            (["T1w", "T1Gd", "T2w", "FLAIR"], NETWORK, [3, 1, 0, 2]),
            (["T1w", "T1Gd", "T2w", "FLAIR"], ["t2", "t1"], [2, 0]),
            (["ADC", "T2"], ["t2", "adc"], [1, 0]),
            (["zscore", "noNorm"], ["t2", "adc"], [0, 1]),
            (["ADC", "T2"], None, [0, 1]),
        ],
        ids=["aliases", "fewer", "no alias", "entirely different", "no channels"],
    )
    def test_nnunet_channels(self, tmp_path, names, channels, expected):
        nnunet(tmp_path, channels=len(names))
        content = json.loads((tmp_path / "dataset.json").read_text())
        named = {str(i): name for i, name in enumerate(names)}
        write_json(tmp_path / "dataset.json", {**content, "channel_names": named})
        assert file_names(labelled_cases(tmp_path, channels)[1]) == [f"case_1_{i:04d}.nii.gz" for i in expected]

    def test_nnunet_with_some_of_the_channels_is_refused(self, tmp_path):
        nnunet(tmp_path, channels=2)
        content = json.loads((tmp_path / "dataset.json").read_text())
        write_json(tmp_path / "dataset.json", {**content, "channel_names": {"0": "T1", "1": "T2"}})
        with pytest.raises(
            ValueError, match=r"'channel_names' \['T1', 'T2'\] must name all .* missing: \['flair', 't1ce'\]"
        ):
            labelled_cases(tmp_path, NETWORK)

    def test_nnunet_list_with_another_number_of_images_is_refused(self, tmp_path):
        nnunet(tmp_path, n=1, channels=2)
        content = json.loads((tmp_path / "dataset.json").read_text())
        content["dataset"] = {"x": {"images": ["imagesTr/case_0_0000.nii.gz"], "label": "labelsTr/case_0.nii.gz"}}
        write_json(tmp_path / "dataset.json", content)
        with pytest.raises(ValueError, match="without exactly 2 images: x"):
            labelled_cases(tmp_path)


class TestBTCV:
    @pytest.mark.parametrize("above", ["", "Training", "RawData/Training", "Abdomen/RawData/Training"])
    @pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
    def test_every_folder_of_the_download(self, tmp_path, above, ending):
        folder = btcv(tmp_path / above, ending=ending)
        cases = labelled_cases(tmp_path, ["CT"])
        assert [item["case"] for item in cases] == ["img0001", "img0002", "img0021"]
        assert cases[2]["image"] == str(folder / "img" / f"img0021{ending}")
        assert cases[2]["label"] == str(folder / "label" / f"label0021{ending}")

    def test_testing_images_and_other_files_are_no_cases(self, tmp_path):
        btcv(tmp_path / "RawData" / "Training")
        for name in ("Testing/img/img0061.nii.gz", "Training/img/._img0001.nii.gz", "Training/img/notes.txt"):
            touch(tmp_path / "RawData" / name)
        assert len(labelled_cases(tmp_path)) == 3

    def test_both_kinds_of_missing_partner_are_listed_up_to_ten(self, tmp_path):
        btcv(tmp_path, numbers=range(1, 15))
        (tmp_path / "img" / "img0001.nii.gz").unlink()
        for number in range(2, 14):
            (tmp_path / "label" / f"label{number:04d}.nii.gz").unlink()
        message = (
            r"missing img/img0001\.nii\.gz, label/label0002\.nii\.gz, .*label0010\.nii\.gz and 3 more; .*complete the"
        )
        with pytest.raises(FileNotFoundError, match=message):
            labelled_cases(tmp_path)

    def test_no_label_folder(self, tmp_path):
        touch(tmp_path / "img" / "img0001.nii.gz")
        with pytest.raises(FileNotFoundError, match=r"missing label/label0001\.nii\.gz"):
            labelled_cases(tmp_path)

    def test_image_that_is_there_twice(self, tmp_path):
        touch(btcv(tmp_path) / "img" / "img0002.nii")
        with pytest.raises(
            ValueError, match=r"several files for one image: img0002\.nii and img0002\.nii\.gz; keep one"
        ):
            labelled_cases(tmp_path)


class TestBraTS:
    @pytest.mark.parametrize("above", ["", "BraTS2021_Training_Data"])
    def test_brats21(self, tmp_path, above):
        folder = brats(tmp_path / above)
        cases = labelled_cases(tmp_path, NETWORK)
        assert [item["case"] for item in cases] == ["BraTS2021_00000", "BraTS2021_00002"]
        assert file_names(cases[1]) == [f"BraTS2021_00002_{name}.nii.gz" for name in NETWORK]
        assert cases[1]["label"] == str(folder / "BraTS2021_00002" / "BraTS2021_00002_seg.nii.gz")
        assert not any("subject" in item for item in cases)

    def test_brats23_has_subjects(self, tmp_path):
        names = ["BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00006-000"]
        cases = labelled_cases(brats(tmp_path, names, "-", BRATS23), NETWORK)
        assert [item["subject"] for item in cases] == ["BraTS-GLI-00005", "BraTS-GLI-00005", "BraTS-GLI-00006"]
        assert file_names(cases[0]) == [f"{names[0]}-{role}.nii.gz" for role in ("t2f", "t1c", "t1n", "t2w")]

    @pytest.mark.parametrize(
        ("channels", "expected"),
        [(None, NETWORK), (["T1Gd"], ["t1ce"]), (["T2w", "T2f"], ["t2", "flair"])],
        ids=["none", "one", "two"],
    )
    def test_channels_are_those_asked_for(self, tmp_path, channels, expected):
        image = labelled_cases(brats(tmp_path), channels)[0]["image"]
        names = [f"BraTS2021_00000_{name}.nii.gz" for name in expected]
        assert ([Path(image).name] if isinstance(image, str) else [Path(path).name for path in image]) == names

    def test_uncompressed_files(self, tmp_path):
        for role in BRATS21:
            touch(tmp_path / "case" / f"case_{role}.nii")
        assert file_names(labelled_cases(tmp_path, NETWORK)[0])[0] == "case_flair.nii"

    def test_missing_files_and_emptied_case_folders_are_listed(self, tmp_path, caplog):
        brats(tmp_path)
        (tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1ce.nii.gz").unlink()
        (tmp_path / "BraTS2021_00002" / "BraTS2021_00002_seg.nii.gz").unlink()
        (tmp_path / "BraTS2021_00005").mkdir()
        (tmp_path / "results").mkdir()
        listed = [
            "BraTS2021_00000 t1ce",
            "BraTS2021_00002 seg",
            *(f"BraTS2021_00005 {role}" for role in (*NETWORK, "seg")),
        ]
        with caplog.at_level(logging.INFO), pytest.raises(FileNotFoundError, match=f"missing {', '.join(listed)}; "):
            labelled_cases(tmp_path, NETWORK)
        assert "left out, no case folders: results" in caplog.text

    def test_a_file_that_only_unused_channels_need_may_be_missing(self, tmp_path):
        brats(tmp_path)
        (tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz").unlink()
        assert len(labelled_cases(tmp_path, ["t2", "flair"])) == 2

    @pytest.mark.parametrize(
        ("channels", "message"),
        [
            (["CT"], r"hold \['flair', 't1ce', 't1', 't2'\], not the channels \['CT'\]"),
            (["flair", "adc"], r"missing: \['adc'\]"),
            (["t1", "T1w"], "must be named once"),
        ],
        ids=["none", "some", "repeated"],
    )
    def test_channels_that_the_folders_lack(self, tmp_path, channels, message):
        with pytest.raises(ValueError, match=message):
            labelled_cases(brats(tmp_path), channels)

    def test_modality_that_is_there_twice(self, tmp_path):
        touch(brats(tmp_path) / "BraTS2021_00000" / "BraTS2021_00000-t1c.nii.gz")
        with pytest.raises(ValueError, match=r"several files for one image: BraTS2021_00000-t1c\.nii\.gz and"):
            labelled_cases(tmp_path, NETWORK)

    def test_several_folders_of_cases_one_level_down(self, tmp_path):
        for grade in ("HGG", "LGG"):
            brats(tmp_path / grade)
        with pytest.raises(ValueError, match="several folders hold cases: HGG, LGG; give one of them"):
            labelled_cases(tmp_path)


class TestChannels:
    @pytest.mark.parametrize(
        ("names", "canonical"),
        [
            (["flair", "FLAIR", "t2f"], "flair"),
            (["t1ce", "T1c", "t1gd", " T1Gd "], "t1ce"),
            (["t1", "T1n", "T1w"], "t1"),
            (["T2", "t2w"], "t2"),
            (["CT", "ct"], "ct"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_channel_of(self, names, canonical):
        assert {channel_of(name) for name in names} == {canonical}

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("BraTS2021_00000_t1ce.nii.gz", ("BraTS2021_00000", "t1ce")),
            ("BraTS-GLI-00000-000-t2f.nii.gz", ("BraTS-GLI-00000-000", "flair")),
            ("/data/x/sub-01_FLAIR.nii", ("sub-01", "flair")),
            ("sub-01_T1w.nii.gz", ("sub-01", "t1")),
            ("BraTS2021_00000_seg.nii.gz", None),
            ("case_0000.nii.gz", None),
            ("caset1.nii.gz", None),
            ("t1.nii.gz", None),
            ("case_t1.json", None),
        ],
    )
    def test_modality_of(self, name, expected):
        assert modality_of(name) == expected

    @pytest.mark.parametrize(
        ("modality", "channels", "expected"),
        [
            ({"0": "t1", "1": "t1ce", "2": "t2", "3": "flair"}, NETWORK, [3, 1, 0, 2]),
            ({"3": "T2w", "2": "t1gd", "1": "T1w", "0": "FLAIR"}, NETWORK, [0, 2, 1, 3]),
            ({"0": "T2", "1": "ADC"}, ["adc"], [1]),
            ({"0": "MR"}, ["T2", "ADC"], [0, 1]),
            ("MR", ["T2", "ADC"], [0, 1]),
        ],
        ids=["mini", "Decathlon", "one", "nothing comparable", "no dict"],
    )
    def test_channel_order(self, tmp_path, caplog, modality, channels, expected):
        decathlon(tmp_path, modality=modality)
        with caplog.at_level(logging.INFO):
            assert channel_order(tmp_path, channels) == expected
        assert ("names none of the channels" in caplog.text) == ("MR" in str(modality))

    def test_channel_order_with_some_of_the_channels(self, tmp_path):
        with pytest.raises(ValueError, match=r"missing: \['t1ce'\]"):
            channel_order(decathlon(tmp_path, modality={"0": "t1", "1": "t2", "2": "flair"}), NETWORK)

    @pytest.mark.parametrize("layout", [nnunet, btcv, brats])
    def test_one_file_per_channel_needs_no_order(self, tmp_path, layout):
        assert channel_order(layout(tmp_path), NETWORK) == [0, 1, 2, 3]

    def test_channel_order_of_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            channel_order(tmp_path / "nowhere", NETWORK)


def test_labels_of_brats_are_checked_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    brats(tmp_path, names=["BraTS2021_00000"])
    (item,) = labelled_cases(tmp_path, NETWORK)
    for path in item["image"]:
        nib.save(nib.Nifti1Image(rng.normal(size=(5, 6, 7)).astype(np.float32), np.eye(4)), path)
    nib.save(nib.Nifti1Image(rng.choice([0, 1, 2, 4], size=(5, 6, 7)).astype(np.uint8), np.eye(4)), item["label"])
    check_labelled([item], 4, {1: "core", 2: "oedema", 4: "enhancing"})
    with pytest.raises(ValueError, match=r"values 4 must be among \[0, 1, 2, 3\]"):
        check_labelled([item], 4, {1: "core", 2: "oedema", 3: "enhancing"})


def test_brats_cases_of_the_shared_data(real_data):
    folder = real_data("brats_tcga/mini_2mm")
    cases = labelled_cases(folder, NETWORK)
    assert [len(split(cases, "official", (), part)) for part in ("train", "val")] == [9, 3]
    assert channel_order(folder, NETWORK) == [3, 1, 0, 2]
    check_labelled(cases, 4, {1: "core", 2: "oedema", 4: "enhancing"})
    with pytest.raises(ValueError, match=r"values 4 must be among \[0, 1, 2, 3\]"):
        check_labelled(cases, 4, {1: "core", 2: "oedema", 3: "enhancing"})
