"""What the readers of data lists share."""

import json
import logging

import pytest
from helpers import write_json

from mambamim_nets.bundle.data.datalists import case_names, compare_labels, is_nnunet, keys_of, listed_subjects


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        ([{"image": "a.nii.gz"}, {"image": "b.nii"}], ["a", "b"]),
        ([{"image": "one/scan.nii.gz"}, {"image": "./two/scan.nii.gz"}], ["one_scan", "two_scan"]),
        ([{"image": "a.nii.gz", "case": "mine"}, {"image": "b.nii.gz"}], ["mine", "b"]),
        ([{"image": ["x_t1.nii.gz", "x_t2.nii.gz"], "label": "labels/x.nii.gz"}], ["x"]),
    ],
    ids=["files", "equal files in folders", "given", "several channels"],
)
def test_cases_are_named_after_their_files_or_as_they_say(entries, names):
    assert case_names(entries) == names


def test_subjects_are_those_of_entries_that_name_both(tmp_path):
    path = tmp_path / "split.json"
    assert listed_subjects(path) == {}, "there is no file"
    for content in ([], {"cases": None}, {"folds": []}):
        path.write_text(json.dumps(content))
        assert listed_subjects(path) == {}
    path.write_text(json.dumps({"cases": [{"case": "a", "subject": 7}, {"case": "b"}, "c"]}))
    assert listed_subjects(path) == {"a": "7"}


def test_an_nnunet_description_is_told_by_its_keys():
    assert is_nnunet({"channel_names": {}, "file_ending": ".nii.gz"})
    assert not is_nnunet({"channel_names": {}}) and not is_nnunet([])
    assert keys_of({"b": 1, "a": 2}) == "keys ['a', 'b']" and keys_of([]) == "a list"


TASK = {"left kidney": 1, "liver": 2}


@pytest.mark.parametrize(
    ("stated", "wrong"),
    [
        ({"0": "background", "1": "Kidney_Left", "2": "LIVER"}, []),
        ({"background": 0, "left kidney": 1, "liver": 2, "spleen": 3}, []),
        ({"kidney": [1, 2], "tumour": [2]}, []),
        (["liver"], []),
        ({"1": "liver", "2": "kidney (left)"}, ["'liver' is 1 there and 2 in", "is 2 there and 1 in"]),
        ({"background": 0, "liver": 1}, ["'liver' is 1 there and 2 in this task"]),
    ],
    ids=["decathlon", "nnunet", "regions", "no names", "swapped", "another number"],
)
def test_a_name_must_have_the_value_that_the_task_gives_it(tmp_path, caplog, stated, wrong):
    path = write_json(tmp_path / "dataset.json", {"labels": stated, "training": []})
    with caplog.at_level(logging.WARNING, "mambamim_nets"):
        if wrong:
            with pytest.raises(ValueError, match="contradict this task") as caught:
                compare_labels(path, TASK)
            assert all(words in str(caught.value) for words in wrong) and str(path) in str(caught.value)
        else:
            compare_labels(path, TASK)
    assert not caplog.records


def test_other_names_for_a_value_are_logged(tmp_path, caplog):
    path = write_json(tmp_path / "dataset.json", {"labels": {"1": "pancreas", "2": "liver"}})
    compare_labels(tmp_path / "none.json", TASK)
    with caplog.at_level(logging.WARNING, "mambamim_nets"):
        compare_labels(path, TASK)
    assert "1 'pancreas' (here 'left kidney'); see that they mean the same" in caplog.text
    assert "liver" not in caplog.text
