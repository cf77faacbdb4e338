"""The proofs that benchmarks rely on: they see which path ran; and the page says what was not measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from baselines import dense_masked_cnn
from harness import Times, convolution_work, spy
from page import page
from rows import ROWS

from mambamim_nets import HyMamba
from mambamim_nets.masking import random_visible
from mambamim_nets.ops import selective_scan
from mambamim_nets.ops.blocks import pack
from mambamim_nets.ops.recurrence import naive, on_cpu, parallel


def scan(u):
    return selective_scan(u, u, -torch.ones(4, 2), u[:, :2], u[:, :2])


def test_spy_sees_which_scan_ran():
    u = torch.rand(1, 4, 5)
    with spy(on_cpu, naive, parallel) as calls:
        scan(u)
        assert calls[on_cpu] and not calls[naive] and not calls[parallel]
        torch.jit.trace(scan, (u,), check_trace=False)
        assert calls[parallel]
    before = len(calls[on_cpu])
    scan(u)
    assert len(calls[on_cpu]) == before, "the functions must be back in place"


def test_work_and_blocks_tell_sparse_from_dense():
    encoder, x = HyMamba(size="tiny"), torch.rand(1, 1, 32, 32, 32)
    visible = random_visible(1, (2, 2, 2), 0.75)
    with spy(pack) as calls:
        sparse = convolution_work(lambda: encoder.encode(x, visible))
    assert [len(blocks) for blocks in calls[pack]] == [2]
    dense = convolution_work(lambda: dense_masked_cnn(encoder, x, visible, (1, 2, 4, 8)))
    assert sparse.keys() == dense.keys() == {torch.float32}
    assert sparse[torch.float32] < 0.5 * dense[torch.float32]
    with torch.autocast("cpu", torch.bfloat16):
        work = convolution_work(lambda: encoder.encode(x, visible))
    assert work[torch.bfloat16] > 0.95 * sum(work.values())


def test_ratio_is_within_rounds():
    times = Times(ours=[1, 10, 2], theirs=[2, 20, 4])
    assert times.ratio("theirs", "ours") == 2 and times.median("ours") == 2


def result(**rows):
    measured = {"ours": 0.5, "baseline": 2, "ratio": 4, "unit": "s", "threads": 2}
    return {
        "datetime": "2026-01-02T03:04:05",
        "commit_info": {"id": "abc", "dirty": True},
        "machine_info": {
            "cpu": {"brand_raw": "A CPU", "count": 2, "flags": ["avx512_bf16", "other_flag"]},
            "versions": {"torch": "2.8"},
            "threads": 2,
            "cuda": None,
            "python_version": "3.11",
            "arguments": "tests/benchmarks",
        },
        "benchmarks": [{"extra_info": {"rows": {row: measured | change for row, change in rows.items()}}}],
    }


def test_page_has_every_row_and_the_later_measurement():
    text = page([result(cnn={}, faults={"ratio": 0.25, "unit": "faults"}), result(cnn={"ratio": 5})])
    lines = text.splitlines()
    assert any("| 3 x | 4 x | **5 x** | 500 ms | 2.00 s | 2 |" in line for line in lines)
    assert any("**0.25 of it** | 0 | 2 |" in line for line in lines)
    assert sum("| not measured |" in line for line in lines) == len(ROWS) - 2
    assert "avx512_bf16" in text and "other_flag" not in text and "with uncommitted changes" in text


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_footprint_measures_a_step_of_its_own(tmp_path):
    script = tmp_path / "workloads.py"  # stands in front of the real one
    script.write_text("def fill(size):\n    return lambda: bytearray(size).count(1)\n")
    (tmp_path / "footprint.py").write_text(Path(__file__).with_name("footprint.py").read_text())
    command = [sys.executable, str(tmp_path / "footprint.py"), "fill", json.dumps({"size": 64 * 2**20})]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert 60 < found["above"] < 80 and found["total"] > found["above"] and found["faults"] > 0
