"""What names of structures say."""

import pytest

from mambamim_nets.plan.names import nested_regions, segment_code, sided_pairs, usual_ml


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["right kidney", "left kidney", "liver"], [("left kidney", "right kidney")]),
        (["kidney_left", "kidney_right"], [("kidney_left", "kidney_right")]),
        (["lt adrenal", "rt adrenal"], [("lt adrenal", "rt adrenal")]),
        (["KidneyLeft", "KidneyRight"], [("KidneyLeft", "KidneyRight")]),
        (["femur_l", "femur_r", "hip_l"], [("femur_l", "femur_r")]),
        (["left atrium", "myocardium"], []),
        (["left kidney", "right lung"], []),
        (["left", "right"], []),
        (["lung left upper lobe", "lung right lower lobe"], []),
    ],
)
def test_pairs_are_left_and_right_of_one_structure(names, pairs):
    assert sided_pairs(names) == pairs


@pytest.mark.parametrize(
    ("labels", "regions"),
    [
        (
            {"necrotic/non-enhancing core": 1, "edema": 2, "enhancing tumor": 4},
            {"WT": [1, 2, 4], "TC": [1, 4], "ET": [4]},
        ),
        ({"necrotic core": 1, "oedema": 2, "enhancing tumour": 3}, {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}),
        ({"liver": 1, "tumour": 2}, {"liver with tumour": [1, 2], "tumour": [2]}),
        ({"liver": 1, "spleen": 2}, {}),
        ({"kidney": 1, "tumour": 2, "cyst": 3}, {}),
    ],
)
def test_nesting_is_read_from_names(labels, regions):
    assert nested_regions(labels) == regions


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("spleen", "78961009", None),
        ("right kidney", "64033007", "Right"),
        ("kidney_left", "64033007", "Left"),
        ("Oesophagus", "32849002", None),
        ("left atrium", "82471001", None),
        ("inferior vena cava", "64131007", None),
        ("tumour", "108369006", None),
        ("label 3", None, None),
        ("posterior part of it", None, None),
    ],
)
def test_codes_are_those_whose_meaning_is_the_name(name, code, side):
    pytest.importorskip("pydicom")
    found = segment_code(name)
    assert (found and found["type"][0]) == code
    assert [meaning for *_, meaning in (found or {}).get("modifiers", [])] == ([side] if side else [])


def test_a_lesion_is_no_anatomical_structure():
    pytest.importorskip("pydicom")
    assert segment_code("tumour")["category"][2] == "Morphologically Abnormal Structure"
    assert segment_code("liver")["category"][2] == "Anatomical Structure"


def test_volumes_are_known_of_whole_organs_only():
    assert usual_ml("left kidney") == usual_ml("kidney") == (30, 600)
    assert usual_ml("liver tumour") is None and usual_ml("aorta") is None
