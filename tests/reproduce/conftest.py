"""A small data set, a budget, and a stand-in for the bundles that only writes what they would leave."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mambamim_nets.reproduce.plan import Budget

BUNDLES = Path(__file__).parents[2] / "bundles"


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
        "bundles": BUNDLES,
        "bundle": "msd_seg",
        "task": "Task04_Hippocampus",
        "size": "tiny",
        "folds": (0,),
        "seeds": (0,),
        "train_cases": 4,
        "finetune_epochs": 2,
        "pretrain_epochs": 3,
        "pretrain": {},
        "finetune": {},
    }
    return lambda **changes: Budget(**{**usual, **changes})


def option(arguments: Sequence[str], name: str) -> str | None:
    """Return the value of an option of a command."""
    return arguments[arguments.index(f"--{name}") + 1] if f"--{name}" in arguments else None


def write_summary(folder: Path, anterior: float, posterior: float, cases: int = 2) -> None:
    """Write what an evaluation writes, as far as the report reads it."""
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    dice = {"anterior": anterior, "posterior": posterior, "mean": (anterior + posterior) / 2}
    with (folder / "eval" / "summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "metric", "mean", "std", "median", "n", "missing"])
        for name, value in dice.items():
            writer.writerow([name, "dice", f"{value:.6f}", "0.1", "0.5", cases, 0])
            writer.writerow([name, "hd95_mm", "2.0", "0.1", "0.5", cases, 0])
    (folder / "eval" / "summary.md").write_text("done")


class Fake:
    """Stands for the bundles: writes the files of a command at once; `status` decides how it ends.

    Attributes:
        started: the folder's name and "pretrain", "train" or "evaluate" of every command, in order.
        status: of the commands for a folder; None never ends.
        most: commands that ran at the same time, at most.
    """

    def __init__(self, **status: int | None) -> None:
        self.started: list[tuple[str, str]] = []
        self.status: dict[str, int | None] = status
        self.open: set[str] = set()
        self.most = 0
        self.ended: list[str] = []

    def __call__(self, arguments: Sequence[str], log: Path) -> "FakeProcess":
        files, folder = option(arguments, "config_file") or "", Path(option(arguments, "output_dir") or "")
        kind = "evaluate" if "evaluate.json" in files else "pretrain" if "sources" in " ".join(arguments) else "train"
        self.started.append((folder.name, kind))
        self.open.add(folder.name)
        self.most = max(self.most, len(self.open))
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
            write_summary(folder, 0.8, 0.6)
        if status:
            with log.open("a") as file:
                file.write("ValueError: the reason\n")
        return FakeProcess(self, folder.name, status)


class FakeProcess:
    """A command that has ended when it is first asked, or never."""

    def __init__(self, owner: Fake, name: str, status: int | None) -> None:
        self.owner, self.name, self.status = owner, name, status

    def poll(self) -> int | None:
        if self.status is not None:
            self.owner.open.discard(self.name)
        return self.status

    def terminate(self) -> None:
        self.owner.ended.append(self.name)

    def kill(self) -> None:
        raise AssertionError("it ended when asked to")

    def wait(self, timeout: float | None = None) -> int:
        return -15


@pytest.fixture
def fake() -> type[Fake]:
    return Fake


@pytest.fixture
def summary() -> Callable[..., None]:
    return write_summary
