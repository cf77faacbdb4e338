"""Data sets with landmarks: where points are found, and what ends a run before it starts."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from mambamim_nets import phantom
from mambamim_nets.bundle.data.datasets import fold_cases
from mambamim_nets.bundle.data.landmarks import landmark_cases, point_names
from mambamim_nets.bundle.io.landmarks import read_table, write_markups, write_table
from mambamim_nets.phantom import fetal

NAMES = list(fetal.POINTS)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return phantom.write(tmp_path_factory.mktemp("heads") / "fetal", "fetal", cases=3, spacing=5)


@pytest.fixture
def copied(heads, tmp_path):
    return shutil.copytree(heads, tmp_path / "heads")


def points_of(cases):
    return {item["case"]: np.array(item["landmarks"]) for item in cases}


def as_markups(folder, frame="LPS"):
    """Turn the table into a .mrk.json of each case, as dataset.json then says."""
    table = read_table(folder / "landmarks.csv")
    listing = json.loads((folder / "dataset.json").read_text())
    for number, entry in enumerate(listing["training"]):
        case = f"phantom_{number:03d}"
        write_markups(folder / "points" / f"{case}.mrk.json", table[case], frame)
        entry |= {"landmarks": f"points/{case}.mrk.json", "subject": f"mother {number // 2}"}
    (folder / "landmarks.csv").unlink()
    (folder / "dataset.json").write_text(json.dumps(listing))
    return listing


def test_lengths_name_the_points():
    assert point_names({"A": ["a", "b"], "B": ["b", "c"]}) == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"length 'A' of \['a', 'a'\] must connect two different points"):
        point_names({"A": ["a", "a"]})


def test_the_phantoms_table_is_found_and_its_points_are_exact(heads):
    cases = landmark_cases(str(heads), NAMES)
    assert [item["case"] for item in cases] == ["phantom_000", "phantom_001", "phantom_002"]
    seed = int(np.random.SeedSequence([0, 1]).generate_state(1)[0])
    expected = list(phantom.landmarks("fetal", seed).values())
    np.testing.assert_allclose(cases[1]["landmarks"], expected, atol=1e-4)


@pytest.mark.parametrize("frame", ["RAS", "LPS"])
def test_markups_of_each_case_say_the_same_as_the_table(heads, copied, frame):
    as_markups(copied, frame)
    cases = landmark_cases(str(copied), NAMES)
    expected = points_of(landmark_cases(str(heads), NAMES))
    for case, points in points_of(cases).items():
        np.testing.assert_allclose(points, expected[case], atol=2e-4)
    assert [item["subject"] for item in cases] == ["mother 0", "mother 0", "mother 1"]


def test_a_table_alone_describes_a_folder_of_images(heads, copied):
    (copied / "dataset.json").unlink()
    shutil.copytree(copied / "imagesTs", copied / "imagesTr", dirs_exist_ok=True)
    cases = landmark_cases(str(copied), NAMES)
    assert len(cases) == 5 and all(item["image"].startswith(str(copied / "imagesTr")) for item in cases)
    kept = [fold_cases(cases, str(copied), fold, "val") for fold in range(5)]
    assert sorted(item["case"] for fold in kept for item in fold) == [item["case"] for item in cases]


def test_official_lists_are_known(copied):
    listing = as_markups(copied)
    listing["validation"] = [listing["training"].pop()]
    (copied / "dataset.json").write_text(json.dumps(listing))
    cases = landmark_cases(str(copied), NAMES)
    assert [item["listed"] for item in cases] == ["training", "training", "validation"]
    assert [item["case"] for item in fold_cases(cases, str(copied), "official", "val")] == ["phantom_002"]


def edit(folder, change):
    """Apply a change to the rows of the table and write it again."""
    path = folder / "landmarks.csv"
    rows = [row for row in (change(row) for row in csv.DictReader(path.open())) if row]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_everything_wrong_with_a_data_set_is_said_at_once(copied):
    def change(row):
        where = (row["case"], row["name"])
        if where == ("phantom_000", "HDV_end"):
            return row | {"name": "HDV_ende"}
        if where == ("phantom_001", "ADV_start"):
            return None
        return row | {"z": "300"} if where == ("phantom_002", "TCD_end") else row

    edit(copied, change)
    image = copied / "imagesTr" / "phantom_001.nii.gz"
    nib.save(nib.Nifti1Image(np.full((32, 32, 32), np.nan, np.float32), np.eye(4)), image)
    with pytest.raises(ValueError, match="4 problems") as caught:
        landmark_cases(str(copied), NAMES)
    first, *lines = str(caught.value).splitlines()
    assert first == "4 problems in 3 of 3 cases:"
    table = f"{copied / 'landmarks.csv'}"
    assert lines[0].startswith(f"{table}: phantom_000: point 'HDV_ende' must be one of")
    assert lines[0].endswith("did you mean 'HDV_end'?")
    assert lines[1].startswith(f"{image}: ") and "voxels are NaN or infinite" in lines[1]
    assert "phantom_001: points ADV_start are missing" in lines[2] and "--allow_missing true" in lines[2]
    assert lines[3].startswith(f"{table}: point 'TCD_end' of phantom_002 at RAS")
    assert lines[3].endswith("correct it") and "phantom_002.nii.gz" in lines[3]


def test_missing_points_may_be_allowed(copied):
    edit(copied, lambda row: row if row["name"] != "ADV_start" else row | {"x": "", "y": "", "z": ""})
    with pytest.raises(ValueError, match="3 problems in 3 of 3 cases"):
        landmark_cases(str(copied), NAMES)
    cases = landmark_cases(str(copied), NAMES, allow_missing=True)
    assert np.isnan(points_of(cases)["phantom_000"]).any(1).tolist() == [name == "ADV_start" for name in NAMES]


def test_points_of_the_wrong_frame_are_recognised(copied):
    """Moved far from the origin, as scanners place a patient; then the signs of x and y decide."""
    table = read_table(copied / "landmarks.csv")
    far = {
        case: {name: place + np.array((200, 150, 0)) for name, place in points.items()}
        for case, points in table.items()
    }
    write_table(copied / "landmarks.csv", far)
    for path in (copied / "imagesTr").iterdir():
        image = nib.load(path)
        moved = image.affine.copy()
        moved[:2, 3] += (200, 150)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), moved), path)
    landmark_cases(str(copied), NAMES)
    edit(copied, lambda row: row | {"frame": "LPS"})
    with pytest.raises(ValueError, match="18 problems in 3 of 3 cases") as caught:
        landmark_cases(str(copied), NAMES)
    assert str(caught.value).count("whether the file means RAS or LPS") == 18


def test_the_check_remembers_and_forgets(copied, tmp_path, caplog):
    cache = str(tmp_path / "cache.json")
    with caplog.at_level("INFO"):
        for _ in range(2):
            landmark_cases(str(copied), NAMES, cache_file=cache)
        edit(copied, lambda row: row | {"z": "300"} if row["name"] == "ADV_end" else row)
        with pytest.raises(ValueError, match="3 problems in 3"):
            landmark_cases(str(copied), NAMES, cache_file=cache)
    assert [line.split(": ")[1] for line in caplog.messages if "known" in line] == [
        f"{read} read, {3 - read} known from an earlier start" for read in (3, 0, 3)
    ]


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ({"training": []}, "no 'training' list"),
        ({"training": [{"label": "a"}]}, "must have an 'image'"),
        ({"training": [{"image": "a.nii.gz"}]}, "must have 'landmarks', a .mrk.json or .csv file"),
        ({"training": [{"image": "a.nii", "landmarks": "a.csv", "case": "x"}] * 2}, "listed more than once: x"),
    ],
    ids=["empty", "no image", "no landmarks", "twice"],
)
def test_lists_that_are_refused(tmp_path, listing, message):
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match=message):
        landmark_cases(str(tmp_path), NAMES)


def test_a_folder_without_a_list_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither dataset\.json nor landmarks\.csv"):
        landmark_cases(str(tmp_path), NAMES)
