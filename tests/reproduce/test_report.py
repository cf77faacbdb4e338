"""The tables hold the means that one gets by hand, the paper's numbers, and say what is missing."""

import csv
import math

import pytest

from mambamim_nets.reproduce.plan import make_plan, tables
from mambamim_nets.reproduce.report import paper_difference, results, summarise, write

MEASURED = {  # label -> (fold, seed) -> anterior, posterior
    "w/o pretrained": {(0, 0): (0.80, 0.70), (0, 1): (0.82, 0.74), (1, 0): (0.70, 0.60), (1, 1): (0.84, 0.80)},
    "mask 75 %": {(0, 0): (0.84, 0.72), (1, 0): (0.70, 0.58), (1, 1): (0.90, 0.80)},
}


@pytest.fixture
def plan(budget, summary):
    made = make_plan("mask_ratio", budget(folds=(0, 1), seeds=(0, 1)), ["w/o pretrained", "mask 25 %", "mask 75 %"])
    for cell in made.cells:
        if (cell.fold, cell.seed) in MEASURED.get(cell.label, {}):
            summary(cell.run.folder, *MEASURED[cell.label][cell.fold, cell.seed])
    return made


def test_means_spreads_and_differences_are_those_by_hand(plan):
    rows = {row.label: row for row in summarise(plan.table, results(plan.cells))}
    scratch, ours = rows["w/o pretrained"], rows["mask 75 %"]
    assert (scratch.runs, ours.runs, rows["mask 25 %"].runs) == (4, 3, 0)
    assert scratch.dice == pytest.approx((75 + 78 + 65 + 82) / 4)
    assert scratch.spread == pytest.approx(math.sqrt((0 + 3**2 + 10**2 + 7**2) / 3))
    assert ours.dice == pytest.approx((78 + 64 + 85) / 3)
    assert ours.structures == pytest.approx({"anterior": 244 / 3, "posterior": 70.0})
    # paired: 78 - 75, 64 - 65, 85 - 82; the run of fold 0, seed 1 has no partner
    assert ours.pairs == 3 and ours.difference == pytest.approx(5 / 3)
    assert ours.difference_spread == pytest.approx(math.sqrt(((4 / 3) ** 2 * 2 + (8 / 3) ** 2) / 2))
    assert scratch.difference is None and rows["mask 25 %"].dice is None and rows["mask 80 %"].dice is None


def test_files_hold_what_is_there_and_say_what_is_not(plan):
    write(plan, "python -m mambamim_nets.reproduce --table mask_ratio", jobs=2, threads=4)
    folder = plan.budget.output
    assert (folder / "mask_ratio.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "mask_ratio.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 7 and list(lines[0]) == ["row", "fold", "seed", "mean_dice", "anterior", "posterior"]
    assert lines[5] == {
        "row": "mask 75 %",
        "fold": "1",
        "seed": "0",
        "mean_dice": "0.640000",
        "anterior": "0.700000",
        "posterior": "0.580000",
    }
    text = (folder / "mask_ratio.md").read_text()
    assert "**Partial: 7 of 24 runs are finished.**" in text
    assert "| w/o pretrained | 4 | 75.00 ± 7.26 | - | 77.56 | - |  |" in text
    assert "| mask 75 % | 3 | 75.67 ± 10.69 | +1.67 ± 2.31 | 80.16 | +2.60 |  |" in text
    assert "| mask 25 % | 0 | - | - | 79.31 | +1.75 |  |" in text
    assert "| mask 75 % | 81.33 | 70.00 |" in text
    assert "mask 75 % (fold 0, seed 1)" in text and "BTCV" in text and "another data set and budget" in text
    assert "| evaluated cases | 2 (fold 0); 2 (fold 1) |" in text and "2 runs at a time, 4 threads each" in text


def test_a_full_table_is_not_called_partial(budget, summary):
    plan = make_plan("scan", budget())
    for cell in plan.cells:
        summary(cell.run.folder, 0.8, 0.6)
    text = write(plan, "command", jobs=1, threads=1)
    assert "Partial" not in text and "Not there yet" not in text
    assert "| Shuffle | 1 | 70.00 | +0.00 | 80.89 | +0.73 |  |" in text


def test_a_table_of_nothing_can_be_written(budget):
    assert "Partial: 0 of 4" in write(make_plan("scan", budget()), "command", jobs=1, threads=1)


def test_a_row_is_compared_to_its_own_reference():
    table = tables()["tables"]["pretraining"]
    expected = {"MambaMIM": 2.60, "VoCo": -0.40, "SparK": 3.07, "MAE": 7.92, "SimMIM": -0.22, "Models Genesis": None}
    found = {label: paper_difference(table, label) for label in expected}
    assert found == {label: value and pytest.approx(value, abs=1e-9) for label, value in expected.items()}
    assert paper_difference(table, "w/o pretrained, Vanilla Mamba") is None


def test_a_label_with_a_comma_stays_one_field(budget, summary, monkeypatch):
    plan = make_plan("scan", budget(), ["Raster"])
    label = "HyMamba, MambaMIM"
    monkeypatch.setitem(plan.table["rows"][0], "label", label)
    monkeypatch.setitem(plan.table, "reference", label)
    summary(plan.cells[0].run.folder, 0.8, 0.6)
    object.__setattr__(plan.cells[0], "label", label)
    write(plan, "command", jobs=1, threads=1)
    with (plan.budget.output / "scan.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["row"] == label
