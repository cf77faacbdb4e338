"""AUC, threshold measures and intervals, against cases done by hand and against MONAI's own AUC."""

import csv

import numpy as np
import pytest
import torch
from monai.metrics import compute_roc_auc

from mambamim_nets.bundle.metrics.classification import (
    ClassificationTable,
    ClassifiedScan,
    curve,
    measures,
    scores,
    youden,
)


def value(name, probability, label, threshold=0.5, counts=None):
    found = measures(np.array(probability), np.array(label), threshold, counts)[name]
    return found[0] if counts is None else found


@pytest.mark.parametrize(
    ("probability", "label", "auc"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 3 / 4),
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 1.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5], [0, 1, 1], 1 / 2),
        ([0.2, 0.5, 0.5, 0.5, 0.9], [0, 0, 1, 1, 1], (6 - 2 / 2) / 6),
    ],
    ids=["one pair wrong", "perfect", "inverted", "all tied", "two ties"],
)
def test_auc_of_cases_done_by_hand(probability, label, auc):
    assert value("auc", probability, label) == pytest.approx(auc, abs=1e-12)


def test_auc_is_monais_also_with_many_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        label = np.append(rng.integers(0, 2, 40), (0, 1))
        probability = np.round(rng.random(42) + 0.2 * label, 1) / 2
        theirs = compute_roc_auc(torch.tensor(probability), torch.tensor(label))
        assert value("auc", probability, label) == pytest.approx(theirs, abs=1e-12)


def test_measures_at_a_threshold_done_by_hand():
    probability, label = [0.9, 0.5, 0.4, 0.6, 0.1, 0.2, 0.3], [1, 1, 1, 0, 0, 0, 0]
    found = {name: value(name, probability, label) for name in ("accuracy", "f1", "sensitivity", "specificity")}
    # at least 0.5 is positive: TP 2, FN 1, FP 1, TN 3
    assert found == pytest.approx({"accuracy": 5 / 7, "f1": 4 / 6, "sensitivity": 2 / 3, "specificity": 3 / 4})


def test_counts_are_repetitions():
    rng = np.random.default_rng(1)
    label, probability = np.arange(12) % 2, np.round(rng.random(12), 1)
    counts = rng.integers(0, 3, (5, 12)) + (label == 0)
    for row in range(5):
        repeated = [np.repeat(array, counts[row]) for array in (probability, label)]
        for name in ("auc", "accuracy", "f1", "sensitivity", "specificity"):
            expected = value(name, *repeated)
            assert value(name, probability, label, counts=counts)[row] == pytest.approx(expected, nan_ok=True), name


def test_what_is_not_defined_is_nan():
    assert np.isnan(value("auc", [0.2, 0.3], [1, 1])) and np.isnan(value("specificity", [0.2, 0.3], [1, 1]))
    for wrong in (([0.2], [2]), ([np.nan], [1]), ([0.2, 0.3], [1]), ([], [])):
        with pytest.raises(ValueError, match="must be"):
            measures(np.array(wrong[0], float), np.array(wrong[1]), 0.5)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Two normals whose means lie 1 apart: the AUC is 0.760."""
    rng, inside = np.random.default_rng(2), 0
    for draw in range(100):
        label = np.arange(80) % 2
        found = scores(rng.normal(label) / 20 + 0.5, label, [str(n) for n in range(80)], 0.5, resamples=200, seed=draw)
        inside += found["auc"].low <= 0.760 <= found["auc"].high
        assert found["auc"].low <= found["auc"].value <= found["auc"].high
    assert 87 <= inside <= 100


def test_intervals_are_over_subjects_not_scans():
    rng = np.random.default_rng(3)
    label = np.arange(20) % 2
    probability = np.clip(rng.normal(0.4 + 0.2 * label, 0.2), 0, 1)
    alone = scores(probability, label, [str(n) for n in range(20)], 0.5)
    four = [np.repeat(array, 4) for array in (probability, label)]
    same = scores(*four, np.repeat([str(n) for n in range(20)], 4), 0.5)
    apart = scores(*four, [str(n) for n in range(80)], 0.5)

    def width(found):
        return found["auc"].high - found["auc"].low

    for name, interval in alone.items():
        assert same[name] == pytest.approx(interval), "four scans of one subject are no more subjects"
    assert width(apart) < 0.7 * width(alone)
    assert scores(probability, label, [str(n) for n in range(20)], 0.5) == alone, "the same draws again"


@pytest.mark.parametrize(
    ("probability", "label", "threshold"),
    [
        ([0.1, 0.2, 0.7, 0.9], [0, 0, 1, 1], 0.45),
        ([0.1, 0.6, 0.4, 0.9], [0, 0, 1, 1], 0.25),  # 0.25 and 0.75 are equally good and equally near to 0.5
        ([0.8, 0.9, 0.95], [0, 1, 1], 0.85),
        ([0.3, 0.3], [0, 1], 0.5),
    ],
    ids=["between", "first of two", "high", "no difference"],
)
def test_threshold_by_youden(probability, label, threshold):
    assert youden(np.array(probability), np.array(label)) == pytest.approx(threshold)


def test_no_threshold_is_better_than_youdens():
    rng = np.random.default_rng(4)
    for _ in range(20):
        label = np.append(rng.integers(0, 2, 20), (0, 1))
        probability = np.clip(rng.normal(0.4 + 0.2 * label, 0.2), 0, 1)

        def index(threshold, probability=probability, label=label):
            return sum(value(name, probability, label, threshold) for name in ("sensitivity", "specificity"))

        best = index(youden(probability, label))
        assert all(index(threshold) <= best + 1e-12 for threshold in np.linspace(0.001, 0.999, 500) if best > 1)


def test_a_threshold_needs_both_classes():
    with pytest.raises(ValueError, match="needs scans of both classes"):
        youden(np.array([0.2, 0.7]), np.array([1, 1]))


def test_curve_rises_from_nothing_to_everything_and_holds_the_auc():
    rng = np.random.default_rng(5)
    label, probability = np.arange(30) % 2, np.round(rng.random(30), 1)
    false, true = curve(probability, label)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) >= 0).all() and (np.diff(true) >= 0).all()
    assert np.trapezoid(true, false) == pytest.approx(value("auc", probability, label))


def test_tables(tmp_path):
    table = ClassificationTable(["NC", "AD"], 0.5)
    for number in reversed(range(10)):
        label = number % 2
        table.add(f"{number}_M00", ClassifiedScan(str(number), "M00", "CN", label, 0.3 + 0.4 * label))
    text = table.write(tmp_path)
    assert text == (tmp_path / "summary.md").read_text() and "| AUC | 1.000 | 1.000 to 1.000 |" in text
    assert "10 scans of 10 subjects: 5 NC, 5 AD. AD is called at a probability of at least 0.500" in text
    with (tmp_path / "summary.csv").open() as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["auc", "accuracy", "f1", "sensitivity", "specificity"]
    assert rows["f1"]["value"] == "1.000000" and rows["auc"]["scans"] == "10"
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "subject,session,diagnosis,probability,prediction,weights"
    assert lines[1:3] == ["0,M00,CN,0.300000,NC,", "1,M00,CN,0.700000,AD,"], "sorted by scan"
