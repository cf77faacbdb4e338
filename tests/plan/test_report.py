"""Tables and the picture of a fingerprint."""

import matplotlib.image
import pytest
from plan.conftest import boxes

from mambamim_nets.bundle.data.labelled import labelled_cases
from mambamim_nets.plan.fingerprint import read_cases, read_headers, summarise
from mambamim_nets.plan.report import class_table, fingerprint_picture, fingerprint_table, short


@pytest.fixture
def fingerprint(written):
    cases = labelled_cases(written([boxes(n, [1, 2] if n else [1]) for n in range(3)], {"a": 1, "b": 2}))
    readings = read_cases(cases, read_headers(cases), 1, (0, 1, 2, 3))
    return summarise(cases, readings, ["CT"], {"a": 1, "b": 2, "never": 3})


def test_tables_have_the_numbers(fingerprint):
    assert "| spacing (mm) | 2 x 2 x 2 | 2 x 2 x 2 | 2 x 2 x 2 |" in fingerprint_table(fingerprint)
    rows = class_table(fingerprint).splitlines()
    assert rows[2:] == [
        "| 1 | a | 3 | 0.216 | 0.216 | 0.216 | 1 |",
        "| 2 | b | 2 | 0.216 | 0.216 | 0.216 | 1 |",
        "| 3 | never | 0 | - | - | - | 0 |",
    ]


@pytest.mark.usefixtures("full_pictures")
def test_the_picture_is_drawn_with_a_class_that_is_nowhere(fingerprint, tmp_path):
    picture = matplotlib.image.imread(fingerprint_picture(fingerprint, tmp_path / "docs" / "fingerprint.png"))
    assert picture.shape[1] == 1800 and len({tuple(pixel) for pixel in picture[::5, ::5].reshape(-1, 4)}) > 20


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -175, "a_max": 250, "clip": True},
         "ScaleIntensityRanged -175 250"),
        ([{"_target_": "RandFlipd", "spatial_axis": 1}], "RandFlipd 1"),
        ([1.5, 1.5, 5.0], "[1.5, 1.5, 5.0]"),
    ],
)  # fmt: skip
def test_values_are_short(value, text):
    assert short(value) == text
