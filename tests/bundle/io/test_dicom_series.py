"""DICOM series are read where their headers say."""

import copy
import logging
import os
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("itk")
highdicom = pytest.importorskip("highdicom")

from dicom_series import (  # noqa: E402
    ORIENTATIONS,
    SHAPE,
    header,
    rebuilt,
    repeated,
    save,
    tilted,
    turned,
    write_series,
)
from monai.data import Dataset as MonaiDataset  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.uid import ImplicitVRLittleEndian, generate_uid  # noqa: E402

from mambamim_nets.bundle.data import memory  # noqa: E402
from mambamim_nets.bundle.handlers.run_report import RunReport  # noqa: E402
from mambamim_nets.bundle.inference.scan_lists import scans  # noqa: E402
from mambamim_nets.bundle.inference.scan_loader import ScanLoader  # noqa: E402
from mambamim_nets.bundle.io import itk_files  # noqa: E402
from mambamim_nets.bundle.io.dicom_seg import write_dicom_seg  # noqa: E402
from mambamim_nets.bundle.io.dicom_series import LPS_TO_RAS  # noqa: E402
from mambamim_nets.bundle.io.scan_formats import LoadScand  # noqa: E402


def assert_lies_where_headers_say(scan, files):
    """Every pixel of every slice has its value in the volume at the place that its slice's header states."""
    to_voxel = np.linalg.inv(np.asarray(scan.affine)) @ np.diag([-1, -1, 1, 1])  # from LPS mm
    for file in files:
        dataset = pydicom.dcmread(file, force=True)
        if not dataset.file_meta.get("TransferSyntaxUID"):
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        values = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        row, column = np.indices(values.shape).reshape(2, -1)
        orientation = np.array(dataset.ImageOrientationPatient, dtype=float)
        place = np.array(dataset.ImagePositionPatient, dtype=float)[:, None]
        place = place + orientation[:3, None] * column * float(dataset.PixelSpacing[1])
        place = place + orientation[3:, None] * row * float(dataset.PixelSpacing[0])
        voxel = (to_voxel[:3, :3] @ place) + to_voxel[:3, 3:]
        index = voxel.round().astype(int)
        np.testing.assert_allclose(voxel, index, atol=1e-3)
        np.testing.assert_array_equal(scan[0].numpy()[tuple(index)], values.ravel())


def loaded(folder, tmp_path, **options):
    (item,) = scans(str(folder), str(tmp_path / "out"), **options)
    assert "error" not in item
    return item, LoadScand("image")(item)["image"]


@pytest.fixture
def reads(monkeypatch):
    """Count what happens to each file that is opened by Python, whose header is read, and that ITK decodes."""
    counts = {"open": Counter(), "header": Counter(), "decode": Counter()}
    dcmread, decoded, watching = pydicom.dcmread, itk_files._decoded, True

    def opened(event, args):
        if watching and event == "open" and isinstance(args[0], str):
            counts["open"][args[0]] += 1

    def read(file, *args, **options):
        counts["header"][str(getattr(file, "name", file))] += 1
        return dcmread(file, *args, **options)

    def decode(itk, source):
        counts["decode"].update([source] if isinstance(source, str) else source)
        return decoded(itk, source)

    sys.addaudithook(opened)  # cannot be taken away
    monkeypatch.setattr(pydicom, "dcmread", read)
    monkeypatch.setattr(itk_files, "_decoded", decode)
    yield counts
    watching = False


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ORIENTATIONS)
def test_a_series_is_read_where_its_headers_say(tmp_path, kind):
    uid = write_series(tmp_path / "case 1.5", kind)
    item, scan = loaded(tmp_path / "case 1.5", tmp_path)
    assert item == {"image": str(tmp_path / "case 1.5"), "name": "case 1.5", "series": item["series"]}
    assert item["series"].uid == uid
    assert scan.shape == (1, SHAPE[1], SHAPE[0], SHAPE[2]) and scan.dtype.is_floating_point
    assert Path(scan.meta["filename_or_obj"]).name == "case 1.5.nii.gz"
    assert_lies_where_headers_say(scan, sorted((tmp_path / "case 1.5").iterdir()))


def test_each_opening_of_a_slice_has_its_reason(tmp_path, reads):
    """All headers before the first voxel, the voxels of one scan at a time, and the bytes for report.json."""
    for name in ("a", "b"):
        write_series(tmp_path / "all" / name)
    files = {str(file) for file in (tmp_path / "all").rglob("*.dcm")}
    for counts in reads.values():
        counts.clear()

    def times(kind):
        return {file: reads[kind][file] for file in files}

    first, second = scans(str(tmp_path / "all"), str(tmp_path / "out"))
    assert times("open") == times("header") == dict.fromkeys(files, 1) and not reads["decode"]
    LoadScand("image")(first)
    assert times("decode") == {file: int(file in first["series"].files) for file in files}
    LoadScand("image")(second)
    assert times("open") == times("header") == times("decode") == dict.fromkeys(files, 1), "ITK opens them by itself"
    (tmp_path / "out").mkdir()
    report = RunReport(tmp_path / "out")
    for item in (first, second):
        report.scan(item["name"], item, "done")
    assert times("open") == dict.fromkeys(files, 2) and times("header") == dict.fromkeys(files, 1)


def test_a_run_reads_each_header_once_and_decodes_each_slice_once(bundle_run, tmp_path, reads):
    """Also for the check of the list, the preview, the DICOM-SEG and the table."""
    for name in ("a", "b"):
        write_series(tmp_path / "all" / name, slices=6)
    for counts in reads.values():
        counts.clear()
    end = bundle_run(
        "btcv_seg", "inference", input=str(tmp_path / "all"), output_dir=str(tmp_path / "out"), spacing=[3.0, 3.0, 3.0]
    )
    assert end.status == 0, end.log[-2000:]
    made = {path.name for path in (tmp_path / "out").glob("a_*")}
    assert made == {"a_seg.nii.gz", "a_seg.dcm", "a_preview.png"}
    files = {str(file) for file in (tmp_path / "all").rglob("*.dcm")}
    assert len(files) == 12
    times = {"open": 2, "header": 1, "decode": 1}  # opened for its headers, and for the SHA-256 of report.json
    for kind, counts in reads.items():
        assert {file: number for file, number in counts.items() if file in files} == dict.fromkeys(files, times[kind])


def test_a_series_that_changes_after_it_was_listed_fails(tmp_path):
    write_series(tmp_path / "case")
    (item,) = scans(str(tmp_path / "case"), str(tmp_path / "out"))
    file = Path(item["series"].files[1])
    content = file.read_bytes()
    os.utime(file, (1, 1))
    with pytest.raises(ValueError, match=f"{file.name} has changed since the series was listed: start again"):
        LoadScand("image")(item)
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file.name} cannot be read any more \(No such file"):
        LoadScand("image")(item)
    file.write_bytes(content)
    os.utime(file, ns=(item["series"].slices[1].state[1],) * 2)
    assert len(LoadScand("image")(item)["image"]) == 1


@pytest.mark.parametrize("kind", ORIENTATIONS)
def test_an_even_series_is_the_volume_of_highdicom(tmp_path, kind):
    """Whose axes are slices, rows and columns, and whose slices may be in the other order."""
    write_series(tmp_path / "case", kind)
    item, scan = loaded(tmp_path / "case", tmp_path)
    datasets = [pydicom.dcmread(file) for file in item["series"].files]
    theirs = highdicom.get_volume_from_series(datasets)
    ours = highdicom.Volume(scan[0].numpy(), LPS_TO_RAS @ np.asarray(scan.affine), "PATIENT")
    matched = theirs.match_geometry(ours, tol=1e-4)
    np.testing.assert_allclose(matched.affine, ours.affine, atol=1e-6)
    np.testing.assert_array_equal(matched.array, ours.array)


def test_a_compressed_series_without_identifiers(real_data, tmp_path):
    series = real_data("totalsegmentator/ct_dicom/series")
    item, scan = loaded(series, tmp_path)
    assert item["name"] == "series" and item["series"].uid, "emptied SeriesInstanceUIDs are made up for"
    assert scan.shape == (1, 512, 512, 20)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(scan.affine)[:3, :3], axis=0), [0.9765625, 0.9765625, 2])
    assert_lies_where_headers_say(scan, [series / "CT_0269.dcm"])


@pytest.mark.parametrize("options", [{"suffix": ""}, {"suffix": "", "preamble": False}, {"suffix": ".img"}])
def test_dicom_is_recognised_by_content(tmp_path, options):
    write_series(tmp_path / "case", **options)
    (tmp_path / "case" / "README").write_text("no DICOM")
    files = [file for file in (tmp_path / "case").iterdir() if file.name != "README"]
    assert_lies_where_headers_say(loaded(tmp_path / "case", tmp_path)[1], files)


def test_long_decimal_strings_and_slopes_that_differ(tmp_path):
    """The first made the affine the identity in another reader; PET has the second."""

    def change(index, dataset):
        dataset.ImagePositionPatient[0] = -20.512345678901234567
        dataset["ImagePositionPatient"]._value[0].original_string = "-20.512345678901234567"
        dataset.RescaleSlope = 1 + index * 0.5

    write_series(tmp_path / "case", change=change)
    _, scan = loaded(tmp_path / "case", tmp_path)
    assert np.asarray(scan.affine)[0, 3] == pytest.approx(20.5123456789012, abs=1e-9)
    assert_lies_where_headers_say(scan, (tmp_path / "case").iterdir())


def test_several_series_and_what_is_no_volume(tmp_path, caplog):
    first, second = (write_series(tmp_path / "case", number=number) for number in (2, 11))
    write_series(
        tmp_path / "case", number=1, change=lambda _, d: setattr(d, "ImageType", ["DERIVED", "X", "LOCALIZER"])
    )
    write_series(tmp_path / "case", number=4, change=lambda _, d: setattr(d, "Modality", "SEG"))
    write_series(tmp_path / "case", number=5, slices=1)
    with caplog.at_level(logging.INFO):
        items = scans(str(tmp_path / "case"), str(tmp_path / "out"))
    assert [(item["name"], item["series"].uid) for item in items] == [("case_11", second), ("case_2", first)]
    for reason in ("4 file(s) of a localiser", "4 file(s) of no image (SEG)", "1 file(s) of single slice"):
        assert reason in caplog.text
    assert not any("error" in item for item in items)
    above = scans(str(tmp_path), str(tmp_path / "out"))
    assert [item["series"].files for item in above] == [item["series"].files for item in items]


def test_sub_folders_are_scans_and_equal_numbers_do_not_collide(tmp_path):
    for name in ("a", "b"):
        write_series(tmp_path / "all" / name)
    other = tmp_path / "all" / "b"
    for file in list(other.iterdir()):
        file.rename(other / f"first_{file.name}")
    write_series(other)
    assert [item["name"] for item in scans(str(tmp_path / "all"), str(tmp_path))] == ["a", "b_1", "b_2"]


def missing(index, dataset):
    if index == 2:
        dataset.ImagePositionPatient[2] += 1.25


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            missing,
            r"gap of 3\.75 mm, usually 2\.5 mm, between the slices at -107\.6.* and -103\.8.* mm: slices are missing",
        ),
        (tilted, "shifted by 3 mm from the first to the last"),
        (turned, "differ in orientation"),
        (repeated, "several slices lie at"),
    ],
)
def test_an_irregular_series_is_refused_and_the_others_go_on(tmp_path, change, reason):
    write_series(tmp_path / "all" / "bad", change=change)
    write_series(tmp_path / "all" / "good")
    bad, good = scans(str(tmp_path / "all"), str(tmp_path))
    assert "error" not in good
    assert re.search(reason, bad["error"])
    with pytest.raises(ValueError, match=f"(?s)0 of 1 scans.*{reason}"):
        scans(str(tmp_path / "all" / "bad"), str(tmp_path))


def test_a_slice_taken_away(tmp_path):
    write_series(tmp_path / "case", slices=6)
    (item,) = scans(str(tmp_path / "case"), str(tmp_path))
    Path(item["series"].files[2]).unlink()
    with pytest.raises(ValueError, match=r"gap of 5 mm, usually 2\.5 mm, between the slices at"):
        scans(str(tmp_path / "case"), str(tmp_path))


def test_several_channels_and_single_slices_are_refused(tmp_path):
    write_series(tmp_path / "case")
    with pytest.raises(ValueError, match=r"is DICOM, the task has 2 channels.*convert the series to NIfTI"):
        scans(str(tmp_path / "case"), str(tmp_path), ("t1", "t2"))
    with pytest.raises(ValueError, match="single DICOM slice or no image; give the folder"):
        scans(str(next((tmp_path / "case").iterdir())), str(tmp_path))


def test_pixels_that_cannot_be_decoded_fail_alone(tmp_path):
    for name in ("bad", "good"):
        write_series(tmp_path / "all" / name)
    broken = next((tmp_path / "all" / "bad").iterdir())
    broken.write_bytes(broken.read_bytes()[:-40])
    loader = ScanLoader(MonaiDataset(scans(str(tmp_path / "all"), str(tmp_path)), LoadScand("image")))
    assert [batch["name"] for batch in loader] == [["good"]]
    assert list(loader.failures) == ["bad"]


def edged(millimetres):
    def change(index, dataset):
        dataset.PixelSpacing = [millimetres, millimetres]

    return change


@pytest.mark.parametrize(
    ("fault", "change"),
    [("a pixel spacing of 0", edged(0)), ("a pixel spacing of 100 mm", edged(100))],
)
def test_a_series_whose_spacing_cannot_be(fault, change, bundle_run, reliability, tmp_path):
    write_series(tmp_path / "series", change=change)
    end = bundle_run("msd_seg", "inference", input=str(tmp_path / "series"))
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    reliability("DICOM", fault, end)


def test_a_series_too_large_for_the_memory(bundle_run, reliability, tmp_path, monkeypatch):
    write_series(tmp_path / "series", change=edged(30))
    monkeypatch.setattr(memory, "free_memory", lambda: 10_000_000)
    end = bundle_run("msd_seg", "inference", input=str(tmp_path / "series"))
    reliability("DICOM", "a series that is too large for the memory once it is resampled", end, hide=r"[\d.]+(?= GiB)")


def multi_frame(path, values):
    """Write frames (slices, rows, columns), from head to feet, as one file of enhanced CT; return its dataset."""
    dataset = header([0, 0, 0], [1, 0, 0, 0, 1, 0], generate_uid())
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"  # enhanced CT
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = *values.shape[1:], len(values)
    dataset.PixelData = values.tobytes()
    shared, measures, orientation, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, orientation.ImageOrientationPatient = dataset.PixelSpacing, [1, 0, 0, 0, 1, 0]
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 2, -1000, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [rescale]
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], []
    for index in range(len(values)):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [3, 4, 50 - 2.5 * index]
        frame.PlanePositionSequence = [position]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(dataset, name)
    path.parent.mkdir()
    save(dataset, path)
    return dataset


def test_a_multi_frame_file_is_a_scan(tmp_path):
    values = np.random.default_rng(1).integers(0, 1000, (SHAPE[2], *SHAPE[:2])).astype("<i2")
    multi_frame(tmp_path / "case" / "frames", values)
    item, scan = loaded(tmp_path / "case", tmp_path)
    assert item["name"] == "case"
    np.testing.assert_array_equal(scan[0].numpy(), values.transpose(2, 1, 0) * 2.0 - 1000)
    np.testing.assert_allclose(
        np.asarray(scan.affine), [[-1.3, 0, 0, -3], [0, -0.7, 0, -4], [0, 0, -2.5, 50], [0, 0, 0, 1]], atol=1e-9
    )
    assert loaded(tmp_path / "case" / "frames", tmp_path)[0]["name"] == "frames"
    label = (scan[0].numpy() > 0).astype("uint8")
    path = write_dicom_seg(label, scan.affine, item["series"], {1: "liver"}, tmp_path / "seg.dcm", "x")
    np.testing.assert_array_equal(rebuilt(path, label.shape, np.asarray(scan.affine)), label)


def test_frames_whose_values_itk_would_scale_alike_are_refused(tmp_path, bundle_run, reliability):
    dataset = multi_frame(tmp_path / "case" / "frames", np.ones((SHAPE[2], *SHAPE[:2]), "<i2"))
    shared = dataset.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    frames = dataset.PerFrameFunctionalGroupsSequence
    frames[0].PixelValueTransformationSequence = [shared]
    save(dataset, tmp_path / "case" / "frames")
    assert "error" not in scans(str(tmp_path / "case"), str(tmp_path / "out"))[0], "the same in both groups"
    other = copy.deepcopy(shared)
    other.RescaleSlope = 4
    frames[2].PixelValueTransformationSequence = [other]
    save(dataset, tmp_path / "case" / "frames")
    end = bundle_run("msd_seg", "inference", input=str(tmp_path / "case"))
    assert "its frames have 2 different rescale slopes and intercepts" in end.last
    reliability("DICOM", "frames of a file that are scaled differently", end)
