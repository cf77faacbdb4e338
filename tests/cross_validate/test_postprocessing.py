"""Which post-processing is taken, on label maps made by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mambamim_nets.bundle.labels import Targets
from mambamim_nets.cross_validate.postprocessing import MARGIN, Maps, PostProcessing, find_postprocessing

TARGETS = Targets({"liver": 1, "spleen": 2})
CASES = [f"case {number}" for number in range(12)]


def found(make: Callable[[np.ndarray, int], None], cases: int = 12, targets: Targets = TARGETS) -> PostProcessing:
    """Find the post-processing for two organs, boxes of 0.32 and 0.16 ml, which a function spoils."""

    def load(case: str) -> Maps:
        reference = np.zeros((1, 12, 12, 12), np.uint8)
        reference[0, 1:5, 1:5, 1:3], reference[0, 7:11, 7:11, 7:8] = 1, 2
        prediction = reference.copy()
        make(prediction[0], int(case.split()[1]))
        affine = np.diag([1.0, 2.0, 5.0, 1.0])  # a voxel of 0.01 ml
        return Maps(*(MetaTensor(torch.from_numpy(part), affine=affine) for part in (prediction, reference)))

    return find_postprocessing(CASES[:cases], load, targets, {})


def test_what_is_right_is_left_alone():
    result = found(lambda prediction, number: None)
    assert result.options == {"keep_largest": False, "min_volume_ml": None}
    assert result.steps and all(step.difference.mean <= 0 and not step.taken for step in result.steps)


def speck(prediction, number):
    prediction[11, 0, :3] = 1  # a false liver, smaller than a third of the true one


def test_the_largest_part_of_the_label_that_has_specks_is_taken():
    result = found(speck)
    assert result.keep_largest == ["liver"] and result.min_volume_ml == {}
    assert {step.name for step in result.steps if step.taken} == {"largest part of liver"}


def test_specks_of_every_label():
    def both(prediction, number):
        speck(prediction, number)
        prediction[0, 11, :2] = 2

    assert found(both).keep_largest is True


def test_specks_in_one_case_of_many_are_chance():
    result = found(lambda prediction, number: speck(prediction, number) if number == 0 else None)
    assert result.keep_largest is False
    (step,) = (step for step in result.steps if step.name == "largest part of liver")
    assert step.difference.mean >= MARGIN and step.difference.low <= 0 and not step.taken


def test_what_helps_by_less_than_the_margin_is_left_out(monkeypatch):
    monkeypatch.setattr("mambamim_nets.cross_validate.postprocessing.MARGIN", 0.2)
    assert found(speck).keep_largest is False


def test_a_label_in_two_parts_has_its_small_specks_taken_by_volume():
    def parts(prediction, number):
        prediction[1:5, 3, 1:3] = 0  # the liver falls into two parts of which the largest alone is worse
        prediction[11, 0, 0] = prediction[11, 2, 0] = prediction[11, 4, 0] = 1

    result = found(parts)
    assert result.keep_largest is False
    assert result.min_volume_ml == {"liver": pytest.approx(0.032)}, "a tenth of the smallest liver, 0.32 ml"


def test_touching_labels_are_kept_together():
    """Parts of a label that touch another label are right; those far from both are not."""

    def load(case: str) -> Maps:
        reference = np.zeros((1, 12, 12, 12), np.uint8)
        reference[0, 2:4, 2:8, 2:8], reference[0, 4:6, 2:8, 2:8], reference[0, 6:7, 2:8, 2:8] = 1, 2, 1
        prediction = reference.copy()
        prediction[0, 11, 11, 4:12] = 2
        prediction[0, 11, 0, 0:5] = 1
        return Maps(*(MetaTensor(torch.from_numpy(part), affine=np.eye(4)) for part in (prediction, reference)))

    result = find_postprocessing(CASES, load, TARGETS, {})
    assert result.keep_largest == "together"
    assert [step.name for step in result.steps if step.taken] == ["largest part of all labels together"]


def test_a_false_find_where_there_is_none_counts():
    def load(case: str) -> Maps:
        reference = np.zeros((1, 12, 12, 12), np.uint8)
        reference[0, 1:5, 1:5, 1:3] = 1
        if case == "case 0":
            reference[0, 7:11, 7:11, 7:9] = 2  # in this case alone
        prediction = reference.copy()
        prediction[0, 11, 11, 0] = 2
        return Maps(*(MetaTensor(torch.from_numpy(part), affine=np.eye(4)) for part in (prediction, reference)))

    result = find_postprocessing(CASES, load, TARGETS, {})
    assert result.keep_largest == "together" or "spleen" in result.min_volume_ml


def test_regions_are_left_alone():
    regions = Targets({"core": 1, "rim": 2}, {"whole": [1, 2], "core": [1]})
    assert found(speck, targets=regions) == PostProcessing(False, {}, [])
