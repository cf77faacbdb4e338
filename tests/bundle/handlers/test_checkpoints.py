"""Averaged weights, early stopping and exports, on networks small enough to compute by hand."""

import multiprocessing
import os
import signal

import ignite.metrics
import pytest
import torch
from helpers import refused
from ignite.engine import Events
from ignite.metrics import Metric
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch import nn

from mambamim_nets.bundle.data.store_crops import StoreSampler
from mambamim_nets.bundle.files import release
from mambamim_nets.bundle.handlers.checkpoints import Average, Checkpoints
from mambamim_nets.bundle.handlers.epoch_log import read_progress
from mambamim_nets.bundle.handlers.training import EpochSeed

pytestmark = pytest.mark.usefixtures("all_narrow")


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


# --- between steps --------------------------------------------------------------------------------


class Numbered(torch.utils.data.Dataset):
    """Item k is a function of k."""

    data = ("one",)

    def __len__(self):
        return 1

    def __getitem__(self, number):
        drawn = torch.randn(4, generator=torch.Generator().manual_seed(number))
        return {"image": drawn[:3], "label": drawn[3:]}


STEPS, EPOCHS = 4, 3


class Long:
    """Three epochs of four steps with dropout; ``signals`` come before a step is done, by its number."""

    def __init__(self, folder, signals=None, every=0, steps=STEPS, processes=1, rank=0, **options):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.losses, self.metric = [], ignite.metrics.Average(output_transform=lambda output: output["loss"])
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1)
        sampler = StoreSampler(4, steps, processes, rank)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, EPOCHS * steps)
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=EPOCHS,
            train_data_loader=torch.utils.data.DataLoader(Numbered(), batch_size=sampler.share, sampler=sampler),
            network=self.network,
            optimizer=optimizer,
            loss_function=nn.MSELoss(),
            key_train_metric={"train_loss": self.metric},
            decollate=False,
            train_handlers=[
                EpochSeed(0),
                LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
            ],
        )
        for step, number in (signals or {}).items():
            self.trainer.add_event_handler(
                Events.ITERATION_STARTED(once=step), lambda _, number=number: os.kill(os.getpid(), number)
            )
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.note)
        self.checkpoints = Checkpoints(
            *(self.trainer, self.network, optimizer, schedule, str(folder), {"seed": 0}),
            every=every,
            metrics={"train_loss": self.metric},
            **options,
        )

    def note(self, engine):
        self.losses.append(engine.state.metrics["train_loss"])

    def go(self):
        if self.checkpoints.start():
            self.trainer.run()
        return self


@pytest.fixture
def ends(monkeypatch):
    """Let SIGTERM and SIGUSR1 end a program as they do for a bundle."""

    def stop(number, frame):
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def position(folder):
    return load(folder, "checkpoint_last.pt")["trainer"]["iteration"]


def test_stopped_runs_lose_no_step_and_end_bit_for_bit_where_an_undisturbed_one_does(tmp_path, ends):
    whole = Long(tmp_path / "whole").go()
    stops = {1: signal.SIGTERM, 2: signal.SIGUSR1, 4: signal.SIGTERM, 7: signal.SIGTERM, 11: signal.SIGUSR1}
    losses = []
    for step, number in stops.items():
        run = Long(tmp_path / "parts", {step: number})
        with pytest.raises(SystemExit) as end:
            run.go()
        losses += run.losses
        assert end.value.code == 128 + number and position(tmp_path / "parts") == step
        release(tmp_path / "parts")  # which the end of a process does
    losses += Long(tmp_path / "parts").go().losses
    states = [load(tmp_path / folder, "checkpoint_last.pt") for folder in ("whole", "parts")]
    for part in ("model", "lr_scheduler", "trainer"):
        for key, value in states[0][part].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][part][key])), (part, key)
    assert losses == whole.losses, "also the loss of epochs that were broken off"
    assert len(read_progress(tmp_path / "parts" / "progress.csv")) == EPOCHS


def one_of_two(rank, folder):
    """Train in one of two processes, of which the second gets a signal; the exit status is that of the run."""
    torch.distributed.init_process_group("gloo", f"file://{folder}.meeting", rank=rank, world_size=2)
    signal.signal(signal.SIGUSR1, lambda number, frame: os._exit(128 + number))
    Long(folder, {6: signal.SIGUSR1} if rank else None, processes=2, rank=rank).go()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_a_signal_to_one_process_stops_all_at_one_step_and_one_alone_goes_on(tmp_path, caplog):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one_of_two, args=(rank, tmp_path / "run")) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [128 + signal.SIGUSR1] * 2
    assert position(tmp_path / "run") == 6
    caplog.set_level("INFO")
    run = Long(tmp_path / "run").go()
    assert run.trainer.state.iteration == STEPS * EPOCHS and len(run.losses) == 2
    assert "train_loss of epoch 2 is that of its last steps: it began on other processes" in caplog.text


def test_a_kill_loses_the_steps_since_the_last_checkpoint_only(tmp_path):
    whole = Long(tmp_path / "whole", every=3).go()
    run = Long(tmp_path / "parts", every=3)

    def kill(engine):
        raise KeyboardInterrupt

    run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=8), kill)
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert position(tmp_path / "parts") == 6
    assert load(tmp_path / "parts", "checkpoint_last.pt")["epoch"] == 1
    again = Long(tmp_path / "parts", every=3).go()
    assert all(torch.equal(a, b) for a, b in zip(*(run.network.parameters() for run in (whole, again)), strict=True))
    assert again.losses == whole.losses[1:]


def test_other_lengths_of_epochs_go_on_at_the_same_share_of_the_run(tmp_path, ends):
    with pytest.raises(SystemExit):
        Long(tmp_path, {6: signal.SIGTERM}).go()
    release(tmp_path)
    run = Long(tmp_path, steps=2)
    assert run.checkpoints.start() and run.trainer.state.iteration == 3 and run.trainer.state.epoch == 1


def test_the_best_weights_stay_those_of_their_epoch_within_the_next(tmp_path):
    run = Run(tmp_path, values={1: 0.5, 2: 0.2, 3: 0.2})
    run.go()
    best = load(tmp_path, "model_best.pt")
    run.checkpoints.evaluator.state.best_metric_epoch = 3
    run.checkpoints._save(run.trainer, None)
    assert all(torch.equal(best[key], value) for key, value in load(tmp_path, "model_best.pt").items())


def test_the_last_checkpoints_are_kept_and_one_of_them_can_be_gone_back_to(tmp_path):
    Long(tmp_path, every=3, kept=3).go()
    names = sorted(path.name for path in tmp_path.glob("checkpoint_0*.pt"))
    assert names == ["checkpoint_00000008.pt", "checkpoint_00000009.pt", "checkpoint_00000012.pt"]
    (tmp_path / "checkpoint_last.pt").write_bytes(b"")
    with refused("is damaged", "copy", "checkpoint_00000009.pt, which is earlier, to"):
        Long(tmp_path).go()
