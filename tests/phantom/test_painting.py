"""Crops painted on label maps: shapes of the map, HU of no patient, labels of the task, sides that stay."""

import nibabel as nib
import numpy as np
import pytest
from monai.data.utils import set_rnd
from monai.transforms import Compose, RandFlipd, RandGaussianNoised

from mambamim_nets import phantom
from mambamim_nets.bundle.data import painted
from mambamim_nets.bundle.data.painted import PaintedCrops
from mambamim_nets.phantom import KINDS
from mambamim_nets.phantom.painting import NAMES, PRIOR, SHELLS, Anatomy, paint, read_anatomy
from mambamim_nets.phantom.painting import with_surroundings as surrounded

SPACING = 6.0
BTCV = NAMES["btcv"]
KIDNEYS = {1: "right kidney", 2: "left kidney"}


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    """A label map of the 13 BTCV organs, without anything around them."""
    subject = phantom.make("abdomen", 0, spacing=SPACING)
    path = tmp_path_factory.mktemp("organs") / "label.nii.gz"
    nib.save(nib.Nifti1Image(subject.label, subject.affine), path)
    return path


@pytest.fixture(scope="module")
def anatomy(organs):
    return read_anatomy(organs, BTCV, SPACING)


def number(anatomy, name):
    return {text: value for value, text in anatomy.names.items()}[name]


def where(anatomy, name):
    return anatomy.ids == number(anatomy, name)


def blocks(shape=(44, 44, 6)):
    """Two organs apart, of 4 mm voxels."""
    ids = np.zeros(shape, np.uint8)
    ids[2:6, 10:30], ids[34:40, 10:30] = 1, 2
    return Anatomy(ids, {0: "air", 1: "spleen", 2: "liver"}, 4.0)


# --- anatomies ------------------------------------------------------------------------------------


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


def test_values_without_a_name_count_as_unlabelled_and_scaled_values_are_rounded(tmp_path):
    label = np.zeros((8, 8, 3), np.float32)
    label[2:6, 2:6], label[3:5, 3:5] = 2.9999, 200
    nib.save(nib.Nifti1Image(label, np.diag([4.0, 4, 4, 1])), tmp_path / "a.nii")
    made = read_anatomy(tmp_path / "a.nii", {3: "liver"}, 4.0)
    pad = SHELLS
    assert where(made, "liver").sum() == (label == np.float32(2.9999)).sum()
    assert (made.ids[pad + 3 : pad + 5, pad + 3 : pad + 5] == number(made, "between")).all()


def test_names_are_those_that_have_a_prior():
    soft = {"prostate or uterus", "duodenum", "bowel"}
    for names in NAMES.values():
        assert set(names.values()) - set(PRIOR) <= soft
    assert set(BTCV.values()) - {"portal and splenic veins"} <= set(NAMES["amos"].values())
    assert set(BTCV.values()) | set(NAMES["amos"].values()) <= set(NAMES["totalsegmentator"].values())


# --- crops ----------------------------------------------------------------------------------------

SHAPE = (24, 20, 22)


def test_a_seed_is_a_crop(anatomy):
    first, again, other = (paint(anatomy, BTCV, SHAPE, seed) for seed in (5, 5, 6))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1]) and np.abs(first[0] - other[0]).mean() > 10


@pytest.mark.parametrize("style", [0.0, 1.0])
def test_images_are_in_hounsfield_units_and_labels_are_the_tasks(anatomy, style):
    seen = set()
    for seed in range(12):
        image, label = paint(anatomy, KIDNEYS, SHAPE, seed, random_style=style)
        assert image.dtype == np.float32 and label.dtype == np.uint8 and image.shape == label.shape == SHAPE
        assert np.isfinite(image).all() and image.min() > -1700 and image.max() < 2000
        assert image.std() > 20
        seen |= set(np.unique(label).tolist())
    assert seen == {0, 1, 2}


def test_far_outside_is_air():
    small = surrounded(blocks((44, 44, 20)))
    outside = []
    for seed in range(6):
        image, label = paint(small, {1: "spleen"}, (100, 100, 24), seed)
        corners = (slice(None, None, 99), slice(None, None, 99))
        assert not label[corners].any()
        outside.append(image[corners].mean())
    assert np.mean(outside) < -850 and max(outside) < -500


def test_organs_have_contrast(anatomy):
    """In HU style the kidneys are brighter than the fat around them."""
    for seed in range(8):
        image, label = paint(anatomy, {1: "left kidney"}, SHAPE, seed, random_style=0.0)
        if (label > 0).sum() > 20:
            assert np.median(image[label > 0]) > -80


def test_left_stays_left(anatomy):
    sides = []
    for seed in range(20):
        _, label = paint(anatomy, KIDNEYS, (48, 40, 40), seed)
        if all((label == value).sum() > 10 for value in KIDNEYS):
            right, left = (np.argwhere(label == value).mean(0)[0] for value in KIDNEYS)
            sides.append(right - left)
    assert len(sides) >= 12 and min(sides) > 0, "RAS: the right kidney lies at the higher index"


# --- the data set ---------------------------------------------------------------------------------


@pytest.fixture
def crops(organs):
    def make(sources=None, samples=4, transform=None, **options):
        settings = {
            "labels": {name: value for value, name in BTCV.items()},
            "roi_size": [16, 12, 14],
            "spacing": [SPACING] * 3,
            **options,
        }
        sources = sources or [{"path": str(organs), "names": "btcv"}]
        return PaintedCrops(sources, samples=samples, transform=transform or (lambda data: data), **settings)

    return make


def test_crops_have_a_channel_axis_and_every_epoch_paints_new_ones(crops):
    dataset = crops()
    assert len(dataset) == 4
    first, second = ([dataset[i]["label"] for i in range(4)] for _ in range(2))
    assert first[0].shape == (1, 16, 12, 14)
    assert not any(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_crops_and_their_augmentation_are_reproducible(crops):
    """As each epoch is seeded, so that a resumed run draws what an uninterrupted one does."""
    runs = []
    for _ in range(2):
        chance = Compose([RandFlipd(["image", "label"], prob=0.5), RandGaussianNoised("image", prob=0.5)])
        dataset = crops(transform=chance)
        dataset[0]
        set_rnd(dataset, 7)
        runs.append([np.asarray(dataset[i][key]) for i in range(4) for key in ("image", "label")])
    for one, other in zip(*runs, strict=True):
        assert np.array_equal(one, other)


def test_weights_are_shares_of_the_crops(crops, organs, monkeypatch):
    sources = [
        {"path": str(organs), "names": "btcv", "weight": 3.0},
        {"path": str(organs), "names": "amos"},
    ]
    dataset = crops(sources, roi_size=[2, 2, 2]).set_random_state(0)
    assert dataset.weights == pytest.approx([0.75, 0.25])
    drawn = []
    blank = np.zeros((2, 2, 2), np.float32)
    monkeypatch.setattr(painted, "paint", lambda anatomy, *_: drawn.append(anatomy) or (blank, blank))
    for _ in range(400):
        dataset[0]
    share = sum(anatomy is dataset.anatomies[0] for anatomy in drawn) / len(drawn)
    assert share == pytest.approx(0.75, abs=0.07)


@pytest.mark.parametrize(
    ("kind", "spacing"), [("abdomen", 8.0), ("amos", 8.0), ("hepatic_vessel", 8.0), ("ctorg", 9.0), ("brain", 4.0)]
)
def test_phantoms_are_anatomies_too(crops, kind, spacing):
    labels = KINDS[kind].labels
    named = {name: value for value, name in labels.items()}
    settings = {"labels": named, "spacing": [spacing] * 3, "roi_size": [24, 24, 24]}
    dataset = crops([{"phantom": kind, "subjects": 2}], **settings)
    assert len(dataset.anatomies) == 2 and dataset.weights == [0.5, 0.5]
    for anatomy in dataset.anatomies:
        drawn = {name for value, name in anatomy.names.items() if (anatomy.ids == value).any()}
        assert set(labels.values()) - drawn <= {"left adrenal gland", "right adrenal gland"}, "vanish on coarse grids"
    dataset.set_random_state(0)
    found = {value for i in range(6) for value in np.unique(dataset[i % 4]["label"]).tolist()}
    assert found <= {0, *labels} and len(found) > 1 + len(labels) // 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": [1.5, 1.5, 3.0]}, r"spacing \[1\.5, 1\.5, 3\.0\] must be the same on every axis"),
        ({"sources": [{"phantom": "nose"}]}, r"source \{'phantom': 'nose'\} must have .* or 'phantom', one of"),
        ({"sources": [{"folder": "x"}]}, r"source \{'folder': 'x'\} must have 'path' and 'names'"),
        ({"sources": [{"path": "x.nii", "names": "btvc"}]}, r"'names', one of \['amos', 'btcv', 'totalsegmentator'\]"),
        ({"sources": [{"path": "x.nii"}]}, r"source \{'path': 'x\.nii'\} must have 'path' and 'names'"),
    ],
    ids=["spacing", "phantom", "neither", "unknown names", "no names"],
)
def test_refused(crops, options, message):
    with pytest.raises(ValueError, match=message):
        crops(**options)
