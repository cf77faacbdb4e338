"""Resuming: bit-exact, only what belongs together, and never worse."""

import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import refused
from ignite.engine import Events

from mambamim_nets.bundle.files import HOST

pytestmark = pytest.mark.usefixtures("all_narrow")
FEW = {"overlap": 0.0}  # windows
UNREAD = {"cache_rate": 0.0}  # of a run that ends before it trains, no case need be read


def run(workflow, name, folder, data, stop_in_epoch=None, **options):
    """Train; with ``stop_in_epoch``, press Ctrl-C in the first iteration of that epoch."""
    settings = {"max_epochs": 4, "output_dir": str(folder), "dataset_dir": str(data), **options}
    if name == "msd_seg":
        settings |= FEW
    made = workflow(name, **settings)
    trainer = made.parser.get_parsed_content("train#trainer")

    def interrupt(engine):
        if engine.state.epoch == stop_in_epoch:
            raise KeyboardInterrupt

    trainer.add_event_handler(Events.ITERATION_COMPLETED, interrupt)
    if stop_in_epoch is None:
        made.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            made.run()
    made.finalize()
    return made


def saved(folder, name="checkpoint_last.pt"):
    return torch.load(folder / name, weights_only=True)


def assert_identical(a, b, where="checkpoint"):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_identical(left, right, f"{where}/{i}")
    else:
        assert a == b, where


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("pretrain", {"num_workers": 0}, id="pretrain", marks=pytest.mark.slow),
        pytest.param("pretrain", {"num_workers": 1}, id="pretrain in a worker", marks=pytest.mark.slow),
        pytest.param(
            *("msd_seg", {"num_workers": 0, "val_interval": 3, "scan": "shuffle"}),
            id="msd_seg, shuffled tokens",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("msd_seg", {"num_workers": 1, "val_interval": 3, "ema": 0.9}),
            id="msd_seg in a worker, averaged",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "fetal_landmarks", {"num_workers": 0, "val_interval": 3}, id="fetal_landmarks", marks=pytest.mark.slow
        ),
    ],
)
def test_an_interrupted_run_ends_bit_exactly_where_an_uninterrupted_one_does(
    workflow, data_of, tmp_path, name, options
):
    data = data_of(name)
    run(workflow, name, tmp_path / "whole", data, **options)
    run(workflow, name, tmp_path / "parts", data, stop_in_epoch=3, **options)
    assert saved(tmp_path / "parts")["epoch"] == 2
    run(workflow, name, tmp_path / "parts", data, **options)
    whole, parts = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert whole["epoch"] == 4 and whole["optimizer"]["state"] and whole["lr_scheduler"]["last_epoch"] > 0
    assert_identical(whole, parts)
    if "ema" in options:
        assert not any(torch.equal(whole["average"][key], whole["model"][key]) for key in list(whole["model"])[:5])
    best = "encoder.pt" if name == "pretrain" else "model_best.pt"
    assert_identical(saved(tmp_path / "whole", best), saved(tmp_path / "parts", best))


@pytest.fixture(scope="module")
def finished(workflow, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(workflow, "msd_seg", folder, data, max_epochs=1, val_interval=1)
    return folder


def test_a_finished_run_trains_nothing_and_says_so(workflow, data, finished, caplog):
    before = (finished / "checkpoint_last.pt").read_bytes()
    with caplog.at_level(logging.INFO, "mambamim_nets"):
        run(workflow, "msd_seg", finished, data, max_epochs=1, val_interval=1, **UNREAD)
    assert "finished, nothing left to train" in caplog.text
    assert (finished / "checkpoint_last.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": "false"}, "holds a run; --resume true continues it, or give another --output_dir"),
        ({"resume": "perhaps"}, "--resume 'perhaps' must be auto, true or false"),
        ({"fold": 1}, "belongs to a run with other settings: fold is 0 in the checkpoint and 1 here. Give"),
        ({"size": "base"}, "settings: size is tiny in the checkpoint and base here. Give"),
        ({"ema": 0.9}, "settings: ema is 0.0 in the checkpoint and 0.9 here. Give"),
    ],
    ids=["refused", "unknown", "fold", "size", "ema"],
)
def test_what_does_not_belong_together_is_refused(workflow, data, finished, options, message):
    with refused(message):
        run(workflow, "msd_seg", finished, data, **{"max_epochs": 1, **UNREAD, **options})


def test_resume_true_demands_a_run(workflow, data, tmp_path):
    with refused("nothing to resume"):
        run(workflow, "msd_seg", tmp_path / "new", data, resume="true", **UNREAD)


@pytest.mark.slow
def test_a_worse_validation_after_resuming_keeps_the_best_model(workflow, data, finished, tmp_path):
    state = saved(finished)
    assert state["best_epoch"] == 1
    for file in finished.iterdir():
        if file.suffix == ".pt":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({**state, "best_metric": 0.99}, tmp_path / "checkpoint_last.pt")
    best = (tmp_path / "model_best.pt").read_bytes()
    run(workflow, "msd_seg", tmp_path, data, max_epochs=2, val_interval=1, resume_with_changes=True)
    assert (tmp_path / "model_best.pt").read_bytes() == best
    after = saved(tmp_path)
    assert (after["epoch"], after["best_epoch"], after["best_metric"]) == (2, 1, 0.99)
    torch.save({**state, "best_metric": -0.5}, tmp_path / "checkpoint_last.pt")
    run(workflow, "msd_seg", tmp_path, data, max_epochs=2, val_interval=1, resume_with_changes=True)
    assert (tmp_path / "model_best.pt").read_bytes() != best and saved(tmp_path)["best_epoch"] == 2


# --- what a run is resumed with -------------------------------------------------------------------

ZSCORE = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True}
REMEDY = "Give the same again, or another --output_dir, or --resume_with_changes true to go on with the new ones"


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, in the folder that bundle_run writes to."""
    return shutil.copytree(finished, tmp_path / "out")


@pytest.fixture
def again(bundle_run, data):
    """Return a function that starts the finished run again, with other options."""

    def run(configs="train", **options):
        return bundle_run(
            "msd_seg",
            configs,
            **{"dataset_dir": str(data), "max_epochs": 1, "val_interval": 1, **FEW, **UNREAD, **options},
        )

    return run


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": 0.01}, "learning_rate is 0.001 in the checkpoint and 0.01 here. "),
        ({"weight_decay": 0.1}, "weight_decay is 1e-05 in the checkpoint and 0.1 here. "),
        ({"batch_size": 2}, "batch_size over all processes is 4 in the checkpoint and 2 here. "),
        ({"roi_size": [48, 48, 48]}, "roi_size is [32, 32, 32] in the checkpoint and [48, 48, 48] here. "),
        ({"spacing": [2.0, 2.0, 2.0]}, "spacing is [1.0, 1.0, 1.0] in the checkpoint and [2.0, 2.0, 2.0] here. "),
        (
            {"intensity": ZSCORE},
            "intensity#_target_ is ScaleIntensityRangePercentilesd in the checkpoint and NormalizeIntensityd here; ",
        ),
        ({"crops_per_scan": 2}, "crops_per_scan is 1 in the checkpoint and 2 here. "),
        (
            {"augmentation#0#prob": 0.1},
            "augmentation#0#prob is 0.7 in the checkpoint and 0.1 here. ",
        ),
        (
            {"labels": {"head": 1, "tail": 2}, "task": "Mine"},
            "task is Task04_Hippocampus in the checkpoint and Mine here; labels#head is not set in the checkpoint",
        ),
        ({"seed": 1}, "seed is 0 in the checkpoint and 1 here. "),
        ({"train_cases": 2}, "train_cases is not set in the checkpoint and 2 here. "),
        ({"max_epochs": 2}, "max_epochs is 1 in the checkpoint and 2 here. "),
        ({"warmup_epochs": 0}, "warmup_epochs is 1 in the checkpoint and 0 here. "),
        ({"max_grad_norm": 1.0}, "max_grad_norm is 5.0 in the checkpoint and 1.0 here. "),
        ({"scan": "shuffle"}, "scan is raster in the checkpoint and shuffle here. "),
        ({"optimizer#eps": 0.001}, "optimizer#eps is not set in the checkpoint and 0.001 here. "),
        ({"network_def#mamba_depth": 1}, "network_def#mamba_depth is not set in the checkpoint and 1 here. "),
        ({"train#augmentation#transforms#1#pos": 3}, "train#augmentation#transforms#1#pos is 1 in the"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_by_name(again, copied, reliability, options, words):
    before = {file.name: file.read_bytes() for file in copied.glob("*.pt")}
    outcome = again(**options)
    assert (
        f"checkpoint_last.pt belongs to a run with other settings: {words}" in outcome.last and REMEDY in outcome.last
    )
    assert {file.name: file.read_bytes() for file in copied.glob("*.pt")} == before
    reliability("Training runs", f"resuming with --{next(iter(options))} changed", outcome)


def test_another_network_is_refused(again, copied, reliability):
    outcome = again(["train", "networks/segresnet"])
    assert "network_def#_target_ is mambamim_nets.HyMambaSeg in the checkpoint and SegResNet here" in outcome.last
    reliability("Training runs", "resuming with another network", outcome)


def test_other_cases_are_refused_by_name(again, copied, tmp_path, reliability):
    held = saved(copied)["identity"]
    names = sorted([*held["training cases"], *held["validation cases"]])
    listed = [{"train": names[:4], "val": names[4:]}, {"train": names[4:], "val": names[:4]}]
    (tmp_path / "folds.json").write_text(json.dumps(listed))
    outcome = again(fold_file=str(tmp_path / "folds.json"))
    gone, new = set(held["training cases"]) - set(names[:4]), set(names[:4]) - set(held["training cases"])
    words = f"training cases: {min(gone)} only in the checkpoint, {min(new)} only here; validation cases: "
    assert len(gone) == len(new) == 1 and words in outcome.last
    reliability("Training runs", "resuming with other cases", outcome)


def test_what_is_computed_elsewhere_or_shown_otherwise_may_change(again, copied):
    free = {
        "num_workers": 1,
        "cache_rate": 0.0,
        "val_interval": 5,
        "early_stopping": 3,
        "amp": True,
        "sw_batch_size": 1,
    }
    free |= {"optimizer#fused": "true", "train#handlers#0#seed": 0, "device": "cpu", "resume": "true"}
    outcome = again(**free)
    assert outcome.status == 0 and "finished, nothing left to train" in outcome.log, outcome.last


def test_a_handler_that_only_shows_something_may_be_put_in_front(workflow, data, finished, tmp_path, caplog):
    folder = shutil.copytree(finished, tmp_path / "out")
    options = {"max_epochs": 1, "val_interval": 1, "output_dir": str(folder), "dataset_dir": str(data), **FEW}
    handlers = workflow("msd_seg", **options).parser.get("train#handlers")
    with caplog.at_level(logging.INFO, "mambamim_nets"):
        handlers = [{"_target_": "StatsHandler", "epoch_log": False}, *handlers]
        workflow("msd_seg", **options, **{"train#handlers": handlers}).run()
    assert "finished, nothing left to train" in caplog.text


@pytest.mark.slow
def test_changes_that_are_asked_for_take_effect_and_are_recorded(again, copied, reliability):
    options = {"max_epochs": 3, "learning_rate": 0.004, "weight_decay": 0.5, "warmup_epochs": 0}
    outcome = again(**options, resume_with_changes=True)
    state = saved(copied)
    (change,) = state["changes"]
    assert change["epoch"] == 1 and change["changes"]["learning_rate"] == [0.001, 0.004]
    assert change["changes"].keys() == options.keys()
    (group,) = state["optimizer"]["param_groups"]
    assert (group["weight_decay"], group["initial_lr"]) == (0.5, 0.004)
    schedule = state["lr_scheduler"]
    assert (schedule["t_total"], schedule["warmup_steps"], schedule["last_epoch"]) == (3, 0, 3)
    assert state["epoch"] == 3 and group["lr"] == pytest.approx(0.0, abs=1e-12), "the cosine ends with the run"
    assert again(**options).status == 0, "from now on these are its settings"
    words = "resuming with a change: learning_rate is 0.001 in the checkpoint and 0.004 here"
    reliability("Training runs", "resuming with other settings and --resume_with_changes true", outcome, words)


@pytest.mark.slow
def test_more_iterations_in_an_epoch_keep_the_schedule_in_its_epoch(again, copied):
    outcome = again(max_epochs=2, batch_size=1, warmup_epochs=0, resume_with_changes=True)
    state = saved(copied)
    assert outcome.status == 0 and state["trainer"] == {"epoch_length": 4, "iteration": 8, "max_epochs": 2}
    schedule = state["lr_scheduler"]
    assert (schedule["last_epoch"], schedule["t_total"]) == (8, 8)


@pytest.mark.slow
def test_another_optimiser_starts_without_a_past(again, copied):
    changes = {"optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.1}}
    outcome = again(max_epochs=2, **changes, resume_with_changes=True)
    assert outcome.status == 0, outcome.last
    assert "optimizer#_target_" in saved(copied)["changes"][0]["changes"]


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version_is_compared_by_what_it_holds(again, copied, reliability):
    state = saved(copied)
    held = {key: state["identity"][key] for key in ("task", "size", "scan", "fold", "seed", "ema")}
    held |= {"architecture": "hymamba", "data": state["identity"]["data_root"], "train_cases": None, "pretrained": None}
    del state["changes"], state["best_files"]
    torch.save({**state, "identity": held}, copied / "checkpoint_last.pt")
    words = "checkpoint_last.pt is of an earlier version, which kept few settings: the others are taken on trust"
    reliability("Training runs", "resuming a checkpoint of an earlier version", again(), words)
    for options, words in (
        ({"fold": 1}, "fold is 0 in the checkpoint and 1 here"),
        ({"spacing": [2.0, 2.0, 2.0]}, "spacing is [1.0, 1.0, 1.0] in the checkpoint"),
        ({"max_epochs": 9}, "max_epochs is 1 in the checkpoint and 9 here"),
    ):
        assert words in again(**options).last


# --- what is in the folder ------------------------------------------------------------------------


def test_a_folder_with_a_run_is_refused_where_a_new_one_is_wanted(again, copied, reliability):
    reliability("Training runs", "a folder that holds a run, with --resume false", again(resume="false"))


def test_nothing_to_resume(again, reliability):
    reliability("Training runs", "nothing to resume, with --resume true", again(resume="true"))


def test_weights_without_a_run_are_not_replaced(again, copied, reliability):
    (copied / "checkpoint_last.pt").unlink()
    reliability("Training runs", "a folder that holds weights of another run", again())


def broken(state, key):
    weights = state[key].copy()
    name = next(iter(weights))
    weights[name] = torch.full_like(weights[name], np.nan)
    return {**state, key: weights}


DAMAGE = {
    "that is cut short": lambda file, state: file.write_bytes(file.read_bytes()[:-1000]),
    "that is empty": lambda file, state: file.write_bytes(b""),
    "that is a text": lambda file, state: file.write_text("not a checkpoint"),
    "that is a folder": lambda file, state: (file.unlink(), file.mkdir()),
    "that holds only weights": lambda file, state: torch.save(state["model"], file),
    "without an optimiser": lambda file, state: torch.save({k: v for k, v in state.items() if k != "optimizer"}, file),
    "with NaN in its weights": lambda file, state: torch.save(broken(state, "model"), file),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_nothing_is_started(again, copied, reliability, fault):
    file = copied / "checkpoint_last.pt"
    DAMAGE[fault](file, saved(copied))
    best = (copied / "model_best.pt").read_bytes()
    outcome = again()
    assert str(file) in outcome.last and "give another --output_dir" in outcome.last and "model_best.pt" in outcome.last
    assert (copied / "model_best.pt").read_bytes() == best and "Epoch" not in outcome.last
    hide = r"\([^()]*(?:\([^()]*\)[^()]*)*\)|\d+ of \d+(?= values)"
    reliability("Training runs", f"a checkpoint_last.pt {fault}", outcome, hide=hide)


def test_a_checkpoint_of_another_network_is_refused_whatever_was_asked_for(again, copied, reliability):
    outcome = again(["train", "networks/segresnet"], resume_with_changes=True)
    reliability("Training runs", "another network with --resume_with_changes true", outcome)


@pytest.mark.parametrize("fault", ["missing", "cut short", "of an earlier epoch"])
def test_a_finished_run_that_is_resumed_writes_what_a_kill_kept_it_from(again, copied, fault):
    file, whole = copied / "model_best.pt", saved(copied, "model_best.pt")
    other = {key: value + 1 for key, value in whole.items()}
    {
        "missing": file.unlink,
        "cut short": lambda: file.write_bytes(file.read_bytes()[:-100]),
        "of an earlier epoch": lambda: torch.save(other, file),
    }[fault]()
    outcome = again()
    assert outcome.status == 0 and "written again, as it follows from the checkpoint" in outcome.log
    assert_identical(saved(copied, "model_best.pt"), whole)


def test_best_weights_that_the_checkpoint_cannot_give_back_are_said_to_be_gone(again, copied, reliability):
    torch.save({**saved(copied), "best_epoch": -1, "epoch": 1}, copied / "checkpoint_last.pt")
    assert "is gone" not in again().log
    torch.save({**saved(copied), "best_epoch": 5, "epoch": 1}, copied / "checkpoint_last.pt")
    (copied / "model_best.pt").unlink()
    reliability("Training runs", "a model_best.pt that was moved away", again(), "cannot give it back")


@pytest.mark.slow
def test_pretraining_writes_an_encoder_that_is_missing_or_old(workflow, data, tmp_path):
    run(workflow, "pretrain", tmp_path, data, max_epochs=1)
    whole = saved(tmp_path, "encoder.pt")
    torch.save({key: value + 1 for key, value in whole.items()}, tmp_path / "encoder.pt")
    run(workflow, "pretrain", tmp_path, data, max_epochs=1)
    assert_identical(saved(tmp_path, "encoder.pt"), whole)
    (tmp_path / "encoder.pt").unlink()
    run(workflow, "pretrain", tmp_path, data, max_epochs=1)
    assert_identical(saved(tmp_path, "encoder.pt"), whole)


# --- faults while it runs -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_keeps_the_checkpoint_before(again, copied, monkeypatch, reliability):
    before = (copied / "checkpoint_last.pt").read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    outcome = again(max_epochs=2, resume_with_changes=True)
    assert (copied / "checkpoint_last.pt").read_bytes() == before and not list(copied.glob(".part-*"))
    reliability("Training runs", "a full disk", outcome)


@pytest.mark.parametrize(
    ("fault", "loss"),
    [
        ("a loss that is NaN", "$lambda output, label: output.sum() * float('nan')"),
        ("gradients that are not finite", "$lambda output, label: (output.sum() * 0).sqrt()"),
    ],
    ids=["loss", "gradients"],
)
def test_numbers_that_are_not_finite_never_reach_the_weights(again, tmp_path, reliability, fault, loss):
    outcome = again(loss=loss)
    assert not list((tmp_path / "out").glob("*.pt"))
    reliability("Training runs", fault, outcome)


def test_a_second_run_in_one_folder_is_refused(again, copied, reliability):
    hold = (
        "import fcntl, os, sys, time\nlock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.lockf(lock, fcntl.LOCK_EX)\nos.ftruncate(lock, 0)\nos.write(lock, b'process 1 on node')\n"
        "print('held', flush=True)\ntime.sleep(60)"
    )
    line = [sys.executable, "-c", hold, str(copied / ".training.lock")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        outcome = again(max_epochs=2)
        other.kill()
    reliability("Several processes", "a second run in the output folder of one at work", outcome)
    assert again().status == 0, "a kill leaves the lock open"


def test_what_a_kill_left_is_removed_at_the_next_start(again, copied):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for folder in (copied, copied / "cache"):
        folder.mkdir(exist_ok=True)
        (folder / f".part-{HOST}-{process.pid}-checkpoint_last.pt").write_bytes(b"half")
    assert "removed 1 temporary files" in again(["train", "disk_cache"]).log
    assert not list(copied.rglob(".part-*"))


@pytest.mark.slow
def test_rows_of_tensorboard_are_not_repeated_after_a_kill(workflow, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(workflow, "msd_seg", tmp_path, data, val_interval=1, batch_size=2, stop_in_epoch=3)
    run(workflow, "msd_seg", tmp_path, data, val_interval=1, batch_size=2)
    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    for tag in log.Tags()["scalars"]:
        rows = log.Scalars(tag)
        steps = [row.step for row in rows]
        assert steps == sorted(set(steps)), f"{tag} at {steps}"
        assert [row.wall_time for row in rows] == sorted(row.wall_time for row in rows)
    assert [row.step for row in log.Scalars("val_mean_dice")] == [1, 2, 3, 4]
    assert [row.step for row in log.Scalars("loss")] == list(range(1, 9))
