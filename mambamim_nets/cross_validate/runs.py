"""From the options to the runs: the candidates, and the commands that train and evaluate each of their folds."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser

from mambamim_nets.bundle.checkpoint_files import BEST
from mambamim_nets.bundle.data.datasets import dataset_folder, fold_cases
from mambamim_nets.bundle.data.labelled import labelled_cases
from mambamim_nets.bundle.data.splits import with_numbered_subjects
from mambamim_nets.bundle.files import read_json, some
from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.weights import file_digest
from mambamim_nets.reproduce.plan import Run

__all__ = ["Candidate", "Case", "CrossValidation", "candidates_of", "cross_validation"]

SCRATCH, SIZES = "scratch", ("tiny", "base")
DIGITS = 12  # of a digest that is kept
# options that every run has its own of
OWN = {"fold", "output_dir", "eval_dir", "checkpoint", "part", "resume", "bundle_root"}


class Candidate(NamedTuple):
    """A way to train: its name, a file of `configs/networks` or "", and options of training."""

    name: str
    network: str
    options: Mapping[str, Any]


class Case(NamedTuple):
    """A labelled case: the file of its image (the first of several), that of its label map, and whose it is."""

    image: str
    label: str
    subject: str


@dataclass(frozen=True)
class CrossValidation:
    """What is to be trained and evaluated.

    Attributes:
        bundle: its folder, absolute.
        folder: of runs and reports, absolute.
        data: folder of the data set.
        task: its name.
        configs: file of training, and of the task where it has one, relative to the bundle.
        targets: of the task.
        cases: all labelled cases, by name.
        folds: fold -> names of the cases that it holds out.
        candidates: the first is kept unless another is better.
        options: further options of every training.
    """

    bundle: Path
    folder: Path
    data: Path
    task: str
    configs: tuple[str, ...]
    targets: Targets
    cases: Mapping[str, Case]
    folds: Mapping[int, tuple[str, ...]]
    candidates: tuple[Candidate, ...]
    options: Mapping[str, Any]

    def run(self, candidate: Candidate, fold: int) -> Run:
        """Return the run that trains a fold of a candidate and evaluates it on the cases that it has not seen."""
        name = f"{candidate.name}/fold_{fold}"
        folder = self.folder / name
        configs = [*self.configs, *filter(None, [candidate.network])]
        shared: dict[str, Any] = {"dataset_dir": str(self.data), **self.options, **candidate.options}
        shared |= {"fold": fold, "output_dir": str(folder)}
        evaluated = {key: value for key, value in shared.items() if key != "pretrained"}
        evaluated |= {"checkpoint": str(folder / BEST), "eval_dir": str(folder / "eval"), "pictures": 0}
        evaluated |= {"predictions": True, "keep_largest": False}  # what post-processing does is found out later
        steps = (self._arguments(configs, shared), self._arguments([*configs, "configs/evaluate.json"], evaluated))
        return Run(name, folder, steps, folder / "eval" / "summary.md", self._inputs(configs, shared, fold))

    def _inputs(self, configs: Sequence[str], options: Mapping[str, Any], fold: int) -> str:
        """Return digests of what the commands read and name by its path alone, or not at all.

        Results of a configuration or of label maps that were changed since are not those of this cross-validation.
        Reasons and the folder of the data, which planning and users may write anew, do not count.
        """
        files = [str(self.bundle / name) for name in (*configs, "configs/evaluate.json")]
        read: dict[str, Any] = ConfigParser.load_config_files(files)
        read = {key: value for key, value in read.items() if key != "dataset_dir" and not key.endswith("_why")}
        parts = {
            "configuration": _digest([read, self.targets.labels, self.targets.regions]),
            "held-out cases": _digest(self.folds[fold]),
            **self._data,
        }
        if options.get("pretrained"):
            parts["starting weights"] = file_digest(str(options["pretrained"]))[:DIGITS]
        return "; ".join(f"{name} {digest}" for name, digest in parts.items())

    @cached_property
    def _data(self) -> dict[str, str]:
        """Digests of the label maps, by their content, and of the images, by the sizes of their files.

        Files that are missing are named by the runs, which check every case.
        """
        labels = {name: case.label for name, case in self.cases.items() if os.path.isfile(case.label)}
        images = {name: case.image for name, case in self.cases.items() if os.path.isfile(case.image)}
        return {
            "label maps": _digest({name: file_digest(file) for name, file in labels.items()}),
            "images": _digest({name: os.path.getsize(file) for name, file in images.items()}),
        }

    @property
    def runs(self) -> list[Run]:
        """Return every run, fold by fold."""
        return [self.run(candidate, fold) for fold in self.folds for candidate in self.candidates]

    def _arguments(self, configs: Sequence[str], options: Mapping[str, Any]) -> tuple[str, ...]:
        files = [str(self.bundle / name) for name in configs]
        words = (text for key, value in options.items() for text in (f"--{key}", str(value)))
        return ("--config_file", files[0] if len(files) == 1 else str(files), *words)


def candidates_of(texts: Sequence[str], bundle: Path) -> tuple[Candidate, ...]:
    """Return the candidates that the option names.

    Args:
        texts: each "scratch", or parts joined by "+": "tiny" or "base", "pretrained=encoder.pt", a file such as
            "networks/nnmamba.json", or any other "option=value" of training.
        bundle: its folder.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a part is none of these, or two candidates are the same.
    """
    found = [_candidate(text.strip(), bundle) for text in texts]
    names = [candidate.name for candidate in found]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--candidates {', '.join(texts) or 'none'} must be different ones, such as scratch,base")
    return tuple(found)


def _candidate(text: str, bundle: Path) -> Candidate:
    network, options = "", dict[str, Any]()
    for part in text.split("+"):
        key, equals, value = part.partition("=")
        if equals and key in OWN:
            raise ValueError(f"--candidates {text!r}: {key} is set for each run; leave it out")
        if equals:
            options[key] = str(Path(value).expanduser().resolve()) if key == "pretrained" else value
        elif part in SIZES:
            options["size"] = part
        elif part.endswith(".json"):
            network = f"configs/{part.removeprefix('configs/')}"
        elif part != SCRATCH:
            raise ValueError(
                f"--candidates {text!r}: {part!r} must be scratch, tiny, base, pretrained=encoder.pt, a file such as"
                " networks/nnmamba.json, or another option=value of training"
            )
    if "pretrained" in options and not Path(options["pretrained"]).is_file():
        raise FileNotFoundError(
            f"--candidates {text!r}: {options['pretrained']} does not exist; name a file of weights"
        )
    if network and not (bundle / network).is_file():
        raise FileNotFoundError(f"--candidates {text!r}: {bundle / network} does not exist; name a file of configs")
    return Candidate(re.sub(r"[^\w.-]+", "_", text.replace(".json", "").replace("networks/", "")), network, options)


def cross_validation(
    bundle: str,
    dataset_dir: str | None,
    task: str | None,
    folds: Sequence[int],
    candidates: Sequence[str],
    output_dir: str | None,
    options: Mapping[str, Any],
) -> CrossValidation:
    """Check the options, list the data set and its folds, and return what is to be done.

    Args:
        bundle: folder of a segmentation bundle.
        dataset_dir: folder of the data set; None: what the bundle's training says.
        task: of a bundle that has several; None: its own.
        folds: which to train.
        candidates: see `candidates_of`.
        output_dir: folder of runs and reports; None: `runs/cross_validation` in the bundle.
        options: further options of every training.

    Raises:
        FileNotFoundError, ValueError: that name the option and what to do.
    """
    root = Path(str(bundle)).expanduser().resolve()
    for name in ("train.json", "evaluate.json", "inference.json"):
        if not (root / "configs" / name).is_file():
            raise FileNotFoundError(
                f"--bundle {bundle}: {root / 'configs' / name} does not exist; name a bundle's folder"
            )
    configs = _configs(root, task)
    content: dict[str, Any] = ConfigParser.load_config_files([str(root / name) for name in configs])
    if "labels" not in content or "Dice" not in json.dumps(content.get("validate", {})):
        raise ValueError(f"--bundle {bundle} must be a segmentation bundle, with labels and a Dice")
    if clashing := sorted(OWN & set(options)):
        raise ValueError(f"--{clashing[0]} is set for each run; leave it out")
    if unknown := sorted(key for key in options if key.split("#")[0].split("::")[0] not in content):
        raise ValueError(f"--{unknown[0]} is no option of {root / configs[0]}; its options are the keys of that file")
    folder = Path(str(output_dir)).expanduser().resolve() if output_dir else root / "runs" / "cross_validation"
    for name, path in (("bundle", root), ("output_dir", folder)):
        if "#" in str(path):
            raise ValueError(
                f"--{name} {path} contains #, which MONAI's configuration parser alters; rename the folder"
            )
    data = Path(dataset_folder(str(dataset_dir or content["dataset_dir"]), str(root), content["phantom"])).resolve()
    settings = {**content, **options}
    parser = ConfigParser(content)
    parser.update({**options, "bundle_root": str(root)})
    cases = labelled_cases(data, settings["channels"])
    if settings.get("subjects"):
        cases = with_numbered_subjects(cases, **settings["subjects"])
    fold_file = settings.get("fold_file")
    held_out = {
        fold: tuple(
            item["case"] for item in fold_cases(cases, str(data), fold, "val", fold_file, bundle_root=str(root))
        )
        for fold in _folds(folds)
    }
    return CrossValidation(
        bundle=root,
        folder=folder,
        data=data,
        task=str(content["task"]),
        configs=configs,
        targets=parser.get_parsed_content("targets"),
        cases={item["case"]: _case(item) for item in cases},
        folds=held_out,
        candidates=candidates_of(candidates, root),
        options=options,
    )


def _configs(root: Path, task: str | None) -> tuple[str, ...]:
    """Return the file of training, and that of the task where it is not the bundle's own, relative to the bundle."""
    train = "configs/train.json"
    own = read_json(root / train).get("task")
    if task is None or task == own:
        return (train,)
    file = f"configs/tasks/{task}.json"
    if not (root / file).is_file():
        known = [own, *sorted(path.stem for path in (root / "configs" / "tasks").glob("*.json"))]
        raise ValueError(
            f"--task {task!r} is unknown to {root.name}; it must be one of {some(list(dict.fromkeys(known)))}"
        )
    return train, file


def _folds(folds: Sequence[int]) -> list[int]:
    """Return the numbers of the folds, which must be different and not negative."""
    found = [int(fold) if str(fold).strip().isdecimal() else -1 for fold in folds]
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise ValueError(f"--folds {','.join(map(str, folds))} must be different numbers, such as 0,1,2,3,4")
    return found


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _case(item: Mapping[str, Any]) -> Case:
    image = item["image"] if isinstance(item["image"], str) else item["image"][0]
    return Case(image, item["label"], str(item.get("subject", item["case"])))
