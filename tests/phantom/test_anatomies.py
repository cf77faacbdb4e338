"""Label maps of bodies: how they are read, named and surrounded."""

import json

import nibabel as nib
import numpy as np
import pytest
from painted_maps import BTCV, SPACING, blocks

from mambamim_nets.phantom.anatomies import NAMES, SHELLS, TISSUES, Anatomy, read_anatomy, tissue_of
from mambamim_nets.phantom.anatomies import with_surroundings as surrounded


def number(anatomy, name):
    return {text: value for value, text in anatomy.names.items()}[name]


def where(anatomy, name):
    return anatomy.ids == number(anatomy, name)


def test_organs_keep_their_voxels_and_get_a_body(organs, anatomy):
    label = np.asarray(nib.load(organs).dataobj)
    assert anatomy.ids.dtype == np.uint8 and anatomy.spacing == SPACING and anatomy.names[0] == "air"
    pad = (anatomy.ids.shape[0] - label.shape[0]) // 2
    inner = anatomy.ids[pad:-pad, pad:-pad]
    for value, name in BTCV.items():
        assert np.array_equal(inner == number(anatomy, name), label == value), name
    for name in ("between", "bone", "shell 1", f"shell {SHELLS - 1}"):
        assert where(anatomy, name).any(), name


def test_what_lies_between_organs_and_around_them():
    made = surrounded(blocks())
    pad = SHELLS  # of 4 mm voxels, one per shell
    assert made.names[made.ids[pad + 20, pad + 20, 3]] == "between"
    assert (made.ids[pad + 2 : pad + 6, pad + 10 : pad + 30] == 1).all()
    ray = [made.names[value] for value in made.ids[: pad + 3, pad + 20, 3]]  # from outside to the first organ
    shells = [f"shell {k}" for k in range(SHELLS) for _ in range(ray.count(f"shell {k}"))]
    assert ray[::-1][:1] == ["spleen"] and ray[::-1][1 : 1 + len(shells)] == shells
    assert ray[: -1 - len(shells)] == ["air"] * (len(ray) - 1 - len(shells))
    assert set(shells) == {f"shell {k}" for k in range(1, SHELLS)}, "4 mm away is the second shell"
    assert "bone" in made.names.values() and not where(made, "bone").any(), "no aorta, no spine"


def test_a_spine_is_added_behind_an_aorta_where_no_bone_is():
    ids = np.zeros((40, 40, 4), np.uint8)
    ids[18:22, 25:29] = 1
    made = surrounded(Anatomy(ids, {0: "air", 1: "aorta"}, 4.0))
    spine, aorta = (np.argwhere(where(made, name)).mean(0) for name in ("bone", "aorta"))
    assert spine[1] < aorta[1] - 4, "to the back"
    assert spine[0] > aorta[0], "the aorta lies left of the spine"
    ids[2:4, 2:4] = 2
    made = surrounded(Anatomy(ids, {0: "air", 1: "aorta", 2: "bone"}, 4.0))
    assert where(made, "bone").sum() == (ids == 2).sum(), "a labelled spine is enough"


def test_degenerate_slices():
    ids = np.zeros((8, 9, 4), np.uint8)
    ids[3, 4, 0] = ids[2:6, 5, 1] = 1  # a point, a line, nothing, a plane
    ids[2:5, 3:7, 3] = 1
    made = surrounded(Anatomy(ids, {0: "air", 1: "liver"}, 8.0))
    assert (where(made, "liver").sum((0, 1)) == (ids == 1).sum((0, 1))).all()


@pytest.mark.parametrize("axcodes", ["LPS", "PIR", "SAL"])
def test_how_a_file_is_stored_does_not_matter(organs, anatomy, tmp_path, axcodes):
    image = nib.load(organs)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axcodes))
    )
    nib.save(image.as_reoriented(turn), tmp_path / "other.nii.gz")
    other = read_anatomy(tmp_path / "other.nii.gz", BTCV, SPACING)
    assert other.names == anatomy.names and np.array_equal(other.ids, anatomy.ids)


def test_reading_resamples_anisotropic_voxels(tmp_path):
    label = np.random.default_rng(0).integers(0, 3, (10, 12, 4)).astype(np.uint8)
    nib.save(nib.Nifti1Image(label, np.diag([2.0, 2.0, 6.0, 1])), tmp_path / "a.nii")
    made = read_anatomy(tmp_path / "a.nii", {1: "liver", 2: "spleen"}, 4.0)
    pad = SHELLS
    inner = made.ids[pad:-pad, pad:-pad]
    assert inner.shape == (5, 6, 6)
    taken = label[1::2, 1::2][..., [0, 1, 1, 2, 3, 3]]  # the voxel that holds each new centre
    assert np.array_equal(inner == number(made, "liver"), taken == 1)
    assert np.array_equal(inner == number(made, "spleen"), taken == 2)


def test_a_scan_lies_on_the_grid_of_its_label_map(tmp_path):
    label = np.ones((8, 6, 4), np.uint8)
    hu = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None] * 100, label.shape)
    affine = np.diag([2.0, 2.0, 4.0, 1])
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "label.nii")
    for name, turned in (("scan.nii", affine), ("moved.nii", np.diag([2.0, 2.0, 4.1, 1]))):
        nib.save(nib.Nifti1Image(np.ascontiguousarray(hu), turned), tmp_path / name)
    made = read_anatomy(tmp_path / "label.nii", {1: "liver"}, 4.0, tmp_path / "scan.nii")
    assert made.scan.shape == made.ids.shape and made.scan.dtype == np.int16
    assert made.scan[SHELLS:-SHELLS, SHELLS, 0].tolist() == [50, 250, 450, 650], "means of two voxels of 2 mm"
    assert (made.scan[:SHELLS] == -1000).all(), "air around"
    with pytest.raises(ValueError, match=r"moved\.nii must lie on the grid of .*label\.nii"):
        read_anatomy(tmp_path / "label.nii", {1: "liver"}, 4.0, tmp_path / "moved.nii")


def test_values_without_a_name_count_as_unlabelled_and_scaled_values_are_rounded(tmp_path):
    label = np.zeros((8, 8, 3), np.float32)
    label[2:6, 2:6], label[3:5, 3:5] = 2.9999, 200
    nib.save(nib.Nifti1Image(label, np.diag([4.0, 4, 4, 1])), tmp_path / "a.nii")
    made = read_anatomy(tmp_path / "a.nii", {3: "liver"}, 4.0)
    pad = SHELLS
    assert where(made, "liver").sum() == (label == np.float32(2.9999)).sum()
    assert (made.ids[pad + 3 : pad + 5, pad + 3 : pad + 5] == number(made, "between")).all()


def test_the_names_of_all_maps_agree():
    assert set(BTCV.values()) - {"portal and splenic veins"} <= set(NAMES["amos"].values())
    assert set(BTCV.values()) | set(NAMES["amos"].values()) <= set(NAMES["totalsegmentator"].values())
    assert set(NAMES["totalsegmentator"].values()) <= set(TISSUES) | {"bone", "muscle"}
    assert (NAMES["totalsegmentator"][116], NAMES["totalsegmentator"][117]) == ("bone", "cartilage"), "of the ribs"


@pytest.mark.parametrize(
    ("structure", "tissue"),
    [
        ("kidney_left", "left kidney"),
        ("right_kidney", "right kidney"),
        ("portal_vein_and_splenic_vein", "portal and splenic veins"),
        ("splenic_vein", "portal and splenic veins"),
        ("splenic_artery", "great vessel"),
        ("lung_upper_lobe_left", "lung"),
        ("vertebrae_L1", "bone"),
        ("hip_left", "bone"),
        ("left_iliacus_muscle", "muscle"),
        ("costal_cartilages", "cartilage"),
        ("stomach_and_duodenum", "stomach or duodenum"),
        ("small_bowel", "bowel"),
        ("thyroid_gland", "soft tissue"),
    ],
)
def test_structures_of_other_vocabularies(structure, tissue):
    assert tissue_of(structure) == tissue


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture
def torso(tmp_path):
    """A folder with one map: spleen, bowel and a rib with muscle on it, 4 mm, named as TotalSegmentator does."""
    ids = np.zeros((30, 24, 6), np.uint8)
    ids[8:12, 8:16], ids[18:22, 8:16] = 1, 2
    ids[26:28, 8:16], ids[2:4, 8:16] = 3, 4
    nib.save(nib.Nifti1Image(ids, np.diag([4.0, 4, 4, 1])), tmp_path / "body.nii.gz")
    names = {"1": "spleen", "2": "small_bowel", "3": "rib_left_1", "4": "autochthon_left"}
    (tmp_path / "manifest.json").write_text(json.dumps({"label_names": names}))
    return tmp_path


def test_a_folder_names_its_own_labels(torso):
    made = read_anatomy(torso, None, 4.0)
    assert {"spleen", "bowel", "bone", "muscle"} <= set(made.names.values())
    assert made.vocabulary == {"spleen", "bowel", "bone", "muscle"}
    assert where(made, "spleen").sum() == 4 * 8 * 6


def test_a_map_with_bowel_and_muscle_has_a_belly_and_flanks(torso):
    made = read_anatomy(torso, None, 4.0)
    middle = SHELLS + 12
    assert made.names[made.ids[SHELLS + 15, middle, 3]] == "visceral fat", "between spleen and bowel"
    assert made.names[made.ids[SHELLS + 24, middle, 3]] == "flank", "between bowel and rib"
    assert not where(made, "between").any()


def test_a_colour_table_names_labels_too(torso):
    (torso / "manifest.json").unlink()
    (torso / "colours.ctbl").write_text("# Color\n1 spleen 0 0 0 255\n2 stomach_and_duodenum 0 0 0 255\n")
    made = read_anatomy(torso, None, 4.0)
    assert where(made, "stomach or duodenum").sum() == 4 * 8 * 6
    assert {"stomach", "duodenum"} <= made.vocabulary, "it has them, though not apart"


def test_folders_that_are_refused(torso):
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), torso / "other.nii")
    with pytest.raises(ValueError, match=r"must hold one label map of a body, has 2 NIfTI files"):
        read_anatomy(torso, None, 4.0)
    (torso / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must have label_names in a manifest\.json, or a colour table"):
        read_anatomy(torso, None, 4.0)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["totalseg_s0327", "totalseg_s0328"])
def test_real_torsos_have_the_organs_of_btcv(real_data, folder):
    made = read_anatomy(real_data(f"label_maps/{folder}"), None, 6.0)
    for name in BTCV.values():
        assert where(made, name).any(), name
    right, left = (np.argwhere(where(made, f"{side} kidney")).mean(0)[0] for side in ("right", "left"))
    assert right > left, "RAS"
    assert where(made, "visceral fat").any() and where(made, "flank").any()
