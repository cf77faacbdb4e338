"""What a run that is stopped says last; stopped programs are in tests/bundles/test_start.py."""

import signal

import pytest
from monai.bundle import ConfigParser

from mambamim_nets.bundle import stops


@pytest.mark.parametrize(
    ("config", "values", "words"),
    [
        ({"checkpoints": 1}, {}, "before its first checkpoint: the same command starts it again"),
        ({"checkpoints": 1}, {"resume": "auto", "last": 1}, "the same command goes on from there"),
        ({"checkpoints": 1}, {"resume": False, "last": 1}, "the same command with --resume true goes on from there"),
        ({"checkpoints": {"every": 0}}, {"last": 1}, "holds it up to where it was last saved: the same command goes"),
        ({"checkpoints": {}}, {"last": 1}, "holds it up to its last whole epoch: the same command goes on from there"),
        ({"checkpoints": 1}, {"eval_dir": "x"}, "stopped the evaluation; its tables are not complete"),
        ({}, {}, "the scans that are done are in"),
    ],
)
def test_the_last_line_of_a_stop(tmp_path, config, values, words):
    if values.get("last"):
        (tmp_path / "checkpoint_last.pt").touch()
    line = stops.last_line("SIGINT", ConfigParser(config), {"output_dir": str(tmp_path), **values})
    assert words in line and line.startswith("SIGINT stopped the ")


def test_signals_of_other_programs_stay_as_they_are():
    before = [signal.getsignal(number) for number in stops.SIGNALS]
    stops.install(ConfigParser({}), {})
    assert [signal.getsignal(number) for number in stops.SIGNALS] == before
