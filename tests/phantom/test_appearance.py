"""How tissues look: phases of contrast agent, contents of the gut, tables and scanners."""

import numpy as np
import pytest

from mambamim_nets.phantom.anatomies import NAMES, TISSUES
from mambamim_nets.phantom.appearance import HOLLOW, bowel_filling, draw_values, scanned, table_and_arms
from mambamim_nets.phantom.appearance import TISSUES as LOOKS


def rng(seed=0):
    return np.random.default_rng(seed)


def drawn(*names, free=False, count=200):
    """Values of each tissue in many scans, (count, names)."""
    return np.array([[draw_values(rng(seed), list(names), free)[name][0] for name in names] for seed in range(count)])


def test_every_tissue_that_a_map_names_has_a_look():
    for names in (TISSUES, *(table.values() for table in NAMES.values())):
        assert set(names) - set(LOOKS) == set()
    assert set(HOLLOW) <= set(LOOKS)


def test_phases_keep_tissues_together():
    aorta, cava, liver, fat, lung = drawn("aorta", "inferior vena cava", "liver", "fat", "lung").T
    assert aorta.min() > 0 and aorta.max() > 250 and np.percentile(aorta, 10) < 80, "with and without agent"
    assert np.corrcoef(liver, cava)[0, 1] > 0.4 and liver.max() > 100, "of one phase"
    assert fat.max() < -60 and lung.max() < -600


def test_both_kidneys_are_alike():
    right, left, cortex = drawn("right kidney", "left kidney", "cortex").T
    assert np.allclose(right, left) and np.abs(cortex - right).max() < 80
    right, left = drawn("right kidney", "left kidney", free=True).T
    assert np.abs(right - left).max() < 60 and right.std() > 80


def test_free_grey_values_leave_air_and_lung():
    liver, lung, gas = drawn("liver", "lung", "gas", free=True).T
    assert liver.min() < -100 and liver.max() > 200 and lung.max() < -600 and gas.max() < -800


def test_a_lesion_looks_like_a_tumour():
    values = draw_values(rng(), ["liver tumour"], free=False)
    assert values["liver tumour"][0] < 150


@pytest.mark.parametrize("name", HOLLOW)
def test_gas_lies_at_the_front_of_what_is_hollow(name):
    where = np.zeros((20, 20, 20), bool)
    where[3:17, 3:17, 3:17] = True
    inner = np.zeros_like(where)
    inner[4:16, 4:16, 4:16] = True
    waves = rng().standard_normal(where.shape)
    seen, fronts = 0, []
    for seed in range(30):
        for mask, value, texture in bowel_filling(name, where, inner, waves, rng(seed)):
            assert not (mask & ~inner).any() and texture >= 0
            if value < -900 and mask.any():
                seen += 1
                fronts.append(np.argwhere(mask)[:, 1].mean())
    assert seen > 3 and np.mean(fronts) > 10
    assert bowel_filling(name, where, where & False, waves, rng()) == []


def test_a_table_lies_in_the_air_under_the_back():
    image = np.full((60, 60, 4), -1000.0, np.float32)
    image[10:50, 25:50] = 50
    patient = image > 0
    place = np.stack(np.meshgrid(*(4.0 * np.arange(n) for n in image.shape), indexing="ij"))[:2]
    for seed in range(20):
        painted = image.copy()
        table_and_arms(painted, ~patient, place, ((40.0, 196.0), (100.0, 196.0)), rng(seed))
        assert (painted[patient] == 50).all()
        table = (painted != image) & (place[1] < 100)
        assert table.any()


@pytest.mark.parametrize("seed", range(8))
def test_a_scanner_keeps_the_mean_and_adds_noise(seed):
    image = np.full((24, 24, 20), 50.0, np.float32)
    made = scanned(image, 4.0, rng(seed))
    assert made.dtype == np.float32 and made.shape == image.shape
    assert abs(np.median(made) - 50) < 5 and made.std() > 1
    assert np.array_equal(made, scanned(image, 4.0, rng(seed)))


def test_thick_slices_stay_where_they_are():
    """A step from foot to head is blurred, and moved by less than a slice."""
    image = np.zeros((8, 8, 30), np.float32)
    image[..., 15:] = 1000
    for seed in range(20):
        profile = scanned(image, 2.0, rng(seed))[2:6, 2:6].mean((0, 1))
        assert abs(np.interp(500, np.maximum.accumulate(profile), np.arange(30)) - 14.5) < 3
