"""The trunk: what is painted into it, and the images that are made of it."""

import numpy as np
import pytest

from mambamim_nets.phantom import body
from mambamim_nets.phantom.pelvis import AMOS_HU

AXES = [np.linspace(-150, 150, 24)] * 3  # mm


@pytest.fixture(scope="module")
def canvas():
    """A coarse trunk down to the hips."""
    return body.paint(np.random.default_rng(0), AXES, 0, values=AMOS_HU, half_side=157, centre=-64, hips=True)


def test_a_trunk_has_the_tissues_of_its_reach(canvas):
    assert canvas.where("liver").any() and canvas.where("cartilage", "urinary bladder", "urine").any()
    above = body.paint(np.random.default_rng(0), AXES, 0)
    assert above.where("liver").any() and "cartilage" not in above.index


def test_ct_is_in_whole_hu_and_mr_is_not_negative(canvas):
    ct, mr = (body.ct_or_mr_image(np.random.default_rng(1), canvas, seed, values=AMOS_HU) for seed in (3, 4))
    assert ct.min() >= -1024 and ct.max() <= 3071 and ct[canvas.where("air")].mean() < -900
    np.testing.assert_array_equal(ct, ct.astype(np.int16))
    assert mr.min() >= 0 and mr.shape == ct.shape and mr[canvas.where("air")].mean() < mr[canvas.where("liver")].mean()


def test_default_amos_data_set_holds_ct_and_mr_like_training_cases():
    seeds = [int(np.random.SeedSequence([0, case]).generate_state(1)[0]) for case in range(10)]
    assert 1 <= sum(body.is_mr(seed) for seed in seeds) <= 4


def test_lesions_have_the_sizes_of_their_decathlon_task():
    counts = set()
    for seed in range(20):
        (tumour,) = body.pancreatic_tumour(np.random.default_rng(seed))
        assert [9 <= path[0][3] <= 14 for path in tumour.paths] == [True]
        (tumours,) = body.liver_tumours(np.random.default_rng(seed))
        assert all(9 <= path[0][3] <= 20 for path in tumours.paths) and "liver" in tumours.only
        counts.add(len(tumours.paths))
    assert counts == {1, 2, 3}
