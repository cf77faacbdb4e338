"""Pre-training from a prepared store: it trains, validates, resumes bit for bit, and on other numbers of processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import BUNDLES, environment, finished, refused, table
from ignite.engine import Events
from torch.testing import assert_close

from mambamim_nets.bundle.data.datasets import training_sampler
from mambamim_nets.bundle.data.store import Store
from mambamim_nets.bundle.files import release
from mambamim_nets.prepare.__main__ import prepare

OPTIONS = {"epoch_iterations": 2, "max_epochs": 3, "batch_size": 4, "picture_interval": 100, "learning_rate": 0.001}


@pytest.fixture(scope="module")
def masked(data, tmp_path_factory):
    """A store of volumes of which some have a mask of the face."""
    folder = tmp_path_factory.mktemp("masked")
    images = sorted((data / "imagesTs").glob("*.nii.gz"))
    rows = "".join(f"{path},{path if number else ''}\n" for number, path in enumerate(images))
    (folder / "scans.csv").write_text(f"image,face_mask\n{rows}")
    prepare(str(folder / "store"), sources=str(folder / "scans.csv"), spacing=[1, 1, 1], intensity="mr")
    return folder / "store"


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


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_a_stopped_run_goes_on_with_the_same_samples_bit_for_bit(workflow, store, data, tmp_path):
    """The run that is stopped has a probe, the other one has none: it changes nothing."""
    configs = ("store", "store_validation")
    options = {"held_out": 0.3, "val_iterations": 1}
    run(workflow, store, tmp_path / "whole", *configs, **options)
    configs = (*configs, "probe")
    options |= {"probe_dir": str(data), "probe_labels": {"anterior": 1, "posterior": 2}, "probe_interval": 2}
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
    probed = [row["probe_dice"] for row in table(tmp_path / "parts" / "progress.csv")]
    assert not probed[1] and all(0 < float(probed[epoch]) < 1 for epoch in (0, 2, 3)), "epoch 0 is before training"
    assert [path.name for path in (tmp_path / "parts" / "reconstructions").iterdir()] == ["00003.png"]
    encoder = saved(tmp_path / "whole", "encoder.pt")
    assert all(torch.equal(encoder[key], value) for key, value in saved(tmp_path / "parts", "encoder.pt").items())


@pytest.mark.slow
def test_a_queue_that_ends_a_run_costs_no_step(workflow, store, tmp_path, small):
    """SIGTERM for the whole group of processes, as from Slurm or torchrun: also for the one that loads data."""
    configs = [str(BUNDLES / "pretrain" / "configs" / f"{name}.json") for name in ("train", "store")]
    options = {key: value for key, value in small["pretrain"].items() if key != "device"}
    options |= {**OPTIONS, "epoch_iterations": 40, "max_epochs": 1, "store": str(store), "num_workers": 1}
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs)]
    for key, value in {**options, "output_dir": tmp_path / "parts", "checkpoint_iterations": 2}.items():
        line += [f"--{key}", str(value)]
    process = subprocess.Popen(
        line, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    end = time.monotonic() + 500
    while not (tmp_path / "parts" / "checkpoint_last.pt").is_file() and time.monotonic() < end:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 143 and "Traceback" not in output, output[-3000:]
    assert output.strip().splitlines()[-1].endswith("where it was last saved: the same command goes on from there")
    stopped = saved(tmp_path / "parts")["trainer"]["iteration"]
    assert 2 <= stopped < 40 and f"stopped after step {stopped}, in epoch 1" in output
    made = run(workflow, store, tmp_path / "parts", "store", epoch_iterations=40, max_epochs=1, stop_in_epoch=1)
    assert made.parser.get_parsed_content("train#trainer").state.iteration == stopped + 1, "it goes on with the next"


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_ten_signals_at_random_steps_cost_no_step(workflow, store, tmp_path):
    def stop(number, frame):
        raise KeyboardInterrupt

    options = {**OPTIONS, "epoch_iterations": 4, "max_epochs": 4}
    run(workflow, store, tmp_path / "whole", "store", **options)
    options |= {"store": str(store), "output_dir": str(tmp_path / "parts")}
    before = signal.signal(signal.SIGTERM, stop)
    try:
        for step in sorted(random.Random(0).sample(range(1, 16), 10)):
            made = workflow("pretrain", ["train", "store"], **options)
            trainer = made.parser.get_parsed_content("train#trainer")
            trainer.add_event_handler(Events.ITERATION_STARTED(once=step), lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(KeyboardInterrupt):
                made.run()
            made.finalize()
            assert saved(tmp_path / "parts")["trainer"]["iteration"] == step
    finally:
        signal.signal(signal.SIGTERM, before)
    finished(workflow("pretrain", ["train", "store"], **options))
    whole, parts = saved(tmp_path / "whole", "encoder.pt"), saved(tmp_path / "parts", "encoder.pt")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("method", ["models_genesis", "voco"])
def test_other_methods_train_from_a_store(workflow, store, masked, tmp_path, method):
    own = {"roi_size": [64, 32, 32], "network_def#grid": [2, 1, 1]} if method == "voco" else {}
    place = store if method == "voco" else masked  # voco refuses masks of faces
    made = run(workflow, place, tmp_path, f"methods/{method}", "store", max_epochs=1, **own)
    batch = next(iter(made.parser.get_parsed_content("train#dataloader")))
    assert set(batch) == ({"image"} if method == "voco" else {"image", "distorted", "face"})
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


@pytest.mark.usefixtures("narrow")
def test_an_estimate_trains_nothing(bundle_run, store, tmp_path):
    few = {"estimation#steps": 2, "estimation#warmup": 1, "accumulate": 2, "held_out": 0.3, "val_iterations": 1}
    end = bundle_run("pretrain", ["train", "store", "store_validation"], store=str(store), estimate=True, **few)
    assert end.status == 0 and "what this run takes" in end.log and "25000 of 4 crops" in end.log, end.log[-3000:]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["estimate.json"]
    found = json.loads((tmp_path / "out" / "estimate.json").read_text())
    assert found["steps"] == 25000 and found["seconds of a validation"] > 0 and found["store"]["volumes"] > 1
    assert "accumulate 3 must divide" in bundle_run("pretrain", ["train", "store"], store=str(store), accumulate=3).last


@pytest.mark.usefixtures("narrow")
def test_a_store_at_a_url_trains_by_the_same_options(bundle_run, data, tmp_path):
    pytest.importorskip("zarr", reason="the extra [zarr] is not installed")
    place = f"file://{tmp_path}/store"
    prepare(place, sources=str(data / "imagesTs"), spacing=[1, 1, 1], intensity="mr")
    end = bundle_run("pretrain", ["train", "store"], store=place, **{**OPTIONS, "max_epochs": 1}, num_workers=1)
    assert end.status == 0 and (tmp_path / "out" / "encoder.pt").is_file(), end.log[-3000:]


@pytest.mark.usefixtures("narrow")
def test_removed_faces_and_several_crops_of_a_volume_train(bundle_run, masked, tmp_path):
    options = {**OPTIONS, "max_epochs": 1, "store": str(masked), "crops_per_volume": 2}
    end = bundle_run("pretrain", ["train", "store"], **options)
    assert end.status == 0 and (tmp_path / "out" / "encoder.pt").is_file(), end.log[-3000:]


def test_the_configuration_of_the_store_comes_last():
    with refused("store.json must be the last of the configurations, after multi_gpu_train.json"):
        training_sampler([], items=Store.__new__(Store))


def test_a_data_set_beside_a_store_is_refused(bundle_run, store, data):
    end = bundle_run("pretrain", ["train", "store"], store=str(store), dataset_dir=str(data))
    assert end.status == 1 and "option --dataset_dir has no effect with" in end.last and "store.json" in end.last


def test_the_overlays_name_only_keys_that_are_there():
    train = json.loads((BUNDLES / "pretrain" / "configs" / "train.json").read_text())
    for name in ("store", "store_validation", "probe"):
        overlay = json.loads((BUNDLES / "pretrain" / "configs" / f"{name}.json").read_text())
        assert {key.lstrip("+").split("#")[0] for key in overlay if "#" in key} <= set(train) | {"estimation"}


@pytest.mark.slow
def test_two_processes_go_on_with_what_one_began_and_end_where_it_does(workflow, store, two_processes, tmp_path, small):
    """By small gradient steps: AdamW, and steps ten times as long, enlarge the rounding of sums from step to step."""
    plain = {"optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.001}}
    plain["amp"] = False  # bfloat16, the default of CPUs that have it, rounds far more
    run(workflow, store, tmp_path / "one", "store", **plain)
    run(workflow, store, tmp_path / "both", "store", stop_in_epoch=2, **plain)
    release(tmp_path / "both")  # which the end of a process does
    first = saved(tmp_path / "both")
    assert first["epoch"] == 1
    files = [str(BUNDLES / "pretrain" / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train", "store")]
    options = {key: value for key, value in small["pretrain"].items() if key != "device"}
    options |= {**OPTIONS, **plain, "config_file": files, "store": str(store)}
    two_processes(
        {**options, "output_dir": str(tmp_path / "both"), "accumulate": 2},
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
