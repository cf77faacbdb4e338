"""Resuming: bit-exact, only what belongs together, and never worse."""

import logging

import pytest
import torch
from ignite.engine import Events


def run(workflow, name, folder, data, stop_in_epoch=None, **options):
    """Train; with ``stop_in_epoch``, press Ctrl-C in the first iteration of that epoch."""
    settings = {"max_epochs": 4, "output_dir": str(folder), "dataset_dir": str(data), **options}
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
        ("pretrain", {"num_workers": 0}),
        ("pretrain", {"num_workers": 1}),
        ("msd_seg", {"num_workers": 0, "val_interval": 3, "scan": "shuffle"}),
        ("msd_seg", {"num_workers": 1, "val_interval": 3, "ema": 0.9}),
        ("fetal_landmarks", {"num_workers": 0, "val_interval": 3}),
    ],
    ids=[
        "pretrain",
        "pretrain in a worker",
        "msd_seg, shuffled tokens",
        "msd_seg in a worker, averaged",
        "fetal_landmarks",
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
        run(workflow, "msd_seg", finished, data, max_epochs=1, val_interval=1)
    assert "finished, nothing left to train" in caplog.text
    assert (finished / "checkpoint_last.pt").read_bytes() == before


def causes(error):
    while error is not None:
        yield str(error)
        error = error.__cause__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": "false"}, "holds a run; --resume true continues it, or give another --output_dir"),
        ({"resume": "perhaps"}, "resume 'perhaps' must be true or false"),
        ({"fold": 1}, "belongs to another run (fold=0 there, 1 here); give another --output_dir"),
        ({"size": "base"}, "size='tiny' there, 'base' here"),
        ({"ema": 0.9}, "ema=0.0 there, 0.9 here"),
    ],
    ids=["refused", "unknown", "fold", "size", "ema"],
)
def test_what_does_not_belong_together_is_refused(workflow, data, finished, options, message):
    with pytest.raises(Exception) as caught:
        run(workflow, "msd_seg", finished, data, max_epochs=2, **options)
    assert message in " | ".join(causes(caught.value))


def test_resume_true_demands_a_run(workflow, data, tmp_path):
    with pytest.raises(Exception) as caught:
        run(workflow, "msd_seg", tmp_path / "new", data, resume="true")
    assert "nothing to resume" in " | ".join(causes(caught.value))


def test_a_worse_validation_after_resuming_keeps_the_best_model(workflow, data, finished, tmp_path):
    state = saved(finished)
    assert state["best_epoch"] == 1
    for file in finished.iterdir():
        if file.suffix == ".pt":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({**state, "best_metric": 0.99}, tmp_path / "checkpoint_last.pt")
    best = (tmp_path / "model_best.pt").read_bytes()
    run(workflow, "msd_seg", tmp_path, data, max_epochs=2, val_interval=1)
    assert (tmp_path / "model_best.pt").read_bytes() == best
    after = saved(tmp_path)
    assert (after["epoch"], after["best_epoch"], after["best_metric"]) == (2, 1, 0.99)
    torch.save({**state, "best_metric": -0.5}, tmp_path / "checkpoint_last.pt")
    run(workflow, "msd_seg", tmp_path, data, max_epochs=2, val_interval=1)
    assert (tmp_path / "model_best.pt").read_bytes() != best and saved(tmp_path)["best_epoch"] == 2
