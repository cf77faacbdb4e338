"""Abdomen, hips, chest and head: what is labelled, how large it is, where it lies and how it looks."""

import numpy as np
import pytest
from phantom_sizes import centres, millilitres
from scipy.ndimage import binary_dilation

from mambamim_nets import phantom
from mambamim_nets.phantom import KINDS
from mambamim_nets.phantom.body import is_mr


@pytest.fixture(scope="module")
def bodies():
    return [phantom.make("abdomen", seed) for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def tall():
    """AMOS-like subjects by seed; 4 and 9 are MR-like."""
    return {seed: phantom.make("amos", seed) for seed in (0, 1, 2, 3, 4, 9)}


@pytest.fixture(scope="module")
def torsos():
    return [phantom.make("ctorg", seed) for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def sick():
    return [phantom.make("kits", seed) for seed in range(6)]


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


def test_default_amos_data_set_holds_ct_and_mr_like_training_cases():
    seeds = [int(np.random.SeedSequence([0, case]).generate_state(1)[0]) for case in range(10)]
    assert 1 <= sum(is_mr(seed) for seed in seeds) <= 4


def test_duodenum_is_bowel_where_it_is_not_labelled(bodies):
    assert "duodenum" not in phantom.tissues("abdomen", 0, 5).names
    assert 13 == max(KINDS["abdomen"].labels) == max(np.unique(body.label).max() for body in bodies)


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
