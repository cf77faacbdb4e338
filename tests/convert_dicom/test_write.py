"""Cases on the grid of their series, overlaps, and the record of what is done."""

import json

import nibabel as nib
import numpy as np
import pytest
from convert_dicom.conftest import box, draw, voxels
from dicom_series import write_volume

from mambamim_nets.bundle.io.dicom_series import series_of
from mambamim_nets.bundle.io.rtstruct import write_rtstruct
from mambamim_nets.convert_dicom.read import found_in, jobs_of
from mambamim_nets.convert_dicom.write import Record, case_files, signature_of, write_case

TABLE = {"aorta": 1, "liver": 2, "tumour": 3}


def written(hospital, output, priority=(), **change):
    (job,), problems, _ = jobs_of(found_in(hospital, None, "PatientID"), {})
    assert problems == []
    (series,) = series_of(hospital / job.series.folder)[0]
    line = write_case(hospital, output, job._replace(**change), series, TABLE, priority)
    return line, *(nib.load(path) for path in case_files(output, line["case"]))


def test_image_and_label_lie_on_the_grid_of_the_series(hospital, admit, tmp_path):
    series = admit("one", 7, SEG={"liver": (2, 8)}, RTSTRUCT={"aorta": (12, 15)})
    line, image, label = written(hospital, tmp_path / "data")
    assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.dataobj, voxels(7))
    np.testing.assert_array_equal(label.dataobj, np.select([box(2, 8), box(12, 15)], [2, 1], 0))
    for one in (image, label):
        np.testing.assert_allclose(one.affine, series.affine, atol=1e-4)
        assert one.header["qform_code"] == one.header["sform_code"] == 1 and one.header.get_xyzt_units()[0] == "mm"
    assert line["voxels"] == {"aorta": box(12, 15).sum(), "liver": box(2, 8).sum()}
    assert line["labels"] == ["one/rtstruct.dcm", "one/seg.dcm"] and line["modality"] == "CT" and not line["warnings"]


def test_values_that_are_no_whole_numbers_stay_as_they_are(hospital, tmp_path):
    def halves(_, dataset) -> None:
        dataset.RescaleSlope = 0.5

    series = write_volume(hospital / "ct", voxels(3), change=halves)
    draw(hospital / "seg.dcm", series, {"liver": (2, 8)})
    image = written(hospital, tmp_path / "data")[1]
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.dataobj, voxels(3) / np.float32(2))


def test_overlaps_are_refused_by_name_or_decided_by_priority(hospital, admit, tmp_path, reliability):
    series = admit("one", SEG={"liver": (2, 9)})
    draw(hospital / "one" / "other.dcm", series, {"tumour": (4, 6), "aorta": (8, 12)}, "RTSTRUCT")
    tumour, aorta = box(2, 9) & box(4, 6), box(2, 9) & box(8, 12)
    with pytest.raises(ValueError, match="overlap of 'liver' and 'tumour' in ") as end:
        written(hospital, tmp_path / "data")
    assert f"'liver' and 'tumour' in {tumour.sum()} voxels" in str(end.value) and tumour.any()
    assert f"'aorta' and 'liver' in {aorta.sum()} voxels" in str(end.value) and aorta.any()
    assert not (tmp_path / "data").exists()
    reliability("Data sets", "segments that overlap", end.value)
    with pytest.raises(ValueError, match="overlap of 'aorta' and 'liver'"):
        written(hospital, tmp_path / "data", ["tumour", "liver"])
    for order in (["tumour", "aorta", "liver"], ["liver", "tumour", "aorta"]):
        label = np.asarray(written(hospital, tmp_path / "data", order)[2].dataobj)
        masks = {"liver": box(2, 9), "tumour": box(4, 6), "aorta": box(8, 12)}
        np.testing.assert_array_equal(
            label, np.select([masks[name] for name in order], [TABLE[name] for name in order])
        )


def test_a_label_on_every_second_slice_is_warned_of(hospital, admit, tmp_path):
    series = admit("one")
    label = np.zeros(series.shape, "uint8")
    label[3:6, 3:6, ::2] = 1
    path = write_rtstruct(label, series.affine, series, {1: "liver"}, hospital / "rt.dcm", "x")
    assert written(hospital, tmp_path / "data")[0]["warnings"] == [
        "'liver' is on 4 planes, and no two are neighbours: was it drawn on every plane?"
    ]
    label[3, 3, 1] = 1
    write_rtstruct(label, series.affine, series, {1: "liver"}, path, "x")
    assert written(hospital, tmp_path / "data")[0]["warnings"] == []


def test_a_label_that_is_named_and_not_drawn_is_warned_of(hospital, admit, tmp_path):
    admit("one", SEG={"liver": (2, 8)}, RTSTRUCT={"aorta": (5, 5)})
    line = written(hospital, tmp_path / "data")[0]
    assert line["voxels"]["aorta"] == 0 and line["warnings"] == ["'aorta' is named and has no voxel: was it drawn?"]


def test_files_that_changed_are_refused(hospital, admit, tmp_path):
    admit("one", SEG={"liver": (2, 8)})
    (job,), _, _ = jobs_of(found_in(hospital, None, "PatientID"), {})
    with pytest.raises(ValueError, match="files have changed since their headers were read; start again"):
        write_case(hospital, tmp_path / "data", job, None, TABLE, ())


def test_a_signature_depends_on_what_the_files_do(hospital, admit):
    admit("one", SEG={"liver": (2, 8)})
    (job,), _, _ = jobs_of(found_in(hospital, None, "PatientID"), {})
    first = signature_of(hospital, job, {"liver": 2})
    assert signature_of(hospital, job, {"liver": 2, "aorta": 1}) == first, "of what the case has"
    assert signature_of(hospital, job, {"liver": 1}) != first
    draw(hospital / "one" / "seg.dcm", series_of(hospital / "one" / "ct")[0][0], {"liver": (2, 9)})
    assert signature_of(hospital, job, {"liver": 2}) != first


# --- the record -----------------------------------------------------------------------------------


def touched(output, case) -> dict:
    for path in case_files(output, case):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return {"case": case, "subject": "s", "modality": "CT"}


def test_a_record_says_what_is_done_after_a_kill(tmp_path):
    record = Record(tmp_path)
    record.start(["liver"])
    assert json.loads((tmp_path / "dataset.json").read_text())["training"] == []
    for case in "abc":
        record.add(touched(tmp_path, case))
    case_files(tmp_path, "b")[1].unlink()
    with (tmp_path / "conversion.jsonl").open("a") as file:
        file.write('{"case": "d", "sub')
    again = Record(tmp_path)
    assert sorted(again.cases) == ["a", "c"] and again.labels == ["liver"]
    again.start(["liver", "spleen"])
    again.add(touched(tmp_path, "e"))
    again.finish()
    assert sorted(Record(tmp_path).cases) == ["a", "c", "e"]
    content = json.loads((tmp_path / "dataset.json").read_text())
    assert [entry["case"] for entry in content["training"]] == ["a", "c", "e"]
    assert content["labels"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert content["modality"] == {"0": "CT"}


def test_edits_and_other_folders_are_refused(tmp_path, reliability):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"must be empty, or of an earlier conversion, and has notes\.txt") as end:
        Record(tmp_path / "other")
    reliability("Data sets", "a conversion into a folder of something else", end.value)
    record = Record(tmp_path / "data")
    record.start(["liver"])
    record.require_unedited()
    listing = tmp_path / "data" / "dataset.json"
    listing.write_text(listing.read_text().replace("liver", "Leber"))
    with pytest.raises(ValueError, match=r"dataset\.json was edited since it was written") as end:
        Record(tmp_path / "data").require_unedited()
    reliability("Data sets", "a converted data set whose dataset.json was edited", end.value)
    (tmp_path / "data" / "conversion.jsonl").write_text("{")
    with pytest.raises(ValueError, match="is damaged: its first line must name the labels"):
        Record(tmp_path / "data")
