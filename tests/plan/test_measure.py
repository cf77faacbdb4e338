"""One real step of the network, in a process of its own."""

import pytest

from mambamim_nets.plan.measure import Network, known_steps, measured_steps
from mambamim_nets.plan.writer import write_files


@pytest.mark.slow
def test_a_real_step_takes_memory_and_time_that_grow_with_the_crops():
    candidates = [((48, 48, 32), 2), ((16, 16, 32), 1)]
    small, large = measured_steps(candidates, Network(2, 3, "tiny", "cpu", {}))
    assert (small.roi, small.crops, large.crops) == ((16, 16, 32), 1, 2), "smallest first"
    assert 20 * 2**20 < small.peak <= large.peak < 4 * 2**30
    assert small.seconds > 0


def test_what_cannot_be_measured_says_why(monkeypatch):
    monkeypatch.setattr("mambamim_nets.plan.measure.sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match="could not be measured on cpu"):
        measured_steps([((32, 32, 32), 1)], Network(1, 2, "tiny", "cpu", {}))


def test_steps_are_known_of_the_same_network_only(tmp_path):
    network = Network(1, 2, "tiny", "cpu", {"a": [1]})
    step = {"roi": [32, 32, 32], "crops": 1, "peak": 5, "seconds": 0.5}
    write_files(tmp_path, {}, {}, {"network": network._asdict(), "measured": [step]})
    assert [tuple(found) for found in known_steps(tmp_path, network)] == [((32, 32, 32), 1, 5, 0.5)]
    assert known_steps(tmp_path, network._replace(size="base")) == []
    assert known_steps(tmp_path / "elsewhere", network) == []
