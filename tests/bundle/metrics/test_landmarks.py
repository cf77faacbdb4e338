"""Tables of landmark errors."""

import numpy as np
import pytest
from helpers import table as rows

from mambamim_nets.bundle.metrics.landmarks import THRESHOLDS, LandmarkCase, LandmarkTable, length_mm

NAMES, LENGTHS = ["a", "b", "c"], {"AB": ["a", "b"]}
TRUTH = np.array([(0.0, 0, 0), (10, 0, 0), (0, 5, 0)])


@pytest.fixture
def table():
    made = LandmarkTable(NAMES, LENGTHS)
    made.add("one", LandmarkCase(TRUTH + np.array((0, 0, 1)), TRUTH, np.ones(3)))
    moved = TRUTH + np.array([(0, 0, 0), (3, 0, 0), (0, 4, 0)])
    made.add("two", LandmarkCase(moved, np.where([[True], [True], [False]], TRUTH, np.nan), np.array((1, 0.5, 0.1))))
    return made


def test_tables_hold_what_was_measured(table, tmp_path):
    text = table.write(tmp_path)
    errors = {(row["case"], row["name"]): float(row["error_mm"]) for row in rows(tmp_path / "metrics.csv")}
    assert errors[("one", "c")] == 1 and errors[("two", "b")] == 3 and np.isnan(errors[("two", "c")])
    lengths = {row["case"]: row for row in rows(tmp_path / "lengths.csv")}
    assert [float(lengths["two"][key]) for key in ("predicted_mm", "reference_mm", "error_mm")] == [13, 10, 3]
    assert float(lengths["one"]["error_mm"]) == 0
    summary = {(row["name"], row["metric"]): row for row in rows(tmp_path / "summary.csv")}
    assert summary[("c", "radial_error_mm")]["n"] == "1", "a missing point is counted nowhere"
    mean = summary[("mean", "radial_error_mm")]
    assert float(mean["mean"]) == pytest.approx((1 + 1.5) / 2)
    assert float(mean["std"]) == pytest.approx(np.std([1, 1.5], ddof=1), abs=1e-6)
    assert float(summary[("AB", "length_error_mm")]["mean"]) == 1.5
    assert "| **mean** | 1.25 ± 0.35 (1.25; 2) | 80 % | 80 % | 100 % |" in text


def test_detection_rates_go_from_0_to_6_mm_in_tenths(table, tmp_path):
    rates = table.detection_rates()
    assert len(THRESHOLDS) == 61 and THRESHOLDS[10] == pytest.approx(1) and list(rates) == [*NAMES, "mean"]
    assert rates["mean"][9] == pytest.approx(0.2) and rates["mean"][10] == pytest.approx(0.8)
    assert rates["b"][29] == 0.5 and rates["b"][30] == 1
    assert all((np.diff(rate) >= 0).all() for rate in rates.values())
    table.write(tmp_path)
    assert [row["threshold_mm"] for row in rows(tmp_path / "sdr.csv")][:3] == ["0.0", "0.1", "0.2"]


def test_what_does_not_fit_is_refused(table):
    with pytest.raises(ValueError, match="no case was added"):
        LandmarkTable(NAMES, LENGTHS).write("nowhere")
    with pytest.raises(ValueError, match=r"case 'x': points \(2, 3\), \(3, 3\) must be \(3, 3\)"):
        table.add("x", LandmarkCase(TRUTH[:2], TRUTH, np.ones(3)))


def test_a_length_is_the_distance_of_its_ends():
    ends = np.array([(1.0, 2, 3), (4, 6, 3)])
    assert length_mm(ends, ["a", "b"], ["b", "a"]) == pytest.approx(5)
