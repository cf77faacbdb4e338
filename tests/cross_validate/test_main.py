"""The command line: what it prints, what it runs, how it ends."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mambamim_nets.cross_validate.__main__ import main

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def command(work, data, tmp_path):
    """Return a function that gives the options of the command line, with more of them."""
    made = work()

    def options(*more: str) -> list[str]:
        usual = ["--bundle", str(made.bundle), "--dataset_dir", str(data), "--output_dir", str(made.folder)]
        return [*usual, "--folds", "0,1", *more]

    return options


def test_all_folds_are_run_once_and_the_report_is_printed(command, fake, capsys, tmp_path):
    launch = fake()
    assert main(command("--max_epochs", "3"), launch) == 0
    parts = ["train", "evaluate"]
    assert launch.started == [f"scratch/fold_{fold} {part}" for fold in (0, 1) for part in parts]
    assert "report: " in capsys.readouterr().out
    again = fake()
    assert main(command("--max_epochs", "3"), again) == 0 and again.started == []


def test_folds_are_run_by_several_jobs_and_reported_by_another(command, fake, capsys, tmp_path):
    for fold in (0, 1):
        job = fake()
        assert main([*command(), "--folds", str(fold), "--report", "false"], job) == 0
        assert job.started == [f"scratch/fold_{fold} train", f"scratch/fold_{fold} evaluate"]
        assert "without --report false, writes the report" in capsys.readouterr().out
    assert not (tmp_path / "out" / "summary.md").exists()
    last = fake()
    assert main(command(), last) == 0
    assert last.started == []
    assert (tmp_path / "out" / "summary.md").is_file()


@pytest.mark.parametrize("more", [[], ["--folds", "1", "--report", "false"]], ids=["all", "this fold"])
def test_a_fold_that_another_process_trains_is_left_to_it(command, fake, work, capsys, more):
    folder = work().folder
    folder.mkdir(parents=True)
    # what only_run does, without the time that its import takes
    script = "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX); "
    script += "print('process of another job', file=lock, flush=True); print('held', flush=True); sys.stdin.read()"
    line = [sys.executable, "-c", script, str(folder / ".scratch_fold_1.lock")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        launch = fake()
        assert main([*command(), *more], launch) == 2
        error = capsys.readouterr().err
        assert f"{folder}: another scratch_fold_1 is at work there (process of another job)" in error
        assert not launch.started
        other.communicate()
    assert main([*command(), *more], launch) == 0


def test_a_fold_that_failed_is_tried_again_alone(command, fake, capsys):
    class Failing(fake):
        def __call__(self, arguments, log):
            return 1 if "fold_1" in str(log) else super().__call__(arguments, log)

    assert main(command(), Failing()) == 1
    assert "1 runs failed" in capsys.readouterr().err
    again = fake()
    assert main(command(), again) == 0
    assert again.started == ["scratch/fold_1 train", "scratch/fold_1 evaluate"]


def test_a_dry_run_prints_the_commands_and_writes_nothing(command, fake, capsys, tmp_path):
    launch = fake()
    assert main(command("--dry_run", "--candidates", "scratch,base"), launch) == 0
    printed = capsys.readouterr().out
    assert printed.count("python -m monai.bundle run") == 8 and "--size base" in printed
    assert not launch.started and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--jobs", "0"], "--jobs 0 must be a whole number"),
        (["--candidates", "huge"], "must be scratch, tiny, base"),
        (["--max_epoch", "3"], "--max_epoch is no option"),
        (["--dry_run", "perhaps"], "--dry_run 'perhaps' must be true or false"),
    ],
    ids=["jobs", "candidates", "option", "switch"],
)
def test_wrong_options_end_with_one_sentence(command, fake, capsys, more, words):
    launch = fake()
    assert main(command(*more), launch) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1 and not launch.started


def test_other_options_need_another_folder(command, fake, capsys):
    assert main(command("--max_epochs", "3"), fake()) == 0
    assert main(command("--max_epochs", "4"), fake()) == 2
    assert "3 there, 4 here" in capsys.readouterr().err


def another_spacing(bundle, data, encoder):
    path = bundle / "configs" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"spacing": [2.0, 2.0, 2.0]}))


def another_tolerance(bundle, data, encoder):
    path = bundle / "configs" / "evaluate.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tolerance_mm": 3.0}))


def a_corrected_label_map(bundle, data, encoder):
    path = sorted((data / "labelsTr").iterdir())[0]
    image = nib.load(path)
    values = np.asarray(image.dataobj).copy()
    values[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(values, image.affine), path)


def other_folds(bundle, data, encoder):
    path = data / "split.json"
    first, second = json.loads(path.read_text())["folds"]
    path.write_text(json.dumps({"folds": [[*first, *second[:2]], second[2:]]}))


def another_encoder(bundle, data, encoder):
    torch.save({"other": torch.ones(1)}, encoder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (another_spacing, "configuration"),
        (another_tolerance, "configuration"),
        (a_corrected_label_map, "label maps"),
        (other_folds, "held-out cases"),
        (another_encoder, "starting weights"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_was_run_before_a_change_is_not_taken_for_the_results_of_now(
    work, data, fake, capsys, tmp_path, reliability, change, words
):
    encoder, copied = tmp_path / "encoder.pt", shutil.copytree(data, tmp_path / "data")
    torch.save({"some": torch.zeros(1)}, encoder)
    made = work(dataset_dir=str(copied))
    options = ["--bundle", str(made.bundle), "--dataset_dir", str(copied), "--output_dir", str(made.folder)]
    options += ["--folds", "0,1", "--candidates", f"pretrained={encoder}"]
    assert main(options, fake()) == 0
    again = fake()
    assert main(options, again) == 0 and again.started == [], "nothing has changed"
    change(made.bundle, copied, encoder)
    after = fake()
    assert main(options, after) == 2 and after.started == []
    error = capsys.readouterr().err.strip()
    assert f"was made with other settings ({words} " in error
    if change is a_corrected_label_map:
        fault = "label maps that were corrected after a fold was run"
        reliability("Cross-validation", fault, ValueError(error.removeprefix("error: ")), hide=r"[0-9a-f]{12}")


def test_a_note_in_the_configuration_changes_nothing(command, fake):
    assert main(command(), fake()) == 0
    path = Path(command()[1], "configs", "train.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"spacing_why": "measured anew"}))
    again = fake()
    assert main(command(), again) == 0 and again.started == []
