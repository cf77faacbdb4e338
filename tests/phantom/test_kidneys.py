"""The kind "kits": tumours and cysts of kidneys."""

import pytest
from phantom_sizes import millilitres
from scipy.ndimage import binary_dilation

from mambamim_nets import phantom


@pytest.fixture(scope="module")
def sick():
    return [phantom.make("kits", seed) for seed in range(6)]


def test_kits_masses_sit_on_kidneys(sick):
    for body in sick:
        kidney, tumour, cyst = (body.label == value for value in (1, 2, 3))
        assert (
            0.1 < millilitres(body, 1) / 1000 < 0.5
            and 0.001 < millilitres(body, 2) / 1000 < 0.25
            and 0.0003 < millilitres(body, 3) / 1000 < 0.05
        )
        assert (binary_dilation(kidney, iterations=2) & tumour).any()
        assert (binary_dilation(kidney | tumour, iterations=2) & cyst).any()
    assert len({(body.label == 2).sum() for body in sick}) == len(sick)


def test_kits_masses_are_darker_than_kidneys_and_cysts_like_water(sick):
    for image, label, _ in sick:
        kidney, tumour, cyst = (image[label == value].mean() for value in (1, 2, 3))
        assert kidney > tumour + 40 and tumour > cyst + 20 and abs(cyst - 8) < 40
