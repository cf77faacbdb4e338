"""What was found out of fold: read from the runs, and written as summary.json, summary.md, metrics.csv and pictures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from datetime import date
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import LoadImage
from tqdm import tqdm

from mambamim_nets.bundle.files import write_text
from mambamim_nets.bundle.metrics.segmentation import METRICS, SegmentationTable, case_metrics
from mambamim_nets.bundle.metrics.table import markdown_table
from mambamim_nets.bundle.transforms.labels import KeepPartsd
from mambamim_nets.bundle.visualize.planes import save_figure
from mambamim_nets.cross_validate.comparison import Choice, Comparison, choose
from mambamim_nets.cross_validate.outcome import check_outcome, inference_command, write_outcome
from mambamim_nets.cross_validate.pictures import box_figure, case_figure, folds_figure
from mambamim_nets.cross_validate.postprocessing import MARGIN, Maps, PostProcessing, find_postprocessing
from mambamim_nets.cross_validate.runs import Candidate, CrossValidation

__all__ = ["conclude", "read_metrics", "score"]

WORST = 5
TOLERANCE_MM = 1.0
Rows = Mapping[str, Mapping[str, Mapping[str, float]]]  # case -> structure -> metric -> value


def read_metrics(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return case -> structure -> metric -> value from a metrics.csv of an evaluation."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = {key: float(row[metric.column]) for key, metric in METRICS.items()}
            rows.setdefault(row["case"], {})[row["name"]] = values | {"missing": float(row["missing"])}
    return rows


def score(row: Mapping[str, Mapping[str, float]]) -> float:
    """Return the mean Dice of a case over the structures that either of its maps has; 1 where neither has any."""
    counted = [values["dice"] for values in row.values() if math.isfinite(values["dice"])]
    return mean(counted) if counted else 1.0


def conclude(work: CrossValidation, command: str, overwrite: bool = False) -> str:
    """Choose candidate and post-processing out of fold, write the report and the outcome; return summary.md.

    Args:
        work: whose runs have all finished.
        command: that was given, for the record.
        overwrite: as in `check_outcome`.
    """
    measured = {
        candidate.name: {
            case: row for fold in work.folds for case, row in read_metrics(_evaluation(work, candidate, fold)).items()
        }
        for candidate in work.candidates
    }
    subject_of = {name: case.subject for name, case in work.cases.items()}
    scores = {name: {case: score(row) for case, row in rows.items()} for name, rows in measured.items()}
    choice = choose(scores, subject_of)
    chosen = next(candidate for candidate in work.candidates if candidate.name == choice.name)
    predicted = _predictions(work, chosen)

    def load(case: str) -> Maps:
        return Maps(_label_map(predicted[case]), _label_map(Path(work.cases[case].label)))

    found = find_postprocessing(sorted(predicted), load, work.targets, subject_of, _watched)
    rows: Rows = measured[choice.name]
    if any(step.taken for step in found.steps):
        keep = KeepPartsd("pred", work.targets, found.keep_largest, found.min_volume_ml)
        rows = {case: _measured(load(case), keep, work) for case in _watched(sorted(predicted), "metrics")}
    table = SegmentationTable(work.targets.structures, TOLERANCE_MM)
    for case, row in rows.items():
        table.add(case, row)
    tables = table.write(work.folder)  # metrics.csv, summary.csv and a first summary.md
    pictures = _draw(work, chosen, rows, predicted)
    check_outcome(work, overwrite)
    files = write_outcome(work, chosen, found, table.mean_dice())
    folds = {fold: mean(score(rows[case]) for case in work.folds[fold]) for fold in work.folds}
    text = _markdown(work, command, choice, found, tables, folds, pictures)
    write_text(work.folder / "summary.md", text)
    summary = _summary(work, command, choice, found, table, folds) | {"files": [str(path) for path in files]}
    write_text(work.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    return text


def _watched(cases: Iterable[str], title: str) -> Iterable[str]:
    return tqdm(list(cases), desc=title, leave=False, disable=None)


def _evaluation(work: CrossValidation, candidate: Candidate, fold: int) -> Path:
    return work.run(candidate, fold).folder / "eval" / "metrics.csv"


def _predictions(work: CrossValidation, candidate: Candidate) -> dict[str, Path]:
    """Return case -> file of its label map, predicted by the fold that held it out."""
    return {
        case: _evaluation(work, candidate, fold).with_name(f"{case}_seg.nii.gz")
        for fold, cases in work.folds.items()
        for case in cases
    }


def _label_map(path: Path) -> MetaTensor:
    """Return a label map (1, D, H, W), uint8."""
    loaded: Any = _reader()(str(path))
    return MetaTensor(loaded.round().byte(), affine=loaded.affine)


@cache
def _reader() -> LoadImage:
    """Return the one reader of all label maps: looking for the formats that are installed takes longer than a file."""
    return LoadImage(image_only=True, ensure_channel_first=True)


def _measured(maps: Maps, keep: KeepPartsd, work: CrossValidation) -> dict[str, dict[str, float]]:
    prediction = np.asarray(keep({"pred": maps.prediction})["pred"])
    spacing = [float(edge) for edge in maps.prediction.pixdim]
    return case_metrics(prediction, np.asarray(maps.reference), work.targets.structures, spacing, TOLERANCE_MM)


def _draw(work: CrossValidation, chosen: Candidate, rows: Rows, predicted: Mapping[str, Path]) -> list[str]:
    """Draw everything; return the names of the pictures of the worst cases, the worst one first."""
    dice = {name: [row[name]["dice"] for row in rows.values()] for name in work.targets.structures}
    title = f"{work.task}, out of fold, {len(rows)} cases"
    save_figure(box_figure(dice, title), work.folder / "dice.png", announced=False)
    folders = {f"fold {fold}": work.run(chosen, fold).folder for fold in work.folds}
    save_figure(
        folds_figure(folders, f"{work.task}, {chosen.name}"), work.folder / "learning_curves.png", announced=False
    )
    pictures = []
    for case in sorted(rows, key=lambda case: (score(rows[case]), case))[:WORST]:
        held, name = work.cases[case], f"worst/{case}.png"
        figure = case_figure(
            held.image, predicted[case], held.label, work.targets.labels, f"{case}, Dice {score(rows[case]):.4f}"
        )
        save_figure(figure, work.folder / name, announced=False)
        pictures.append(name)
    return pictures


def _markdown(
    work: CrossValidation,
    command: str,
    choice: Choice,
    found: PostProcessing,
    tables: str,
    folds: Mapping[int, float],
    pictures: list[str],
) -> str:
    candidates = [[name, f"{one.dice:.4f}", one.difference or "-"] for name, one in choice.compared.items()]
    steps = [[step.name, step.difference, "yes" if step.taken else "no"] for step in found.steps]
    lines = [
        f"# {work.task}: cross-validation",
        f"{date.today()}. `{command}`",
        "Every case is measured by the network of the fold that held it out, on the scan's own grid, after the"
        " post-processing below. Candidate and post-processing were chosen on these same cases, so the numbers are a"
        " little higher than on new scans.",
        tables.strip(),
        markdown_table(
            ["fold", "cases", "mean Dice"], [[k, len(work.folds[k]), f"{v:.4f}"] for k, v in folds.items()], 2
        ),
        "![Dice](dice.png)",
        "## Candidates",
        f"{choice.why}. Differences to the first candidate are means over cases with a bootstrap interval, paired by"
        " case and drawn by subject; the first stays unless another's interval lies above 0.",
        markdown_table(["candidate", "mean Dice", "difference to the first"], candidates, 2),
        "## Post-processing",
        f"A step is taken if it raises the mean Dice by at least {MARGIN:g} and its 95 % interval lies above 0. Taken:"
        f" `{json.dumps(found.options)}`.",
        markdown_table(["step", "change of Dice", "taken"], steps, 2)
        if steps
        else "The task has regions: none is tried.",
        "## Learning curves",
        "![loss and validation Dice](learning_curves.png)",
        "## Worst cases",
        "Prediction as it was before post-processing.",
        *(f"![{name}]({name})" for name in pictures),
        "## Inference",
        f"```\n{inference_command(work)}\n```",
    ]
    return "\n\n".join(lines) + "\n"


def _summary(
    work: CrossValidation,
    command: str,
    choice: Choice,
    found: PostProcessing,
    table: SegmentationTable,
    folds: Mapping[int, float],
) -> dict[str, Any]:
    def compared(one: Comparison) -> dict[str, Any]:
        return {"dice": one.dice, "difference": one.difference._asdict() if one.difference else None}

    return {
        "task": work.task,
        "date": str(date.today()),
        "command": command,
        "data": str(work.data),
        "cases": len(table.rows),
        "mean_dice": table.mean_dice(),
        "dice": {
            name: float(np.nanmean([row[name]["dice"] for row in table.rows.values()]))
            for name in work.targets.structures
        },
        "folds": {str(fold): value for fold, value in folds.items()},
        "candidates": {name: compared(one) for name, one in choice.compared.items()},
        "chosen": choice.name,
        "why": choice.why,
        "postprocessing": found.options,
        "steps": [
            {"step": step.name, "difference": step.difference._asdict(), "taken": step.taken} for step in found.steps
        ],
    }
