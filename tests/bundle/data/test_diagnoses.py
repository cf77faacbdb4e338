"""subjects.csv: what is refused and how it is named, which scans a task takes, and parts that divide by subject."""

import logging
import random
from collections import Counter

import nibabel as nib
import numpy as np
import pytest

from mambamim_nets import bundle as mb
from mambamim_nets import phantom

DIAGNOSES = ("NC", "sMCI", "pMCI", "AD")
TASK = ("NC", "AD")


@pytest.fixture
def table(tmp_path):
    """Return a function that writes subjects.csv with an image of noise for every row, and returns its folder."""

    def write(*rows, columns="subject,image,diagnosis"):
        (tmp_path / "images").mkdir(exist_ok=True)
        for row in rows:
            image = row.split(",")[1]
            if image.endswith(".nii.gz") and "missing" not in image:
                noise = np.random.default_rng(list(image.encode())).random((8, 8, 8), np.float32)
                nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / image)
        (tmp_path / "subjects.csv").write_text("\n".join([columns, *rows]) + "\n")
        return str(tmp_path)

    return write


def made(count, classes=TASK, scans=1):
    """Return cases as `diagnosed` makes them, classes in turn."""
    return [
        {
            "subject": f"s{number:03d}",
            "case": f"s{number:03d}_{scan}",
            "label": [float(number % 2)],
            "diagnosis": classes[number % 2],
        }
        for number in range(count)
        for scan in range(scans)
    ]


def test_a_task_takes_its_diagnoses_and_the_log_counts_the_rest(table, caplog):
    rows = ["a,images/a.nii.gz,AD", "b,images/b.nii.gz,sMCI", "c,images/c.nii.gz,NC", "d,images/d.nii.gz,pMCI"]
    folder = table(*rows, "c,images/e.nii.gz,NC", columns="subject,image,diagnosis")
    with pytest.raises(ValueError, match=r"line 6: subject 'c' is in line 4 too; give each scan"):
        mb.diagnosed(folder, TASK, DIAGNOSES)
    rows = [f"{row},{session}" for session, row in enumerate([*rows, "c,images/e.nii.gz,NC"])]
    folder = table(*rows, columns="subject,image,diagnosis,session")
    with caplog.at_level(logging.INFO, "mambamim_nets"):
        cases = mb.diagnosed(folder, TASK, DIAGNOSES)
    assert [(item["case"], item["label"]) for item in cases] == [("a_0", [1.0]), ("c_2", [0.0]), ("c_4", [0.0])]
    assert "3 scans of 2 subjects (1 AD, 2 NC); left out, of no class of this task: 1 pMCI, 1 sMCI" in caplog.text
    assert [item["label"] for item in mb.diagnosed(folder, ("sMCI", "pMCI"), DIAGNOSES)] == [[0.0], [1.0]]


def test_every_problem_is_named_at_once(table):
    folder = table(
        "a,images/a.nii.gz,AD,train",
        "a,images/b.nii.gz,AD,test",
        "b,images/missing.nii.gz,NC,train",
        "c,images/a.nii.gz,NC,train",
        "d,images/d.nii.gz,MCI,train",
        "e,images/e.nii.gz,NC,",
        "f,images/f.nii.gz,NC,training",
        ",images/g.nii.gz,NC,val",
        columns="subject,image,diagnosis,part",
    )
    with pytest.raises(ValueError, match="8 problems") as caught:
        mb.diagnosed(folder, TASK, DIAGNOSES)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("subjects.csv: 8 problems:")
    for problem in (
        "line 3: subject 'a' is in line 2 too; give each scan of a subject its own session",
        "missing.nii.gz is missing; complete the data, or remove the row",
        "line 5: image images/a.nii.gz is in line 2 too; list every scan once",
        "line 6: diagnosis 'MCI' must be one of NC, sMCI, pMCI, AD; correct or remove the row",
        "line 7 has no part, but other rows have one; fill it in",
        "line 8: part 'training' must be one of train, val, test; correct it",
        "line 9 has no subject; every row needs one",
        "subject 'a' is in parts train (line 2), test (line 3); choose one part for all of its scans",
    ):
        assert sum(problem in line for line in lines) == 1, problem


def test_two_scans_whose_results_would_have_one_name(table, reliability):
    rows = ["a,images/a.nii.gz,AD,1_2", "a_1,images/b.nii.gz,NC,2", "a,images/c.nii.gz,AD,1"]
    folder = table(*rows, columns="subject,image,diagnosis,session")
    with pytest.raises(ValueError, match="line 3: its results would be called 'a_1_2', as those of line 2") as end:
        mb.diagnosed(folder, TASK, DIAGNOSES)
    reliability("Data sets", "subjects.csv: two scans whose subject and session make one name", end.value)


def test_a_link_to_an_image_is_the_same_scan(table, tmp_path):
    folder = table("a,images/a.nii.gz,AD", "b,images/b.nii.gz,NC", "c,link,NC")
    (tmp_path / "link").symlink_to(tmp_path / "images" / "b.nii.gz")
    with pytest.raises(ValueError, match="line 4: image link is in line 3 too"):
        mb.diagnosed(folder, TASK, DIAGNOSES)


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        ("subject;image;diagnosis", ["a;images/a.nii.gz;AD"], "lack .*'subject', 'image', 'diagnosis'.*commas"),
        ("subject,image,group", ["a,images/a.nii.gz,AD"], r"lack \['diagnosis'\]"),
        ("subject,image,diagnosis", [], "has no row"),
        ("subject,image,diagnosis", ["a,images/a.nii.gz,AD"], "no row with the diagnosis NC, which the task needs"),
    ],
    ids=["semicolons", "column", "empty", "class"],
)
def test_tables_that_cannot_be_used(table, columns, rows, message):
    with pytest.raises(ValueError, match=message):
        mb.diagnosed(table(*[row for row in rows if "," in row], columns=columns), TASK, DIAGNOSES)


def test_no_table_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"subjects\.csv does not exist; dataset_dir must hold subjects\.csv"):
        mb.diagnosed(str(tmp_path), TASK, DIAGNOSES)


def test_an_unreadable_image_is_refused_before_training(table, tmp_path):
    folder = table("a,images/a.nii.gz,AD", "b,images/b.nii.gz,NC")
    (tmp_path / "images" / "b.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 problems in 1 of 2 cases:\n.*b\.nii\.gz cannot be read as NIfTI"):
        mb.diagnosed(folder, TASK, DIAGNOSES)


def test_a_table_from_a_spreadsheet_is_read(table, tmp_path):
    folder = table("a,images/a.nii.gz,AD", "b,images/b.nii.gz,NC")
    path = tmp_path / "subjects.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n").replace(b",AD", b", AD "))
    assert [item["diagnosis"] for item in mb.diagnosed(folder, TASK, DIAGNOSES)] == ["AD", "NC"]


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scans", [1, 3])
def test_folds_cover_all_scans_once_and_divide_no_subject(scans):
    cases = made(43, scans=scans)
    tested = Counter()
    for fold in range(5):
        parts = {part: mb.subject_part(cases, fold, part) for part in ("train", "val", "test")}
        subjects = {part: {item["subject"] for item in items} for part, items in parts.items()}
        assert not subjects["train"] & subjects["val"] and not subjects["test"] & (subjects["train"] | subjects["val"])
        assert sum(map(len, parts.values())) == len(cases)
        for items in parts.values():
            positive = np.mean([item["label"][0] for item in items])
            assert abs(positive - 0.5) < 0.1, "both classes in every part, in about their share"
        assert len(subjects["val"]) == pytest.approx(0.2 * (43 - len(subjects["test"])), abs=1)
        tested.update(item["case"] for item in parts["test"])
    assert tested == Counter(item["case"] for item in cases)


def test_folds_do_not_depend_on_the_order_of_the_table():
    cases = made(20)
    mixed = random.Random(0).sample(cases, len(cases))
    for part in ("train", "val", "test"):
        found = [{item["case"] for item in mb.subject_part(order, 2, part)} for order in (cases, mixed)]
        assert found[0] == found[1]


def test_a_subject_that_progressed_stays_in_one_part():
    cases = made(20)
    cases.append({**cases[0], "case": "s000_later", "label": [1.0], "diagnosis": "AD"})
    for fold in range(5):
        homes = [
            part
            for part in ("train", "val", "test")
            if any(item["subject"] == "s000" for item in mb.subject_part(cases, fold, part))
        ]
        assert len(homes) == 1


def test_parts_of_the_table_are_kept_and_a_missing_validation_part_is_drawn_from_training(table):
    rows = [f"s{n:02d},images/{n}.nii.gz,{TASK[n % 2]},{'test' if n < 4 else 'train'}" for n in range(24)]
    folder = table(*rows, columns="subject,image,diagnosis,part")
    assert mb.first_fold(folder) == "official"
    cases = mb.diagnosed(folder, TASK, DIAGNOSES)
    parts = {
        part: {c["subject"] for c in mb.subject_part(cases, "official", part)} for part in ("train", "val", "test")
    }
    assert parts["test"] == {"s00", "s01", "s02", "s03"} and len(parts["val"]) == 4 and len(parts["train"]) == 16
    with pytest.raises(ValueError, match="has parts, so fold 0 is not used; leave --fold out, or remove the column"):
        mb.subject_part(cases, 0, "train")
    for item in cases[:12]:
        item["part"] = "val" if item["part"] == "train" else "test"
    assert len(mb.subject_part(cases, "official", "val")) == 8, "of the table alone where it names some"


@pytest.mark.parametrize(
    ("count", "fold", "part", "message"),
    [
        (20, 5, "train", r"fold 5 must be 0\.\.4"),
        (20, True, "train", r"fold True must be 0\.\.4"),
        (20, "official", "train", "fold 'official' needs a column 'part'"),
        (20, 0, "dev", "part 'dev' must be one of train, val, test"),
        (4, 0, "test", "test part of fold 0 has .* needs subjects of both classes; give at least 5 subjects"),
    ],
)
def test_parts_that_do_not_exist(count, fold, part, message):
    with pytest.raises(ValueError, match=message):
        mb.subject_part(made(count), fold, part)


def test_the_phantom_is_such_a_data_set(tmp_path):
    folder = str(phantom.write(tmp_path / "dementia", "dementia", cases=22, shape=(32, 32, 32)))
    assert mb.first_fold(folder) == 0
    for classes in (TASK, ("sMCI", "pMCI")):
        cases = mb.diagnosed(folder, classes, DIAGNOSES)
        assert len(cases) == (12 if classes == TASK else 10)
        assert {item["case"] for item in mb.subject_part(cases, 0, "test")} < {item["case"] for item in cases}
