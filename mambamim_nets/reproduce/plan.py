"""From a table and a budget to the runs: their folders, their commands, and which of them are the same.

A run's name says all that determines it beside the budget, so rows (also of different tables) that need the same
pre-training or fine-tuning name the same folder. An override that repeats what the configuration says anyway counts for
nothing. A folder keeps its commands in `run.json`; one that holds other commands is refused.

What a fine-tuning was evaluated to is kept beside, in a small file without folders of this machine, which can be
committed: a run whose results are there is finished, wherever its folder is.
"""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import Any

__all__ = ["Budget", "Cell", "Kept", "Plan", "Run", "make_plan", "replacing", "tables"]

RECORD, ENCODER, LAST = "run.json", "encoder.pt", "checkpoint_last.pt"
PICTURES = 2  # overlays of each evaluation


@cache
def tables() -> dict[str, Any]:
    """Return `tables.json`: the tables, the defaults of a budget, and how each data set is read in pre-training."""
    return json.loads(Path(__file__).with_name("tables.json").read_text(encoding="utf-8"))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write, which then replaces a file: readers see the old or the new one, whole."""
    part = path.with_name(f".{os.getpid()}.{path.name}")
    yield part
    os.replace(part, path)


@dataclass(frozen=True)
class Budget:
    """What all rows have in common.

    Args:
        data: folder of the data set, absolute.
        output: folder of the runs and the tables, absolute.
        results: folder of what the fine-tunings were evaluated to, a file each, absolute.
        bundles: folder of the bundles.
        bundle, task: segmentation bundle and its task.
        size: of the networks.
        folds, seeds: every row is fine-tuned once for each pair of them.
        pretrain_seeds: a row that starts from a pre-training is done for each of them, with every fold and seed.
        train_cases: labelled training cases, drawn by the seed; 0: all.
        finetune_epochs, pretrain_epochs: at least 1.
        pretrain, finetune: further options of the bundles, for all rows.
        fold_file: folds in a file, absolute; None: as the bundle finds or makes them.
    """

    data: Path
    output: Path
    results: Path
    bundles: Path
    bundle: str
    task: str
    size: str
    folds: tuple[int | str, ...]
    seeds: tuple[int, ...]
    pretrain_seeds: tuple[int, ...]
    train_cases: int
    finetune_epochs: int
    pretrain_epochs: int
    pretrain: Mapping[str, Any]
    finetune: Mapping[str, Any]
    fold_file: Path | None = None


@dataclass(frozen=True)
class Kept:
    """The file of a fine-tuning's results, and what they are the results of.

    Attributes:
        path: of the file.
        settings: the commands from pre-training to evaluation and the digest of the images, with words in the place of
            this machine's folders.
    """

    path: Path
    settings: tuple[str, ...]

    def read(self) -> dict[str, Any]:
        """Return what the file says; {} if there is none."""
        return _read(self.path)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@dataclass(frozen=True)
class Run:
    """A folder, the commands that fill it (arguments of `python -m monai.bundle run`), and the run it starts from.

    Attributes:
        result: the file that the last command writes.
        inputs: what the commands read and do not name, such as a digest of a list of images; several with "; " between.
        after: the pre-training that a fine-tuning starts from.
        kept: where the results are kept, of a fine-tuning; None: nowhere but in the folder.
    """

    name: str
    folder: Path
    steps: tuple[tuple[str, ...], ...]
    result: Path
    inputs: str = ""
    after: "Run | None" = None
    kept: Kept | None = None

    @property
    def log(self) -> Path:
        """Return the file that takes the output of all commands."""
        return self.folder / "run.log"

    def settings(self) -> dict[str, Any]:
        """Return what a folder of this run must have been made with."""
        return {"commands": [list(step) for step in self.steps], "inputs": self.inputs}

    def record(self) -> dict[str, Any]:
        """Return what the folder's `run.json` says; {} if there is none."""
        return _read(self.folder / RECORD)

    def finished(self) -> bool:
        """Return whether the results are there; those of a pre-training grow, so its end is on record too."""
        if self.kept is not None:
            return self.kept.path.is_file()
        return self.result.is_file() and (self.result.name != ENCODER or "seconds" in self.record())

    def check(self) -> None:
        """Refuse results that are kept of other commands, and where there are none a folder filled by others.

        Raises:
            ValueError: that names the first difference.
        """
        if self.kept is not None and self.finished():
            there, here = (
                list(chain(*map(shlex.split, of))) for of in (self.kept.read()["settings"], self.kept.settings)
            )
            _refuse_others(self.kept.path, there, here, "--results")
        elif self.folder.exists() and any(self.folder.iterdir()):
            held, wanted = self.record().get("settings"), self.settings()
            there, here = (
                ["nothing on record"] if of is None else [*chain(*of["commands"]), *of["inputs"].split("; ")]
                for of in (held, wanted)
            )
            _refuse_others(self.folder, there, here, "output folder")


def _refuse_others(path: Path, there: Sequence[str], here: Sequence[str], option: str) -> None:
    if there == here:
        return
    pairs = [(a, b) for a, b in zip(there, here, strict=False) if a != b]
    difference = f"{pairs[0][0]} there, {pairs[0][1]} here" if pairs else "one of the two has more options"
    raise ValueError(
        f"{path} was made with other settings ({difference}); give the settings it was made with, or another {option},"
        " or remove it"
    )


@dataclass(frozen=True)
class Cell:
    """The fine-tuning of one row, fold and seeds; `pretrain_seed` is None from scratch."""

    label: str
    fold: int | str
    pretrain_seed: int | None
    seed: int
    run: Run


@dataclass(frozen=True)
class Plan:
    """A table, the budget and the cells of the chosen rows.

    Attributes:
        others: cells of the rows that were not chosen.
        lists: files that pre-training reads, and their content.
    """

    name: str
    table: Mapping[str, Any]
    budget: Budget
    cells: tuple[Cell, ...]
    others: tuple[Cell, ...]
    lists: Mapping[Path, str]

    @property
    def runs(self) -> list[Run]:
        """Return the runs of the chosen rows, each once, pre-training before what starts from it.

        A pre-training that was removed when everything from it was finished is not asked for again.
        """
        found: dict[Run, None] = {}
        for run in (cell.run for cell in self.cells):
            if run.after is not None and (run.after.finished() or not run.finished()):
                found[run.after] = None
            found[run] = None
        return list(found)

    def check(self) -> None:
        """Refuse an output folder in which runs of this table, chosen or not, were made with other settings.

        Raises:
            ValueError: see `Run.check`.
        """
        for cell in (*self.cells, *self.others):
            for run in (cell.run.after, cell.run):
                if run is not None:
                    run.check()


def make_plan(name: str, budget: Budget, only: Sequence[str] = ()) -> Plan:
    """Plan the runs of a table.

    Args:
        name: of the table.
        budget: of every row.
        only: labels of the rows to run; empty: all.

    Raises:
        FileNotFoundError: a configuration of a chosen row is not in its bundle.
        ValueError: a label or the data set is unknown, or the data set has too few cases.
    """
    table = tables()["tables"][name]
    labels = [row["label"] for row in table["rows"]]
    unknown = [label for label in only if label not in labels]
    if unknown:
        raise ValueError(
            f"--only {unknown[0]!r} is no row of table {name}; its rows are {', '.join(map(repr, labels))}"
        )
    chosen = [row for row in table["rows"] if not only or row["label"] in only]
    _check_configs(chosen, budget)
    lists = {fold: budget.output / "lists" / f"fold{fold}.json" for fold in budget.folds}
    images = {fold: _image_list(budget, fold) for fold in budget.folds}
    cells: list[Cell] = []
    others: list[Cell] = []
    for row in table["rows"]:
        if row not in chosen and not _configs_exist(row, budget):
            continue
        part = row["pretrain"]
        for fold, origin in product(budget.folds, budget.pretrain_seeds if part else (None,)):
            start = None if origin is None else _pretraining(part, budget, fold, origin, lists[fold], images[fold])
            for seed in budget.seeds:
                run = _finetuning(row["finetune"], budget, fold, seed, start, images[fold])
                (cells if row in chosen else others).append(Cell(row["label"], fold, origin, seed, run))
    contents = {lists[fold]: images[fold] for fold in budget.folds}
    return Plan(name, table, budget, tuple(cells), tuple(others), contents)


def _config_paths(row: Mapping[str, Any], budget: Budget) -> list[Path]:
    parts = [("pretrain", row["pretrain"]), (budget.bundle, row["finetune"])]
    return [budget.bundles / bundle / "configs" / file for bundle, part in parts if part for file in part["configs"]]


def _configs_exist(row: Mapping[str, Any], budget: Budget) -> bool:
    return all(path.is_file() for path in _config_paths(row, budget))


def _check_configs(rows: Sequence[Mapping[str, Any]], budget: Budget) -> None:
    for row in rows:
        for path in _config_paths(row, budget):
            if not path.is_file():
                raise FileNotFoundError(
                    f"row {row['label']!r} needs {path}, which does not exist; start from the repository's root, give"
                    " its folder of bundles with --bundles, or choose other rows with --only"
                )


def _image_list(budget: Budget, fold: int | str) -> str:
    """Return a fold's training images as a Decathlon-style list: what pre-training sees, without labels."""
    from mambamim_nets.bundle.data.datasets import fold_cases  # the bundles' own folds, only read here
    from mambamim_nets.bundle.data.labelled import labelled_cases

    fold_file = str(budget.fold_file) if budget.fold_file else None
    cases = labelled_cases(budget.data)
    bundle = str(budget.bundles / budget.bundle)
    train = fold_cases(cases, str(budget.data), fold, "train", fold_file, bundle_root=bundle)
    if budget.train_cases > len(train):
        raise ValueError(
            f"--train_cases {budget.train_cases} is more than the {len(train)} training cases of fold {fold} in"
            f" {budget.data}; give fewer, or 0 for all"
        )
    return json.dumps({"training": [{"image": case["image"]} for case in train]}, indent=1)


def _pretraining(part: Mapping[str, Any], budget: Budget, fold: int | str, seed: int, path: Path, images: str) -> Run:
    configs, overrides = _effective(part, budget.bundles / "pretrain")
    name = f"pretrain/{_slug(configs, overrides) or 'mambamim'}_fold{fold}_seed{seed}"
    folder = budget.output / name
    options = {
        "sources": [str(path)],
        "size": budget.size,
        "seed": seed,
        "max_epochs": budget.pretrain_epochs,
        "picture_interval": budget.pretrain_epochs,
        **_data_options(configs, budget),
        **overrides,
        **budget.pretrain,
        "output_dir": str(folder),
    }
    return Run(name, folder, (_arguments(configs, options),), folder / ENCODER, _digest(images, budget))


def _digest(images: str, budget: Budget) -> str:
    """Return a digest of a list of images, the same wherever the data set lies."""
    return f"images {hashlib.sha256(images.replace(str(budget.data), '').encode()).hexdigest()[:16]}"


def _portable(text: str, budget: Budget) -> str:
    """Return a command with words in the place of this machine's folders."""
    places = {budget.output: "OUTPUT", budget.data: "DATA", budget.fold_file: "FOLDS", budget.bundles: "bundles"}
    for path in sorted((path for path in places if path and path.is_absolute()), key=lambda path: -len(str(path))):
        text = text.replace(str(path), places[path])
    return text


def _data_options(configs: Sequence[Path], budget: Budget) -> dict[str, Any]:
    """Return how the data set is read; what a method says itself wins, unless the data set names the method."""
    options = dict(tables()["pretrain_options"][budget.bundle][budget.task])
    methods = options.pop("methods", {})
    for path in configs[1:]:
        said = json.loads(path.read_text(encoding="utf-8"))
        options = {key: value for key, value in options.items() if key not in said} | methods.get(path.stem, {})
    return options


def _finetuning(
    part: Mapping[str, Any], budget: Budget, fold: int | str, seed: int, start: Run | None, images: str
) -> Run:
    configs, overrides = _effective(part, budget.bundles / budget.bundle)
    origin = start.folder.name.replace(f"_fold{fold}", "") if start else "scratch"
    own = [] if any(path.parent.name == "networks" for path in configs) else ["hymamba"]
    network = "_".join(filter(None, [*own, _slug(configs, overrides)]))
    name = f"finetune/{network}_from_{origin}_fold{fold}_seed{seed}"
    folder = budget.output / name
    options: dict[str, Any] = {"dataset_dir": str(budget.data)}
    task = budget.bundles / budget.bundle / "configs" / "tasks" / f"{budget.task}.json"
    if task.is_file():
        configs = [configs[0], task, *configs[1:]]
    if budget.fold_file:
        options["fold_file"] = str(budget.fold_file)
    options |= {"size": budget.size, "fold": fold, "seed": seed}
    options |= {"train_cases": budget.train_cases} if budget.train_cases else {}
    options |= {**overrides, **budget.finetune, "output_dir": str(folder)}
    schedule = {"max_epochs": budget.finetune_epochs, "val_interval": budget.finetune_epochs}
    weights = {"pretrained": str(start.result)} if start else {}
    evaluation = {"checkpoint": str(folder / LAST), "pictures": PICTURES}
    evaluate = budget.bundles / budget.bundle / "configs" / "evaluate.json"
    steps = (
        _arguments(configs, {**schedule, **weights, **options}),
        _arguments([*configs, evaluate], {**evaluation, **options}),
    )
    commands = [_portable(shlex.join(step), budget) for step in (*(start.steps if start else ()), *steps)]
    kept = Kept(budget.results / f"{folder.name}.json", (*commands, _digest(images, budget)))
    return Run(name, folder, steps, folder / "eval" / "metrics.csv", after=start, kept=kept)


def _effective(part: Mapping[str, Any], bundle: Path) -> tuple[list[Path], dict[str, Any]]:
    """Return the configuration files and those overrides that change what they say."""
    paths = [bundle / "configs" / file for file in part["configs"]]
    said: dict[str, Any] = {}
    for path in paths:
        said |= json.loads(path.read_text(encoding="utf-8"))
    return paths, {key: value for key, value in part["overrides"].items() if said.get(key) != value}


def _slug(configs: Sequence[Path], overrides: Mapping[str, Any]) -> str:
    """Return a readable name of everything that is not the default."""
    words = [path.stem for path in configs[1:]] + [f"{key.split('#')[-1]}-{value}" for key, value in overrides.items()]
    return "_".join(re.sub(r"[^\w.-]+", "-", word) for word in words)


def _arguments(configs: Sequence[Path], options: Mapping[str, Any]) -> tuple[str, ...]:
    files = str(configs[0]) if len(configs) == 1 else str([str(path) for path in configs])
    return ("--config_file", files, *(text for key, value in options.items() for text in (f"--{key}", str(value))))
