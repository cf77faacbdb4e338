"""`make gpu-check` on a machine without a GPU: what needs one is skipped by name, all else runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / ".ci" / "gpu_check.py"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="is for a machine without a GPU")


def checked(output: Path, *options: str) -> tuple[int, dict[str, dict]]:
    run = subprocess.run([sys.executable, SCRIPT, "--output", output, *options], capture_output=True, text=True)
    report = json.loads((output / "gpu_check.json").read_text())
    return run.returncode, {row["step"]: row for row in report["steps"]}


def test_what_needs_a_gpu_is_skipped_with_the_reason(tmp_path):
    code, rows = checked(tmp_path, "--steps", "packages", "benchmarks")
    assert code == 0
    assert {row["outcome"] for row in rows.values()} == {"skipped"}
    assert {row["note"] for row in rows.values()} == {"needs a CUDA device"}
    page = (tmp_path / "gpu_check.md").read_text()
    assert "| benchmarks | skipped | 0 | needs a CUDA device |" in page and "- device: no GPU" in page


@pytest.mark.slow
def test_a_step_that_fails_or_finds_no_time_is_said_and_counts(tmp_path):
    code, rows = checked(tmp_path, "--steps", "inference")  # without the weights that fine-tuning leaves
    assert code == 1 and rows["inference"]["outcome"] == "failed"
    assert rows["inference"]["note"].startswith("exit 1") and "must be an existing file" in rows["inference"]["note"]
    code, rows = checked(tmp_path, "--steps", "data", "--minutes", "0")
    assert code == 1 and rows["data"]["outcome"] == "no time left"


@pytest.mark.slow
def test_every_other_step_runs_at_its_smallest(tmp_path):
    code, rows = checked(tmp_path, "--minutes", "60")
    assert code == 0, rows
    assert {name: row["outcome"] for name, row in rows.items()} == dict.fromkeys(rows, "passed") | dict.fromkeys(
        ["packages", "benchmarks"], "skipped"
    )
    assert rows["pre-training"]["figures"]["epochs"] == 1
    assert rows["agreement"]["figures"]["voxels that differ"] == 0
