"""What is said of every epoch: its number of how many, the time that is left, learning rate and Dice by structure."""

import re
from types import SimpleNamespace

import pytest
import torch
from helpers import table
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, ValidationHandler, from_engine

from mambamim_nets.bundle.handlers.epoch_log import EpochLog, TrainingCurves, ValidationLog, curves_of, read_progress
from mambamim_nets.bundle.labels import Targets


class Writer(list):
    """Collects what a SummaryWriter would be given."""

    def add_scalar(self, *row):
        self.append(row)


def trained(epochs: int = 3, first: int = 0) -> Writer:
    """Train a network of one weight with validation every second epoch; return what TensorBoard was given."""
    network, writer = torch.nn.Conv3d(1, 2, 1), Writer()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.25)
    batch = {"image": torch.ones(1, 1, 2, 2, 2), "label": torch.ones(1, 2, 2, 2, 2)}

    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=[batch],
        network=network,
        key_val_metric={
            "val_mean_dice": MeanDice(include_background=True, output_transform=from_engine(["pred", "label"]))
        },
        postprocessing=lambda item: {**item, "pred": torch.stack([torch.ones(2, 2, 2), torch.zeros(2, 2, 2)])},
        val_handlers=[ValidationLog(epochs, Targets({"anterior": 1, "posterior": 2}), writer)],
    )
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=[batch],
        network=network,
        loss_function=torch.nn.MSELoss(),
        optimizer=optimizer,
        train_handlers=[EpochLog(optimizer, writer), ValidationHandler(2, evaluator)],
    )
    if first:
        trainer.load_state_dict({"epoch": first, "epoch_length": 1, "max_epochs": epochs})
    trainer.run()
    return writer


def lines(caplog, start: str) -> list[str]:
    return [line for line in caplog.messages if line.startswith(start)]


def test_every_epoch_says_how_many_there_are_and_when_they_will_be_done(caplog):
    caplog.set_level("INFO")
    writer = trained()
    first, second, last = lines(caplog, "epoch ")
    assert re.fullmatch(
        r"epoch 1/3: .*learning rate 0\.25; \d+ s each, 0:00:0\d left, done at about (\d{4}-\d\d-\d\d )?\d\d:\d\d",
        first,
    )
    assert second.startswith("epoch 2/3: ") and last.startswith("epoch 3/3: ") and last.endswith("the last one")
    assert [row for row in writer if row[0] == "learning_rate"] == [
        ("learning_rate", 0.25, epoch) for epoch in (1, 2, 3)
    ]
    assert "Key metric" not in caplog.text


def test_a_validation_says_what_was_found_of_each_structure(caplog):
    caplog.set_level("INFO")
    writer = trained()
    (line,) = lines(caplog, "validation ")
    assert line == (
        "validation after epoch 2/3: val_mean_dice 0.5000, anterior 1.0000, posterior 0.0000; best 0.5000 of epoch 2"
    )
    assert ("val_mean_dice/anterior", 1.0, 2) in writer and ("val_mean_dice/posterior", 0.0, 2) in writer


def test_a_run_that_goes_on_counts_its_own_epochs(caplog):
    caplog.set_level("INFO")
    trained(epochs=5, first=3)
    assert [line.partition(":")[0] for line in lines(caplog, "epoch ")] == ["epoch 4/5", "epoch 5/5"]


def engine(epoch: int, epochs: int = 4, by_structure: dict | None = None, **metrics: float) -> SimpleNamespace:
    state = SimpleNamespace(epoch=epoch, max_epochs=epochs, metrics=metrics)
    if by_structure:
        state.by_structure = by_structure
    return SimpleNamespace(state=state)


def grown(folder, epochs: range, start: int = 0) -> TrainingCurves:
    """Add epochs whose loss is 1 / epoch, every second with a validation."""
    curves = TrainingCurves(folder)
    curves.start(start)
    for epoch in epochs:
        validated = epoch - epoch % 2
        found = {"anterior": 0.1 * validated, "posterior": float("nan")}
        evaluator = engine(validated, val_mean_dice=0.1 * validated, by_structure=found)
        curves.add(engine(epoch, train_loss=1 / epoch), evaluator, rate=0.5)
    return curves


def test_every_epoch_is_a_row_and_a_long_one_has_its_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("mambamim_nets.bundle.handlers.epoch_log.SOONEST", 0.0)
    grown(tmp_path, range(1, 2))
    assert (tmp_path / "progress.png").read_bytes()[:4] == b"\x89PNG"
    grown(tmp_path, range(2, 5), start=1)
    rows = table(tmp_path / "progress.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["train_loss"] for row in rows] == ["1", "0.5", "0.333333", "0.25"]
    assert [row["val_mean_dice"] for row in rows] == ["", "0.2", "", "0.4"]
    assert [row["anterior"] for row in rows] == ["", "0.2", "", "0.4"] and rows[1]["posterior"] == "nan"
    assert all(row["learning rate"] == "0.5" and float(row["seconds"]) >= 0 for row in rows)


def test_epochs_that_are_repeated_replace_their_rows(tmp_path):
    grown(tmp_path, range(1, 4))
    grown(tmp_path, range(2, 3), start=1)
    assert [row["epoch"] for row in read_progress(tmp_path / "progress.csv")] == [1.0, 2.0]
    grown(tmp_path, range(1, 2))
    assert [row["epoch"] for row in read_progress(tmp_path / "progress.csv")] == [1.0], "a run from its start"


def test_a_probe_before_training_is_the_row_of_epoch_0(tmp_path):
    for start in (0, 1, 0):
        curves = TrainingCurves(tmp_path)
        curves.start(start)
        trainer = engine(start + 1, train_loss=0.5)
        trainer.state.probed = {"probe_dice": 0.4}
        if start == 0:
            trainer.state.probed_before = {"probe_dice": 0.3}
        curves.add(trainer, None, 0.1)
        rows = read_progress(tmp_path / "progress.csv")
        assert [row["epoch"] for row in rows] == [0.0, 1.0, 2.0][: start + 2]
        assert rows[0] == {"epoch": 0.0, "probe_dice": 0.3} and rows[-1]["probe_dice"] == 0.4
    assert curves_of(rows)["probe"]["probe_dice"] == [(0.0, 0.3), (1.0, 0.4)]


def test_short_epochs_are_not_drawn_each_but_the_last_is(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("mambamim_nets.bundle.handlers.epoch_log.save_figure", lambda *a, **k: drawn.append(a))
    curves = TrainingCurves(tmp_path)
    curves.start(0)
    curves.add(engine(1, train_loss=1.0), None, 0.5)
    curves.started, curves.drawing = -3600.0, 3600.0
    curves.add(engine(2, train_loss=1.0), None, 0.5)
    assert not drawn
    curves.add(engine(4, train_loss=1.0), None, 0.5)
    assert len(drawn) == 1


@pytest.mark.parametrize(
    "text", [None, "", "epoch,train_loss\n1,many\n", "a,b\n1,2\n"], ids=["none", "empty", "text", "other"]
)
def test_a_table_that_is_not_there_or_not_sound_has_no_rows(tmp_path, text):
    if text is not None:
        (tmp_path / "progress.csv").write_text(text)
    assert read_progress(tmp_path / "progress.csv") == []


def test_curves_are_those_of_training_and_validation(tmp_path):
    curves = curves_of(grown(tmp_path, range(1, 5)).rows)
    assert list(curves) == ["training", "validation", "learning rate", "seconds of an epoch"]
    assert list(curves["validation"]) == ["val_mean_dice", "anterior", "posterior"]
    assert curves["validation"]["anterior"] == [(2.0, 0.2), (4.0, 0.4)]
    many = [{"epoch": 1.0, "val_mean_dice": 0.5, **{f"class {number}": 0.5 for number in range(40)}}]
    assert list(curves_of(many)["validation"]) == ["val_mean_dice"]
    probed = curves_of(
        [{"epoch": 1.0, "train_loss": 1.0, "val_loss": 2.0, "probe_dice": 0.3, "probe_dice of liver": 0.3}]
    )
    assert list(probed["probe"]) == ["probe_dice", "liver"] and list(probed["validation"]) == ["val_loss"]
