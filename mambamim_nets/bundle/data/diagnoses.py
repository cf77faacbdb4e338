"""The table of a classification data set, subjects.csv: read, checked, and divided by subject.

One row is one scan. Columns:
    subject     the person scanned; scans of one subject never lie in different parts
    image       path of the scan, relative to the table
    diagnosis   one of the data set's diagnoses
    session     optional, distinguishes the scans of one subject
    part        optional, train, val or test in every row, such as ADNI1 for training and ADNI2 for testing

Glossary
    case: one scan; its name is the subject's, with the session where there is one.
    fold: fifth of the subjects of each class, held out as the test part.
    official: the parts are those of the table.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from mambamim_nets.bundle.data.memory import ScanMemory
from mambamim_nets.bundle.data.verification import check_images
from mambamim_nets.bundle.files import first_lines, some
from mambamim_nets.bundle.names import case_name, path_inside

__all__ = ["diagnosed", "first_fold", "subject_part"]

logger = logging.getLogger("mambamim_nets")

TABLE = "subjects.csv"
REQUIRED, OPTIONAL = ("subject", "image", "diagnosis"), ("session", "part")
FOLDS = 5
Part = Literal["train", "val", "test"]
PARTS: tuple[str, ...] = get_args(Part)


def diagnosed(
    folder: str,
    classes: Sequence[str],
    diagnoses: Sequence[str],
    cache_file: str | None = None,
    memory: ScanMemory | None = None,
) -> list[dict[str, Any]]:
    """Read the table of a data set, check it as a whole, and return the scans of a task.

    Args:
        folder: of subjects.csv.
        classes: the task's diagnoses, negative and positive; scans with another one are left out, and the log says so.
        diagnoses: all that the table may hold.
        cache_file: where the check of the images remembers what it found sound.
        memory: what the work on a scan takes, as in `check_labelled`.

    Returns:
        One dict per scan of the task, in the order of the table: "image" (path), "label" ([0.0] or [1.0]), "case",
        "subject", "session", "diagnosis", and "part" where the table has it.

    Raises:
        FileNotFoundError: there is no table.
        ValueError: on one or more problems, of which up to 20 are named: a column or value is missing, a diagnosis or
            part is unknown, an image is missing or in two rows, two rows have one subject and session or one name of
            results, a subject is in two parts, some rows only have a part, a subject or session cannot name files, a
            path leaves the folder; or an image of the task cannot be read, or is there under two names (see
            `check_images`).
    """
    path = Path(folder, TABLE)
    rows = _rows(path)
    problems = _problems(rows, path.parent, diagnoses)
    if len(problems) == 1:
        raise ValueError(f"{path}: {problems[0]}")
    if problems:
        raise ValueError(f"{path}: {len(problems)} problems:\n{first_lines(problems)}")
    missing = [name for name in classes if name not in {row["diagnosis"] for row in rows}]
    if missing:
        raise ValueError(f"{path}: no row with the diagnosis {' or '.join(missing)}, which the task needs; add scans")
    cases = [
        {
            "image": path_inside(path.parent, row["image"], path),
            "label": [float(classes.index(row["diagnosis"]))],
            "case": _case(row),
            **{key: row[key] for key in ("subject", "session", "diagnosis")},
            **({"part": row["part"]} if row["part"] else {}),
        }
        for row in rows
        if row["diagnosis"] in classes
    ]
    left_out = Counter(row["diagnosis"] for row in rows if row["diagnosis"] not in classes)
    logger.info(
        "%s: %s; left out, of no class of this task: %s",
        path,
        _counts(cases),
        _listed(left_out) if left_out else "none",
    )
    check_images(cases, cache_file=cache_file, memory=memory)
    return cases


def first_fold(folder: str) -> int | str:
    """Return "official" where the table of a folder has parts, else 0: the division that a run takes by default."""
    return "official" if any(row["part"] for row in _rows(Path(folder, TABLE))) else 0


def subject_part(
    cases: Sequence[Mapping[str, Any]],
    fold: int | str,
    part: Part,
    val_share: float = 0.2,
    memory: ScanMemory | None = None,
    cache_rate: float = 0.0,
) -> list[dict[str, Any]]:
    """Return the training, validation or test scans of a fold, divided by subject and alike in both classes.

    Subjects are drawn by a SHA-256 of their names: the same on every machine, whatever the order of the table.

    Args:
        cases: as from `diagnosed`.
        fold: 0 .. 4, or "official": the parts of the table.
        part: which part. What is not tested trains, but for the validation part.
        val_share: share of the subjects left for training, of each class, that validates; with "official", where the
            table names none for it.
        memory: what a scan takes; a cache in memory that may not fit is warned of. None: it is not.
        cache_rate: share of the scans that is to be kept in memory.

    Raises:
        ValueError: `fold` or `part` is not one of those allowed, or a class has no subject in the part.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r} must be one of {', '.join(PARTS)}")
    if not 0 < val_share < 1:
        raise ValueError(f"val_share {val_share} must lie between 0 and 1")
    listed = {item["subject"]: item["part"] for item in cases if "part" in item}
    if fold == "official":
        if not listed:
            raise ValueError(f"fold 'official' needs a column 'part' in {TABLE}; add it, or choose a fold by number")
        part_of = dict(listed)
        if "val" not in part_of.values():
            part_of |= _validating([item for item in cases if item["part"] == "train"], val_share)
    else:
        if listed:
            raise ValueError(f"{TABLE} has parts, so fold {fold!r} is not used; leave --fold out, or remove the column")
        part_of = _made(cases, _number(fold), val_share)
    chosen = [dict(item) for item in cases if part_of[item["subject"]] == part]
    found = Counter(item["label"][0] for item in chosen)
    if len(found) < 2:
        raise ValueError(
            f"{part} part of fold {fold!r} has {_counts(chosen)}, and needs subjects of both classes; "
            f"{'set the column part' if listed else f'give at least {FOLDS} subjects of each class'}"
        )
    logger.info("%s: %s, fold %s", part, _counts(chosen), fold)
    if memory is not None:
        memory.warn_of_cache(chosen, cache_rate)
    return chosen


# --- the table ------------------------------------------------------------------------------------


def _rows(path: Path) -> list[dict[str, str]]:
    """Read a table; every row has every column, "" where it is empty, and its "line"."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; dataset_dir must hold {TABLE} with the columns {', '.join(REQUIRED)}"
        )
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        lacking = [name for name in REQUIRED if name not in columns]
        if lacking:
            raise ValueError(
                f"{path}: columns {columns} lack {lacking}; separate them by commas, names in the first line"
            )
        names = (*REQUIRED, *OPTIONAL)
        rows = [
            {"line": str(reader.line_num), **{name: (row.get(name) or "").strip() for name in names}} for row in reader
        ]
    if not rows:
        raise ValueError(f"{path} has no row; list one scan per row")
    return rows


def _problems(rows: Sequence[Mapping[str, str]], folder: Path, diagnoses: Sequence[str]) -> list[str]:
    """Return one line for each thing wrong with a table."""
    problems = []
    images: dict[str, str] = {}
    scans: dict[tuple[str, str], str] = {}
    cases: dict[str, str] = {}
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    with_part = sum(bool(row["part"]) for row in rows)
    for row in rows:
        line, subject = f"line {row['line']}", row["subject"]
        problems += [f"{line} has no {name}; every row needs one" for name in REQUIRED if not row[name]]
        if row["diagnosis"] and row["diagnosis"] not in diagnoses:
            known = ", ".join(diagnoses)
            problems.append(f"{line}: diagnosis {row['diagnosis']!r} must be one of {known}; correct or remove the row")
        if row["image"]:
            outside = _refused(path_inside, folder, row["image"], line)
            problems += outside
            image = folder / row["image"]
            if not outside and not image.is_file():
                problems.append(f"{line}: {image} is missing; complete the data, or remove the row")
            first = images.setdefault(os.path.realpath(image), line)
            if first != line:
                problems.append(f"{line}: image {row['image']} is in {first} too; list every scan once")
        if subject:
            problems += _refused(case_name, _case(row), line)
            first = scans.setdefault((subject, row["session"]), line)
            if first != line:
                named = f"subject {subject!r}" + (f" session {row['session']!r}" if row["session"] else "")
                problems.append(f"{line}: {named} is in {first} too; give each scan of a subject its own session")
            elif (first := cases.setdefault(_case(row), line)) != line:
                problems.append(
                    f"{line}: its results would be called {_case(row)!r}, as those of {first}; give another session"
                )
        if row["part"] and row["part"] not in PARTS:
            problems.append(f"{line}: part {row['part']!r} must be one of {', '.join(PARTS)}; correct it")
        elif with_part and not row["part"]:
            problems.append(f"{line} has no part, but other rows have one; fill it in")
        elif subject and row["part"]:
            parts[subject].setdefault(row["part"], line)
    for subject, found in parts.items():
        if len(found) > 1:
            where = ", ".join(f"{part} ({line})" for part, line in found.items())
            problems.append(f"subject {subject!r} is in parts {where}; choose one part for all of its scans")
    return problems


def _refused(check: Callable[..., str], *values: object) -> list[str]:
    """Return what a check of a name or path has against it, as a list of at most one line."""
    try:
        check(*values)
    except ValueError as error:
        return [str(error)]
    return []


def _case(row: Mapping[str, str]) -> str:
    return "_".join(filter(None, (row["subject"], row["session"])))


def _counts(cases: Sequence[Mapping[str, Any]]) -> str:
    subjects = len({item["subject"] for item in cases})
    return f"{len(cases)} scans of {subjects} subjects ({_listed(Counter(item['diagnosis'] for item in cases))})"


def _listed(counts: Mapping[str, int]) -> str:
    return some([f"{count} {name}" for name, count in sorted(counts.items())])


# --- parts ----------------------------------------------------------------------------------------


def _number(fold: int | str) -> int:
    if isinstance(fold, bool) or str(fold) not in map(str, range(FOLDS)):
        raise ValueError(f"fold {fold!r} must be 0..{FOLDS - 1}, or 'official' where {TABLE} has parts")
    return int(fold)


def _made(cases: Sequence[Mapping[str, Any]], fold: int, val_share: float) -> dict[str, str]:
    """Divide subjects: each class dealt to the folds in turn, then the validation part drawn from the rest."""
    part_of = {}
    for offset, members in enumerate(_by_class(cases, "fold")):
        for place, subject in enumerate(members):
            # the second class is dealt from the other end, so that folds are of one size
            dealt = place % FOLDS if offset else FOLDS - 1 - place % FOLDS
            part_of[subject] = "test" if dealt == fold else "train"
    rest = [item for item in cases if part_of[item["subject"]] == "train"]
    return part_of | _validating(rest, val_share)


def _validating(cases: Sequence[Mapping[str, Any]], share: float) -> dict[str, str]:
    """Draw subjects for validation: of each class a share, at least one."""
    chosen = [members[: max(1, round(share * len(members)))] for members in _by_class(cases, "val") if len(members) > 1]
    return {subject: "val" for members in chosen for subject in members}


def _by_class(cases: Sequence[Mapping[str, Any]], salt: str) -> list[list[str]]:
    """Return the subjects of each class in a random but fixed order; one with scans of both counts as positive."""
    label: dict[str, float] = defaultdict(float)
    for item in cases:
        label[item["subject"]] = max(label[item["subject"]], item["label"][0])
    order = sorted(label, key=lambda subject: hashlib.sha256(f"{salt}:{subject}".encode()).hexdigest())
    return [[subject for subject in order if label[subject] == value] for value in (0.0, 1.0)]
