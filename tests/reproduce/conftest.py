"""A small data set, a budget, and a stand-in for the bundles that only writes what they would leave."""

import csv
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import BUNDLES, option

from mambamim_nets.reproduce.plan import Budget, Run
from mambamim_nets.reproduce.results import keep


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Ten labelled cases and a test image in the Decathlon layout; the files are empty."""
    folder = tmp_path_factory.mktemp("decathlon")
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir()
    names = [f"case_{number:02d}.nii.gz" for number in range(10)]
    for name in names:
        (folder / "imagesTr" / name).touch()
        (folder / "labelsTr" / name).touch()
    (folder / "imagesTs" / "new.nii.gz").touch()
    training = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    (folder / "dataset.json").write_text(json.dumps({"training": training, "test": ["./imagesTs/new.nii.gz"]}))
    return folder


@pytest.fixture
def budget(data, tmp_path) -> Callable[..., Budget]:
    """Return a function that makes a budget, with changes."""
    usual: dict[str, Any] = {
        "data": data,
        "output": tmp_path / "out",
        "results": tmp_path / "out" / "results",
        "bundles": BUNDLES,
        "bundle": "msd_seg",
        "task": "Task04_Hippocampus",
        "size": "tiny",
        "folds": (0,),
        "seeds": (0,),
        "pretrain_seeds": (0,),
        "train_cases": 4,
        "finetune_epochs": 2,
        "pretrain_epochs": 3,
        "pretrain": {},
        "finetune": {},
    }
    return lambda **changes: Budget(**{**usual, **changes})


def write_metrics(folder: Path, anterior: float, posterior: float, cases: int = 2) -> None:
    """Write what an evaluation writes, as far as it is kept: cases that lie 0.02 apart around the given Dice."""
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    with (folder / "eval" / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "label", "name", "dice", "hd95_mm", "surface_dice", "missing"])
        for number in range(cases):
            off = 0.02 * (number - (cases - 1) / 2)
            for label, (name, dice) in enumerate({"anterior": anterior, "posterior": posterior}.items(), 1):
                writer.writerow([f"case_{number:02d}", label, name, f"{dice + off:.6f}", "2.0", "0.9", 0])


class Fake:
    """Stands for the bundles: writes the files of a command at once; `status` decides how it ends.

    Attributes:
        started: the folder's name and "pretrain", "train" or "evaluate" of every command, in order.
        status: of the commands for a folder; None runs until it is stopped.
        most: commands that ran at the same time, at most.
        together: how many commands wait for one another before they go on, so that they overlap.
    """

    def __init__(self, together: int = 1, **status: int | None) -> None:
        self.started: list[tuple[str, str]] = []
        self.status: dict[str, int | None] = status
        self.running: set[str] = set()
        self.most = 0
        self.ended: list[str] = []
        self.barrier = threading.Barrier(together)
        self.stopped = threading.Event()

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        files, folder = option(arguments, "config_file") or "", Path(option(arguments, "output_dir") or "")
        kind = "evaluate" if "evaluate.json" in files else "pretrain" if "sources" in " ".join(arguments) else "train"
        self.started.append((folder.name, kind))
        self.running.add(folder.name)
        self.most = max(self.most, len(self.running))
        if len(self.started) <= self.barrier.parties:
            self.barrier.wait(timeout=60)
        with log.open("a") as file:
            file.write(f"{kind}\n  device  cpu\n")
        status = self.status.get(folder.name, 0)
        if kind == "pretrain":
            assert Path(json.loads((option(arguments, "sources") or "").replace("'", '"'))[0]).is_file()
            (folder / "encoder.pt").write_text("of some epoch")  # written every epoch, also by a run that fails later
        elif kind == "train":
            start = option(arguments, "pretrained")
            assert start is None or Path(start).is_file()
        elif status == 0:
            write_metrics(folder, 0.8, 0.6)
        if status:
            with log.open("a") as file:
                file.write("ValueError: the reason\n")
        if status is None:
            assert self.stopped.wait(timeout=60)
            self.ended.append(folder.name)
            status = -15
        self.running.discard(folder.name)
        return status

    def stop(self) -> None:
        self.stopped.set()


@pytest.fixture
def fake() -> type[Fake]:
    return Fake


@pytest.fixture
def measured() -> Callable[..., None]:
    """Return a function that leaves what a finished fine-tuning leaves."""

    def write(run: Run, anterior: float, posterior: float, cases: int = 2) -> None:
        assert run.kept is not None
        write_metrics(run.folder, anterior, posterior, cases)
        keep(run.result, run.kept, {"date": "2026-11-27", "device": "cpu"})

    return write
