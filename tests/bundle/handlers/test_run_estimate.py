"""What a run will take: from measured steps, by the arithmetic that it states, and without a trace of training."""

import json

import pytest
import torch
from helpers import refused
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from store_files import store_of, write_sources
from torch import nn

from mambamim_nets.bundle.data.store import Store
from mambamim_nets.bundle.handlers.run_estimate import RunEstimate


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("estimate")
    write_sources(root / "scans", scans=2)
    store_of(root / "store", root / "scans")
    return Store(root / "store")


def estimated(store, folder, epochs=10, length=7, validated=True, **options):
    network = nn.Linear(3, 1)
    batch = {"image": torch.ones(4, 3), "label": torch.ones(4, 1)}
    optimizer = torch.optim.AdamW(network.parameters())
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=[batch] * length,
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        decollate=False,
    )
    evaluator = SupervisedEvaluator("cpu", [batch], network, decollate=False) if validated else None
    estimate = RunEstimate(trainer, network, optimizer, store, 12, str(folder), evaluator, **options)
    return estimate, estimate.run()


def test_the_whole_run_follows_from_the_measured_steps(store, tmp_path):
    estimate, found = estimated(store, tmp_path, val_interval=3)
    assert estimate.trainer.state.iteration == 23 and found["seconds of a step"]["measured"] == 20
    assert (found["steps"], found["crops"]) == (70, 840)
    step = found["seconds of a step"]["median"]
    assert found["seconds of a step"]["least"] <= step <= found["seconds of a step"]["most"]
    assert 0 < found["of it waiting for data"] < step
    assert found["hours"] == pytest.approx((70 * step + 4 * found["seconds of a validation"]) / 3600)
    assert found["hours by processes"] == {str(n): pytest.approx(found["hours"] / n) for n in (1, 2, 4)}
    volumes = [path.stat().st_size for path in store.files.folder.glob("volumes/*/*.b2nd")]
    assert found["store"] == {"volumes": 2, "bytes": sum(volumes)}
    assert found["bytes of gradients"] == 16, "three weights and a bias of four bytes"
    assert found["bytes of a checkpoint"] == 3 * 16 + 2 * 4, "with two means of AdamW, and its two counts of steps"
    assert found["memory of a process"] > 2**26 and found["memory of the device"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["estimate.json"]
    assert json.loads((tmp_path / "estimate.json").read_text()) == found


def test_what_is_measured_is_said_with_its_assumptions(store, tmp_path, caplog):
    caplog.set_level("INFO")
    estimated(store, tmp_path, validated=False, steps=2, warmup=1)
    for words in ("what this run takes", "70 of 12 crops", "2 steps)", "assumption 3: ", "the same command trains"):
        assert words in caplog.text
    assert "a validation" not in caplog.text


def test_a_run_with_fewer_steps_is_measured_as_far_as_it_goes(store, tmp_path):
    assert estimated(store, tmp_path, epochs=1)[1]["seconds of a step"]["measured"] == 4
    with refused("estimate needs a run of more than 3 steps, and max_epochs 1 times epoch_iterations 3 is 3"):
        estimated(store, tmp_path, epochs=1, length=3)
