"""The command line: what it prints, what it runs, how it ends."""

import pytest

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
