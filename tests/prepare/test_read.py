"""The volumes of sources: formats, lists, DICOM, subjects, and reasons for what cannot be read."""

import json
import logging

import itk
import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_series
from helpers import refused
from store_files import lines_of, rows_of, store_of, write_scan

from mambamim_nets.bundle.data.store import Store
from mambamim_nets.prepare.__main__ import prepare
from mambamim_nets.prepare.read import found_in, sources_of


def listed(source, **options):
    (one,) = sources_of([{"path": str(source), **options}])
    return list(found_in(one))


def paths(source, **options):
    return sorted(found.path for found in listed(source, **options))


def test_a_folder_is_searched_for_every_format_and_not_for_labels(tmp_path):
    for name in ("a/one.nii.gz", "a/one_seg.nii.gz", "labels/one.nii.gz", "b/two.nii", ".hidden/x.nii.gz"):
        write_scan(tmp_path / name)
    (tmp_path / "b" / "three.nrrd").touch()
    (tmp_path / "b" / "notes.txt").touch()
    write_series(tmp_path / "c" / "series")
    write_series(tmp_path / "c" / "without_endings", suffix="")
    found = listed(tmp_path)
    assert sorted(one.path for one in found if not one.dicom) == ["a/one.nii.gz", "b/three.nrrd", "b/two.nii"]
    assert sorted(one.path for one in found if one.dicom) == ["c/series", "c/without_endings"]
    assert len({one.id() for one in found}) == 5


def test_volumes_that_are_not_read_are_named(tmp_path, caplog):
    write_scan(tmp_path / "a.nii.gz")
    assert paths(tmp_path) == ["a.nii.gz"] and not caplog.records
    (tmp_path / "B.NII.GZ").touch()
    with caplog.at_level(logging.WARNING, "mambamim_nets"):
        assert paths(tmp_path) == ["a.nii.gz"]
    assert f"1 file(s) are left out, such as {tmp_path / 'B.NII.GZ'}; names must end in .nii.gz, .nii, " in caplog.text


def test_the_name_of_a_volume_does_not_depend_on_where_its_source_lies(tmp_path):
    names = [write_scan(tmp_path / place / "scans" / "sub-1" / "x.nii.gz").parents[1] for place in ("one", "two")]
    first, second = (listed(name)[0].id() for name in names)
    assert first == second and first.startswith("x-")
    assert listed(names[0], name="other")[0].id() != first


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        ("sub-12/ses-1/anat/sub-12_ses-1_T1w.nii.gz", "sub-12"),
        ("BraTS_001/BraTS_001_t1ce.nii.gz", "BraTS_001/BraTS_001"),
        ("scans/liver_004_0000.nii.gz", "scans/liver_004"),
        ("case1/image.nii.gz", "case1/image"),
    ],
)
def test_who_was_scanned_is_read_from_the_path(tmp_path, path, subject):
    write_scan(tmp_path / path)
    assert [found.subject for found in listed(tmp_path)] == [subject]


def test_lists_give_their_images_and_a_channel_is_a_volume_of_its_own(tmp_path):
    for name in (
        "imagesTr/a_0000.nii.gz",
        "imagesTr/a_0001.nii.gz",
        "imagesTs/b_0000.nii.gz",
        "imagesTs/b_0001.nii.gz",
    ):
        write_scan(tmp_path / "nnunet" / name)
    assert paths(tmp_path / "nnunet") == [
        "imagesTr/a_0000.nii.gz",
        "imagesTr/a_0001.nii.gz",
        "imagesTs/b_0000.nii.gz",
        "imagesTs/b_0001.nii.gz",
    ]
    content = {"training": [{"image": "imagesTr/a_0000.nii.gz"}], "test": ["imagesTs/b_0000.nii.gz"]}
    (tmp_path / "nnunet" / "list.json").write_text(json.dumps(content))
    assert paths(tmp_path / "nnunet" / "list.json", key="test") == ["imagesTs/b_0000.nii.gz"]


def test_a_table_gives_subjects_modalities_and_columns_for_filters(tmp_path):
    for number in range(3):
        write_scan(tmp_path / f"scan_{number}.nii.gz", number, kind="mr")
    (tmp_path / "scans.tsv").write_text(
        "image\tsubject\tmodality\tage\tsite\nscan_0.nii.gz\tA\tMR\t61\tnorth\n"
        "scan_1.nii.gz\tA\tPT\t70.5\tsouth\nscan_2.nii.gz\tB\t\t\tsouth\n"
    )
    store_of(tmp_path / "store", tmp_path / "scans.tsv", filter="age != 70.5")
    first, second = (line for line in lines_of(tmp_path / "store") if "refused" not in line)
    assert first["subject"] == "A" and first["metadata"] == {"age": 61, "site": "north"}
    assert second["subject"] == "B" and second["metadata"] == {"age": None, "site": "south"}
    assert [item["source"] for item in Store(tmp_path / "store", filter="age > 60")] == ["scans"]
    (tmp_path / "bad.csv").write_text("file\nscan_0.nii.gz\n")
    with refused("must have a column 'image'"):
        listed(tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_text("image\n\n,\n")
    with refused("must have a path under 'image'"):
        listed(tmp_path / "bad.csv")


def itk_copy(path, target):
    """Write a NIfTI file anew in another format."""
    itk.imwrite(itk.imread(str(path), itk.SS), str(target))


def test_every_format_is_the_same_volume(tmp_path):
    scan = write_scan(tmp_path / "nifti" / "scan.nii.gz", 3)
    for ending in ("nrrd", "mha"):
        (tmp_path / ending).mkdir()
        itk_copy(scan, tmp_path / ending / f"scan.{ending}")
    sources = [str(tmp_path / name) for name in ("nifti", "nrrd", "mha")]
    prepare(str(tmp_path / "store"), sources=sources, spacing=[2.0, 2.0, 2.0])
    lines = lines_of(tmp_path / "store")
    assert len(lines) == 3 and len({line["digest"] for line in lines}) == 1
    assert all(np.allclose(line["affine"], lines[0]["affine"], atol=1e-3) for line in lines)
    assert len(Store(tmp_path / "store", filter="not duplicate")) == 1


def test_a_dicom_series_is_stored_with_what_its_headers_say(tmp_path):
    def change(index, dataset):
        dataset.BurnedInAnnotation = "YES"
        dataset.PatientID = "12345678"

    write_series(tmp_path / "dicom" / "study", change=change, slices=4)
    write_series(tmp_path / "dicom" / "study", number=4, slices=1)
    store_of(tmp_path / "store", tmp_path / "dicom", spacing=[1.0, 1.0, 1.0])
    line, left_out = sorted(lines_of(tmp_path / "store"), key=lambda line: "refused" in line)
    assert line["modality"] == "CT" and line["lines"] == 2
    assert set(line["findings"]) >= {"burnt_in", "thin"}
    assert "12345678" not in (tmp_path / "store" / "index" / "part-0-of-1.jsonl").read_text()
    assert line["spacing"] == [1.3, 0.7, 2.5], "right, anterior, superior"
    assert "single slice" in left_out["refused"]
    assert "0 files or series done, 1 known before" in store_of(
        tmp_path / "store", tmp_path / "dicom", spacing=[1.0, 1.0, 1.0]
    )


def test_what_is_refused_is_a_table_with_reasons(tmp_path):
    folder = tmp_path / "scans"
    write_scan(folder / "good.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"not an image")
    (folder / "broken.nrrd").write_bytes(b"not an image")
    flat = np.full((20, 20, 20), 7, np.int16)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nib.save(nib.Nifti1Image(flat, affine), folder / "constant.nii.gz")
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(9, 9, 9, 3)), affine), folder / "four.nii.gz")
    nib.save(nib.Nifti1Image(np.where(flat > 0, np.nan, 1.0), affine), folder / "nan.nii.gz")
    air = np.random.default_rng(0).integers(-1020, -1000, (20, 20, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(air, affine), folder / "air.nii.gz")
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(9, 9, 9)), None), folder / "unoriented.nii.gz")
    said = store_of(tmp_path / "store", folder)
    assert "1 volumes" in said and "7 refused" in said
    reasons = {row["path"]: row["reason"] for row in rows_of(tmp_path / "store", "refused")}
    for name, words in {
        "broken.nii.gz": "cannot be read",
        "broken.nrrd": "no spacing in the header",
        "constant.nii.gz": "every voxel is 7",
        "four.nii.gz": "must be 3-D",
        "nan.nii.gz": "NaN or infinite",
        "air.nii.gz": "no voxel is above -500 HU",
        "unoriented.nii.gz": "must say where the axes",
    }.items():
        assert words in reasons[name], reasons[name]


def test_axes_that_are_assumed_are_a_finding(tmp_path):
    chance = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(chance.normal(100, 9, size=(30, 30, 30)), None), tmp_path / "scans" / "unoriented.nii.gz")
    assert "0 volumes" in store_of(tmp_path / "store", tmp_path / "scans")
    assert "1 volumes" in store_of(tmp_path / "store", tmp_path / "scans", assume_axes="RAS")
    assert any("axes taken as RAS" in row["what"] for row in rows_of(tmp_path / "store", "findings"))


def test_a_source_without_volumes_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with refused("holds no volume: no file of .nii.gz"):
        store_of(tmp_path / "store", tmp_path / "empty")
