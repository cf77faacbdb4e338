"""Tables and a picture of what has been measured so far, with the paper's numbers beside it.

Everything is read from the results that are kept of the runs, per case and on each scan's own grid. Here they are
averaged over seeds and cases; +- is the standard error by a bootstrap over both, see `results`. A difference is taken
case by case, between runs of one fold and seed. CSV: Dice from 0 to 1; Markdown and picture: %.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from mambamim_nets.reproduce.plan import Budget, Cell, Plan, replacing
from mambamim_nets.reproduce.results import METRICS, Estimate, effect_size, estimate

__all__ = ["Comparison", "Result", "Row", "compare", "results", "summarise", "write"]

NAN = float("nan")


class Result(NamedTuple):
    """What one cell was evaluated to.

    Attributes:
        cases: case -> structure -> metric of `METRICS` -> value; Dice is 0 .. 1, NaN what has no value.
        facts: what else is on record, such as date and machine.
    """

    cell: Cell
    cases: dict[str, dict[str, dict[str, float]]]
    facts: dict[str, Any]

    def mean(self, case: str, metric: str) -> float:
        """Return the mean of a case's structures; NaN if none has a value."""
        return _mean(of[metric] for of in self.cases[case].values())

    def dice(self, structure: str | None = None) -> float:
        """Return the mean Dice of the cases: of one structure, or each case by the mean of its structures."""
        if structure is None:
            return _mean(self.mean(case, "dice") for case in self.cases)
        return _mean(of[structure]["dice"] for of in self.cases.values())

    @property
    def structures(self) -> list[str]:
        """Return the names of the structures."""
        return list(next(iter(self.cases.values())))


class Comparison(NamedTuple):
    """Differences of mean Dice in %, over pairs of runs, and their effect size (d_z over cases)."""

    pairs: int
    difference: Estimate | None
    effect: float | None


class Row(NamedTuple):
    """A row over its runs: mean Dice in %, HD95 in mm; None where nothing is measured."""

    label: str
    runs: int
    dice: Estimate | None
    hd95: Estimate | None
    structures: dict[str, float]
    compared: Comparison


def results(cells: Iterable[Cell]) -> list[Result]:
    """Read what is kept of the finished cells."""
    found = []
    for cell in cells:
        if cell.run.kept is None or not cell.run.finished():
            continue
        facts = cell.run.kept.read()
        cases = {
            case: {
                name: dict(zip(METRICS, (NAN if x is None else x for x in numbers), strict=True))
                for name, numbers in of.items()
            }
            for case, of in facts.pop("cases").items()
        }
        found.append(Result(cell, cases, facts))
    return found


def summarise(table: Mapping[str, Any], found: Sequence[Result]) -> list[Row]:
    """Average over the runs of each row, and compare it to its reference (else the table's), run by run."""
    rows = []
    for row in table["rows"]:
        label = row["label"]
        measured = [result for result in found if result.cell.label == label]
        names = measured[0].structures if measured else []
        structures = {name: 100 * fmean(result.dice(name) for result in measured) for name in names}
        base = reference_of(table, label)
        compared = compare(found, label, base) if base else Comparison(0, None, None)
        dice, hd95 = (_over_cases(measured, metric, scale) for metric, scale in (("dice", 100), ("hd95_mm", 1)))
        rows.append(Row(label, len(measured), dice, hd95, structures, compared))
    return rows


def compare(found: Sequence[Result], label: str, base: str) -> Comparison:
    """Compare the mean Dice of two rows, case by case: run with run of one fold and seed of fine-tuning.

    Both have the same seed of pre-training where both have one; a row from scratch is compared to each of them.
    """
    reference = {(r.cell.fold, r.cell.pretrain_seed, r.cell.seed): r for r in found if r.cell.label == base}
    differences, pairs = {}, 0
    for result in found:
        fold, pretrain_seed, seed = result.cell.fold, result.cell.pretrain_seed, result.cell.seed
        other = reference.get((fold, pretrain_seed, seed), reference.get((fold, None, seed)))
        if result.cell.label != label or other is None:
            continue
        pairs += 1
        for case in result.cases.keys() & other.cases.keys():
            difference = result.mean(case, "dice") - other.mean(case, "dice")
            differences[pretrain_seed, seed, (fold, case)] = 100 * difference
    return Comparison(pairs, estimate(differences), effect_size(differences))


def _over_cases(measured: Sequence[Result], metric: str, scale: float) -> Estimate | None:
    return estimate(
        {
            (r.cell.pretrain_seed, r.cell.seed, (r.cell.fold, case)): scale * r.mean(case, metric)
            for r in measured
            for case in r.cases
        }
    )


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


def _mean(values: Iterable[float]) -> float:
    kept = [value for value in values if value == value]
    return fmean(kept) if kept else NAN


def _csv(found: Sequence[Result]) -> str:
    structures = found[0].structures if found else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "fold", "pretrain_seed", "seed", "mean_dice", "mean_hd95_mm", *structures])
    for result in found:
        cell = result.cell
        hd95 = _mean(result.mean(case, "hd95_mm") for case in result.cases)
        numbers = [f"{value:.6f}" for value in (result.dice(), hd95, *map(result.dice, structures))]
        origin = "" if cell.pretrain_seed is None else cell.pretrain_seed
        writer.writerow([cell.label, cell.fold, origin, cell.seed, *numbers])
    return text.getvalue()


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.2f}"


def _estimate(found: Estimate | None, sign: str = "") -> str:
    if found is None:
        return "-"
    return _number(found.mean, sign) + ("" if found.error is None else f" ± {found.error:.2f}")


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
    cited = any(row["paper"] is not None for row in table["rows"])
    said = {row["label"]: row for row in table["rows"]}
    lines = [f"# {table['title']}", ""]
    if len(found) < len(cells):
        lines += [
            f"**Partial: {len(found)} of {len(cells)} runs are finished.** Rows with fewer runs are not final.",
            "",
        ]
    lines += [table["note"], ""] if "note" in table else []
    other = "another budget" if budget.task in table["data"] else "another data set and budget"
    paper = (
        f" Paper: {table['source']}, {table['data']}, {table['metric']}: {other}, so compare differences, not levels."
    )
    lines += [
        f"Measured: {budget.task}, mean Dice in % and HD95 in mm, mean ± standard error by a bootstrap over seeds and"
        f" cases; where a row has one seed, it is that of the cases alone.{paper if cited else ''} Differences are to"
        f" the row *{table['reference']}* unless another is named, case by case between runs of the same fold and seed;"
        " the effect size is their mean over their standard deviation over cases (d_z).",
        "",
    ]
    heads = ["row", "runs", "Dice", "difference", "effect size", "HD95 (mm)"]
    heads += ["paper", "paper's difference"] if cited else []
    lines += [f"| {' | '.join(heads)} | |", "|---|" + "---:|" * (len(heads) - 1) + "---|"]
    for row in rows:
        numbers = [_estimate(row.dice), *_compared(row.compared), _estimate(row.hd95)]
        if cited:
            numbers += [_number(said[row.label]["paper"]), _number(paper_difference(table, row.label), "+")]
        lines.append(f"| {row.label} | {row.runs} | {' | '.join(numbers)} | {_remark(said[row.label])} |")
    if "pairs" in table:
        lines += ["", "| compared | pairs of runs | difference | effect size |", "|---|---:|---:|---:|"]
        for label, base in table["pairs"]:
            compared = compare(found, label, base)
            lines.append(f"| *{label}* to *{base}* | {compared.pairs} | {' | '.join(_compared(compared))} |")
    structures = found[0].structures if found else []
    if len(structures) > 1:
        lines += ["", "Dice of each structure in %, mean over runs:", "", f"| row | {' | '.join(structures)} |"]
        lines += ["|---|" + "---:|" * len(structures)]
        for row in rows:
            if row.runs:
                lines.append(f"| {row.label} | {' | '.join(_number(row.structures[name]) for name in structures)} |")
    missing = [f"{c.label} ({_run_of(c)})" for c in cells if not c.run.finished()]
    if missing:
        lines += ["", f"Not there yet: {'; '.join(missing)}."]
    picture = f"![Dice of every run{', and the numbers of the paper' if cited else ''}]({plan.name}.png)"
    lines += ["", picture, "", "## Budget, the same for every row", "", "| | |", "|---|---|"]
    facts = _facts(budget, found, command, jobs, threads)
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in facts.items()), ""])


def _compared(compared: Comparison) -> list[str]:
    return [_estimate(compared.difference, "+"), _number(compared.effect, "+")]


def _run_of(cell: Cell) -> str:
    origin = "" if cell.pretrain_seed is None else f"seed {cell.pretrain_seed} of pre-training, "
    return f"fold {cell.fold}, {origin}seed {cell.seed}"


def _remark(row: Mapping[str, Any]) -> str:
    """Return what is to be said of a row: its note, and the row it is compared to where that is its own."""
    own = row.get("reference", row["label"])
    return "; ".join(part for part in (row.get("note"), f"to *{own}*" if own != row["label"] else "") if part)


def _epochs(number: int) -> str:
    return f"{number} epoch{'' if number == 1 else 's'}"


def _facts(budget: Budget, found: Sequence[Result], command: str, jobs: int, threads: int) -> dict[str, str]:
    def recorded(key: str) -> str:
        return "; ".join(sorted({str(result.facts[key]) for result in found if key in result.facts})) or "-"

    def listed(seeds: Iterable[int]) -> str:
        return ", ".join(map(str, seeds))

    cases = "; ".join(sorted({f"{len(r.cases)} (fold {r.cell.fold})" for r in found})) or "-"
    more = {"pre-training": budget.pretrain, "fine-tuning": budget.finetune}
    options = "; ".join(f"{n}: {', '.join(f'{k}={v}' for k, v in part.items())}" for n, part in more.items() if part)
    return {
        "command": f"`{command}`",
        "data": f"{budget.task}, {budget.data}",
        "folds": ", ".join(map(str, budget.folds)),
        "seeds": f"{listed(budget.pretrain_seeds)} of pre-training, each with {listed(budget.seeds)} of fine-tuning",
        "labelled training cases": f"{budget.train_cases}, drawn by the seed" if budget.train_cases else "all",
        "evaluated cases": cases,
        "pre-training": f"{_epochs(budget.pretrain_epochs)} on the images of the fold's training cases (all of them,"
        " without labels), once for each method, fold and seed",
        "fine-tuning": f"{_epochs(budget.finetune_epochs)}; the last epoch is evaluated, on each scan's own grid",
        "bundle, size": f"{budget.bundle}, {budget.size}",
        "further options": options or "-",
        "machine": recorded("machine"),
        "device": recorded("device"),
        "this call": f"{jobs} runs at a time, {threads} threads each",
        "versions": recorded("versions"),
        "date": recorded("date"),
    }


def _picture(path: Path, plan: Plan, rows: Sequence[Row], found: Sequence[Result]) -> None:
    """Draw every run and the mean of each row; the paper's numbers in a panel of their own, for the data differ."""
    from matplotlib.figure import Figure

    height = 1.4 + 0.42 * len(rows)
    cited = {row["label"]: row["paper"] for row in plan.table["rows"] if row["paper"] is not None}
    figure = Figure(figsize=(10, height), layout="constrained")
    panels = figure.subplots(1, 2 if cited else 1, sharey=True, squeeze=False)[0]
    ours = panels[0]
    places = {row.label: place for place, row in enumerate(rows)}
    ours.scatter(
        [100 * r.dice() for r in found], [places[r.cell.label] for r in found], s=18, alpha=0.6, label="one run"
    )
    measured = [row for row in rows if row.dice is not None]
    ours.errorbar(
        [row.dice.mean for row in measured if row.dice],
        [places[row.label] for row in measured],
        xerr=[row.dice.error or 0.0 for row in measured if row.dice],
        fmt="|",
        markersize=16,
        capsize=4,
        color="black",
        label="mean and standard error",
    )
    ours.set_yticks(list(places.values()), list(places))
    ours.set_ylim(len(rows) - 0.5, -0.5)
    ours.set_title(f"measured: {plan.budget.task}", fontsize=10)
    if cited:
        panels[1].scatter(list(cited.values()), [places[label] for label in cited], marker="D", s=24, c="tab:orange")
        panels[1].set_title(f"{plan.table['source']}: {plan.table['data']}", fontsize=10)
    for axes in panels:
        axes.set_xlabel("mean Dice (%)")
        axes.grid(alpha=0.3)
    if measured:
        ours.legend(fontsize=8)
    with replacing(path) as part:
        figure.savefig(part, dpi=130, format="png")
