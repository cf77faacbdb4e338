"""The report: what is chosen, the tables and the pictures."""

import csv
import json
import math

import pytest

from mambamim_nets.cross_validate.report import conclude, read_metrics, score


def run_all(work, fake):
    for run in work.runs:
        for step in run.steps:
            fake(step, run.log)


WORST = ["worst/hippocampus_010.png", "worst/hippocampus_009.png"]


def test_everything_is_told_of_the_cases_out_of_fold(work, fake, monkeypatch):
    monkeypatch.setattr("mambamim_nets.cross_validate.report.WORST", len(WORST))
    made = work()
    run_all(made, fake())
    text = conclude(made, "python -m mambamim_nets.cross_validate")
    with (made.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and {row["case"] for row in rows} == set(made.cases)
    summary = json.loads((made.folder / "summary.json").read_text())
    assert summary["cases"] == 10 and summary["chosen"] == "scratch" and summary["why"] == "there is one candidate"
    assert summary["postprocessing"]["keep_largest"] in (["posterior"], "together"), "the specks of label 2"
    dice = {row["case"]: [] for row in rows}
    for row in rows:
        dice[row["case"]].append(float(row["dice"]))
        if row["name"] == "posterior":
            assert float(row["dice"]) == 1.0, "measured after the specks are gone"
    assert summary["mean_dice"] == pytest.approx(sum(map(sum, dice.values())) / 20, abs=1e-5)
    assert list(summary["folds"]) == ["0", "1"] and summary["dice"]["posterior"] == 1.0
    for name in ("dice.png", "learning_curves.png", *WORST):
        assert (made.folder / name).read_bytes()[:4] == b"\x89PNG" and f"]({name})" in text
    assert len(list((made.folder / "worst").iterdir())) == len(WORST)
    assert "| posterior | 1.0000" in text and "largest part of" in text and "cross_validated.json" in text
    assert (made.folder / "summary.md").read_text() == text


def test_without_post_processing_the_numbers_are_those_of_the_evaluations(work, fake, no_pictures):
    made = work()
    run_all(made, fake(speck=False))
    conclude(made, "command")
    expected = {}
    for run in made.runs:
        expected |= read_metrics(run.folder / "eval" / "metrics.csv")
    assert read_metrics(made.folder / "metrics.csv") == expected
    assert json.loads((made.folder / "summary.json").read_text())["postprocessing"]["keep_largest"] is False


def test_the_better_candidate_is_handed_over(work, fake, no_pictures):
    made = work(candidates=["scratch", "base"])
    run_all(made, fake({"scratch": 40, "base": 4}, speck=False))
    text = conclude(made, "command")
    summary = json.loads((made.folder / "summary.json").read_text())
    assert summary["chosen"] == "base" and summary["candidates"]["base"]["difference"]["low"] > 0
    assert json.loads((made.bundle / "configs" / "cross_validated.json").read_text())["size"] == "base"
    assert "base is better than scratch" in text


def test_a_case_without_structures_has_the_best_score():
    nothing = {"a": {"dice": math.nan}, "b": {"dice": math.nan}}
    assert score(nothing) == 1.0
    assert score({"a": {"dice": 0.5}, "b": {"dice": math.nan}}) == 0.5
