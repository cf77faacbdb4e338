"""What a configuration asks of its surroundings."""

import json
import logging

import pytest
from monai.bundle import ConfigWorkflow
from torch import nn

from mambamim_nets.bundle.config import announce, bundle_root, callers, flag


def test_the_folder_of_the_bundle_is_found_from_its_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bundle_root() == str(tmp_path), "outside a workflow the working directory"
    file = tmp_path / "mine" / "configs" / "train.json"
    file.parent.mkdir(parents=True)
    content = {"imports": ["$import mambamim_nets.bundle.config as c"], "root": "$c.bundle_root()"}
    file.write_text(json.dumps({**content, "initialize": ["$@root"], "run": []}))
    workflow = ConfigWorkflow(str(file), workflow_type="train", logging_file=False)
    workflow.initialize()
    assert workflow.parser.get_parsed_content("root") == str(tmp_path / "mine")


def test_callers_are_innermost_first():
    names = [frame.f_code.co_name for frame in callers()]
    assert names[0] == "callers" and names.index("test_callers_are_innermost_first") < names.index("pytest_pyfunc_call")


@pytest.mark.parametrize(("value", "wanted"), [(True, True), ("true", True), ("True", True), ("false", False)])
def test_a_switch_may_be_text(value, wanted):
    assert flag(value) is wanted


@pytest.mark.parametrize("value", ["yes", 1, "", None])
def test_a_switch_is_nothing_else(value):
    with pytest.raises(ValueError, match=f"amp {value!r} must be true or false"):
        flag(value, "amp")


def test_an_announcement_shortens_what_is_long(caplog):
    with caplog.at_level(logging.INFO, "mambamim_nets"):
        announce("training", network=nn.Linear(3, 2), cases=list(range(21)), few=[1, 2], name="x" * 30)
    lines = caplog.messages[0].splitlines()
    assert lines[0] == "training"
    assert [line.split() for line in lines[1:4]] == [
        ["network", "Linear,", "0.00", "M", "parameters"],
        ["cases", "21", "items"],
        ["few", "[1,", "2]"],
    ]
    assert lines[4].endswith("x" * 30)
