"""Averaged weights, early stopping and exports, on networks small enough to compute by hand."""

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import nn

from mambamim_nets.bundle.handlers.checkpoints import Average, Checkpoints


class Prescribed(Metric):
    """The metric that a table names for each epoch."""

    def __init__(self, values):
        self.values, self.epoch = values, 0
        super().__init__()

    def reset(self):
        pass

    def update(self, output):
        pass

    def compute(self):
        return self.values[self.epoch]


class Run:
    """Two iterations per epoch of a linear network, validated at intervals."""

    def __init__(self, folder, decay=0.0, max_epochs=3, early_stopping=0, values=None, interval=1, stop_in=None):
        torch.manual_seed(0)
        self.network = nn.Linear(3, 1)
        items = [{"image": torch.randn(3), "label": torch.randn(1)} for _ in range(4)]
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1)
        self.average = Average(self.network, decay)
        metric = Prescribed(values or {epoch: epoch / 100 for epoch in range(99)})
        self.evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(Dataset(items), batch_size=2),
            network=self.average.network,
            key_val_metric={"score": metric},
        )
        self.weights = []
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=max_epochs,
            train_data_loader=DataLoader(Dataset(items), batch_size=2),
            network=self.network,
            optimizer=optimizer,
            loss_function=nn.MSELoss(),
            train_handlers=[ValidationHandler(interval, self.evaluator)],
        )
        self.checkpoints = Checkpoints(
            self.trainer,
            self.network,
            optimizer,
            torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
            str(folder),
            {"seed": 0},
            evaluator=self.evaluator,
            average=self.average,
            early_stopping=early_stopping,
        )

        def note(engine):
            metric.epoch = engine.state.epoch
            if engine.state.epoch == stop_in:
                raise KeyboardInterrupt
            self.weights.append(self.network.weight.detach().clone())

        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, note)

    def go(self):
        left = self.checkpoints.start()
        if left:
            self.trainer.run()
        return left


def load(folder, name):
    return torch.load(folder / name, weights_only=True)


def test_no_averaging_is_the_network_itself(tmp_path):
    run = Run(tmp_path)
    assert run.average.network is run.network
    run.go()
    assert "average" not in load(tmp_path, "checkpoint_last.pt")
    assert torch.equal(load(tmp_path, "model_best.pt")["weight"], run.network.weight)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_averaging_is_an_exponential_moving_average(tmp_path, decay):
    run = Run(tmp_path, decay)
    expected = run.network.weight.detach().clone()
    run.go()
    assert len(run.weights) == 6, "three epochs of two iterations"
    for weight in run.weights:
        expected = decay * expected + (1 - decay) * weight
    average = run.average.network.weight
    torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
    assert not average.requires_grad and not torch.equal(average, run.network.weight)
    state = load(tmp_path, "checkpoint_last.pt")
    assert torch.equal(state["average"]["weight"], average)
    assert torch.equal(state["model"]["weight"], run.network.weight)
    assert torch.equal(load(tmp_path, "model_best.pt")["weight"], average), "the best are the averaged weights"


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_refused_decay(decay):
    with pytest.raises(ValueError, match=rf"ema {decay} must be in \[0, 1\)"):
        Average(nn.Linear(1, 1), decay)


def test_a_resumed_average_goes_on_where_it_was(tmp_path):
    whole = Run(tmp_path / "whole", 0.9, max_epochs=4)
    whole.go()
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "parts", 0.9, max_epochs=4, stop_in=3).go()
    parts = Run(tmp_path / "parts", 0.9, max_epochs=4)
    assert parts.go() and len(parts.weights) == 4
    for part in ("average", "model"):
        states = [load(tmp_path / folder, "checkpoint_last.pt")[part] for folder in ("whole", "parts")]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert torch.equal(whole.average.network.weight, parts.average.network.weight)


WORSE = {1: 0.1, 2: 0.5} | {epoch: 0.4 - epoch / 100 for epoch in range(3, 30)}
AT_THREE = {epoch: 0.5 if epoch == 3 else 0.1 for epoch in range(1, 30)}


@pytest.mark.parametrize(
    ("values", "interval", "patience", "last"),
    [(WORSE, 1, 2, 4), (WORSE, 1, 5, 7), (AT_THREE, 3, 2, 6), (AT_THREE, 3, 4, 9), (WORSE, 1, 0, 12)],
    ids=["two", "five", "shorter than the interval", "longer than the interval", "never"],
)
def test_early_stopping_ends_after_the_best_validation(tmp_path, values, interval, patience, last):
    settings = {"max_epochs": 12, "early_stopping": patience, "values": values, "interval": interval}
    run = Run(tmp_path, **settings)
    assert run.go() and run.trainer.state.epoch == last
    state = load(tmp_path, "checkpoint_last.pt")
    best = max(values, key=values.get)
    assert (state["epoch"], state["best_epoch"]) == (last, best)
    again = Run(tmp_path, **{**settings, "max_epochs": 20 if patience else 12})
    assert not again.go() and not again.weights, "a resumed run trains no further"


def test_an_interrupted_run_stops_early_where_an_uninterrupted_one_does(tmp_path):
    settings = {"max_epochs": 12, "early_stopping": 2, "values": AT_THREE, "interval": 3}
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, **settings, stop_in=6).go()  # five epochs done, two after the best, one before the validation
    resumed = Run(tmp_path, **settings)
    assert resumed.go() and resumed.trainer.state.epoch == 6


def test_patience_starts_anew_with_every_better_validation(tmp_path):
    values = {1: 0.1, 2: 0.05, 3: 0.2, 4: 0.15, 5: 0.3} | dict.fromkeys(range(6, 30), 0.25)
    run = Run(tmp_path, max_epochs=20, early_stopping=2, values=values)
    run.go()
    assert run.trainer.state.epoch == 7


# --- exports --------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed_at", [1, 2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_kill_between_checkpoint_and_export_loses_no_best_weights(tmp_path, monkeypatch, killed_at, decay):
    values = {1: 0.1, 2: 0.5, 3: 0.2}
    whole = Run(tmp_path / "whole", decay, values=values)
    whole.go()
    killed = Run(tmp_path / "parts", decay, values=values)
    export = killed.checkpoints._export

    def kill(best_epoch, epoch, *others):
        if epoch == killed_at:
            raise KeyboardInterrupt
        export(best_epoch, epoch, *others)

    monkeypatch.setattr(killed.checkpoints, "_export", kill)
    with pytest.raises(KeyboardInterrupt):
        killed.go()
    Run(tmp_path / "parts", decay, values=values).go()
    one, two = (load(tmp_path / folder, "model_best.pt") for folder in ("whole", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert load(tmp_path / "parts", "checkpoint_last.pt")["best_epoch"] == 2


def test_texts_of_the_best_epoch_are_written_with_its_weights(tmp_path):
    run = Run(tmp_path, values={1: 0.1, 2: 0.5, 3: 0.2})

    def leave(engine):
        if engine.state.best_metric_epoch == engine.state.epoch:
            engine.state.best_files = {"model_best.json": f"epoch {engine.state.epoch}"}

    run.evaluator.add_event_handler(Events.COMPLETED, leave)
    run.go()
    assert (tmp_path / "model_best.json").read_text() == "epoch 2"
    (tmp_path / "model_best.json").write_text("of another epoch")
    Run(tmp_path, values={1: 0.1, 2: 0.5, 3: 0.2}).go()
    assert (tmp_path / "model_best.json").read_text() == "epoch 2"
