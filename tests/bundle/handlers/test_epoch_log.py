"""What is said of every epoch: its number of how many, the time that is left, learning rate and Dice by structure."""

import re

import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, ValidationHandler, from_engine

from mambamim_nets.bundle.handlers.epoch_log import EpochLog, ValidationLog
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
