"""From a folder of DICOM to a data set that is planned and trained on; options, resuming, and what is refused."""

import json
import shutil
import sys

import nibabel as nib
import numpy as np
import pydicom
import pytest
from convert_dicom.conftest import draw
from dicom_series import write_volume
from helpers import existing, finished, refused
from monai.bundle import ConfigWorkflow
from plan.conftest import config_of, steps_of

from mambamim_nets import phantom
from mambamim_nets.bundle.data.labelled import labelled_cases
from mambamim_nets.bundle.data.verification import check_labelled
from mambamim_nets.bundle.io.dicom_seg import write_dicom_seg
from mambamim_nets.bundle.io.dicom_series import series_of
from mambamim_nets.bundle.io.rtstruct import write_rtstruct
from mambamim_nets.bundle.metadata import label_table
from mambamim_nets.convert_dicom import __main__ as program
from mambamim_nets.convert_dicom.__main__ import convert
from mambamim_nets.plan import __main__ as planning
from mambamim_nets.plan.description import read_description

LIVER, BOTH = {"liver": (2, 8)}, {"spleen": (10, 15), "liver": (2, 8)}


def listing(output) -> dict:
    return json.loads((output / "dataset.json").read_text())


def states(output) -> dict:
    return {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")}


@pytest.fixture
def output(tmp_path):
    return tmp_path / "data"


def test_a_region_without_a_contour_is_no_label_of_its_case(hospital, admit, output):
    admit("one", SEG=BOTH)
    admit("two", RTSTRUCT={**LIVER, "spleen": (5, 5)})
    said = convert(str(hospital), str(output))
    assert "- 1 liver: 2 of 2 cases" in said and "- 2 spleen: 1 of 2 cases" in said
    assert "'spleen' is named and has no voxel: was it drawn?" in said


def test_a_hospital_becomes_a_data_set(hospital, admit, output):
    admit("one", SEG=BOTH)
    admit("two", RTSTRUCT=BOTH)
    admit("three", SEG=LIVER)
    admit("four")
    said = convert(str(hospital), str(output))
    assert "- 1 liver: 3 of 3 cases" in said and "- 2 spleen: 2 of 3 cases" in said
    assert "not in all cases: spleen" in said and "four/ct: no label object refers to it" in said
    assert "four/ct" in (output / "conversion.md").read_text()
    assert read_description(output).labels == {"liver": 1, "spleen": 2} and read_description(output).channels == ("CT",)
    cases = labelled_cases(output, ["CT"])
    check_labelled(cases, 1, {1: "liver", 2: "spleen"})
    assert len({case["subject"] for case in cases}) == 3
    values = [set(np.unique(nib.load(case["label"]).dataobj)) for case in cases]
    assert sorted(map(len, values)) == [2, 3, 3] and all({0, 1} <= found for found in values)


def test_again_changes_nothing_and_takes_what_is_new(hospital, admit, output, monkeypatch):
    admit("one", SEG=LIVER)
    convert(str(hospital), str(output))
    before = states(output)
    assert "0 cases converted, 1 in all" in convert(str(hospital), str(output))
    admit("two", SEG={"aorta": (3, 7)})
    with monkeypatch.context() as patch:  # killed in the second case

        def killed(*_):
            raise KeyboardInterrupt

        patch.setattr(program, "write_case", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(str(hospital), str(output))
    assert len(listing(output)["training"]) == 1
    assert "1 cases converted, 2 in all" in convert(str(hospital), str(output))
    assert listing(output)["labels"] == {"0": "background", "1": "liver", "2": "aorta"}, "values stay"
    assert before.items() <= states(output).items()


def test_other_options_and_files_are_refused_without_overwrite(hospital, admit, output, reliability):
    series = admit("one", SEG=BOTH)
    convert(str(hospital), str(output))
    before = states(output)
    with refused("cases were made from other files or with other options", "--overwrite true") as end:
        convert(str(hospital), str(output), labels=["spleen"])
    reliability(
        "Data sets", "a conversion with other options into its folder", end.value, hide=r"(?<=series_)[0-9a-f]+"
    )
    draw(hospital / "one" / "seg.dcm", series, {"liver": (2, 9), "spleen": (10, 15)})
    with refused("cases were made from other files"):
        convert(str(hospital), str(output))
    assert states(output) == before
    assert "1 cases converted" in convert(str(hospital), str(output), overwrite=True)
    assert states(output) != before
    admit("two", SEG=LIVER)
    draw(hospital / "one" / "other.dcm", series, {"tumour": (3, 6)})
    said = convert(str(hospital), str(output), overwrite=True, skip_refused=True)
    assert "1 refused" in said and len(listing(output)["training"]) == 1, "not as it was before, either"


def test_one_process_at_a_time_and_what_has_gone_is_said(hospital, admit, output, monkeypatch):
    admit("one", SEG=LIVER)
    admit("two", SEG=LIVER)
    convert(str(hospital), str(output))

    def busy(*_):
        raise ValueError("output_dir: another conversion is at work there")

    with monkeypatch.context() as patch:
        patch.setattr(program, "only_run", busy)
        with refused("another process converts into it; wait for its end"):
            convert(str(hospital), str(output))
    shutil.rmtree(hospital / "two")
    assert "its series is not in" in convert(str(hospital), str(output))
    assert len(listing(output)["training"]) == 2


def test_half_a_conversion_is_no_data_set(hospital, admit, output, monkeypatch):
    admit("one", SEG=LIVER)
    admit("two", SEG=LIVER)
    once = iter([True])
    real = program.write_case

    def stopped(*arguments):
        if next(once, False):
            return real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "write_case", stopped)
    with pytest.raises(KeyboardInterrupt):
        convert(str(hospital), str(output))
    assert len(states(output)) == 2
    with pytest.raises(ValueError, match="names no labelled case"):
        labelled_cases(output)


def test_labels_are_chosen_and_renamed(hospital, admit, output):
    admit("one", SEG={"Liver": (2, 8), "BODY": (1, 16)})
    admit("two", SEG={"LIVER": (2, 8), "spleen": (10, 15)})
    said = convert(str(hospital), str(output), labels=["Liver", "LIVER", "spleen"], dry_run=True)
    assert "nearly the same names: 'Liver' and 'LIVER'" in said and not output.exists()
    convert(str(hospital), str(output), labels={"spleen": "spleen", "liver": ["Liver", "LIVER"]})
    assert listing(output)["labels"] == {"0": "background", "1": "spleen", "2": "liver"}


def test_refused_labels_stop_all_or_are_left_out(hospital, admit, output):
    admit("one", SEG={"liver": (2, 9), "spleen": (10, 15)})
    series = admit("two", SEG=LIVER)
    draw(hospital / "two" / "other.dcm", series, {"spleen": (4, 9)})
    admit("three", SEG=LIVER)
    shutil.rmtree(hospital / "three" / "ct")
    with refused("three/seg.dcm: refers to series", "nothing was written"):
        convert(str(hospital), str(output))
    assert not output.exists()
    shutil.rmtree(hospital / "three")
    with refused("two/seg.dcm: overlap of 'liver' and 'spleen'", "not listed yet"):
        convert(str(hospital), str(output))
    assert listing(output)["training"] == []
    said = convert(str(hospital), str(output), skip_refused=True)
    assert "1 refused" in said and len(listing(output)["training"]) == 1
    before = states(output)
    said = convert(str(hospital), str(output), priority=["spleen", "liver"])
    assert "1 refused" not in said and len(listing(output)["training"]) == 2
    assert before.items() <= states(output).items(), "no overlap there"
    with refused("cases were made from other files or with other options"):
        convert(str(hospital), str(output), priority=["liver", "spleen"])


def test_one_person_for_all_is_said_and_nobody_too(hospital, admit, output, tmp_path):
    def anonymous(_, dataset) -> None:
        dataset.PatientID = "ANON"

    def empty(_, dataset) -> None:
        dataset.PatientID = ""

    for name in ("one", "two"):
        admit(name, change=anonymous, SEG=LIVER)
    said = convert(str(hospital), str(output))
    assert "all 2 cases are of one person; if that is not true, give --subject StudyInstanceUID" in said
    with refused("cases were made from other files or with other options"):
        convert(str(hospital), str(output), subject="StudyInstanceUID")
    convert(str(hospital), str(tmp_path / "by_study"), subject="StudyInstanceUID")
    assert len({case["subject"] for case in labelled_cases(tmp_path / "by_study")}) == 2
    admit("three", change=empty, SEG=LIVER)
    assert "its study counts as a subject" in convert(str(hospital), str(output))


def test_options_are_refused_by_name(hospital, admit, output, reliability):
    admit("one", SEG=BOTH)
    there, here = str(hospital), str(output)
    with refused("option --labels: no structure is called 'Liver'; there are liver") as end:
        convert(there, here, labels=["Liver"])
    reliability("Options", "a structure that no label object has", end.value)
    with refused("option --labels gives liver to several labels"):
        convert(there, here, labels={"a": "liver", "b": ["liver"]})
    with refused("option --labels 7 must be a list of names"):
        convert(there, here, labels=7)
    with refused("option --priority names aorta, and must name labels, which are liver, spleen"):
        convert(there, here, priority="aorta,liver")
    with refused("option --kind 'PNG' must be one of SEG, RTSTRUCT"):
        convert(there, here, kind="PNG")
    with refused("is called 'background', which is no label"):
        convert(there, here, labels={"background": "liver"})
    with refused("lies in the data set"):
        convert(there, there + "/data")
    with refused("does not exist"):
        convert(there + "/none", here)
    with refused("no image series with labels among 1 series and 0 label objects") as end:
        convert(there, here, kind="RTSTRUCT")
    reliability("Data sets", "DICOM series without labels", end.value, hide=r"(?<=series )[\d.]+(?= in)")
    assert not output.exists()


def test_dicom_itself_is_refused_with_the_command(hospital, admit, tmp_path, reliability):
    admit("one", SEG=LIVER)
    with refused("holds DICOM, such as", "python -m mambamim_nets.convert_dicom --dataset_dir") as end:
        planning.plan(str(hospital), str(tmp_path / "new_seg"))
    reliability("Data sets", "a folder of DICOM as a data set", end.value)


def test_the_command_ends_with_a_sentence(hospital, admit, output, monkeypatch, capsys):
    admit("one", SEG=LIVER)
    command = ["convert_dicom", "--dataset_dir", str(hospital), "--output"]
    monkeypatch.setattr(sys, "argv", [*command, str(hospital)])
    with pytest.raises(SystemExit, match=r"^error: --output"):
        program.main()
    monkeypatch.setattr(sys, "argv", [*command, str(output), "--labels", "['liver']"])
    program.main()
    assert "1 cases converted" in capsys.readouterr().out and len(listing(output)["training"]) == 1


# --- the whole way --------------------------------------------------------------------------------


def as_dicom(data, hospital, write) -> None:
    """Write a data set as a hospital has it."""
    names = {int(value): name for value, name in listing(data)["labels"].items() if value != "0"}
    for case in labelled_cases(data):
        image, label = (nib.as_closest_canonical(nib.load(case[key])) for key in ("image", "label"))
        array = np.asarray(image.dataobj).astype(np.int16)
        spacing = [float(edge) for edge in image.header.get_zooms()]
        series = write_volume(hospital / case["case"], array, spacing, case["case"])
        drawn = np.asarray(label.dataobj).astype("uint8")
        write(drawn, series.affine, series, names, hospital / f"{case['case']}.dcm", "x")


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_dicom_seg, write_rtstruct], ids=["SEG", "RTSTRUCT"])
def test_a_phantom_as_dicom_is_converted_planned_trained_and_evaluated(tmp_path, hospital, output, monkeypatch, write):
    data = phantom.write(tmp_path / "phantom", "abdomen", cases=3, shape=(40, 40, 40))
    as_dicom(data, hospital, write)
    convert(str(hospital), str(output))
    by_value = {name: value for value, name in listing(output)["labels"].items()}
    for name, number in {name: value for value, name in listing(data)["labels"].items() if value != "0"}.items():
        assert count(data, int(number)) == count(output, int(by_value[name])), name
    monkeypatch.setattr(planning, "measured_steps", steps_of)
    bundle = tmp_path / "new_seg"
    planning.plan(str(output), str(bundle), size="tiny", workers=1, device="cpu")
    assert set(label_table(bundle)) == set(by_value) - {"background"}
    sides = [min(side, 32) for side in config_of(bundle)["roi_size"]]
    options = {
        "max_epochs": 1,
        "roi_size": sides,
        "crops_per_scan": 1,
        "overlap": 0.0,
        "device": "$torch.device('cpu')",
    }
    for files in (["train"], ["train", "evaluate"]):
        workflow = ConfigWorkflow(
            config_file=[str(bundle / "configs" / f"{name}.json") for name in files],
            workflow_type="train",
            logging_file=False,
            output_dir=str(tmp_path / "out"),
            bundle_root=str(bundle),
            **options,
        )
        workflow.initialize()
        finished(workflow)
    assert (tmp_path / "out" / "eval" / "summary.csv").is_file()


def count(folder, value: int) -> list[int]:
    """Return the number of voxels of a label in the cases of a data set, sorted."""
    return sorted(int((np.asarray(nib.load(case["label"]).dataobj) == value).sum()) for case in labelled_cases(folder))


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_dicom_seg, write_rtstruct], ids=["SEG", "RTSTRUCT"])
def test_a_real_series_comes_back_to_the_voxel_through_a_plan(
    real_data, tmp_path, hospital, output, monkeypatch, write
):
    """JPEG 2000, and no PatientID: de-identification emptied it. The second patient is the first with other numbers."""
    source = real_data("totalsegmentator/ct_dicom")
    image = nib.load(source / "label_btcv13.nii.gz")
    label = np.asarray(image.dataobj).astype("uint8")
    names = {value: f"organ {value:02d}" for value in range(1, 14)}
    for patient in ("one", "two"):
        shutil.copytree(source / "series", hospital / patient / "ct")
    for number, file in enumerate(existing((hospital / "two" / "ct").iterdir())):
        content = pydicom.dcmread(file)
        content.StudyInstanceUID = content.SeriesInstanceUID = "1.2.3"
        content.SOPInstanceUID = content.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
        content.RescaleIntercept = float(content.RescaleIntercept) + 1  # another image, or two cases were one
        content.save_as(file)
    for patient in ("one", "two"):
        (series,) = series_of(hospital / patient / "ct")[0]
        write(label, image.affine, series, names, hospital / patient / "label.dcm", "x")
    convert(str(hospital), str(output))
    assert listing(output)["labels"] == {"0": "background", **{str(value): name for value, name in names.items()}}
    for case in labelled_cases(output):
        made = nib.load(case["label"])
        turn = nib.orientations.io_orientation(np.linalg.inv(made.affine) @ image.affine)
        np.testing.assert_array_equal(np.asarray(made.dataobj), nib.apply_orientation(label, turn))
    monkeypatch.setattr(planning, "measured_steps", steps_of)
    planning.plan(str(output), str(tmp_path / "new_seg"), size="tiny", workers=1, device="cpu")
    fingerprint = json.loads((tmp_path / "new_seg" / "configs" / "fingerprint.json").read_text())
    assert fingerprint["modality"] == {"CT": 2, "other": 0}
