"""From the options to commands: candidates, folds, and what is refused before anything runs."""

import pytest
from helpers import BUNDLES, option

from mambamim_nets.cross_validate.runs import candidates_of


def test_a_fold_is_trained_and_then_evaluated_on_what_it_held_out(work, tmp_path, data):
    made = work(options={"max_epochs": 3})
    (run,) = [run for run in made.runs if run.name == "scratch/fold_1"]
    train, evaluate = run.steps
    assert option(train, "config_file") == str(tmp_path / "msd_seg" / "configs" / "train.json")
    assert "evaluate.json" in option(evaluate, "config_file")
    for step in run.steps:
        assert option(step, "dataset_dir") == str(data) and option(step, "fold") == "1"
        assert option(step, "max_epochs") == "3" and option(step, "output_dir") == str(run.folder)
    assert option(evaluate, "checkpoint") == str(run.folder / "model_best.pt")
    assert option(evaluate, "predictions") == "True" and option(evaluate, "keep_largest") == "False"
    assert run.result == run.folder / "eval" / "summary.md"


def test_the_data_set_gives_folds_and_persons(work):
    made = work()
    assert {fold: len(cases) for fold, cases in made.folds.items()} == {0: 4, 1: 6}
    assert made.cases["hippocampus_003"].subject == made.cases["hippocampus_004"].subject == "2"
    assert made.task == "Task04_Hippocampus" and list(made.targets.structures) == ["anterior", "posterior"]


def test_candidates_are_files_and_options(tmp_path):
    encoder = tmp_path / "encoder.pt"
    encoder.touch()
    texts = ["scratch", f"pretrained={encoder}", "base", "networks/nnmamba.json+size=base", "learning_rate=0.01"]
    found = candidates_of(texts, BUNDLES / "msd_seg")
    assert [(one.network, dict(one.options)) for one in found] == [
        ("", {}),
        ("", {"pretrained": str(encoder)}),
        ("", {"size": "base"}),
        ("configs/networks/nnmamba.json", {"size": "base"}),
        ("", {"learning_rate": "0.01"}),
    ]
    assert len({one.name for one in found}) == 5 and not any("/" in one.name for one in found)


def test_weights_to_start_from_are_for_training_alone(work, tmp_path):
    (tmp_path / "encoder.pt").touch()
    train, evaluate = work(candidates=[f"pretrained={tmp_path / 'encoder.pt'}"]).runs[0].steps
    assert option(train, "pretrained") == str(tmp_path / "encoder.pt") and option(evaluate, "pretrained") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bundle": "gone"}, "--bundle gone: "),
        ({"task": "Task99_Hand"}, "--task 'Task99_Hand' is unknown to msd_seg; it must be one of Task04_Hippocampus"),
        ({"folds": [0, 0]}, "--folds 0,0 must be different numbers"),
        ({"folds": ["all"]}, "--folds all must be different numbers"),
        ({"folds": [7]}, "fold"),
        ({"candidates": []}, "--candidates none must be different ones"),
        ({"candidates": ["base", "base"]}, "--candidates base, base must be different ones"),
        ({"candidates": ["huge"]}, "'huge' must be scratch, tiny, base"),
        ({"candidates": ["pretrained=gone.pt"]}, "gone.pt does not exist; name a file of weights"),
        ({"candidates": ["networks/gone.json"]}, "gone.json does not exist"),
        ({"candidates": ["fold=1"]}, "fold is set for each run"),
        ({"options": {"checkpoint": "a.pt"}}, "--checkpoint is set for each run"),
        ({"options": {"max_epoch": 3}}, "--max_epoch is no option of"),
        ({"output_dir": "a#b"}, "contains #"),
        ({"dataset_dir": "gone"}, "gone"),
    ],
    ids=lambda value: str(*value.items()) if isinstance(value, dict) and value else "",
)
def test_options_that_are_refused(work, changes, words, reliability):
    with pytest.raises((ValueError, OSError)) as caught:
        work(**changes)
    assert words in str(caught.value)
    given = "; ".join(f"{name} {value}" for name, value in changes.items())
    reliability("Cross-validation", given, caught.value)
