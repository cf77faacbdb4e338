"""Folds: which cases of a data set train and which validate.

Glossary:
    case: one image with its label; its name is unique in the data set.
    subject: the person scanned. Two cases of one subject never lie in different folds.
    fold: the cases that are held out together for validation.
    official: the division into training and validation that comes with a data set, for numbers comparable to published
        ones; a case carries its part as "listed".
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mambamim_nets.bundle.data.datalists import case_names, keys_of, listed_subjects
from mambamim_nets.bundle.files import read_json, some, stem

__all__ = ["folds", "limit_cases", "listed_parts", "named_in", "split", "with_listed_parts", "with_numbered_subjects"]

logger = logging.getLogger(__name__)


def folds(
    cases: Sequence[Mapping[str, Any]], fold_file: str | os.PathLike[str] | None = None, n_folds: int = 5, seed: int = 0
) -> list[list[str]]:
    """Divide cases into folds, as a file says or by subject.

    Args:
        cases: items with "case" and optionally "subject", as from `labelled_cases`.
        fold_file: JSON: {"subject_folds5": [[case, ...], ...]}, {"folds": [...]} (a list, or a dict by fold number), a
            plain list of lists, nnU-Net's splits_final.json (list of {"train", "val"}; a fold is its "val"), or a
            Decathlon list whose "training" entries have a "fold". The number of folds is then the file's, not
            `n_folds`.
        n_folds: number of folds to make without a file. Subjects are taken largest first, then in the order of a
            SHA-256 of seed and subject, each into the smallest fold: the same on every machine, whatever the order of
            `cases`.
        seed: another seed, other folds.

    Returns:
        The sorted case names of each fold; every case is in exactly one.

    Raises:
        ValueError: the file names an unknown case, misses a case, puts a case in two folds or divides a subject; or
            there are fewer subjects than folds.
    """
    subject_of = {item["case"]: str(item.get("subject", item["case"])) for item in cases}
    if fold_file is None:
        return _make_folds(subject_of, n_folds, seed)
    path = Path(fold_file)
    if not path.is_file():
        raise FileNotFoundError(
            f"fold_file {str(fold_file)!r} does not exist; name a JSON file, or none to make the folds by subject"
        )
    content = read_json(path)
    named = _folds_of(content, path)
    unknown_subject = {item["case"] for item in cases if "subject" not in item}
    for case, subject in listed_subjects(path).items():
        if case in unknown_subject:
            subject_of[case] = subject
    _validate_folds(named, subject_of, path)
    return [sorted(fold) for fold in named]


def split(
    cases: Sequence[Mapping[str, Any]], fold: int | str, folds: Sequence[Sequence[str]], part: Literal["train", "val"]
) -> list[dict[str, Any]]:
    """Select the training or the validation cases of one fold.

    Args:
        cases: items with "case".
        fold: index of the held-out fold; or "official": the parts under which the cases are "listed"; or "all": then
            every case trains, and "val" returns fold 0, or every case without folds, which were trained on. Its scores
            show that the chain runs and say nothing about new scans.
        folds: as from the function `folds`; not used with "official"; there may be none with "all".
        part: "train" or "val".

    Returns:
        The selected items, in the order of `cases`.

    Raises:
        ValueError: `part` or `fold` is not one of those allowed, or "official" finds no case listed for a part.
    """
    if part not in ("train", "val"):
        raise ValueError(f"part {part!r} must be 'train' or 'val'")
    if fold == "official":
        return _official(cases, part)
    if fold == "all":
        if part == "train":
            return [dict(item) for item in cases]
        logger.warning(
            "fold 'all': validation uses cases that are also trained on; its scores say nothing about new scans"
        )
        if not folds:
            return [dict(item) for item in cases]
        index = 0
    else:
        index = _fold_index(fold, len(folds))
    held_out = set(folds[index])
    return [dict(item) for item in cases if (item["case"] in held_out) == (part == "val")]


def named_in(fold_file: str | os.PathLike[str]) -> set[str]:
    """Return the names of the cases that a file of folds divides; none if there is no such file."""
    path = Path(fold_file)
    return {case for fold in _folds_of(read_json(path), path) for case in fold} if path.is_file() else set()


def listed_parts(fold_file: str | os.PathLike[str]) -> dict[str, Literal["training", "validation"]]:
    """Read which cases a Decathlon-style list gives for training and which for validation.

    Args:
        fold_file: JSON with a "training" and a "validation" list, entries {"image", "label"} or paths of images.

    Returns:
        Case name -> list that it is in; other lists ("test") are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a list is missing, empty or malformed, or a case is in it twice or in both.
    """
    path = Path(fold_file)
    if not path.is_file():
        raise FileNotFoundError(
            f"fold_file {str(fold_file)!r} does not exist; name a JSON file with 'training' and 'validation' lists"
        )
    content = read_json(path)
    parts: tuple[Literal["training", "validation"], ...] = ("training", "validation")
    if not isinstance(content, dict) or not all(
        content.get(part) and isinstance(content[part], list) for part in parts
    ):
        raise ValueError(
            f"{path}: fold 'official' needs a 'training' and a 'validation' list that are not empty; it has "
            f"{keys_of(content)}: give another --fold_file, or a fold by number"
        )
    entries = [_entry(entry, path) for part in parts for entry in content[part]]
    of_entry = [part for part in parts for _ in content[part]]
    names = case_names(entries)
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"{path}: cases listed more than once: {some(repeated)}; each case belongs to one list")
    return dict(zip(names, of_entry, strict=True))


def with_listed_parts(cases: Sequence[Mapping[str, Any]], fold_file: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Give cases the parts of a Decathlon-style list, for fold "official", in place of those they carry.

    Args:
        cases: items with "case".
        fold_file: as for `listed_parts`; cases of its "test" list belong to neither part.

    Returns:
        The items in their order, "listed" as the file says.

    Raises:
        ValueError: the file names an unknown case or misses a case.
    """
    parts = listed_parts(fold_file)
    path = Path(fold_file)
    content = read_json(path)
    tested = [entry if isinstance(entry, dict) else {"image": entry} for entry in content.get("test") or []]
    held_back = set(case_names([entry for entry in tested if isinstance(entry.get("image"), str)]))
    names = {item["case"] for item in cases}
    unknown = sorted(set(parts) - names)
    if unknown:
        raise ValueError(
            f"{path}: cases that are not in the data set: {some(unknown)}; use the fold file of this data set"
        )
    unlisted = sorted(names - set(parts) - held_back)
    if unlisted:
        raise ValueError(
            f"{path}: {len(unlisted)} cases in neither 'training' nor 'validation': {some(unlisted)}; list each of them"
        )
    plain = [{key: value for key, value in item.items() if key != "listed"} for item in cases]
    return [{**item, "listed": parts[item["case"]]} if item["case"] in parts else item for item in plain]


def with_numbered_subjects(
    cases: Sequence[Mapping[str, Any]], pattern: str, consecutive: int = 1
) -> list[dict[str, Any]]:
    """Give cases without a subject one by the number in their name.

    Args:
        cases: items with "case" and optionally "subject", which is kept.
        pattern: regular expression of a whole name, whose first group is the number, counted from 1.
        consecutive: how many cases in a row are of one person; of 2, the cases 2k - 1 and 2k are of subject k.

    Returns:
        The items in their order. Where a name does not match, they are as they were: the rule is of another data set.
    """
    numbers = [re.fullmatch(pattern, item["case"]) for item in cases]
    if not all(numbers):
        return [dict(item) for item in cases]
    found = [math.ceil(int(match[1]) / consecutive) for match in numbers if match]
    return [{"subject": str(subject), **item} for item, subject in zip(cases, found, strict=True)]


def limit_cases(cases: Sequence[Mapping[str, Any]], n: int | None, seed: int = 0) -> list[dict[str, Any]]:
    """Choose n cases for an experiment with few labels.

    The choice depends on the seed and the case names alone, and the cases chosen for a smaller n are among those for a
    larger.

    Args:
        cases: items with "case".
        n: how many to keep; None or 0 keeps all.
        seed: another seed, another choice.

    Returns:
        The chosen items, in the order of `cases`.

    Raises:
        ValueError: n is negative or larger than the number of cases.
    """
    if not n:
        return [dict(item) for item in cases]
    if n < 0 or n > len(cases):
        raise ValueError(f"n {n} must lie in 0..{len(cases)}, the number of cases; 0 keeps all")
    chosen = set(sorted((item["case"] for item in cases), key=lambda case: _hash(seed, case))[:n])
    return [dict(item) for item in cases if item["case"] in chosen]


def _official(cases: Sequence[Mapping[str, Any]], part: Literal["train", "val"]) -> list[dict[str, Any]]:
    chosen = {name: [dict(item) for item in cases if item.get("listed") == name] for name in ("training", "validation")}
    if not all(chosen.values()):
        counts = ", ".join(f"{len(items)} for {name}" for name, items in chosen.items())
        raise ValueError(
            f"fold 'official' needs cases listed for training and for validation; of {len(cases)} cases are listed "
            f"{counts}: give --fold_file a JSON file with 'training' and 'validation' lists, or choose a fold by number"
        )
    subjects = [{item["subject"] for item in items if "subject" in item} for items in chosen.values()]
    if part == "val" and (divided := sorted(set.intersection(*subjects))):
        logger.warning("fold 'official' trains and validates on the same subjects: %s", some(divided))
    return chosen["training" if part == "train" else "validation"]


def _entry(entry: Any, path: Path) -> dict[str, Any]:
    """Return an entry of a Decathlon list as a dict whose image names its case."""
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not (
        isinstance(entry.get("image"), str) or ("image" in entry and "label" in entry)
    ):
        raise ValueError(f"{path}: entry {entry!r} must be the path of an image, or have 'image' and 'label'")
    return entry


def _make_folds(subject_of: Mapping[str, str], n_folds: int, seed: int) -> list[list[str]]:
    members = defaultdict(list)
    for case, subject in subject_of.items():
        members[subject].append(case)
    if not 2 <= n_folds <= len(members):
        raise ValueError(
            f"n_folds {n_folds} must be from 2 to {len(members)}, the number of subjects; add cases, give folds of your"
            " own with --fold_file, or --fold all to train on every case"
        )
    result: list[list[str]] = [[] for _ in range(n_folds)]
    for subject in sorted(members, key=lambda subject: (-len(members[subject]), _hash(seed, subject))):
        min(result, key=len).extend(members[subject])
    return [sorted(fold) for fold in result]


def _folds_of(content: Any, path: Path) -> list[list[str]]:
    if isinstance(content, dict) and "subject_folds5" in content:
        content = content["subject_folds5"]
    elif isinstance(content, dict) and "folds" in content:
        content = content["folds"]
        if isinstance(content, dict):
            _require_from_0(sorted(map(int, content)), path)
            content = [content[number] for number in sorted(content, key=int)]
    elif isinstance(content, dict) and isinstance(content.get("training"), list):
        entries = content["training"]
        without = [
            entry for entry in entries if not isinstance(entry, dict) or "fold" not in entry or "image" not in entry
        ]
        if without:
            remedy = "use fold 'official' for its own division" if content.get("validation") else "give each a 'fold'"
            raise ValueError(
                f"{path}: {len(without)} training entries without 'image' or 'fold', first {without[0]!r}; {remedy}"
            )
        numbers = sorted({int(entry["fold"]) for entry in entries})
        _require_from_0(numbers, path)
        names = case_names(entries)
        content = [
            [name for name, entry in zip(names, entries, strict=True) if int(entry["fold"]) == number]
            for number in numbers
        ]
    if isinstance(content, list) and content and all(isinstance(fold, dict) and "val" in fold for fold in content):
        _require_all_others(content, path)
        content = [fold["val"] for fold in content]
    if (
        not isinstance(content, list)
        or not content
        or not all(isinstance(fold, list) and fold and all(isinstance(case, str) for case in fold) for fold in content)
    ):
        raise ValueError(
            f"{path} must hold non-empty lists of case names: subject_folds5, folds, a list of lists, nnU-Net splits,"
            f" or a Decathlon list with 'fold'; it has {keys_of(content)}"
        )
    return [[stem(case) for case in fold] for fold in content]


def _require_from_0(numbers: Sequence[int], path: Path) -> None:
    """Refuse folds of other numbers than 0, 1, ..., of which --fold would take another one than it names."""
    if list(numbers) != list(range(len(numbers))):
        raise ValueError(f"{path}: folds are numbered {list(numbers)}; number them from 0 on, as --fold names them")


def _require_all_others(splits: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Refuse nnU-Net splits that do not train on every case that they do not hold out, since here a fold does."""
    every = {str(case) for split in splits for case in (*split["val"], *split.get("train", ()))}
    for number, split in enumerate(splits):
        others = every - set(map(str, split["val"]))
        train = set(map(str, split.get("train", others)))
        if train != others:
            raise ValueError(
                f"{path}: fold {number} trains on {len(train)} cases, and must train on all that it does not hold out,"
                f" which are {len(others)}; differing: {some(sorted(train ^ others), 3)}: give lists of held-out cases"
                " alone, and --train_cases for fewer"
            )


def _validate_folds(named: Sequence[Sequence[str]], subject_of: Mapping[str, str], path: Path) -> None:
    listed = Counter(case for fold in named for case in fold)
    unknown = sorted(set(listed) - set(subject_of))
    if unknown:
        raise ValueError(
            f"{path}: cases that are not in the data set: {some(unknown)}; use the fold file of this data set"
        )
    repeated = sorted(case for case, count in listed.items() if count > 1)
    if repeated:
        raise ValueError(f"{path}: cases in more than one fold: {some(repeated)}; each case belongs to one fold")
    unlisted = sorted(set(subject_of) - set(listed))
    if unlisted:
        raise ValueError(f"{path}: {len(unlisted)} cases in no fold: {some(unlisted)}; each case belongs to one fold")
    home: dict[str, set[int]] = defaultdict(set)
    for number, fold in enumerate(named):
        for case in fold:
            home[subject_of[case]].add(number)
    divided = sorted(subject for subject, numbers in home.items() if len(numbers) > 1)
    if divided:
        cases = sorted(case for case, subject in subject_of.items() if subject in divided)
        raise ValueError(
            f"{path}: subjects in several folds: {some(divided)} (cases {some(cases)}); keep a subject in one fold"
        )


def _fold_index(fold: int | str, n_folds: int) -> int:
    try:
        index = int(fold)
    except (TypeError, ValueError):
        index = -1
    if isinstance(fold, bool) or not 0 <= index < n_folds:
        raise ValueError(
            f"fold {fold!r} must be 0..{n_folds - 1} or 'all', or 'official' where a list divides the cases"
        )
    return index


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
