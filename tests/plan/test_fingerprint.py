"""What is read of a case, kept between starts, and summed up."""

import json

import nibabel as nib
import numpy as np
import pytest
from helpers import refused
from plan.conftest import boxes

from mambamim_nets.bundle.data.labelled import labelled_cases
from mambamim_nets.plan import fingerprint as module
from mambamim_nets.plan.fingerprint import case_statistics, read_cases, read_headers, summarise


def read(data, cache=None, workers=1, known=(0, 1, 2)):
    cases = labelled_cases(data)
    return cases, read_cases(cases, read_headers(cases), 1, known, workers, cache)


def test_a_case_is_measured_along_the_axes_of_the_network(tmp_path):
    """Voxels stored superior, left, posterior; two parts of class 1, none of class 2."""
    image, label = np.full((10, 20, 30), -1000, np.int16), np.zeros((10, 20, 30), np.uint8)
    image[2:9, 3:15, 4:20] = 50
    label[3:5, 5:10, 5:10], label[7, 12, 12] = 1, 1
    affine = np.array([[0, -2.0, 0, 0], [0, 0, -3.0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    for name, array in (("image", image), ("label", label)):
        made = nib.Nifti1Image(array, affine)
        made.set_sform(affine, code=1)
        nib.save(made, tmp_path / f"{name}.nii.gz")
    item = {"case": "a", "image": str(tmp_path / "image.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    findings, found = case_statistics(item, 1, (0, 1, 2))
    assert findings.problems == []
    assert (found["shape"], found["spacing"], found["cropped"]) == ([20, 30, 10], [2.0, 3.0, 5.0], [12, 16, 7])
    assert found["classes"] == {"1": {"voxels": 51, "ml": 51 * 0.03, "parts": 2, "largest": round(50 / 51, 4)}}
    (channel,) = found["channels"]
    assert channel["lowest"] == -1000 and set(channel["foreground"]) == {50.0}


def test_a_stopped_reading_goes_on_and_a_changed_file_is_read_again(written, tmp_path, monkeypatch):
    data = written([boxes(n, [1, 2]) for n in range(3)], {"a": 1, "b": 2})
    cache, seen = tmp_path / "cache" / "cases.jsonl", []
    real = module.case_statistics
    monkeypatch.setattr(
        module, "case_statistics", lambda item, *rest: (seen.append(item["case"]), real(item, *rest))[1]
    )
    _, first = read(data, cache)
    assert seen == ["case_00", "case_01", "case_02"]
    lines = cache.read_text().splitlines()
    cache.write_text("\n".join([*lines[:2], lines[2][:40]]))  # as a kill leaves it
    assert read(data, cache)[1] == first and seen[3:] == ["case_02"]
    assert read(data, cache)[1] == first and len(seen) == 4
    image, label = boxes(9, [1])
    for part, array in (("images", image), ("labels", label)):
        made = nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0]))
        made.set_sform(made.affine, code=1)
        nib.save(made, data / f"{part}Tr" / "case_01.nii.gz")
    assert "2" not in read(data, cache)[1][1].statistics["classes"] and seen[4:] == ["case_01"]
    read(data, cache, known=(0, 1, 2, 3))
    assert len(seen) == 8, "another rule knows nothing"


@pytest.mark.slow  # processes start, each with its imports
def test_processes_read_what_one_reads(written):
    data = written([boxes(n, [1, 2]) for n in range(3)], {"a": 1, "b": 2})
    assert read(data, workers=2)[1] == read(data)[1]


def test_the_summary_says_what_is_missing_where(written):
    data = written([boxes(0, [1, 2]), boxes(1, [1]), boxes(2, [1])], {"a": 1, "b": 2})
    cases, readings = read(data)
    found = summarise(cases, readings, ["CT"], {"a": 1, "b": 2})
    assert found["classes"]["b"] == {
        "value": 2,
        "cases": 1,
        "missing_in": ["case_01", "case_02"],
        **{key: 27 * 8 / 1000 for key in ("median_ml", "lowest_ml", "highest_ml")},
        "median_parts": 1.0,
        "one_part_share": 1.0,
    }
    assert found["modality"] == {"CT": 3, "other": 0} and found["spacing_mm"]["median"] == [2.0, 2.0, 2.0]
    inside = found["channels"]["CT"]["foreground"]
    assert 20 < inside["percentile_50"] < 60 and inside["percentile_0.5"] < inside["percentile_99.5"]
    json.dumps(found)


@pytest.mark.parametrize("fault", ["cut", "text"])
def test_files_that_cannot_be_read_are_named(written, fault):
    data = written([boxes(n, [1]) for n in range(3)], {"a": 1})
    path = data / "imagesTr" / "case_01.nii.gz"
    path.write_bytes(path.read_bytes()[:2000] if fault == "cut" else b"no image")
    with refused("case_01.nii.gz"):
        read(data)
