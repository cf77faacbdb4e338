"""The selective scan on the CPU against a loop over the sequence and against a parallel scan."""

import functools
import sys

import pytest
from baselines import parallel_recurrence, reference_recurrence
from harness import compare, footprint, record, record_times, spy
from workloads import Scan

from mambamim_nets.ops.recurrence import naive, on_cpu, parallel


def assert_native(problem):
    """Run once and fail unless the compiled kernels ran."""
    with spy(on_cpu, naive, parallel) as calls:
        problem.run()
    assert calls[on_cpu] and "numba" in sys.modules and not sys.modules["numba"].config.DISABLE_JIT
    assert not calls[naive] and not calls[parallel]


@pytest.mark.parametrize("length", [216, 54])
def test_scan_against_the_reference(benchmark, length):
    problem = Scan(2, 768, length)
    assert_native(problem)
    contenders = {
        "ours": problem.run,
        "reference": functools.partial(problem.run, reference_recurrence),
        "unbind": functools.partial(problem.run, functools.partial(reference_recurrence, unbind=True)),
    }
    times = compare(benchmark, contenders, rounds=7)
    record_times(benchmark, f"scan-{length}", times, "ours", "reference")
    record_times(benchmark, f"scan-{length}-unbind", times, "ours", "unbind")


def test_long_scan_against_a_parallel_scan(benchmark):
    problem = Scan(1, 64, 110592)
    assert_native(problem)
    contenders = {"ours": problem.run, "parallel": functools.partial(problem.run, parallel_recurrence)}
    times = compare(benchmark, contenders)
    record_times(benchmark, "scan-110592", times, "ours", "parallel")


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_scan_memory(benchmark):
    """One process each; the time of this benchmark itself means nothing."""
    measure = functools.partial(footprint, "scan_step", batch=1, channels=64, length=110592)
    ours, parallel_scan = benchmark.pedantic(measure, kwargs={"path": "native"}), measure(path="parallel")
    ratio = ours.above / parallel_scan.above
    record(benchmark, "scan-110592-memory", ours.above, parallel_scan.above, ratio, "MiB")
