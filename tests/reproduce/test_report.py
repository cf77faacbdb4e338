"""The tables hold the means that one gets by hand, the paper's numbers, and say what is missing."""

import csv
import math
import re

import pytest

from mambamim_nets.reproduce.plan import make_plan, tables
from mambamim_nets.reproduce.report import compare, paper_difference, results, summarise, write

MEASURED = {  # label -> (fold, seed) -> anterior, posterior
    "w/o pretrained": {(0, 0): (0.80, 0.70), (0, 1): (0.82, 0.74), (1, 0): (0.70, 0.60), (1, 1): (0.84, 0.80)},
    "mask 75 %": {(0, 0): (0.84, 0.72), (1, 0): (0.70, 0.58), (1, 1): (0.90, 0.80)},
}


@pytest.fixture
def plan(budget, measured):
    made = make_plan("mask_ratio", budget(folds=(0, 1), seeds=(0, 1)), ["w/o pretrained", "mask 25 %", "mask 75 %"])
    for cell in made.cells:
        if (cell.fold, cell.seed) in MEASURED.get(cell.label, {}):
            measured(cell.run, *MEASURED[cell.label][cell.fold, cell.seed])
    return made


def test_means_and_differences_are_those_by_hand(plan):
    rows = {row.label: row for row in summarise(plan.table, results(plan.cells))}
    scratch, ours = rows["w/o pretrained"], rows["mask 75 %"]
    assert (scratch.runs, ours.runs, rows["mask 25 %"].runs) == (4, 3, 0)
    assert scratch.dice.mean == pytest.approx((75 + 78 + 65 + 82) / 4)
    assert ours.dice.mean == pytest.approx((78 + 64 + 85) / 3) and ours.hd95.mean == 2.0
    assert ours.structures == pytest.approx({"anterior": 244 / 3, "posterior": 70.0})
    # paired: 78 - 75, 64 - 65, 85 - 82; the run of fold 0, seed 1 has no partner
    assert ours.compared.pairs == 3 and ours.compared.difference.mean == pytest.approx(5 / 3)
    # two cases of fold 0 differ by 3, two of fold 1 by the mean of its seeds, -1 and 3
    assert ours.compared.effect == pytest.approx(2 / math.sqrt(4 / 3))
    assert scratch.compared.difference is None and rows["mask 25 %"].dice is None and rows["mask 80 %"].dice is None


def test_a_run_from_scratch_is_the_partner_of_every_seed_of_pretraining(budget, measured):
    plan = make_plan("few_labels", budget(pretrain_seeds=(0, 1), seeds=(0, 1)))
    given = {"From scratch": 0.6, "MambaMIM, TOKI": 0.7, "MambaMIM, learnable token": 0.65}
    for cell in plan.cells:
        if cell.label in given:
            dice = given[cell.label] + 0.1 * (cell.pretrain_seed or 0) + 0.02 * cell.seed
            measured(cell.run, dice, dice)
    found = results(plan.cells)
    assert len(found) == 2 + 4 + 4
    to_scratch = compare(found, "MambaMIM, TOKI", "From scratch")
    assert to_scratch.pairs == 4 and to_scratch.difference.mean == pytest.approx(15), "10 and 20, by the seed"
    assert to_scratch.difference.error == pytest.approx(5 / math.sqrt(2), rel=0.05), "of the mean of two drawn from two"
    to_token = compare(found, "MambaMIM, TOKI", "MambaMIM, learnable token")
    assert to_token.pairs == 4 and to_token.difference == pytest.approx((5, 0), abs=1e-9)
    text = write(plan, "command", jobs=1, threads=1)
    assert "| MambaMIM, TOKI | 4 | 76.00 ± " in text and " | +15.00 ± " in text and "paper" not in text
    assert "| *MambaMIM, TOKI* to *MambaMIM, learnable token* | 4 | +5.00 ± 0.00 | " in text
    assert "SparK (fold 0, seed 1 of pre-training, seed 0)" in text
    with (plan.budget.output / "few_labels.csv").open(newline="") as file:
        assert [line["pretrain_seed"] for line in csv.DictReader(file)] == ["", "", *"00110011"]


def test_files_hold_what_is_there_and_say_what_is_not(plan):
    write(plan, "python -m mambamim_nets.reproduce --table mask_ratio", jobs=2, threads=4)
    folder = plan.budget.output
    assert (folder / "mask_ratio.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "mask_ratio.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 7 and list(lines[0])[:4] == ["row", "fold", "pretrain_seed", "seed"]
    assert lines[5] == {
        "row": "mask 75 %",
        "fold": "1",
        "pretrain_seed": "0",
        "seed": "0",
        "mean_dice": "0.640000",
        "mean_hd95_mm": "2.000000",
        "anterior": "0.700000",
        "posterior": "0.580000",
    }
    text = (folder / "mask_ratio.md").read_text()
    assert "**Partial: 7 of 24 runs are finished.**" in text
    assert re.search(r"\n\| w/o pretrained \| 4 \| 75.00 ± \d.\d\d \| - \| - \| 2.00 ± 0.00 \| 77.56 \| - \|", text)
    assert re.search(r"\n\| mask 75 % \| 3 \| 75.67 ± .* \| \+1.67 ± .* \| \+1.73 \| 2.00 .* \| 80.16 \| \+2.60", text)
    assert "| mask 25 % | 0 | - | - | - | - | 79.31 | +1.75 |  |" in text
    assert "| mask 75 % | 81.33 | 70.00 |" in text
    assert "mask 75 % (fold 0, seed 0 of pre-training, seed 1)" in text
    assert "BTCV" in text and "another data set and budget" in text
    assert "| evaluated cases | 2 (fold 0); 2 (fold 1) |" in text and "2 runs at a time, 4 threads each" in text


def test_a_full_table_is_not_called_partial(budget, measured):
    plan = make_plan("scan", budget())
    for cell in plan.cells:
        measured(cell.run, 0.8, 0.6)
    text = write(plan, "command", jobs=1, threads=1)
    assert "Partial" not in text and "Not there yet" not in text
    assert "| Shuffle | 1 | 70.00 ± 0.70 | +0.00 ± 0.00 | - | 2.00 ± 0.00 | 80.89 | +0.73 |  |" in text


def test_a_table_of_nothing_can_be_written(budget):
    assert "Partial: 0 of 4" in write(make_plan("scan", budget()), "command", jobs=1, threads=1)


def test_a_row_is_compared_to_its_own_reference():
    table = tables()["tables"]["pretraining"]
    expected = {"MambaMIM": 2.60, "VoCo": -0.40, "SparK": 3.07, "MAE": 7.92, "SimMIM": -0.22, "Models Genesis": None}
    found = {label: paper_difference(table, label) for label in expected}
    assert found == {label: value and pytest.approx(value, abs=1e-9) for label, value in expected.items()}
    assert paper_difference(table, "w/o pretrained, Vanilla Mamba") is None


def test_a_label_with_a_comma_stays_one_field(budget, measured, monkeypatch):
    plan = make_plan("scan", budget(), ["Raster"])
    label = "HyMamba, MambaMIM"
    monkeypatch.setitem(plan.table["rows"][0], "label", label)
    monkeypatch.setitem(plan.table, "reference", label)
    measured(plan.cells[0].run, 0.8, 0.6)
    object.__setattr__(plan.cells[0], "label", label)
    write(plan, "command", jobs=1, threads=1)
    with (plan.budget.output / "scan.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["row"] == label
