"""The kinds "ctorg" and "kits" of the embedded synthetic data: what is labelled, how large it is and where it lies."""

import nibabel as nib
import numpy as np
import pytest

from mambamim_nets import phantom


@pytest.fixture(scope="module")
def torsos():
    return [phantom.make("ctorg", seed) for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def sick():
    return [phantom.make("kits", seed) for seed in range(6)]


def litres(subject, value):
    return (subject.label == value).sum() * abs(np.linalg.det(subject.affine[:3, :3])) / 1e6


def centres(subject, kind):
    """Centroid of every label in RAS mm, by name."""
    return {
        name: nib.affines.apply_affine(subject.affine, np.argwhere(subject.label == value).mean(0))
        for value, name in phantom.LABELS[kind].items()
    }


def test_ctorg_reaches_from_hip_to_crown_with_six_labels_of_plausible_size(torsos):
    ranges = {
        "liver": (0.6, 2.2), "bladder": (0.025, 0.45), "lungs": (3, 7), "kidneys": (0.12, 0.5), "bone": (2, 4.5),
        "brain": (1.0, 1.8),
    }  # fmt: skip
    assert list(ranges) == list(phantom.LABELS["ctorg"].values())
    for body in torsos:
        assert 900 < body.label.shape[2] * body.affine[2, 2] < 1000
        for value, name in phantom.LABELS["ctorg"].items():
            low, high = ranges[name]
            assert low < litres(body, value) < high, name
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
        mean = {name: image[label == value].mean() for value, name in phantom.LABELS["ctorg"].items()}
        assert mean["lungs"] < -600 and mean["bone"] > 180 and 20 < mean["brain"] < 60 < mean["liver"] < 160
        vessels = image[(label == 3) & (image > -300)]
        assert 0.005 < vessels.size / (label == 3).sum() < 0.2, "vessels belong to the lungs"
        np.testing.assert_array_equal(image, image.astype(np.int16))


def test_kits_masses_sit_on_kidneys(sick):
    from scipy.ndimage import binary_dilation

    for body in sick:
        kidney, tumour, cyst = (body.label == value for value in (1, 2, 3))
        assert 0.1 < litres(body, 1) < 0.5 and 0.001 < litres(body, 2) < 0.25 and 0.0003 < litres(body, 3) < 0.05
        assert (binary_dilation(kidney, iterations=2) & tumour).any()
        assert (binary_dilation(kidney | tumour, iterations=2) & cyst).any()
    assert len({(body.label == 2).sum() for body in sick}) == len(sick)


def test_kits_masses_are_darker_than_kidneys_and_cysts_like_water(sick):
    for image, label, _ in sick:
        kidney, tumour, cyst = (image[label == value].mean() for value in (1, 2, 3))
        assert kidney > tumour + 40 and tumour > cyst + 20 and abs(cyst - 8) < 40
