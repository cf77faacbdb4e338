"""The command: its errors, its exit status, a dry run, and one row through the real bundles."""

import re
import shutil
import sys

import pytest
from helpers import BUNDLES

from mambamim_nets import phantom
from mambamim_nets.reproduce.__main__ import main


@pytest.fixture
def call(data, tmp_path, capsys):
    """Return a function that calls the command on the small data set and gives status, output and errors."""

    def run(*options, launch=None, table="scan"):
        usual = ["--table", table, "--data", str(data), "--output", str(tmp_path / "out"), "--bundles", str(BUNDLES)]
        status = main([*usual, "--train_cases", "4", "--seeds", "0", *options], launch)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--table", ""], "--table '' is unknown; it must be one of few_labels, networks, mask_ratio"),
        (["--data", ""], "--data is missing: name the folder"),
        (["--data", "nowhere"], "--data nowhere does not exist"),
        (["--bundles", "nowhere"], "--bundles nowhere does not exist; start from the repository's root"),
        (["--bundle", "liver_seg"], "--bundle 'liver_seg' is unknown; it must be one of msd_seg, btcv_seg"),
        (["--task", "Task99"], "--task 'Task99' is unknown to msd_seg"),
        (["--folds", "all"], "--folds 'all' must be numbers"),
        (["--seeds", "0,x"], "--seeds '0,x' must be whole numbers"),
        (["--jobs", "0"], "--jobs 0 must be at least 1"),
        (["--finetune", "amp"], "--finetune 'amp' must be KEY=VALUE"),
        (["--fold_file", "nowhere.json"], "--fold_file nowhere.json does not exist"),
        (["--output", "a#b"], "contains #"),
        (["--only", "Spiral"], "--only 'Spiral' is no row of table scan"),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(call, options, message):
    status, _, error = call(*options)
    assert status == 2 and error.startswith("error: ") and message in error


def test_a_dry_run_prints_commands_and_writes_nothing(call, tmp_path):
    status, out, _ = call("--dry_run")
    assert status == 0 and not (tmp_path / "out").exists()
    assert len(re.findall(r"^python -m monai.bundle run --config_file ", out, re.MULTILINE)) == 1 + 4 * 2


def test_a_failure_gives_status_1_and_the_next_call_retries_it_only(call, fake, tmp_path):
    broken = fake(**{"hymamba_scan-zigzag_from_mambamim_seed0_fold0_seed0": 1})
    status, out, error = call(launch=broken)
    assert status == 1 and "1 runs failed" in error and "rows done 3 of 4" in out
    assert "Partial: 3 of 4" in (tmp_path / "out" / "scan.md").read_text()
    mended = fake()
    status, out, _ = call(launch=mended)
    assert status == 0
    assert {name for name, _ in mended.started} == {"hymamba_scan-zigzag_from_mambamim_seed0_fold0_seed0"}
    assert "Partial" not in (tmp_path / "out" / "scan.md").read_text()
    assert main(["--table", "scan"]) == 2


def test_other_settings_in_the_same_folder_are_refused_before_anything_runs(call, fake):
    assert call("--only", "Raster", launch=fake())[0] == 0
    untouched = fake()
    for others in ((), ("--only", "Zigzag")):  # a table never mixes budgets, whichever rows are run
        status, _, error = call("--finetune_epochs", "71", *others, launch=untouched)
        assert status == 2 and "made with other settings (70 there, 71 here)" in error and not untouched.started


def test_kept_results_are_not_run_again_on_another_day_or_machine(call, fake, tmp_path):
    kept = ("--results", str(tmp_path / "kept"))
    assert call("--only", "Raster", *kept, launch=fake())[0] == 0
    shutil.rmtree(tmp_path / "out")
    later = fake()
    status, out, _ = call(*kept, "--only", "Raster", "--only", "Zigzag", launch=later)
    zigzag = "hymamba_scan-zigzag_from_mambamim_seed0_fold0_seed0"
    assert status == 0 and "3 runs: 1 finished before, 2 to do" in out
    assert later.started == [("mambamim_fold0_seed0", "pretrain"), (zigzag, "train"), (zigzag, "evaluate")]
    assert "| Raster | 1 | 70.00 ± " in (tmp_path / "out" / "scan.md").read_text()
    for changed in ("--pretrain_epochs", "--finetune_epochs"):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        status, _, error = call(*kept, changed, "5", "--only", "Raster", launch=later)
        assert status == 2 and "was made with other settings" in error and "5 here" in error
        assert "another --results" in error


def test_an_interrupted_command_says_how_to_go_on(call, fake):
    class Interrupted(fake):
        def __call__(self, arguments, log):
            raise KeyboardInterrupt

    status, _, error = call("--only", "Raster", launch=Interrupted())
    assert status == 130 and "the same command again continues" in error
    assert call("--only", "Raster", launch=fake())[0] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no fcntl")
def test_two_at_once_in_one_folder_are_refused(call, fake, tmp_path):
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, _, error = call(launch=fake())
    assert status == 2 and "another reproduce is at work" in error


@pytest.mark.slow
def test_one_row_through_the_real_bundles(tmp_path, capsys):
    """Pre-train, fine-tune and evaluate for an epoch each, each in a process of its own."""
    data = phantom.write(tmp_path / "data", "hippocampus", cases=5)
    small = ["roi_size=[32,32,32]", "device=$torch.device('cpu')"]
    options = [part for kind in ("pretrain", "finetune") for text in small for part in (f"--{kind}", text)]
    options += ["--pretrain", "decoder_width=32", "--pretrain_epochs", "1", "--finetune_epochs", "1"]
    options += ["--train_cases", "3", "--seeds", "4", "--only", "mask 25 %", "--output", str(tmp_path / "out")]
    command = ["--table", "mask_ratio", "--data", str(data), "--bundles", str(BUNDLES), *options]
    assert main(command) == 0, capsys.readouterr().err
    text = (tmp_path / "out" / "mask_ratio.md").read_text()
    measured = re.search(r"^\| mask 25 % \| 1 \| (\d+\.\d\d) \| - \| - \| \d+\.\d\d \| 79.31 \|", text, re.MULTILINE)
    assert measured and 0 <= float(measured[1]) <= 100
    assert "| evaluated cases | 1 (fold 0) |" in text and "pre-training: roi_size=[32,32,32]" in text
    run = tmp_path / "out" / "finetune" / "hymamba_from_mask_ratio-0.25_seed0_fold0_seed4"
    assert (run / "checkpoint_last.pt").is_file() and (run / "eval" / "metrics.csv").is_file()
    assert main(command) == 0, "everything is finished, so nothing is started"
