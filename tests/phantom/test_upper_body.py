"""The kind "ctorg": from hip to crown."""

import numpy as np
import pytest
from phantom_sizes import centres, millilitres

from mambamim_nets import phantom
from mambamim_nets.phantom import KINDS


@pytest.fixture(scope="module")
def torsos():
    return [phantom.make("ctorg", seed) for seed in (0, 1, 2)]


def test_ctorg_reaches_from_hip_to_crown_with_six_labels_of_plausible_size(torsos):
    ranges = {
        "liver": (600, 2200), "bladder": (25, 450), "lungs": (3000, 7000), "kidneys": (120, 500), "bone": (2000, 4500),
        "brain": (1000, 1800),
    }  # fmt: skip
    assert list(ranges) == list(KINDS["ctorg"].labels.values())
    for body in torsos:
        assert 900 < body.label.shape[2] * body.affine[2, 2] < 1000
        for value, name in KINDS["ctorg"].labels.items():
            low, high = ranges[name]
            assert low < millilitres(body, value) < high, name
        assert not (body.label[:, :, -1] == 6).any(), "the brain is not cut off"


def test_ctorg_organs_lie_where_anatomy_has_them(torsos):
    for body in torsos:
        at = centres(body, "ctorg")
        heights = [at[name][2] for name in ("bladder", "kidneys", "liver", "lungs", "brain")]
        assert (np.diff(heights) > 25).all()
        assert at["liver"][0] > 25 and all(abs(at[name][0]) < 20 for name in ("bladder", "lungs", "kidneys", "brain"))
        for value in (3, 4):  # lungs and kidneys: one on each side, and nothing in the middle
            sides = (np.argwhere(body.label == value) @ body.affine[:3, :3].T + body.affine[:3, 3])[:, 0]
            assert 0.3 < (sides > 0).mean() < 0.7
        spine = body.label[:, :, 20:200] == 5
        assert spine.any((0, 1)).all(), "bone in every slice from hip to neck"


def test_ctorg_values_are_those_of_ct(torsos):
    for image, label, _ in torsos:
        mean = {name: image[label == value].mean() for value, name in KINDS["ctorg"].labels.items()}
        assert mean["lungs"] < -600 and mean["bone"] > 180 and 20 < mean["brain"] < 60 < mean["liver"] < 160
        vessels = image[(label == 3) & (image > -300)]
        assert 0.005 < vessels.size / (label == 3).sum() < 0.2, "vessels belong to the lungs"
        np.testing.assert_array_equal(image, image.astype(np.int16))
