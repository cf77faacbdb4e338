"""A slice that cannot be read does not vanish: its series is refused; what may be missing is a warning everywhere."""

import csv
import logging
import re

import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("itk")
pytest.importorskip("highdicom")

from dicom_series import another_frame, repeated, tilted, turned, write_series  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import JPEG2000Lossless  # noqa: E402

from mambamim_nets.bundle.inference.scan_lists import scans  # noqa: E402
from mambamim_nets.bundle.io.dicom_files import first_dicom  # noqa: E402
from mambamim_nets.bundle.io.dicom_series import series_of  # noqa: E402
from mambamim_nets.bundle.visualize.segmentation import overlay_figure  # noqa: E402


def spatial(folder):
    """The files of a folder's one series, in the order of its slices."""
    (series,) = series_of(folder)[0]
    return [folder / file for file in series.files]


SHIPPED = {"btcv_seg": [3.0, 3.0, 3.0], "brats_seg": [2.0, 2.0, 2.0]}  # spacing of the weights


def segment(bundle_run, source, folder, bundle="btcv_seg"):
    options = {"input": str(source), "output_dir": str(folder), "spacing": SHIPPED[bundle]}
    return bundle_run(bundle, "inference", **options)


def refused(bundle_run, source, out, bundle="btcv_seg"):
    """Segment a source that has to be refused; nothing is to be written that looks like a result."""
    end = segment(bundle_run, source, out, bundle)
    assert "cannot be segmented" in end.log or "can be segmented" in end.log or "input" in end.last, end.last
    assert {path.name for path in out.glob("[!.]*") if path.suffix != ".log"} <= {"report.json", "report.html"}
    return end


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


def without_preamble(content):
    return b"\xff" * 132 + content[132:]


# --- files that cannot be read --------------------------------------------------------------------

AT = {"first": 0, "middle": 3, "last": -1}


@pytest.mark.parametrize("at", AT)
def test_a_slice_with_a_destroyed_preamble(bundle_run, tmp_path, reliability, at):
    write_series(tmp_path / "case", slices=6)
    file = spatial(tmp_path / "case")[AT[at]]
    damage(file, without_preamble)
    end = refused(bundle_run, tmp_path / "case", tmp_path / "out")
    reliability("DICOM", f"the preamble of the {at} slice is destroyed", end, hide=r"s3_\d")
    assert file.name in end.last


def compressed(index, dataset):
    """As of JPEG 2000; nobody can decode it."""
    dataset.PixelData = encapsulate([bytes(range(200))])


CUTS = {
    "a slice is empty": lambda content: b"",
    "the header of a slice is cut in the file meta group": lambda content: content[:200],
    "the header of a slice is cut before its size": lambda content: content[: content.index(b"\x28\x00\x10\x00US")],
    "the header of a slice is cut inside a value": lambda content: content[: content.index(b"\x20\x00\x32\x00DS") + 20],
    "a slice ends before its pixel data": lambda content: content[: content.index(b"\xe0\x7f\x10\x00")],
    "the pixel data of a slice is cut": lambda content: content[:-30],
    "a slice holds something else": lambda content: b"<html>502 Bad Gateway</html>" * 30,
}


@pytest.mark.parametrize("fault", CUTS)
@pytest.mark.parametrize("at", [0, -1])
def test_a_slice_that_is_cut(bundle_run, tmp_path, reliability, fault, at):
    write_series(tmp_path / "case", slices=6)
    file = spatial(tmp_path / "case")[at]
    damage(file, CUTS[fault])
    end = refused(bundle_run, tmp_path / "case", tmp_path / "out")
    assert file.name in end.last and end.status != 0
    if at == 0:
        reliability("DICOM", fault, end, hide=r"s3_\d")


def test_compressed_pixel_data_that_is_cut(bundle_run, tmp_path, reliability):
    write_series(tmp_path / "case", change=compressed, syntax=JPEG2000Lossless)
    file = spatial(tmp_path / "case")[-1]
    damage(file, lambda content: content[:-60])
    end = refused(bundle_run, tmp_path / "case", tmp_path / "out")
    reliability("DICOM", "the compressed pixel data of a slice is cut", end, hide=r"s3_\d")
    assert file.name in end.last


def test_pixel_data_that_cannot_be_decoded_names_its_slice(bundle_run, tmp_path, reliability):
    write_series(tmp_path / "case", slices=3)
    file = spatial(tmp_path / "case")[1]
    dataset = pydicom.dcmread(file)
    compressed(1, dataset)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset["PixelData"].VR = "OB"
    dataset.save_as(file)
    end = refused(bundle_run, tmp_path / "case", tmp_path / "out")
    reliability("DICOM", "the pixel data of a slice cannot be decoded", end, hide=r"s3_\d")
    assert file.name in end.last


NAMES = {
    "a file named as the slices beside it is none": ("s3_99", "", b"\0" * 2000),
    "a file without an ending, as the slices beside it, is binary": ("export", "", b"\0\1\2" * 99),
    "a download of a slice is not finished": ("s3_7.dcm.part", ".dcm", b"\0" * 40),
    "a slice is packed": ("s3_7.dcm.gz", ".dcm", b"\x1f\x8b" * 40),
    "a file with the ending of Siemens, .IMA, is no DICOM": ("x.IMA", ".img", b"nothing"),
}


@pytest.mark.parametrize("fault", NAMES)
def test_a_file_that_is_dicom_by_its_name(bundle_run, tmp_path, reliability, fault):
    name, suffix, content = NAMES[fault]
    write_series(tmp_path / "case", suffix=suffix)
    (tmp_path / "case" / name).write_bytes(content)
    reliability("DICOM", fault, refused(bundle_run, tmp_path / "case", tmp_path / "out"))


def test_a_slice_that_is_a_link_to_nothing(bundle_run, tmp_path, reliability):
    write_series(tmp_path / "case", slices=6)
    file = spatial(tmp_path / "case")[-1]
    file.unlink()
    file.symlink_to(tmp_path / "gone.dcm")
    end = refused(bundle_run, tmp_path / "case", tmp_path / "out")
    reliability("DICOM", "a slice is a link to nothing", end, hide=r"s3_\d")
    assert file.name in end.last


def test_a_folder_without_a_slice_that_can_be_read(bundle_run, tmp_path, reliability):
    write_series(tmp_path / "case")
    for file in (tmp_path / "case").iterdir():
        damage(file, without_preamble)
    end = refused(bundle_run, tmp_path, tmp_path / "out")
    reliability("DICOM", "no slice of a series can be read", end)
    assert "case: s3_0.dcm cannot be read" in end.last and "and 1 more" in end.last


def test_one_slice_of_two_is_still_a_series_that_is_refused(tmp_path):
    write_series(tmp_path / "case", slices=2)
    damage(spatial(tmp_path / "case")[1], lambda content: b"")
    with pytest.raises(ValueError, match=r"0 of 1 scans"):
        scans(str(tmp_path / "case"), str(tmp_path))


def test_a_broken_slice_fails_its_own_series_alone(bundle_run, tmp_path, reliability):
    """By the UID in its header, as far as that goes, or by the names of the files before and after it."""
    for fault, how in {"uid": CUTS["the pixel data of a slice is cut"], "name": without_preamble}.items():
        folder = tmp_path / fault
        first = write_series(folder, number=2)
        second = write_series(folder, number=11)
        for file in sorted(folder.glob("s11_*"))[1:3]:
            damage(file, how)
        items = {item["series"].uid: item for item in scans(str(folder), str(tmp_path / "out"))}
        assert "error" not in items[first]
        assert re.search(r"s11_1\.dcm cannot be read .*, s11_2\.dcm cannot be read", items[second]["error"])
    end = segment(bundle_run, tmp_path / "name", tmp_path / "out")
    reliability("DICOM", "a slice of one of two series in a folder is broken", end)
    assert "1 of 2 scans failed" in end.log
    assert {path.name for path in (tmp_path / "out").glob("*_seg.*")} == {"name_2_seg.nii.gz", "name_2_seg.dcm"}


@pytest.mark.parametrize("preamble", [True, False])
def test_a_file_is_found_wherever_it_is_cut(tmp_path, preamble):
    write_series(tmp_path / "case", slices=3, preamble=preamble)
    file = spatial(tmp_path / "case")[2]
    content = file.read_bytes()
    for end in range(0, len(content), 7):
        file.write_bytes(content[:end])
        (series,) = series_of(tmp_path / "case")[0]
        assert file.name in series.error, end
        assert series.affine is None
    file.write_bytes(content)
    assert not series_of(tmp_path / "case")[0][0].error


def test_a_slice_without_preamble_among_others_is_read(tmp_path):
    """It was left out."""
    uid = write_series(tmp_path / "case", slices=5)
    file = spatial(tmp_path / "case")[-1]
    damage(file, lambda content: content[132:])
    (item,) = scans(str(tmp_path / "case"), str(tmp_path))
    assert "error" not in item and item["series"].uid == uid and len(item["series"].files) == 5


# --- geometry -------------------------------------------------------------------------------------


def missing(index, dataset):
    if index > 2:
        dataset.ImagePositionPatient[2] -= 2.5


def larger(index, dataset):
    if index == 3:
        dataset.Rows, dataset.Columns, dataset.PixelData = 8, 8, bytes(128)


def finer(index, dataset):
    if index == 3:
        dataset.PixelSpacing = [0.5, 0.5]


GEOMETRY = {
    "a slice is missing in the middle of a series": missing,
    "the slices of a series lie on a tilted gantry": tilted,
    "the slices of a series differ in orientation": turned,
    "two slices of a series lie at one place": repeated,
    "the slices of a series differ in size": larger,
    "the slices of a series differ in pixel spacing": finer,
}


@pytest.mark.parametrize("fault", GEOMETRY)
def test_slices_that_form_no_grid(bundle_run, tmp_path, reliability, fault):
    write_series(tmp_path / "case", slices=6, change=GEOMETRY[fault])
    reliability("DICOM", fault, refused(bundle_run, tmp_path / "case", tmp_path / "out"))


def test_values_that_itk_would_turn_round(bundle_run, tmp_path, reliability):
    write_series(tmp_path / "case", change=lambda _, d: setattr(d, "PhotometricInterpretation", "MONOCHROME1"))
    end = refused(bundle_run, tmp_path / "case", tmp_path / "out")
    reliability("DICOM", "a series in which high values are dark, MONOCHROME1", end)


def test_what_cannot_be_a_volume(bundle_run, tmp_path, reliability):
    write_series(tmp_path / "case")
    one = sorted((tmp_path / "case").iterdir())[0]
    reliability("DICOM", "one slice is given in place of its series", refused(bundle_run, one, tmp_path / "out"))
    end = refused(bundle_run, tmp_path / "case", tmp_path / "out", bundle="brats_seg")
    reliability("DICOM", "a series is given for a task of several channels", end)
    write_series(tmp_path / "scout", change=lambda _, d: setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    end = refused(bundle_run, tmp_path / "scout", tmp_path / "out")
    reliability("DICOM", "a folder holds a localiser alone", end, hide=r"series [\d.]+")


# --- warnings -------------------------------------------------------------------------------------


def numbered(numbers):
    def change(index, dataset):
        dataset.InstanceNumber = numbers[index]

    return change


def stated(name, value):
    def change(index, dataset):
        setattr(dataset, name, value)

    return change


WARNINGS = {
    "an InstanceNumber is missing": (numbered([1, 2, 4, 5, 6, 9]), "InstanceNumber 3 and 1 more gap(s) missing, 3 in"),
    "an InstanceNumber is on two slices": (numbered([1, 2, 3, 3, 4, 5]), "InstanceNumber 3 on more than one slice"),
    "the first InstanceNumbers are missing": (
        numbered(range(5, 11)),
        "the first InstanceNumber is 5: slices before it",
    ),
    "ImagesInAcquisition is another": (stated("ImagesInAcquisition", 8), "ImagesInAcquisition is 8, found are 6"),
    "NumberOfSeriesRelatedInstances is another": (
        stated("NumberOfSeriesRelatedInstances", 7),
        "NumberOfSeriesRelatedInstances is 7, found are 6",
    ),
}


@pytest.mark.parametrize("fault", WARNINGS)
def test_numbers_that_disagree_are_warnings(bundle_run, tmp_path, reliability, monkeypatch, fault):
    change, warning = WARNINGS[fault]
    write_series(tmp_path / "case", slices=6, change=change)
    titles = []

    def figure(image, label, labels, title, *args):
        titles.append(title)
        return overlay_figure(image, label, labels, title, *args)

    monkeypatch.setattr("mambamim_nets.bundle.handlers.segmentation.overlay_figure", figure)
    end = segment(bundle_run, tmp_path / "case", tmp_path / "out")
    reliability("DICOM", fault, end, warning=warning)
    with (tmp_path / "out" / "volumes.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert warning in row["warnings"] and titles == [f"case\ndemonstration weights; {row['warnings']}"]


def test_numbers_that_agree_are_none(tmp_path):
    def change(index, dataset):
        dataset.ImagesInAcquisition, dataset.NumberOfSeriesRelatedInstances, dataset.AcquisitionNumber = 6, 6, 2

    write_series(tmp_path / "said", slices=6, change=change)
    write_series(tmp_path / "from 0", slices=6, change=numbered(range(6)))
    write_series(tmp_path / "unsaid", slices=6, change=lambda _, dataset: dataset.__delattr__("InstanceNumber"))
    write_series(tmp_path / "odd", slices=6, change=stated("InstanceNumber", None))
    assert not any("warnings" in item for item in scans(str(tmp_path), str(tmp_path / "out")))


def test_a_localiser_of_the_same_series_is_counted(tmp_path):
    def change(index, dataset):
        dataset.NumberOfSeriesRelatedInstances = 6
        if index == 0:
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_series(tmp_path / "case", slices=6, change=change)
    assert "warnings" not in scans(str(tmp_path / "case"), str(tmp_path / "out"))[0]


def test_files_that_are_no_dicom_are_listed_and_do_no_harm(bundle_run, tmp_path, reliability):
    write_series(tmp_path / "case")
    for name in ("README", "Thumbs.db", "s3_1.json", "s3_1.dcm.md5", "DICOMDIR"):
        (tmp_path / "case" / name).write_bytes(b"not a slice")
    end = segment(bundle_run, tmp_path / "case", tmp_path / "out")
    warning = "5 file(s) that are no DICOM: DICOMDIR, README, Thumbs.db, s3_1.dcm.md5, s3_1.json"
    reliability("DICOM", "other files lie beside the slices", end, warning=warning)
    assert (tmp_path / "out" / "case_seg.dcm").is_file()


def test_a_broken_file_of_no_series_of_images_is_a_warning(bundle_run, tmp_path, reliability):
    write_series(tmp_path / "case", number=2)
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(tmp_path / "case", number=9, slices=3, change=lambda _, dataset: setattr(dataset, "ImageType", scout))
    damage(tmp_path / "case" / "s9_1.dcm", without_preamble)
    end = segment(bundle_run, tmp_path / "case", tmp_path / "out")
    reliability("DICOM", "a localiser beside a series is broken", end, warning="of no series that is known")


# --- DICOM-SEG ------------------------------------------------------------------------------------


TAGS = {
    "the patient's sex is 0000: no DICOM-SEG": stated("PatientSex", "0000"),
    "the slices differ in their frame of reference: no DICOM-SEG": another_frame,
}


@pytest.mark.parametrize("fault", TAGS)
def test_a_series_that_allows_no_dicom_seg_has_all_else(bundle_run, tmp_path, reliability, fault):
    write_series(tmp_path / "all" / "bad", change=TAGS[fault])
    write_series(tmp_path / "all" / "good")
    end = segment(bundle_run, tmp_path / "all", tmp_path / "out")
    reliability("DICOM", fault, end)
    assert "1 of 2 scans lack a result:" in end.log and "2 of 2 scans done" in end.log
    made = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    assert made == {
        *("volumes.csv", "report.json", "report.html", "bad_seg.nii.gz", "bad_preview.png"),
        *("good_seg.nii.gz", "good_seg.dcm", "good_preview.png"),
    }
    with (tmp_path / "out" / "volumes.csv").open(newline="") as file:
        rows = {row["scan"]: row["warnings"] for row in csv.DictReader(file)}
    assert "no DICOM-SEG" in rows["bad"] and "DICOM-SEG" not in rows["good"]
    again = segment(bundle_run, tmp_path / "all", tmp_path / "out")
    assert again.status != 0 and "1 of 2 scans are left out" in again.log, "it is tried again, and named again"


def test_highdicom_is_silent(bundle_run, tmp_path, caplog):
    write_series(tmp_path / "case")
    with caplog.at_level(logging.INFO):
        end = segment(bundle_run, tmp_path / "case", tmp_path / "out")
    assert end.status == 0
    assert not [record for record in caplog.records if record.name.startswith("highdicom")]


def test_a_dicom_seg_says_that_weights_are_a_demonstration(bundle_run, tmp_path):
    write_series(tmp_path / "case")
    assert segment(bundle_run, tmp_path / "case", tmp_path / "out").status == 0
    seg = pydicom.dcmread(tmp_path / "out" / "case_seg.dcm")
    assert seg.SeriesDescription.startswith("demonstration weights: BTCV")
    assert seg.SeriesDescription.endswith("(research use only)") and len(seg.SeriesDescription) <= 64
    names = {
        item.AlgorithmName
        for segment_ in seg.SegmentSequence
        for item in segment_.SegmentationAlgorithmIdentificationSequence
    }
    assert names == {"mambamim_nets, demonstration weights"}


def test_a_series_of_another_modality_is_refused_unless_forced(bundle_run, tmp_path):
    write_series(tmp_path / "case", change=stated("Modality", "MR"))
    end = segment(bundle_run, tmp_path / "case", tmp_path / "out")
    assert end.status == 1 and "DICOM Modality is MR, and must be CT" in end.last and "--force true" in end.last
    options = {"input": str(tmp_path / "case"), "output_dir": str(tmp_path / "out"), "spacing": SHIPPED["btcv_seg"]}
    forced = bundle_run("btcv_seg", "inference", force=True, **options)
    assert forced.status == 0, forced.log[-3000:]
    with (tmp_path / "out" / "volumes.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["warnings"].startswith("FORCED, ") and "Modality is MR" in row["warnings"]


def test_a_folder_is_known_to_hold_dicom_by_its_first_bytes(tmp_path):
    (tmp_path / "notes.txt").write_text("DICM" * 40)
    (tmp_path / "empty").mkdir()
    assert first_dicom(tmp_path) is None
    write_series(tmp_path / "a" / "b", suffix="")
    found = first_dicom(tmp_path)
    assert found is not None and found.parent == tmp_path / "a" / "b"
    (tmp_path / "0.dcm").write_text("no DICOM")
    assert first_dicom(tmp_path) == found
