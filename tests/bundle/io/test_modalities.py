"""Names of image channels."""

import pytest

from mambamim_nets.bundle.io.modalities import channel_of, channel_positions, in_number_order, modality_of, ordered


@pytest.mark.parametrize(("name", "channel"), [("T1w", "t1"), (" t1gd ", "t1ce"), ("t2f", "flair"), ("PET", "pet")])
def test_a_channel_has_one_name(name, channel):
    assert channel_of(name) == channel


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("BraTS2021_00000_t1ce.nii.gz", ("BraTS2021_00000", "t1ce")),
        ("folder/sub-01_FLAIR.nii.gz", ("sub-01", "flair")),
        ("case-t1n.nii", ("case", "t1")),
        ("t1.nii.gz", None),
        ("case_t3.nii.gz", None),
    ],
)
def test_the_modality_that_a_name_ends_in(file, found):
    assert modality_of(file) == found


def test_positions_of_channels_among_names():
    assert channel_positions(["T2w", "T1gd", "FLAIR"], ["flair", "t1ce"], "here") == [2, 1]
    assert channel_positions(["CT"], ["flair", "t1ce"], "here") is None
    with pytest.raises(ValueError, match=r"here \['flair', 'x'\] must name all of the channels .* missing: \['t1ce'\]"):
        channel_positions(["flair", "x"], ["flair", "t1ce"], "here")
    with pytest.raises(ValueError, match="must be named once"):
        channel_positions(["t1", "T1w"], ["t1"], "here")


def test_files_of_a_case_come_in_the_order_of_the_channels():
    files = ["a_t2.nii.gz", "a_t1.nii.gz"]
    assert ordered(files, [], ["t1", "t2"], "here") == files[::-1]
    assert ordered(["0.nii.gz", "1.nii.gz"], ["T2", "T1"], ["t1", "t2"], "here") == ["1.nii.gz", "0.nii.gz"]
    assert ordered(files, [], None, "here") == files


def test_names_by_number():
    assert in_number_order({"1": "b", "0": "a", "10": "c"}) == ["a", "b", "c"]
    assert in_number_order({"x": "a"}) == [] == in_number_order(["a"])
