"""Crops painted on label maps: shapes of the map, HU of no patient, labels of the task, sides that stay."""

import numpy as np
import pytest
from painted_maps import BTCV, blocks
from scipy.ndimage import binary_erosion

from mambamim_nets.phantom import painting
from mambamim_nets.phantom.anatomies import Anatomy
from mambamim_nets.phantom.anatomies import with_surroundings as surrounded
from mambamim_nets.phantom.organs import Organ
from mambamim_nets.phantom.painting import IGNORED, paint, target_values

KIDNEYS = {1: "right kidney", 2: "left kidney"}


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


# --- what the labels say --------------------------------------------------------------------------


def named(*names, vocabulary=None):
    ids = np.arange(len(names), dtype=np.uint8).reshape(-1, 1, 1)
    return Anatomy(ids, dict(enumerate(names)), 4.0, None if vocabulary is None else frozenset(vocabulary))


def test_unlabelled_tissue_is_ignored_where_the_map_lacks_an_organ():
    labels = {1: "liver", 2: "pancreas"}
    names = ("air", "liver", "between", "bone")
    assert list(target_values(named(*names, vocabulary={"liver", "bone"}), labels)[:4]) == [0, 1, IGNORED, 0]
    assert list(target_values(named(*names, vocabulary={"liver", "pancreas"}), labels)[:4]) == [0, 1, 0, 0]
    assert list(target_values(named(*names), labels)[:4]) == [0, 1, 0, 0]


def test_a_structure_that_may_be_two_is_ignored_by_tasks_of_one():
    anatomy = named("air", "stomach or duodenum", vocabulary={"stomach or duodenum", "stomach", "duodenum", "liver"})
    assert target_values(anatomy, {3: "stomach"})[1] == IGNORED
    assert target_values(anatomy, {3: "liver"})[1] == 0


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({1: "liver", 2: "right kidney"}, [1, 2, 2]),
        ({1: "liver", 2: "liver tumour", 3: "kidney"}, [2, 3, 3]),
        ({1: "kidney", 2: "tumour", 3: "cyst"}, [0, 2, 3]),
    ],
    ids=["organs", "liver tumours", "kits"],
)
def test_a_lesion_counts_as_itself_or_as_its_organ(labels, values):
    anatomy = named("air", "liver tumour", "right kidney tumour", "right kidney cyst")
    assert list(target_values(anatomy, labels)[1:4]) == values


def test_organs_of_others_change_the_labels(anatomy):
    ball = np.pad(np.ones((5, 5, 5), np.uint8), 2)
    organs = {"liver": [Organ("liver", ball, {1: "liver"})]}
    changed = [
        not np.array_equal(*(paint(anatomy, BTCV, SHAPE, seed, organs=given)[1] for given in (organs, None)))
        for seed in range(6)
    ]
    assert any(changed)
    first, again = (paint(anatomy, BTCV, SHAPE, 3, organs=organs) for _ in range(2))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])


# --- crops of a scan ------------------------------------------------------------------------------


def scanned_body():
    """A body with a scan in which each voxel's HU is 10 times its id: a crop shows whether both moved alike."""
    body = surrounded(blocks((44, 44, 20)))
    return body._replace(scan=(body.ids.astype(np.int16) * 10))


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(painting, "scanned", lambda image, spacing, rng: image)
    monkeypatch.setattr(painting, "_keep_few_slices", lambda image, label, rng: None)
    monkeypatch.setattr(painting, "SCANNED", 1.0)


def test_a_scan_is_deformed_as_its_labels_are(quiet, monkeypatch):
    monkeypatch.setattr(painting, "AS_SCANNED", 1.0)
    body = scanned_body()
    for seed in range(4):
        image, label = paint(body, BTCV, SHAPE, seed)
        assert image.dtype == np.float32 and image.shape == SHAPE
        for number, name in body.names.items():
            inner = binary_erosion(label == target_values(body, BTCV)[number], iterations=2)
            if name in BTCV.values() and inner.any():
                assert np.median(image[inner]) == 10 * number


@pytest.mark.parametrize(("organ", "moves"), [("liver", True), ("stomach", False)])
def test_organs_of_a_scan_but_not_hollow_ones_get_the_hu_of_a_phase(quiet, monkeypatch, organ, moves):
    monkeypatch.setattr(painting, "AS_SCANNED", 0.0)
    monkeypatch.setattr(painting, "draw_values", lambda rng, names, free: dict.fromkeys(names, (777.0, 0.0)))
    ids = np.zeros((12, 12, 12), np.uint8)
    ids[2:-2, 2:-2, 2:-2] = 1
    body = surrounded(Anatomy(ids, {0: "air", 1: organ}, 4.0))
    body = body._replace(scan=np.where(body.ids == 1, 40, -1000).astype(np.int16))
    for seed in range(4):
        image, label = paint(body, {1: organ}, SHAPE, seed)
        inner = binary_erosion(label == 1, iterations=3)
        assert inner.any() and abs(np.median(image[inner]) - (777 if moves else 40)) < 1


def test_three_quarters_of_the_crops_of_a_body_with_a_scan_show_it(monkeypatch):
    drawn = []
    for name in ("_painted", "_deformed_scan"):
        made = getattr(painting, name)
        monkeypatch.setattr(painting, name, lambda *given, name=name, made=made: drawn.append(name) or made(*given))
    for seed in range(40):
        paint(scanned_body(), BTCV, (8, 8, 8), seed)
    assert len(drawn) == 40 and 22 <= drawn.count("_deformed_scan") <= 38
    paint(scanned_body()._replace(scan=None), BTCV, (8, 8, 8), 0)
    assert drawn[-1] == "_painted"
