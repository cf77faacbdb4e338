"""Signals wait for the end of a step while a trainer is at work, and only then."""

import os
import signal
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader

from mambamim_nets.bundle.handlers.stop_signals import StopSignals


class Worker:
    """As much of a trainer as is needed: something that is at work while `run` is on the call stack."""

    def __init__(self, loader=None):
        self.data_loader, self.state = loader, SimpleNamespace(device="cpu")

    def run(self, work):
        work()


@pytest.fixture
def came(monkeypatch):
    """Collect the signals that reach whoever had them before."""
    seen = []
    before = {
        number: signal.signal(number, lambda number, frame: seen.append(number))
        for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_at_work_is_noted_and_reaches_its_owner_when_it_is_obeyed(came, number):
    trainer = Worker()
    signals = StopSignals(trainer)
    assert signals.noted() == 0
    trainer.run(lambda: [os.kill(os.getpid(), number) for _ in range(3)])  # queues and torchrun send several
    assert signals.noted() == number and came == []
    signals.obey(number)
    assert came == [number]
    os.kill(os.getpid(), number)
    assert came == [number, number], "afterwards they are as they were"


def test_a_signal_without_a_trainer_at_work_reaches_its_owner_at_once(came):
    signals = StopSignals(Worker())
    os.kill(os.getpid(), signal.SIGTERM)
    assert came == [signal.SIGTERM] and signals.noted() == 0


class Deaf:
    """A data set whose process sends itself a signal, and goes on if it does not die of it."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        return number


def test_processes_that_load_data_outlive_the_signal(came):
    loader = DataLoader(Deaf(), batch_size=1, num_workers=1)
    trainer = Worker(loader)
    signals = StopSignals(trainer)
    found = []
    trainer.run(lambda: found.extend(batch.item() for batch in loader))
    signals.give_back()
    assert found == [0, 1] and came == []
