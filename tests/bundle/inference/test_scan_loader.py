"""Scans are loaded one by one; one that fails is named with its reason, and the others go on."""

import logging

import pytest
import torch
from monai.data import Dataset

from mambamim_nets.bundle.inference.scan_loader import OneByOne, ScanLoader, finish, named_failures


class Engine:
    """As much of an ignite engine as an iteration needs; it fails with what a batch says."""

    def __init__(self):
        self.state = type("State", (), {"batch": None})()

    def _iteration(self, engine, batch):
        if "raises" in batch:
            raise batch["raises"]
        return ["done"]


def load(data):
    if data["name"] == "broken":
        raise ValueError("its header is broken\nmore")
    return {**data, "warnings": ["not for a batch"]}


def loader(*names, **more):
    return ScanLoader(Dataset([{"name": name, **more.get(name, {})} for name in names], load))


def test_what_cannot_be_loaded_is_left_out_and_named():
    scans = loader("a", "broken", "listed", "b", listed={"error": "was broken from the start"})
    scans.finished = frozenset("b")
    assert [batch["name"] for batch in scans] == [["a"]], "b was done by an earlier run"
    assert list(scans.failures) == ["broken", "listed"]
    assert "its header is broken" in scans.failures["broken"] and "\n" not in scans.failures["broken"]
    assert scans.failures["listed"] == "was broken from the start"


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")]
)
def test_memory_that_runs_out_ends_the_work_on_one_scan_and_says_what_helps(error):
    scans, engine = loader("a"), Engine()
    work = OneByOne(scans)
    assert work(engine, {"name": ["a"], "raises": error}) == [] and engine.state.batch == []
    assert scans.failures["a"].startswith("memory ran out") and "--sw_batch_size" in scans.failures["a"]
    assert work(engine, {"name": ["b"]}) == ["done"]


def test_an_evaluation_that_fails_names_its_cases():
    assert named_failures(Engine(), {"case": ["a"]}) == ["done"]
    with pytest.raises(RuntimeError, match="case a: it is broken") as caught:
        named_failures(Engine(), {"case": ["a"], "raises": ValueError("it is broken")})
    assert isinstance(caught.value.__cause__, ValueError)


def test_the_end_says_what_failed_and_what_lacks_a_result(caplog):
    scans = loader("a", "broken", "c")
    assert len(list(scans)) == 2
    scans.incomplete["c"] = "no DICOM-SEG"
    with caplog.at_level(logging.INFO, "mambamim_nets"), pytest.raises(SystemExit) as end:
        finish(scans)
    assert "2 of 3 scans done" in caplog.text
    lines = str(end.value).splitlines()
    assert lines[:3] == ["1 of 3 scans lack a result:", "c: no DICOM-SEG", "1 of 3 scans failed:"]
    assert lines[3].startswith("broken: ")


def test_the_end_is_silent_where_all_is_done(caplog):
    scans = loader("a", "b")
    assert len(list(scans)) == 2
    finish(scans)
