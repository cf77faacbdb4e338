"""Text of bundles, what they are made from, and packaging that asks for what only a person knows."""

import json
import shutil
import subprocess
import sys
import tomllib

import pytest
from helpers import REPOSITORY

import mambamim_nets
from mambamim_nets.plan.rules import Decision
from mambamim_nets.plan.writer import task_block, template


def test_a_task_block_is_json_that_reads_as_the_bundles_do():
    long = {
        "_target_": "ScaleIntensityRanged",
        "keys": "image",
        "a_min": -175,
        "a_max": 250,
        "b_min": 0.0,
        "b_max": 1.0,
    }
    text = task_block({"labels": Decision({"a": 1}, "#1 of @all, $5"), "intensity": Decision(long, "")})
    content = json.loads(text.rstrip().rstrip(",") + "}")
    assert content["labels"] == {"a": 1} and content["intensity"] == long
    assert content["labels_why"] == "no. 1 of @all, $5", "no character that MONAI would evaluate"
    assert '    "labels": {"a": 1},\n' in text and '        "a_min": -175,\n' in text


def test_the_wheel_carries_the_configurations_that_a_checkout_has(tmp_path, monkeypatch):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert template() == REPOSITORY / "bundles" / "btcv_seg"
    for source, target in included.items():
        kind = shutil.copytree if (REPOSITORY / source).is_dir() else shutil.copy
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        kind(REPOSITORY / source, tmp_path / target)
    monkeypatch.setattr(mambamim_nets, "__file__", str(tmp_path / "mambamim_nets" / "__init__.py"))
    assert template() == tmp_path / "mambamim_nets" / "plan" / "template"
    assert (template() / "configs" / "networks" / "nnmamba.json").is_file() and (template() / "LICENSE").is_file()
    monkeypatch.setattr(mambamim_nets, "__file__", str(tmp_path / "elsewhere" / "mambamim_nets" / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="install mambamim_nets again"):
        template()


def test_packaging_refuses_what_is_not_filled_in(planned, spleens, tmp_path):
    bundle = planned(spleens, "bundles/new_seg")

    def packed() -> subprocess.CompletedProcess:
        script = [sys.executable, str(REPOSITORY / ".ci" / "package_bundles.py"), "--bundles", str(bundle.parent)]
        return subprocess.run(
            [*script, "--output", str(tmp_path / "dist")], capture_output=True, text=True, check=False
        )

    for name in ("docs/data_license.txt", "configs/metadata.json"):
        done = packed()
        assert done.returncode == 1 and name in done.stderr and "FILL IN" in done.stderr
        (bundle / name).write_text((bundle / name).read_text().replace("FILL IN", "known"))
    assert packed().returncode == 0
    assert (tmp_path / "dist" / "new_seg_v0.1.0.zip").is_file()
