"""The kind "amos": fifteen organs from lung to hip."""

import numpy as np
import pytest
from phantom_sizes import centres, millilitres

from mambamim_nets import phantom
from mambamim_nets.phantom import KINDS


@pytest.fixture(scope="module")
def tall():
    """AMOS-like subjects by seed; 4 and 9 are MR-like."""
    return {seed: phantom.make("amos", seed) for seed in (0, 1, 2, 3, 4, 9)}


def test_amos_has_fifteen_organs_of_plausible_size_from_lung_to_hip(tall):
    ranges = {
        "spleen": (60, 400), "right kidney": (60, 250), "left kidney": (60, 250), "gallbladder": (5, 60),
        "oesophagus": (5, 40), "liver": (600, 2200), "stomach": (100, 600), "aorta": (40, 160),
        "inferior vena cava": (40, 160), "pancreas": (25, 120), "right adrenal gland": (0.8, 6),
        "left adrenal gland": (0.8, 6), "duodenum": (20, 120), "urinary bladder": (25, 450),
        "prostate or uterus": (12, 180),
    }  # fmt: skip
    assert list(ranges) == list(KINDS["amos"].labels.values())
    for body in tall.values():
        assert 380 < body.label.shape[2] * body.affine[2, 2] < 430
        for value, name in KINDS["amos"].labels.items():
            low, high = ranges[name]
            assert low < millilitres(body, value) < high, name


def test_amos_organs_lie_where_anatomy_has_them(tall):
    right, front, up = 0, 1, 2
    for body in tall.values():
        at = centres(body, "amos")
        assert abs(at["urinary bladder"][right]) < 20 and abs(at["prostate or uterus"][right]) < 20
        assert at["urinary bladder"][front] > at["prostate or uterus"][front]
        pelvic = ("urinary bladder", "prostate or uterus")
        assert max(at[name][up] for name in pelvic) + 100 < min(at[n][up] for n in at if n not in pelvic)
        assert at["left kidney"][right] < at["duodenum"][right] < at["liver"][right]
        assert at["duodenum"][up] < at["pancreas"][up] < at["oesophagus"][up]
        aorta = np.flatnonzero((body.label == 8).any((0, 1)))
        fork, kidneys = aorta[0], np.flatnonzero(np.isin(body.label, (2, 3)).any((0, 1)))
        assert fork < kidneys[0] and fork * body.affine[2, 2] > 140  # it ends above the pelvis


def test_every_fifth_amos_subject_is_like_mr_and_the_others_are_in_hu(tall):
    livers = []
    for seed, (image, label, _) in tall.items():
        mean = {name: image[label == value].mean() for value, name in KINDS["amos"].labels.items()}
        np.testing.assert_array_equal(image, image.astype(np.int16))
        if seed % 5 == 4:
            assert image.min() >= 0 and mean["aorta"] < mean["liver"] and mean["pancreas"] > mean["spleen"]
            livers.append(mean["liver"])
        else:
            assert image.min() < -950 and 60 < mean["liver"] < 160 and mean["pancreas"] < mean["aorta"]
    assert max(livers) > 1.5 * min(livers)  # arbitrary units
