"""Gradients and losses, on networks small enough to compute by hand."""

import math

import pytest
import torch
from helpers import refused
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import nn

from mambamim_nets.bundle.handlers.training import AccumulateGradients, ClipGradients, StopOnNan


def one_step(loss_function, *handlers, lr=1.0):
    """Take one step of plain gradient descent from weights of 1 on an input of 3, 4, 0."""
    network = nn.Linear(3, 1, bias=False)
    nn.init.ones_(network.weight)
    item = {"image": torch.tensor([3.0, 4.0, 0.0]), "label": torch.zeros(1)}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset([item]), batch_size=1),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=lr),
        loss_function=loss_function,
        train_handlers=[make(network) for make in handlers],
    )
    return network, trainer


def clip(max_norm):
    return lambda network: ClipGradients(network, max_norm)


def plain(output, label):
    return output.sum()  # its gradient is the input, of norm 5


@pytest.mark.parametrize(("max_norm", "norm"), [(1.0, 1.0), (0.5, 0.5), (5.0, 5.0), (100.0, 5.0), (math.inf, 5.0)])
def test_a_step_is_as_long_as_the_gradient_but_at_most_the_norm(max_norm, norm):
    network, trainer = one_step(plain, clip(max_norm))
    trainer.run()
    step = torch.ones(1, 3) - network.weight
    torch.testing.assert_close(step, torch.tensor([[0.6, 0.8, 0.0]]) * norm, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_norm", [0, -1.0, math.nan])
def test_a_norm_that_would_stop_or_turn_the_gradient_is_refused(max_norm):
    with pytest.raises(ValueError, match=f"max_grad_norm {max_norm} must be above 0"):
        ClipGradients(nn.Linear(1, 1), max_norm)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_before_the_step(value):
    network, trainer = one_step(lambda output, label: output.sum() * value, lambda network: StopOnNan(), clip(1.0))
    with pytest.raises(FloatingPointError, match=rf"loss is {value} in epoch 1, iteration 1; lower --learning_rate"):
        trainer.run()
    assert torch.equal(network.weight, torch.ones(1, 3)) and network.weight.grad is None


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step():
    network, trainer = one_step(lambda output, label: (output.sum() * 0).sqrt(), lambda network: StopOnNan(), clip(1.0))
    with pytest.raises(FloatingPointError, match="gradient norm is nan in epoch 1"):
        trainer.run()
    assert torch.equal(network.weight, torch.ones(1, 3))


def accumulated(parts):
    """Take 20 clipped steps on batches of 12 by parts of each; return weights, losses and what was seen of a step."""
    torch.manual_seed(0)
    network, losses, sizes, events = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 1)), [], [], []
    batches = [{"image": torch.randn(12, 3), "label": torch.randn(12, 1)} for _ in range(5)]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=4,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        loss_function=nn.MSELoss(),
        decollate=False,
        train_handlers=[ClipGradients(network, 0.5)],
        iteration_update=None if parts is None else AccumulateGradients(parts, 12),
    )
    network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output["loss"]))
    )
    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda engine: events.append(engine.state.iteration))
    trainer.run()
    assert events == list(range(1, 21)), "one backward pass of a step is told of, so gradients are clipped once"
    return torch.cat([weight.detach().flatten() for weight in network.parameters()]), losses, sizes


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_a_step_taken_by_parts_is_the_step_taken_at_once(parts):
    weights, losses, sizes = accumulated(parts)
    expected, whole, _ = accumulated(None)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
    assert losses == pytest.approx(whole, abs=1e-6) and sizes == [12 // parts] * (20 * parts)


def test_parts_that_cannot_share_a_step_are_refused():
    with refused("accumulate 5 must divide the samples of a step in each process, 12"):
        AccumulateGradients(5, 12)
