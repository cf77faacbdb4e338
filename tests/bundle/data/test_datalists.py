"""What the readers of data lists share."""

import json

import pytest

from mambamim_nets.bundle.data.datalists import case_names, is_nnunet, keys_of, listed_subjects


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
