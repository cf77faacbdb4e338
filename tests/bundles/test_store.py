"""Pre-training from a prepared store: it trains, validates, resumes bit for bit, and on other numbers of processes."""

import json

import pytest
import torch
from helpers import BUNDLES, finished, refused
from ignite.engine import Events
from torch.testing import assert_close

from mambamim_nets.bundle.data.datasets import training_sampler
from mambamim_nets.bundle.data.store import Store
from mambamim_nets.bundle.files import release
from mambamim_nets.prepare.__main__ import prepare

OPTIONS = {"epoch_iterations": 2, "max_epochs": 3, "batch_size": 4, "picture_interval": 100, "learning_rate": 0.001}


@pytest.fixture(scope="module")
def store(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "store"
    prepare(str(folder), sources=[str(data / "imagesTr"), str(data / "imagesTs")], spacing=[1, 1, 1], intensity="mr")
    return folder


def saved(folder, name="checkpoint_last.pt"):
    return torch.load(folder / name, weights_only=True)


def run(workflow, store, folder, *configs, stop_in_epoch=None, **options):
    """Train from a store; with ``stop_in_epoch``, press Ctrl-C in the first iteration of that epoch."""
    settings = {**OPTIONS, "store": str(store), "output_dir": str(folder), **options}
    made = workflow("pretrain", ["train", *configs], **settings)

    def press(engine):
        if engine.state.epoch == stop_in_epoch:
            raise KeyboardInterrupt

    if stop_in_epoch is None:
        return finished(made)
    made.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED, press)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    made.finalize()
    return made


def test_a_stopped_run_goes_on_with_the_same_samples_bit_for_bit(workflow, store, tmp_path):
    configs = ("store", "store_validation")
    options = {"held_out": 0.3, "val_iterations": 1}
    run(workflow, store, tmp_path / "whole", *configs, **options)
    run(workflow, store, tmp_path / "parts", *configs, stop_in_epoch=3, **options)
    assert saved(tmp_path / "parts")["epoch"] == 2
    store.rename(store.with_name("moved"))  # it is the same store wherever it lies
    try:
        run(workflow, store.with_name("moved"), tmp_path / "parts", *configs, num_workers=1, **options)
    finally:
        store.with_name("moved").rename(store)
    whole, parts = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert whole["epoch"] == 3 and whole["trainer"]["epoch_length"] == 2
    assert all(torch.equal(whole["model"][key], parts["model"][key]) for key in whole["model"])
    assert 0 < whole["best_metric"] == parts["best_metric"], "the loss of the best validation"
    assert whole["identity"]["epoch_iterations"] == 2 and whole["identity"]["validation cases"]
    assert not set(whole["identity"]["validation cases"]) & set(whole["identity"]["training cases"])
    encoder = saved(tmp_path / "whole", "encoder.pt")
    assert all(torch.equal(encoder[key], value) for key, value in saved(tmp_path / "parts", "encoder.pt").items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["models_genesis", "voco"])
def test_other_methods_train_from_a_store(workflow, store, tmp_path, method):
    own = {"roi_size": [64, 32, 32], "network_def#grid": [2, 1, 1]} if method == "voco" else {}
    made = run(workflow, store, tmp_path, f"methods/{method}", "store", max_epochs=1, **own)
    batch = next(iter(made.parser.get_parsed_content("train#dataloader")))
    assert set(batch) == ({"image"} if method == "voco" else {"image", "distorted"})
    assert (tmp_path / "encoder.pt").is_file()


def test_what_does_not_belong_together_is_refused(bundle_run, store, data):
    configs = ["train", "store"]
    given = {"store": str(store), **OPTIONS}
    assert "option --store is missing" in bundle_run("pretrain", configs).last
    outcome = bundle_run("pretrain", configs, sources=str(data), **given)
    assert "option --sources has no effect with" in outcome.last
    outcome = bundle_run("pretrain", configs, **{**given, "spacing": [2.0, 2.0, 2.0]})
    assert "spacing [2.0, 2.0, 2.0] must be that of the store" in outcome.last
    outcome = bundle_run("pretrain", configs, filter="modality = 'CT'", **given)
    assert "filter \"modality = 'CT'\" must compare names with values" in outcome.last


def test_the_configuration_of_the_store_comes_last():
    with refused("store.json must be the last of the configurations, after multi_gpu_train.json"):
        training_sampler([], items=Store.__new__(Store))


def test_a_data_set_beside_a_store_is_refused(bundle_run, store, data):
    end = bundle_run("pretrain", ["train", "store"], store=str(store), dataset_dir=str(data))
    assert end.status == 1 and "option --dataset_dir has no effect with" in end.last and "store.json" in end.last


def test_the_overlays_name_only_keys_that_are_there():
    train = json.loads((BUNDLES / "pretrain" / "configs" / "train.json").read_text())
    for name in ("store", "store_validation"):
        overlay = json.loads((BUNDLES / "pretrain" / "configs" / f"{name}.json").read_text())
        assert {key.split("#")[0] for key in overlay if "#" in key} <= set(train)


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_began_and_end_where_it_does(workflow, store, two_processes, tmp_path, small):
    """By small gradient steps: AdamW, and steps ten times as long, enlarge the rounding of sums from step to step."""
    plain = {"optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.001}}
    run(workflow, store, tmp_path / "one", "store", **plain)
    run(workflow, store, tmp_path / "both", "store", stop_in_epoch=2, **plain)
    release(tmp_path / "both")  # which the end of a process does
    first = saved(tmp_path / "both")
    assert first["epoch"] == 1
    files = [str(BUNDLES / "pretrain" / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train", "store")]
    options = {key: value for key, value in small["pretrain"].items() if key != "device"}
    options |= {**OPTIONS, **plain, "config_file": files, "store": str(store)}
    two_processes(
        {**options, "output_dir": str(tmp_path / "both")},
        {**options, "output_dir": str(tmp_path / "two")},
        cwd=tmp_path,
    )
    one = saved(tmp_path / "one")["model"]
    assert max((value - first["model"][key]).abs().max() for key, value in one.items()) > 1e-4, "it has learnt since"
    for name in ("both", "two"):
        other = saved(tmp_path / name)
        assert other["epoch"] == 3
        for key, value in one.items():
            assert_close(other["model"][key], value, rtol=0, atol=1e-6, msg=key)
