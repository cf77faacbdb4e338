"""Tables and a picture of what has been measured so far, with the paper's numbers beside it.

Everything is read from the folders of the runs: `eval/summary.csv`, a mean over the cases of the fold, on each scan's
own grid. Here these are averaged over runs (folds and seeds); +- is the standard deviation of the sample (n - 1) over
runs. A difference is the mean over pairs of runs of one fold and seed. CSV: Dice from 0 to 1; Markdown and picture: %.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from mambamim_nets.reproduce.plan import Budget, Cell, Plan, Run, replacing

__all__ = ["Result", "Row", "results", "summarise", "write"]

MEAN = "mean"
DEVICE = re.compile(r"^  device +(\S+)$", re.MULTILINE)  # as every bundle's log announces it


class Result(NamedTuple):
    """The Dice of one cell, 0 .. 1, and over how many cases; `structures` without the mean."""

    cell: Cell
    dice: float
    structures: dict[str, float]
    cases: int


class Row(NamedTuple):
    """A row over its runs, Dice in %; None where nothing is measured, or the spread of one."""

    label: str
    runs: int
    dice: float | None
    spread: float | None
    structures: dict[str, float]
    pairs: int
    difference: float | None
    difference_spread: float | None


def results(cells: Iterable[Cell]) -> list[Result]:
    """Read the finished cells.

    Raises:
        ValueError: if a summary has no mean Dice.
    """
    found = []
    for cell in cells:
        if not cell.run.finished():
            continue
        path = cell.run.result.with_suffix(".csv")
        with path.open(newline="", encoding="utf-8") as file:
            rows = {row["name"]: row for row in csv.DictReader(file) if row["metric"] == "dice"}
        if MEAN not in rows:
            raise ValueError(f"{path} has no mean Dice; remove the folder {cell.run.folder} and start again")
        dice = {name: float(row["mean"]) for name, row in rows.items()}
        found.append(Result(cell, dice.pop(MEAN), dice, int(rows[MEAN]["n"])))
    return found


def summarise(table: Mapping[str, Any], found: Sequence[Result]) -> list[Row]:
    """Average over the runs of each row, and compare it to its reference (else the table's), run by run."""
    of = {row["label"]: [result for result in found if result.cell.label == row["label"]] for row in table["rows"]}
    rows = []
    for label, measured in of.items():
        base = reference_of(table, label)
        reference = {(r.cell.fold, r.cell.seed): r.dice for r in of[base]} if base else {}
        values = [100 * result.dice for result in measured]
        pairs = [(r.dice, reference[key]) for r in measured if (key := (r.cell.fold, r.cell.seed)) in reference]
        differences = [100 * (a - b) for a, b in pairs]
        names = measured[0].structures if measured else {}
        structures = {name: 100 * mean(result.structures[name] for result in measured) for name in names}
        rows.append(
            Row(label, len(values), *_mean(values), structures, len(differences), *_mean(differences)),
        )
    return rows


def reference_of(table: Mapping[str, Any], label: str) -> str | None:
    """Return the label of the row that a row is compared to; None for one that others are compared to."""
    row = next(row for row in table["rows"] if row["label"] == label)
    base = row.get("reference", table["reference"])
    return None if base == label else base


def paper_difference(table: Mapping[str, Any], label: str) -> float | None:
    """Return a row's difference in the paper, to its reference there; None where either number is not known."""
    of = {row["label"]: row for row in table["rows"]}
    base = reference_of(table, label)
    number = of[label].get("paper_reference", of[base]["paper"] if base else None)
    return None if base is None or number is None or of[label]["paper"] is None else of[label]["paper"] - number


def write(plan: Plan, command: str, jobs: int, threads: int) -> str:
    """Write `<table>.csv`, `<table>.md` and `<table>.png` into the output folder, each whole or not at all.

    Args:
        plan: whose finished cells are read, those of rows that were not chosen too.
        command: that was given, for the record.
        jobs: runs at a time.
        threads: of each run.

    Returns:
        The Markdown text.
    """
    order = [row["label"] for row in plan.table["rows"]]
    cells = sorted([*plan.cells, *plan.others], key=lambda cell: order.index(cell.label))
    found = results(cells)
    rows = summarise(plan.table, found)
    folder = plan.budget.output
    folder.mkdir(parents=True, exist_ok=True)
    text = _markdown(plan, rows, cells, found, command, jobs, threads)
    for ending, content in (("csv", _csv(found)), ("md", text)):
        with replacing(folder / f"{plan.name}.{ending}") as part:
            part.write_text(content, encoding="utf-8", newline="\n")
    _picture(folder / f"{plan.name}.png", plan, rows, found)
    return text


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    return (mean(values) if values else None), (stdev(values) if len(values) > 1 else None)


def _csv(found: Sequence[Result]) -> str:
    structures = list(found[0].structures) if found else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "fold", "seed", "mean_dice", *structures])
    for result in found:
        numbers = [f"{value:.6f}" for value in (result.dice, *(result.structures[name] for name in structures))]
        writer.writerow([result.cell.label, result.cell.fold, result.cell.seed, *numbers])
    return text.getvalue()


def _number(value: float | None, spread: float | None = None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def _markdown(
    plan: Plan,
    rows: Sequence[Row],
    cells: Sequence[Cell],
    found: Sequence[Result],
    command: str,
    jobs: int,
    threads: int,
) -> str:
    table, budget = plan.table, plan.budget
    paper = {row["label"]: row for row in table["rows"]}
    total = len(table["rows"]) * len(budget.folds) * len(budget.seeds)
    lines = [f"# {table['title']}", ""]
    if len(found) < total:
        lines += [f"**Partial: {len(found)} of {total} runs are finished.** Rows with fewer runs are not final.", ""]
    lines += [table["note"], ""] if "note" in table else []
    other = "another budget" if budget.task in table["data"] else "another data set and budget"
    lines += [
        f"Measured: {budget.task}, mean Dice in %, mean ± standard deviation over runs. Paper: {table['source']},"
        f" {table['data']}, {table['metric']}: {other}, so compare differences, not levels. They are to the row"
        f" *{table['reference']}* unless another is named, the measured ones run by run, of the same fold and seed.",
        "",
        "| row | runs | measured | difference | paper | paper's difference | |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        said = paper[row.label]
        cited = [_number(said["paper"]), _number(paper_difference(table, row.label), sign="+")]
        ours = [_number(row.dice, row.spread), _number(row.difference, row.difference_spread, "+")]
        lines.append(f"| {row.label} | {row.runs} | {' | '.join([*ours, *cited, _remark(said)])} |")
    structures = list(found[0].structures) if found else []
    if len(structures) > 1:
        lines += ["", "Dice of each structure in %, mean over runs:", "", f"| row | {' | '.join(structures)} |"]
        lines += ["|---|" + "---:|" * len(structures)]
        for row in rows:
            if row.runs:
                lines.append(f"| {row.label} | {' | '.join(_number(row.structures[name]) for name in structures)} |")
    missing = [f"{c.label} (fold {c.fold}, seed {c.seed})" for c in cells if not c.run.finished()]
    if missing:
        lines += ["", f"Not there yet: {'; '.join(missing)}."]
    picture = f"![Dice of every run, and the paper's numbers]({plan.name}.png)"
    lines += ["", picture, "", "## Budget, the same for every row", "", "| | |", "|---|---|"]
    facts = _facts(budget, found, command, jobs, threads)
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in facts.items()), ""])


def _remark(row: Mapping[str, Any]) -> str:
    """Return what is to be said of a row: its note, and the row it is compared to where that is its own."""
    own = row.get("reference", row["label"])
    return "; ".join(part for part in (row.get("note"), f"to *{own}*" if own != row["label"] else "") if part)


def _epochs(number: int) -> str:
    return f"{number} epoch{'' if number == 1 else 's'}"


def _facts(budget: Budget, found: Sequence[Result], command: str, jobs: int, threads: int) -> dict[str, str]:
    runs = dict.fromkeys(run for r in found for run in (r.cell.run, r.cell.run.after) if run is not None)

    def recorded(key: str) -> str:
        return "; ".join(sorted({str(record[key]) for run in runs if key in (record := run.record())})) or "-"

    cases = "; ".join(sorted({f"{r.cases} (fold {r.cell.fold})" for r in found})) or "-"
    more = {"pre-training": budget.pretrain, "fine-tuning": budget.finetune}
    options = "; ".join(f"{n}: {', '.join(f'{k}={v}' for k, v in part.items())}" for n, part in more.items() if part)
    devices = "; ".join(sorted({device for run in runs for device in _devices(run)})) or "-"
    return {
        "command": f"`{command}`",
        "data": f"{budget.task}, {budget.data}",
        "folds, seeds": f"{', '.join(map(str, budget.folds))}; {', '.join(map(str, budget.seeds))}",
        "labelled training cases": f"{budget.train_cases}, drawn by the seed" if budget.train_cases else "all",
        "evaluated cases": cases,
        "pre-training": f"{_epochs(budget.pretrain_epochs)} on the images of the fold's training cases (all of them,"
        " without labels), once for each method and fold, seed 0",
        "fine-tuning": f"{_epochs(budget.finetune_epochs)}; the last epoch is evaluated, on each scan's own grid",
        "bundle, size": f"{budget.bundle}, {budget.size}",
        "further options": options or "-",
        "machine": recorded("machine"),
        "device": f"{devices}; {jobs} runs at a time, {threads} threads each"
        if jobs > 1
        else f"{devices}; {threads} threads",
        "versions": recorded("versions"),
        "date": recorded("date"),
    }


def _devices(run: Run) -> set[str]:
    return set(DEVICE.findall(run.log.read_text(errors="replace"))) if run.log.is_file() else set()


def _picture(path: Path, plan: Plan, rows: Sequence[Row], found: Sequence[Result]) -> None:
    """Draw every run and the mean of each row; the paper's numbers in a panel of their own, for the data differ."""
    from matplotlib.figure import Figure

    height = 1.4 + 0.42 * len(rows)
    figure = Figure(figsize=(10, height), layout="constrained")
    ours, theirs = figure.subplots(1, 2, sharey=True)
    places = {row.label: place for place, row in enumerate(rows)}
    ours.scatter([100 * r.dice for r in found], [places[r.cell.label] for r in found], s=18, alpha=0.6, label="one run")
    measured = [row for row in rows if row.dice is not None]
    ours.scatter(
        [row.dice for row in measured],
        [places[row.label] for row in measured],
        marker="|",
        s=260,
        color="black",
        label="mean",
    )
    cited = {row["label"]: row["paper"] for row in plan.table["rows"] if row["paper"] is not None}
    theirs.scatter(list(cited.values()), [places[label] for label in cited], marker="D", s=24, color="tab:orange")
    ours.set_yticks(list(places.values()), list(places))
    ours.set_ylim(len(rows) - 0.5, -0.5)
    ours.set_title(f"measured: {plan.budget.task}", fontsize=10)
    theirs.set_title(f"{plan.table['source']}: {plan.table['data']}", fontsize=10)
    for axes in (ours, theirs):
        axes.set_xlabel("mean Dice (%)")
        axes.grid(alpha=0.3)
    if measured:
        ours.legend(fontsize=8)
    with replacing(path) as part:
        figure.savefig(part, dpi=130, format="png")
