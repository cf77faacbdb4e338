"""Differences of cases, drawn by subject, and when a candidate is taken."""

import numpy as np
import pytest

from mambamim_nets.cross_validate.comparison import choose, paired_bootstrap

CASES = [f"case {number}" for number in range(20)]


def scores(mean: float, noise: float = 0.0, seed: int = 0) -> dict[str, float]:
    drawn = np.random.default_rng(seed).normal(0, 1, len(CASES))
    return {case: mean + noise * float(value) for case, value in zip(CASES, drawn - drawn.mean(), strict=True)}


def test_equal_differences_leave_no_doubt():
    found = paired_bootstrap(dict.fromkeys(CASES, 0.25), {})
    assert found.mean == found.low == found.high == 0.25 and found.cases == found.subjects == 20


def test_the_interval_is_that_of_a_mean():
    found = paired_bootstrap(scores(0.1, noise=1.0), {})
    error = np.std(list(scores(0.1, noise=1.0).values())) / np.sqrt(len(CASES))
    assert found.mean == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1 - 1.96 * error, abs=0.05)
    assert found.high == pytest.approx(0.1 + 1.96 * error, abs=0.05)


def test_cases_of_one_person_are_drawn_together():
    """Ten times the same scan is one observation: the interval is as wide as that of the two persons."""
    differences = {**dict.fromkeys(CASES[:10], 1.0), **dict.fromkeys(CASES[10:], -1.0)}
    person = {case: "a" if number < 10 else "b" for number, case in enumerate(CASES)}
    found = paired_bootstrap(differences, person)
    assert (found.low, found.high, found.subjects) == (-1.0, 1.0, 2)
    alone = paired_bootstrap(differences, {})
    assert -0.6 < alone.low < alone.high < 0.6


def test_a_person_with_more_cases_weighs_more():
    found = paired_bootstrap({"1": 1.0, "2": 1.0, "3": 1.0, "4": 0.0}, {"1": "a", "2": "a", "3": "a", "4": "b"})
    assert found.mean == 0.75 and found.subjects == 2


def test_the_same_cases_give_the_same_interval():
    assert paired_bootstrap(scores(0, 1), {}) == paired_bootstrap(scores(0, 1), {})
    with pytest.raises(ValueError, match="at least one case"):
        paired_bootstrap({}, {})


def test_another_is_taken_only_if_it_is_surely_better():
    first = scores(0.80, 0.02)
    better, worse = ({case: value + d for case, value in first.items()} for d in (0.01, -0.01))
    assert choose({"a": first, "b": better}, {}).name == "b"
    assert "better than a" in choose({"a": first, "b": better}, {}).why
    found = choose({"a": first, "b": worse}, {})
    assert found.name == "a" and found.why == "a is better than all others"
    assert found.compared["b"].difference.mean == pytest.approx(-0.01)
    best = {case: value + 0.02 for case, value in first.items()}
    assert choose({"a": first, "b": better, "c": best}, {}).name == "c", "of two better ones the best"


def test_cases_that_cannot_tell_are_said_to_be_so():
    first, other = scores(0.80, 0.05, seed=1), scores(0.802, 0.05, seed=2)
    found = choose({"a": first, "b": other}, {})
    assert found.name == "a" and found.why == "a stays: these cases cannot tell it apart from b"
    assert found.compared["b"].difference.low < 0 < found.compared["b"].difference.high
    assert found.compared["b"].dice > found.compared["a"].dice


def test_more_candidates_need_more_certainty():
    """The interval of one of five is wider than that of one alone."""
    first, other = scores(0.80, 0.05, seed=1), scores(0.82, 0.05, seed=2)
    two = choose({"a": first, "b": other}, {}).compared["b"].difference
    many = choose({"a": first, "b": other, "c": other, "d": other, "e": other}, {}).compared["b"].difference
    assert many.low < two.low < two.high < many.high


def test_one_candidate_and_other_cases():
    assert choose({"a": scores(0.8)}, {}).why == "there is one candidate"
    with pytest.raises(ValueError, match="b and a must have the same cases to be compared; case 0 is of one alone"):
        choose({"a": scores(0.8), "b": {case: 0.8 for case in CASES[1:]}}, {})
