"""Statistics of a column, and the cells and tables made of them."""

import math

import pytest

from mambamim_nets.bundle.metrics.table import Statistics, markdown_table


def test_statistics_count_finite_values_only():
    found = Statistics.of([1.0, math.nan, 3.0, math.inf, 8.0])
    assert found == pytest.approx((4.0, math.sqrt(13), 3.0, 3))
    assert found.cells == ["4.000000", "3.605551", "3.000000", 3]
    assert found.text(2) == "4.00 ± 3.61 (3.00; 3)"


def test_one_value_has_no_spread_and_none_has_no_mean():
    assert Statistics.of([2.5]).cells == ["2.500000", "nan", "2.500000", 1]
    assert Statistics.of([2.5]).text(1) == "2.5 (2.5; 1)"
    assert Statistics.of([math.nan]).cells == ["nan", "nan", "nan", 0]
    assert Statistics.of([]).text(1) == "- (n 0)"


def test_a_table_in_markdown():
    text = markdown_table(["class", "Dice", "missing"], [["a|b", "0.5", 1], ["mean", "0.6", 2]], right=1)
    assert text.splitlines() == [
        "| class | Dice | missing |",
        "|---|---|---:|",
        "| a\\|b | 0.5 | 1 |",
        "| **mean** | 0.6 | 2 |",
    ]
