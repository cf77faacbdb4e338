"""Commands: what is refused before a command begins, and how each of them ends."""

import os
from importlib import import_module

import pytest
from helpers import refused

from mambamim_nets.command_line import INTERRUPTED, call, run

PROGRAM = "python -m mambamim_nets.example"


@pytest.fixture
def begun():
    return []


@pytest.fixture
def command(begun):
    def example(dataset_dir: str, output: str = "", dry_run: bool = False) -> str:
        begun.append((dataset_dir, output, dry_run))
        return f"{dataset_dir}, {output}, {dry_run}"

    return example


@pytest.mark.parametrize(
    ("words", "received"),
    [
        (["--dataset_dir", "data"], ("data", "", False)),
        (["data", "out"], ("data", "out", False)),
        (["--dataset-dir=a--b", "--output", "-5", "--dry-run"], ("a--b", -5, True)),
        (["data", "--nodry_run"], ("data", "", False)),
        (["data", "-o", "out", "-dry_run", "--", "--verbose"], ("data", "out", True)),
    ],
)
def test_options_arrive_as_fire_reads_them(command, begun, words, received):
    call(command, PROGRAM, words)
    assert begun == [received]


@pytest.mark.parametrize("words", [["--fold_file", "x"], ["--dataset-dirs=x"], ["--dry_runs"], ["-z", "x"]])
def test_an_unknown_option_is_refused_before_the_command_begins(command, begun, words):
    with pytest.raises(ValueError, match=rf"^option -?{words[0][:5]}.* is unknown to {PROGRAM}; "):
        call(command, PROGRAM, ["--dataset_dir", "data", *words])
    assert not begun


def test_the_nearest_options_are_named_else_all(command):
    with refused("option --output_dir is unknown", "did you mean --output"):
        call(command, PROGRAM, ["data", "--output_dir", "x"])
    with refused("option --zzz is unknown", "valid are --dataset_dir, --output, --dry_run"):
        call(command, PROGRAM, ["data", "--zzz", "0"])


@pytest.mark.parametrize("words", [["data", "out", "True", "more"], [], ["data", "out", "False", "conjugate"]])
def test_arguments_that_are_missing_or_too_many_are_refused_too(command, begun, words):
    with pytest.raises(SystemExit) as ended:
        call(command, PROGRAM, words)
    assert ended.value.code == 2
    assert not begun


def test_what_hands_further_options_on_takes_any():
    assert call(lambda **options: options, PROGRAM, ["--max_epochs", "3"]) == {"max_epochs": 3}


def test_help_is_shown(command, begun):
    with pytest.raises(SystemExit) as ended:
        call(command, PROGRAM, ["--help"])
    assert ended.value.code == 0
    assert not begun


def end_of(function, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", [PROGRAM, *words])
    with pytest.raises(SystemExit) as ended:
        run(function, PROGRAM)
    return ended.value.code


def test_a_refusal_is_one_sentence_and_a_defect_is_none(command, monkeypatch):
    assert str(end_of(command, monkeypatch, "data", "--dryrun")).startswith("error: option --dryrun is unknown")

    def fails(name: str) -> None:
        raise {"file": FileNotFoundError, "value": ValueError, "defect": KeyError}[name]("the sentence")

    assert end_of(fails, monkeypatch, "file") == end_of(fails, monkeypatch, "value") == "error: the sentence"
    with pytest.raises(KeyError):
        end_of(fails, monkeypatch, "defect")


def test_what_a_command_says_is_printed(command, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [PROGRAM, "data", "--dry_run"])
    run(command, PROGRAM)
    assert capsys.readouterr().out == "data, , True\n"


def test_a_command_that_is_interrupted_says_how_to_go_on(monkeypatch, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert end_of(interrupted, monkeypatch) == INTERRUPTED
    assert "the same command goes on with the rest" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plan", "prepare", "convert_dicom", "monai_label", "import_public"])
def test_every_command_refuses_an_unknown_option(name, tmp_path, monkeypatch):
    program = import_module(f"mambamim_nets.{name}" + ".__main__" * (name in ("plan", "prepare", "convert_dicom")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, "--no_such_option", "x"])
    words = rf"^error: option --no_such_option is unknown to python -m mambamim_nets\.{name}; "
    with pytest.raises(SystemExit, match=words):
        program.main()
    assert not os.listdir(tmp_path)
