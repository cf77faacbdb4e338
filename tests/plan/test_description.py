"""What a data set says of itself, in the forms of the Decathlon and of nnU-Net, and names where it says nothing."""

import json

import pytest

from mambamim_nets.plan.description import Description, channel_names, named_labels, read_description


def described(folder, **content):
    (folder / "dataset.json").write_text(json.dumps(content))
    return read_description(folder)


def test_the_decathlon_and_nnunet_say_the_same_in_other_words(tmp_path):
    decathlon = described(
        tmp_path,
        name="Liver",
        modality={"0": "CT"},
        labels={"0": "background", "1": "liver", "2": "tumour"},
        licence="CC-BY-SA 4.0",
        training=[],
    )
    assert decathlon == Description("Liver", ("CT",), {"liver": 1, "tumour": 2}, {}, "CC-BY-SA 4.0", "")
    nnunet = described(
        tmp_path,
        name="Liver",
        channel_names={"0": "CT"},
        labels={"background": 0, "liver": 1, "tumour": 2, "ignore": 3},
        file_ending=".nii.gz",
        license="CC-BY-SA 4.0",
    )
    assert nnunet == decathlon
    assert read_description(tmp_path / "nowhere") == Description()


def test_regions_of_nnunet_name_the_labels_that_they_are_written_with(tmp_path):
    found = described(
        tmp_path, labels={"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1, 2], file_ending=".nii"
    )
    assert found.regions == {"whole": [1, 2], "core": [2]}
    assert found.labels == {"whole (1)": 1, "core (2)": 2}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["liver"], r"'labels' \['liver'\] must be"),
        ({"1": "liver", "tumour": "two"}, "must be a name with a whole number"),
        ({"liver": 1, "tumour": 1}, "a name of its own for each value"),
    ],
)
def test_labels_of_no_known_form_are_refused_by_file(tmp_path, labels, words):
    with pytest.raises(ValueError, match=rf"dataset\.json.*{words}"):
        described(tmp_path, labels=labels)


def test_names_are_on_one_line_and_nothing_that_a_configuration_would_evaluate(tmp_path):
    found = described(tmp_path, name="$import os\n" + "x" * 200, modality={"0": "@a#b"}, labels={"1": "%c"})
    assert found.name.startswith("import os x") and len(found.name) == 80
    assert found.channels == ("ab",) and list(found.labels) == ["c"]


def test_labels_without_names_have_those_of_their_layout_or_their_values():
    assert named_labels([1, 6], ["img0001", "img0002"], Description())[0]["liver"] == 6
    names, source = named_labels([1, 99], ["img0001"], Description())
    assert names == {"label 1": 1, "label 99": 99} and "names none" in source
    assert named_labels([1], ["x"], Description(labels={"a": 1})) == ({"a": 1}, "dataset.json")


def test_channels_are_named_by_the_data_set_their_files_or_what_they_are():
    assert channel_names("a.nii", 1, Description(), "CT or MR") == ["CT or MR"]
    assert channel_names("a.nii", 2, Description(), "MR") == ["channel 0", "channel 1"]
    assert channel_names(["x_t1.nii.gz", "x_flair.nii.gz"], 2, Description(), "MR") == ["t1", "flair"]
    assert channel_names("a.nii", 2, Description(channels=("T1", "T2")), "MR") == ["T1", "T2"]
    with pytest.raises(ValueError, match=r"names 1 channels, \['T1'\], and the images have 2"):
        channel_names("a.nii", 2, Description(channels=("T1",)), "MR")


def test_equal_names_of_channels_are_numbered(tmp_path):
    found = described(tmp_path, modality={"0": "MR", "1": "MR", "10": "CT"}, labels={"1": "a"})
    assert found.channels == ("0 MR", "1 MR", "2 CT")
