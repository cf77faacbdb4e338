"""Organs of other patients: read, cached, and placed where a body has its own."""

import json

import nibabel as nib
import numpy as np
import pytest

from mambamim_nets.phantom import organs
from mambamim_nets.phantom.anatomies import Anatomy
from mambamim_nets.phantom.organs import Organ, read_organs, replace_organ

NAMES = {0: "air", 1: "liver", 2: "visceral fat", 3: "bone", 4: "lung"}


@pytest.fixture
def body():
    """A cuboid liver in fat, lung above and a rib through its side, 4 mm."""
    ids = np.full((30, 28, 26), 2, np.uint8)
    ids[..., 20:] = 4
    ids[8:22, 8:20, 6:20] = 1
    ids[20:22, 8:20, 10:12] = 3
    return Anatomy(ids, NAMES, 4.0)


def ball(radius, name="liver", inner=0):
    x, y, z = np.ogrid[-radius : radius + 1, -radius : radius + 1, -radius : radius + 1]
    away = np.sqrt(x**2 + y**2 + z**2)
    ids = np.where(away <= radius, np.where(away < inner, 2, 1), 0).astype(np.uint8)
    return Organ(name, ids, {1: name, 2: f"{name} tumour"})


def write(folder, names, *maps):
    (folder / "manifest.json").write_text(json.dumps({"label_names": names}))
    for number, ids in enumerate(maps):
        nib.save(nib.Nifti1Image(ids, np.diag([4.0, 4, 4, 1])), folder / f"case_{number}.nii.gz")


# --- placing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [5, 9])
def test_an_organ_takes_place_and_size_of_the_one_it_replaces(body, radius):
    made = replace_organ(body, ball(radius), np.random.default_rng(0))
    old, new = (np.argwhere(anatomy.where("liver")) for anatomy in (body, made))
    assert np.abs(old.mean(0) - new.mean(0)).max() < 1.5
    assert new.std(0) == pytest.approx(old.std(0), rel=0.25)
    corner = made.ids[8, 8, 6]
    assert made.names[corner] == "visceral fat", "a ball leaves the corners free"
    assert body.where("liver").sum() == 14 * 12 * 14 - 2 * 12 * 2, "the body given is left as it is"


def test_what_is_left_free_is_filled_from_beside_and_what_is_hard_stays(body):
    made = replace_organ(body, ball(5), np.random.default_rng(0))
    assert np.array_equal(made.where("bone"), body.where("bone"))
    freed = body.where("liver") & ~made.where("liver")
    assert {made.names[value] for value in np.unique(made.ids[freed])} <= {"visceral fat", "lung"}
    assert made.names[made.ids[9, 9, 19]] == "lung", "below lung there is lung"


def test_a_tumour_comes_with_its_organ(body):
    made = replace_organ(body, ball(8, inner=4), np.random.default_rng(0))
    assert made.where("liver tumour").sum() > 50 and "liver tumour" not in body.names.values()


def test_a_body_without_the_organ_stays_as_it_is(body):
    assert replace_organ(body, ball(5, "pancreas"), np.random.default_rng(0)) is body


# --- reading --------------------------------------------------------------------------------------


def test_organs_are_cut_out_and_named(tmp_path):
    ids = np.zeros((20, 18, 16), np.uint8)
    ids[5:12, 6:10, 3:9], ids[7:9, 7:9, 4:6] = 1, 2
    write(tmp_path, {"1": "liver", "2": "tumor"}, ids, np.zeros_like(ids))
    (organ,) = read_organs(tmp_path, 4.0)
    assert organ.name == "liver" and organ.parts == {1: "liver", 2: "liver tumour"}
    assert organ.ids.shape == (11, 8, 10), "two voxels around it; a map without an organ is left out"
    assert (organ.ids == 2).sum() == 8


def test_kidneys_are_two_organs(tmp_path):
    ids = np.zeros((30, 12, 12), np.uint8)
    ids[3:7, 3:9, 3:9], ids[22:28, 3:9, 3:9], ids[24:26, 4:6, 4:6] = 1, 1, 3
    write(tmp_path, {"1": "kidney", "2": "tumor", "3": "cyst"}, ids)
    right, left = read_organs(tmp_path, 4.0)
    assert (right.name, left.name) == ("right kidney", "left kidney"), "RAS: right has the higher index"
    assert right.parts[3] == "right kidney cyst" and (right.ids == 3).sum() == 8 and not (left.ids == 3).any()
    assert (left.ids == 1).sum() == 4 * 6 * 6


def test_resampled_organs_are_kept(tmp_path, monkeypatch):
    maps = tmp_path / "maps"
    maps.mkdir()
    write(maps, {"1": "liver"}, np.pad(np.ones((5, 6, 7), np.uint8), 2))
    first = read_organs(maps, 4.0, tmp_path / "cache")
    monkeypatch.setattr(organs, "resampled", lambda *_: pytest.fail("must not be read again"))
    second = read_organs(maps, 4.0, tmp_path / "cache")
    assert np.array_equal(first[0].ids, second[0].ids) and first[0].name == second[0].name


def test_other_maps_of_the_same_folder_are_read_again(tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir()
    write(maps, {"1": "liver"}, np.pad(np.ones((5, 6, 7), np.uint8), 2))
    read_organs(maps, 4.0, tmp_path / "cache")
    write(maps, {"1": "liver"}, np.pad(np.ones((3, 9, 7), np.uint8), 2))
    (organ,) = read_organs(maps, 4.0, tmp_path / "cache")
    assert (organ.ids > 0).sum() == 3 * 9 * 7


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold label maps"):
        read_organs(tmp_path, 4.0)
