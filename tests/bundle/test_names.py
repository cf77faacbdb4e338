"""Names and paths that a data set gives itself: nothing is written or read outside of the folders meant for it."""

import pytest

from mambamim_nets.bundle.names import case_name, path_inside


@pytest.mark.parametrize("name", ["case_001", "BraTS-GLI-00000-000", "Müller 2", "a.b-c", 7, "x" * 200])
def test_plain_names_stay_as_they_are(name):
    assert case_name(name, "dataset.json") == str(name)


DOTTED = (".", "..", ".hidden", "a.", "a ")
UNPRINTABLE = ("a\0b", "a\nb", "\ud800")
PATHS = ("../evil", "a/b", "/tmp/x", "a\\b")
OTHERS = ("", " ", "x" * 201, "é" * 101, "nul", "COM1", "con.nii", None, True, ["a"])


@pytest.mark.parametrize("name", [*DOTTED, *UNPRINTABLE, *PATHS, *OTHERS])
def test_names_that_cannot_name_files_are_refused(name):
    with pytest.raises(ValueError, match=r"^dataset\.json: case name .* must .*; give the case a plain name"):
        case_name(name, "dataset.json")


def test_a_path_below_the_folder_is_joined_and_links_are_not_followed(tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    assert path_inside(tmp_path, "a/./b/../c.nii", "list") == str(tmp_path / "a" / "c.nii")
    assert path_inside(tmp_path, str(tmp_path / "c.nii"), "list") == str(tmp_path / "c.nii")
    assert path_inside(tmp_path, "link/hosts", "list") == str(tmp_path / "link" / "hosts")


@pytest.mark.parametrize("path", ["../x.nii", "a/../../x.nii", "/etc/hosts", "", ".", "a\0.nii", None, 3, "a/.."])
def test_other_paths_are_refused(tmp_path, path):
    with pytest.raises(ValueError, match=r"^list: path .* must (stay inside|be the name of a file)"):
        path_inside(tmp_path, path, "list")


def test_a_folder_whose_name_only_starts_alike_is_outside(tmp_path):
    with pytest.raises(ValueError, match="must stay inside"):
        path_inside(tmp_path / "data", "../data2/x.nii", "list")
