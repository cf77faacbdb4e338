"""What is kept of a run is small and whole; standard errors are those that can be computed by hand."""

import itertools
import math

import pytest

from mambamim_nets.reproduce.plan import Kept
from mambamim_nets.reproduce.results import effect_size, estimate, keep


def crossed(function, pretrain_seeds=1, seeds=1, cases=8):
    """Return function(seed of pre-training, seed, number of the case) for all of them."""
    keys = itertools.product(range(pretrain_seeds), range(seeds), range(cases))
    return {(p, s, (0, f"case{c}")): function(p, s, c) for p, s, c in keys}


def test_a_file_keeps_every_case_and_a_missing_distance(tmp_path):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("case,label,name,dice,hd95_mm,missing\na,1,atrium,0.9,3.25,0\nb,1,atrium,0.0,nan,1\n")
    kept = Kept(tmp_path / "results" / "run.json", ("--fold 0", "images 12"))
    keep(metrics, kept, {"date": "2026-11-27"})
    assert kept.read() == {
        "date": "2026-11-27",
        "settings": ["--fold 0", "images 12"],
        "metrics": ["dice", "hd95_mm"],
        "cases": {"a": {"atrium": [0.9, 3.25]}, "b": {"atrium": [0.0, None]}},
    }
    assert '\n  "b": {"atrium": [0.0, null]}\n' in kept.path.read_text(), "a line for each case, for a readable diff"
    metrics.write_text("case,label,name,dice,hd95_mm,missing\n")
    with pytest.raises(ValueError, match="has no case"):
        keep(metrics, kept, {})


def test_the_standard_error_does_not_depend_on_the_order_of_the_values():
    measured = crossed(lambda p, s, c: float(p * s + c * c), 2, 3, 8)
    backwards = dict(reversed(measured.items()))
    assert estimate(backwards) == estimate(measured)
    assert effect_size(backwards) == effect_size(measured)


@pytest.mark.parametrize("sizes", [(1, 1, 8), (1, 8, 1), (8, 1, 1)], ids=["cases", "seeds", "pretrain_seeds"])
def test_the_standard_error_along_one_axis_is_that_of_a_mean(sizes):
    found = estimate(crossed(lambda p, s, c: float(p + s + c), *sizes))
    assert found.mean == 3.5
    assert found.error == pytest.approx(math.sqrt(63 / 12 / 8), rel=0.05), "s.d. of 0 .. 7 over the root of 8"


def test_seeds_and_cases_both_count():
    found = estimate(crossed(lambda p, s, c: float(p + s + c), 8, 8, 8))
    assert found.error == pytest.approx(math.sqrt(3 * 63 / 12 / 8), rel=0.05), "more runs of one seed are no more seeds"


def test_what_has_no_value_is_left_out():
    partial = crossed(lambda p, s, c: math.nan if c == 0 else 1.0, seeds=2)
    del partial[0, 1, (0, "case3")]
    assert estimate(partial) == pytest.approx((1.0, 0.0))
    assert estimate({}) is None and estimate({(None, 0, (0, "a")): math.nan}) is None
    assert estimate({(None, 0, (0, "a")): 0.5}) == (0.5, None)


def test_the_effect_size_is_of_cases_whose_seeds_are_averaged():
    values = crossed(lambda p, s, c: 1.0 + (c % 2) + (0.5 if s else -0.5), seeds=2)
    assert effect_size(values) == pytest.approx(1.5 / math.sqrt(0.25 * 8 / 7))
    assert effect_size({}) is None and effect_size(crossed(lambda p, s, c: 1.0)) is None
    assert effect_size(crossed(lambda p, s, c: 1.0, cases=1)) is None
