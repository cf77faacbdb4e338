"""Which series a label object belongs to, and what of a folder is refused or left out."""

import shutil

import pydicom
import pytest
from convert_dicom.conftest import draw
from dicom_series import repeated

from mambamim_nets.convert_dicom.read import found_in, jobs_of

LIVER, SPLEEN = {"liver": (2, 8)}, {"spleen": (10, 15)}


def matched(hospital, wanted=(), kind=None, subject="PatientID"):
    return jobs_of(found_in(hospital, kind, subject), {name: name for name in wanted})


def edit(path, change) -> None:
    content = pydicom.dcmread(path)
    change(content)
    content.save_as(path)


def in_two_frames(index, content) -> None:
    content.FrameOfReferenceUID = f"1.2.{index % 2}"


def nowhere(content) -> None:
    del content.ReferencedSeriesSequence


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_labels_are_joined_to_the_series_that_they_refer_to(hospital, admit, kind):
    first = admit("one", **{kind: LIVER})
    second = admit("two", **{kind: SPLEEN})
    # where a file lies says nothing
    shutil.move(hospital / "one" / f"{kind.lower()}.dcm", hospital / "two" / "ct" / "of_one.dcm")
    jobs, problems, left_out = matched(hospital)
    assert {job.series.uid: list(job.names) for job in jobs} == {first.uid: ["liver"], second.uid: ["spleen"]}
    assert problems == left_out == []
    assert [job.series.folder for job in jobs] == ["one/ct", "two/ct"]
    assert len({job.case for job in jobs}) == len({job.series.subject for job in jobs}) == 2
    assert all("one" not in job.case and "two" not in job.case for job in jobs), "no names of patients"


def test_series_of_one_person_share_the_subject(hospital, admit):
    admit("one", SEG=LIVER)
    series = admit("two", SEG=LIVER)
    for file in series.files:
        edit(file, lambda content: setattr(content, "PatientID", "one"))
    first, second = matched(hospital)[0]
    assert first.series.subject == second.series.subject and first.case != second.case
    first, second = matched(hospital, subject="StudyInstanceUID")[0]
    assert first.series.subject != second.series.subject


def test_a_series_without_labels_is_left_out_by_name(hospital, admit):
    admit("one", SEG=LIVER)
    admit("two")
    jobs, problems, left_out = matched(hospital)
    assert len(jobs) == 1 and problems == []
    assert len(left_out) == 1 and left_out[0].endswith("in two/ct: no label object refers to it")
    jobs, problems, left_out = matched(hospital, ["spleen"])
    assert jobs == problems == [] and "has none of the labels, but liver" in left_out[0]


def test_several_objects_of_a_series_are_merged_if_their_structures_differ(hospital, admit, reliability):
    series = admit("one", SEG=LIVER, RTSTRUCT=SPLEEN)
    (job,) = matched(hospital)[0]
    assert sorted(job.names) == ["liver", "spleen"] and len(job.labels) == 2
    assert list(matched(hospital, kind="SEG")[0][0].names) == ["liver"]
    draw(hospital / "one" / "again.dcm", series, LIVER | {"aorta": (9, 12)})
    jobs, (problem,), _ = matched(hospital)
    assert jobs == [] and "again.dcm" in problem and "both hold liver of one series; keep one of them" in problem
    reliability("Data sets", "one structure in two DICOM-SEG of a series", ValueError(problem))
    assert [sorted(job.names) for job in matched(hospital, ["aorta"])[0]] == [["aorta"]]
    (hospital / "one" / "again.dcm").unlink()
    draw(hospital / "one" / "rtstruct.dcm", series, LIVER, "RTSTRUCT")
    assert "choose one kind by --kind SEG or --kind RTSTRUCT" in matched(hospital)[1][0]


def test_a_copy_of_a_label_object_is_left_out(hospital, admit):
    admit("one", SEG=LIVER)
    shutil.copy(hospital / "one" / "seg.dcm", hospital / "copy.dcm")
    jobs, problems, left_out = matched(hospital)
    assert len(jobs) == 1 and problems == [] and "a copy of" in left_out[0]


def test_without_a_series_the_frame_of_reference_decides(hospital, admit, reliability):
    admit("one", SEG=LIVER)
    second = admit("two")
    edit(hospital / "one" / "seg.dcm", nowhere)
    (job,), problems, _ = matched(hospital)
    assert job.series.folder == "one/ct" and problems == []
    frame = pydicom.dcmread(next((hospital / "one" / "ct").iterdir())).FrameOfReferenceUID
    for file in second.files:
        edit(file, lambda content: setattr(content, "FrameOfReferenceUID", frame))
    jobs, (problem,), _ = matched(hospital)
    assert jobs == [] and "must belong to exactly one series" in problem
    reliability("Data sets", "a DICOM-SEG that may be of two series", ValueError(problem), hide=r"(?<=series )[\d.]+")


def test_another_frame_of_reference_is_refused(hospital, admit, reliability):
    admit("one", SEG=LIVER)
    admit("two", RTSTRUCT=LIVER)
    edit(hospital / "one" / "seg.dcm", lambda content: setattr(content, "FrameOfReferenceUID", "1.2.3"))

    def moved(content) -> None:
        content.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"

    edit(hospital / "two" / "rtstruct.dcm", moved)
    jobs, problems, left_out = matched(hospital)
    assert jobs == [] and len(problems) == 2
    assert [line.rpartition(": ")[2] for line in left_out] == ["a label object of it is refused"] * 2
    assert all("frame of reference 1.2.3 must be that of its series" in problem for problem in problems)
    reliability(
        "Data sets",
        "a DICOM-SEG in another frame of reference than its series",
        ValueError(problems[0]),
        hide=r"(?<=series )[\d.]+|(?<=, )[\d.]+(?=;)",
    )


def test_a_series_that_is_not_there_is_refused(hospital, admit, reliability):
    admit("one", SEG=LIVER)
    admit("two", SEG=LIVER)
    shutil.rmtree(hospital / "one" / "ct")
    jobs, (problem,), _ = matched(hospital)
    assert len(jobs) == 1 and "seg.dcm: refers to series" in problem and "which is not in the folder" in problem
    reliability(
        "Data sets", "a DICOM-SEG whose series is not in the folder", ValueError(problem), hide=r"(?<=series )[\d.]+"
    )


@pytest.mark.parametrize(
    ("change", "words"), [(repeated, "several slices lie at"), (in_two_frames, "several frames of reference")]
)
def test_a_series_that_cannot_be_read_is_refused_with_its_labels(hospital, admit, change, words):
    series = admit("one", SEG=LIVER)
    for index, file in enumerate(series.files):
        edit(file, lambda content, index=index: change(index, content))
    jobs, (problem,), _ = matched(hospital)
    assert jobs == [] and "seg.dcm: its series" in problem and words in problem


def test_a_series_in_two_folders_is_refused(hospital, admit):
    admit("one", SEG=LIVER)
    shutil.copytree(hospital / "one" / "ct", hospital / "one" / "copy")
    jobs, (problem,), _ = matched(hospital)
    assert jobs == [] and "keep one copy of each series" in problem


def test_a_series_is_not_taken_with_a_part_of_its_labels(hospital, admit):
    admit("one", SEG=LIVER, RTSTRUCT=SPLEEN)
    edit(hospital / "one" / "seg.dcm", lambda content: setattr(content, "FrameOfReferenceUID", "1.2.3"))
    jobs, problems, left_out = matched(hospital)
    assert jobs == [] and len(problems) == 1 and left_out[0].endswith("a label object of it is refused")
    jobs, problems, left_out = matched(hospital, ["spleen"])
    assert [list(job.names) for job in jobs] == [["spleen"]] and problems == [] and "seg.dcm" in left_out[0]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 0.6, 0.9])
def test_a_cut_rtstruct_is_refused(hospital, admit, share):
    admit("one", RTSTRUCT=LIVER | SPLEEN)
    (hospital / "labels").mkdir()
    path = (hospital / "one" / "rtstruct.dcm").rename(hospital / "labels" / "rt.dcm")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    jobs, (problem,), _ = matched(hospital)
    assert jobs == [] and "rt.dcm" in problem and "cannot be read" in problem


def test_broken_label_objects_are_named(hospital, admit):
    admit("one", SEG=LIVER)
    edit(hospital / "one" / "seg.dcm", lambda content: delattr(content, "SegmentSequence"))
    jobs, problems, left_out = matched(hospital)
    assert jobs == [] and "seg.dcm: its header cannot be read" in problems[0] and len(left_out) == 1
