"""Two processes on the CPU: the same numbers as one, and every run ends."""

import json
from pathlib import Path

import pytest
import torch
from helpers import BUNDLES, finished, table
from monai.bundle import ConfigParser

from mambamim_nets import HyMambaSeg


def files(name, *configs):
    return [str(BUNDLES / name / "configs" / f"{config}.json") for config in configs]


def metrics(folder):
    return {
        (row["case"], row["name"]): [float(row[key]) for key in ("dice", "hd95_mm", "surface_dice")]
        for row in table(folder / "metrics.csv")
    }


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(workflow, data_of, small, two_processes, tmp_path):
    name = "msd_seg"
    torch.manual_seed(0)
    network = HyMambaSeg(1, 3, size="tiny")
    torch.save(network.state_dict(), tmp_path / "network.pt")
    options = {
        **{"dataset_dir": str(data_of(name)), "checkpoint": str(tmp_path / "network.pt")},
        **{"fold": 1, "part": "train", "pictures": 3, "output_dir": str(tmp_path / "run")},
    }
    alone = workflow(name, ["train", "evaluate"], eval_dir=str(tmp_path / "one"), **options)
    finished(alone)
    options |= {key: value for key, value in small[name].items() if key in ("roi_size", "spacing")}
    configs = files(name, "train", "evaluate", "multi_gpu_evaluate")
    output = two_processes({"config_file": configs, "eval_dir": str(tmp_path / "two"), **options}, cwd=tmp_path)
    assert output.count("segmentation evaluation") == 1, "every process announces the run"
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one) == 5 * 2, "five cases, which two processes cannot share evenly, of two classes"
    assert one.keys() == two.keys()
    for row, values in one.items():
        assert two[row] == pytest.approx(values, abs=1e-6, nan_ok=True), row
    assert len(list((tmp_path / "two").glob("*_overlay.png"))) == 3, "at most three, over both"


APART = """
import json, sys
import torch, torch.distributed as dist
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from torch import nn
from mambamim_nets.bundle import Checkpoints

dist.init_process_group("gloo")
rank = dist.get_rank()
folder, found = f"{sys.argv[1]}/node_{rank}", {}

def run(name, stop_after=None, rate=0.1):
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    items = [{"case": str(i), "image": torch.randn(3), "label": torch.randn(1)} for i in range(4)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=3, train_data_loader=DataLoader(Dataset(items), batch_size=2),
        network=network, optimizer=optimizer, loss_function=nn.MSELoss(),
    )
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    checkpoints = Checkpoints(trainer, network, optimizer, schedule, folder, {"learning_rate": rate})
    try:
        checkpoints.start()
    except ValueError as error:
        found[name] = str(error)
        return
    first = trainer.state.epoch
    if stop_after is not None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop_after), trainer.terminate)
    trainer.run()
    found[name] = [first, trainer.state.epoch, network.weight.tolist()]

run("begin", stop_after=1)
run("continue")
run("other settings", rate=0.1 + rank)
if rank == 0:
    with open(f"{folder}/checkpoint_last.pt", "r+b") as file:
        file.truncate(100)
dist.barrier()
run("damaged")
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(found, file)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_that_share_no_disk_resume_what_rank_0_has(two_processes, tmp_path, reliability):
    (tmp_path / "script.py").write_text(APART)
    two_processes(str(tmp_path / "script.py"), str(tmp_path), cwd=tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second, "every process does the same, and fails with the same words"
    assert not list(tmp_path.glob("node_1/*.pt")), "rank 0 alone writes"
    assert first["begin"][:2] == [0, 1] and first["continue"][:2] == [1, 3]
    area = "Several processes"
    words = "process 1 differs from process 0: learning_rate is 0.1 in process 0 and 1.1 in this"
    assert words in first["other settings"]
    reliability(area, "processes started with different settings", ValueError(first["other settings"]))
    assert "is damaged and cannot be resumed" in first["damaged"]
    hide = r"\(.*?\)(?=;)"
    reliability(area, "a damaged checkpoint, in a process that has none", ValueError(second["damaged"]), hide=hide)


@pytest.mark.slow
def test_training_and_pretraining_run_and_resume_on_two_processes(data, two_processes, tmp_path):
    small = {"roi_size": [32, 32, 32], "batch_size": 2}
    segment = {**small, "dataset_dir": str(data), "val_interval": 1, "output_dir": str(tmp_path / "segment")}
    weighted = [str(data / "imagesTr"), {"path": str(data / "imagesTs"), "weight": 3.0}]
    pretrain = {
        **small,
        **{"sources": weighted, "intensity": "mr", "spacing": [1.0, 1.0, 1.0], "decoder_width": 32},
        **{"picture_interval": 1, "output_dir": str(tmp_path / "pretrain")},
    }
    runs = [
        {
            **{"config_file": files(name, "train", "multi_gpu_train"), **options},
            **{"max_epochs": epochs, "resume_with_changes": epochs > 1},
        }
        for name, options in (("msd_seg", segment), ("pretrain", pretrain))
        for epochs in (1, 2)
    ]
    output = two_processes(*runs, cwd=tmp_path, torchrun=True)
    assert output.count("after epoch 1: continuing up to epoch 2") == 2, "of each resumed run, rank 0 alone logs"
    for name, weights in (("segment", "model_best.pt"), ("pretrain", "encoder.pt")):
        state = torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True)
        assert state["epoch"] == 2 and not any(key.startswith("module.") for key in state["model"])
        assert (tmp_path / name / weights).is_file()
        assert len(list((tmp_path / name / "tensorboard").glob("events*"))) == 2, "one file of each start, from rank 0"
    assert state["trainer"]["epoch_length"] == 2, "8 scans, 4 of each process, in batches of 2"
    assert (tmp_path / "pretrain" / "reconstruction.png").is_file()


@pytest.mark.parametrize("name", ["msd_seg", "pretrain", "fetal_landmarks"])
def test_the_handlers_that_only_rank_0_runs_are_those_that_write(name):
    base, override = (json.loads(Path(file).read_text()) for file in files(name, "train", "multi_gpu_train"))
    parts = [
        base["writer"],
        *(handler for part in ("train", "validate") for handler in base.get(part, {}).get("handlers", [])),
    ]
    for part in (ConfigParser(base).get(part[1:]) if isinstance(part, str) else part for part in parts):
        writes = part["_target_"].split(".")[-1] in ("SummaryWriter", "StatsHandler", "TensorBoardStatsHandler")
        optional = "$@mlflow_uri is None or @other_process" if part["_target_"] == "MLFlowHandler" else None
        assert part.get("_disabled_") == ("@other_process" if writes else optional)
    assert base["other_process"] is False and override["other_process"] == "$mb.process_rank() > 0"
    for key in override.keys() - {"finalize"}:
        assert key in ConfigParser(base), f"{key} overrides nothing"
