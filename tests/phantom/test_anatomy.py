"""The abdomen: its organs, how large they are, where they lie and how they look."""

import numpy as np
import pytest
from phantom_sizes import centres, millilitres

from mambamim_nets import phantom
from mambamim_nets.phantom import KINDS


@pytest.fixture(scope="module")
def bodies():
    return [phantom.make("abdomen", seed) for seed in (0, 1, 2)]


def test_abdomen_has_thirteen_organs_of_plausible_size(bodies):
    for body in bodies:
        volume = {name: millilitres(body, value) for value, name in KINDS["abdomen"].labels.items()}
        assert min(volume.values()) > 0.8
        assert max(volume, key=volume.get) == "liver" and 600 < volume["liver"] < 2200
        assert 60 < volume["left kidney"] < 250 and 60 < volume["right kidney"] < 250 and 60 < volume["spleen"] < 400


def test_organs_lie_where_anatomy_has_them(bodies):
    right, front, up = 0, 1, 2
    for body in bodies:
        at = centres(body, "abdomen")
        assert at["liver"][right] > 30 > -30 > at["spleen"][right]
        assert at["right kidney"][right] > 25 > -25 > at["left kidney"][right]
        assert at["right kidney"][up] < at["left kidney"][up]
        assert at["aorta"][right] < at["inferior vena cava"][right]
        assert at["stomach"][right] < 0 < at["gallbladder"][right]
        assert at["gallbladder"][front] > at["right kidney"][front]
        for side in ("right", "left"):
            assert at[f"{side} adrenal gland"][up] > at[f"{side} kidney"][up]
        assert at["oesophagus"][up] > max(position[up] for name, position in at.items() if name != "oesophagus")


def test_ct_values_are_ordered_as_in_the_portal_phase(bodies):
    for image, label, _ in bodies:
        mean = {name: image[label == value].mean() for value, name in KINDS["abdomen"].labels.items()}
        assert image.min() < -950 and np.median(image[:, :, 0][:4]) < -900
        assert mean["gallbladder"] < mean["liver"] < mean["left kidney"]
        assert mean["pancreas"] < mean["spleen"] < mean["aorta"]
        assert 60 < mean["liver"] < 160
        np.testing.assert_array_equal(image, image.astype(np.int16))


def test_duodenum_is_bowel_where_it_is_not_labelled(bodies):
    assert "duodenum" not in phantom.tissues("abdomen", 0, 5).names
    assert 13 == max(KINDS["abdomen"].labels) == max(np.unique(body.label).max() for body in bodies)
