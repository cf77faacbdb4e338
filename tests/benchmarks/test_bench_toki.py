"""Token interpolation against the loop over samples, gaps and matrix powers."""

import functools

import pytest
from harness import compare, record_times, spy
from workloads import TokenFill

from mambamim_nets.ops.interpolation import naive


@pytest.mark.parametrize("row", ["toki", "toki-full"])
def test_toki_against_the_loop(benchmark, row):
    fill = TokenFill(batch=4, full=row == "toki-full")
    with spy(naive) as calls:
        fill.run()
    assert not calls[naive]
    times = compare(benchmark, {"ours": fill.run, "looped": functools.partial(fill.run, looped=True)})
    record_times(benchmark, row, times, "ours", "looped")
