"""Data sets that are folders and names only: KiTS23 and CT-ORG as downloaded, and their folds (see test_layouts)."""

from pathlib import Path

import pytest
from helpers import touch

from mambamim_nets.bundle.data.datasets import fold_cases
from mambamim_nets.bundle.data.labelled import labelled_cases
from mambamim_nets.bundle.data.splits import named_in

FOLDS = Path(__file__).parents[3] / "bundles" / "kits23_seg" / "configs" / "folds.json"


def kits(root: Path, cases=("case_00000", "case_00299", "case_00400")) -> Path:
    for case in cases:
        for name in ("imaging.nii.gz", "segmentation.nii.gz"):
            touch(root / case / name)
    return root


def ct_org(folder: Path, numbers=(0, 20, 21, 139)) -> Path:
    for number in numbers:
        touch(folder / f"volume-{number}.nii.gz")
        touch(folder / f"labels-{number}.nii.gz")
    return folder


class TestKiTS23:
    @pytest.mark.parametrize("above", ["", "dataset"])
    def test_case_folders_of_the_clone_or_of_its_data(self, tmp_path, above):
        folder = kits(tmp_path / above)
        touch(folder / "case_00000" / "instances" / "tumor_instance-1_annotation-1.nii.gz")
        touch(folder / "kits23.json")
        cases = labelled_cases(tmp_path, ["CT"])
        assert [item["case"] for item in cases] == ["case_00000", "case_00299", "case_00400"]
        assert cases[0]["image"] == str(folder / "case_00000" / "imaging.nii.gz")
        assert cases[0]["label"] == str(folder / "case_00000" / "segmentation.nii.gz")
        assert "subject" not in cases[0] and "listed" not in cases[0]

    def test_uncompressed_files(self, tmp_path):
        for name in ("imaging.nii", "segmentation.nii"):
            touch(tmp_path / "case_00007" / name)
        assert labelled_cases(tmp_path)[0]["image"].endswith("case_00007/imaging.nii")

    def test_a_clone_without_its_images_names_their_download(self, tmp_path):
        (kits(tmp_path / "dataset") / "case_00299" / "imaging.nii.gz").unlink()
        (tmp_path / "dataset" / "case_00400" / "segmentation.nii.gz").unlink()
        with pytest.raises(FileNotFoundError) as error:
            labelled_cases(tmp_path)
        assert "missing case_00299/imaging.nii.gz, case_00400/segmentation.nii.gz; " in str(error.value)
        assert "kits23_download_data" in str(error.value)

    def test_an_image_that_is_there_twice(self, tmp_path):
        touch(kits(tmp_path) / "case_00000" / "imaging.nii")
        with pytest.raises(ValueError, match=r"imaging.nii and imaging.nii.gz"):
            labelled_cases(tmp_path)

    def test_the_published_folds_apply_to_all_cases_and_to_no_part_of_them(self, tmp_path):
        names = sorted(named_in(FOLDS))
        assert len(names) == 489 and names[0] == "case_00000" and names[-1] == "case_00588"
        cases = labelled_cases(kits(tmp_path / "all", names), ["CT"])
        bundle = str(FOLDS.parents[1])
        validation = [fold_cases(cases, str(tmp_path), fold, "val", bundle_root=bundle) for fold in range(5)]
        assert [len(fold) for fold in validation] == [98, 98, 98, 98, 97]
        assert [item["case"] for item in validation[0]][:3] == ["case_00004", "case_00005", "case_00006"]
        some = labelled_cases(kits(tmp_path / "some", names[:50]), ["CT"])
        assert len(fold_cases(some, str(tmp_path), 0, "val", bundle_root=bundle)) == 10


class TestCTORG:
    @pytest.mark.parametrize("above", ["", "OrganSegmentations", "PKG - CT-ORG/CT-ORG/OrganSegmentations"])
    def test_every_folder_of_the_download(self, tmp_path, above):
        folder = ct_org(tmp_path / above)
        touch(folder / "README.txt")
        cases = labelled_cases(tmp_path, ["CT"])
        assert [item["case"] for item in cases] == ["volume-0", "volume-139", "volume-20", "volume-21"]
        assert cases[1]["image"] == str(folder / "volume-139.nii.gz")
        assert cases[1]["label"] == str(folder / "labels-139.nii.gz")

    def test_its_own_test_set_is_the_official_validation(self, tmp_path):
        cases = labelled_cases(ct_org(tmp_path, range(140)), ["CT"])
        train, val = (fold_cases(cases, str(tmp_path), "official", part) for part in ("train", "val"))
        assert len(train) == 119 and {item["case"] for item in val} == {f"volume-{n}" for n in range(21)}

    def test_partners_that_are_missing_are_named(self, tmp_path):
        (ct_org(tmp_path) / "labels-21.nii.gz").unlink()
        with pytest.raises(FileNotFoundError, match=r"missing labels-21\.nii\.gz; each volume-N needs its labels-N"):
            labelled_cases(tmp_path)
