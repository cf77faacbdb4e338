"""What a person should look at: each sentence comes for its reason alone."""

import copy

import pytest

from mambamim_nets.plan.cautions import cautions_of, proposals

CASES = [f"case_{number}" for number in range(6)]
SOUND = {
    "cases": 6,
    "subjects": 6,
    "spacing_mm": {"median": [1.0, 1.0, 2.0]},
    "per_case": {case: {"shape": [300, 300, 100], "spacing": [1.0, 1.0, 2.0]} for case in CASES},
    "modality": {"CT": 6, "other": 0},
    "hu": CASES,
    "not_hu": [],
    "classes": {"liver": {"cases": 6, "missing_in": [], "median_ml": 1500}},
}
FOLDS = [CASES[:2], CASES[2:4], CASES[4:]]


def changed(**parts):
    fingerprint = copy.deepcopy(SOUND)
    for path, value in parts.items():
        *keys, last = path.split("__")
        place = fingerprint
        for key in keys:
            place = place[key]
        place[last] = value
    return fingerprint


def test_nothing_is_said_of_a_sound_data_set():
    assert cautions_of(SOUND, FOLDS, ["CT"]) == []


def test_classes_of_few_cases_or_none():
    few = changed(classes__liver={"cases": 2, "missing_in": CASES[2:], "median_ml": 1500})
    (caution,) = cautions_of(few, FOLDS, ["CT"])
    assert "is in 2 of 6 cases only (case_0, case_1): validation of fold 1, 2 has none of it" in caution
    none = changed(classes__liver={"cases": 0, "missing_in": CASES, "median_ml": 0})
    (caution,) = cautions_of(none, FOLDS, ["CT"])
    assert "has no voxel in any case; it cannot be learnt" in caution


@pytest.mark.parametrize(
    ("parts", "channels", "words"),
    [
        ({"per_case__case_3__shape": [3000, 300, 100]}, ["CT"], "1 of 6 cases shows less than 20 or more than 2500 mm"),
        ({"per_case__case_3__spacing": [1.0, 1.0, 9.0]}, ["CT"], "spacing differs more than 4 times from the median"),
        ({"modality": {"CT": 5, "other": 1}, "not_hu": ["case_5"]}, ["CT"], "channel 'CT' is named CT, and 1 of 6"),
        ({"modality": {"CT": 5, "other": 1}, "not_hu": ["case_5"]}, ["x"], "5 scans look like CT and 1 do not"),
        ({"subjects": 2}, ["CT"], "2 subjects"),
        (
            {"classes__liver__median_ml": 15000},
            ["CT"],
            "a median volume of 15000 ml, and whole ones",
        ),
    ],
)
def test_what_is_unlikely_is_said_with_its_cases(parts, channels, words):
    (caution,) = cautions_of(changed(**parts), FOLDS, channels)
    assert words in caution


def test_voxels_of_exactly_1_mm_are_doubted_only_where_every_case_has_them():
    plain = {"shape": [256, 256, 100], "spacing": [1.0, 1.0, 1.0]}
    every = changed(per_case=dict.fromkeys(CASES, plain), spacing_mm={"median": [1.0, 1.0, 1.0]})
    (caution,) = cautions_of(every, FOLDS, ["CT"])
    assert "a conversion may have lost the spacing" in caution
    assert cautions_of(changed(per_case__case_0=plain), FOLDS, ["CT"]) == []


def test_nested_regions_are_proposed_once_and_not_where_they_are_given():
    labels = {"kidney": 1, "tumour": 2}
    (proposal,) = proposals(labels, None)
    assert """--regions "{'kidney with tumour': [1, 2], 'tumour': [2]}\"""" in proposal
    assert proposals(labels, {"all": [1, 2], "tumour": [2]}) == [] == proposals({"liver": 1, "spleen": 2}, None)
