"""Ignite handlers that MONAI does not have: per-epoch seeds, gradient clipping, progress."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.data.utils import set_rnd
from monai.engines import SupervisedTrainer, Trainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import Tensor, nn

from mambamim_nets.bundle.checkpoint_files import LAST
from mambamim_nets.bundle.runtime import epoch_seed, interactive, process_rank, reuse_memory, seed_epoch

__all__ = ["AccumulateGradients", "ClipGradients", "EpochSeed", "Progress", "ReuseMemory", "StopOnNan"]


class EpochSeed:
    """Seed everything random from (seed, epoch) at the start of each epoch: resuming repeats and skips nothing.

    A sampler with `set_step`, as that of a prepared store, can go on in the midst of an epoch: it is set to the step
    that comes next, and everything else that is random is seeded from (seed, step) before each step.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Trainer) -> None:
        """Seed at the start of every epoch of an engine, and of every step where its sampler counts steps."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)
        if hasattr(getattr(engine.data_loader, "sampler", None), "set_step"):
            engine.add_event_handler(Events.ITERATION_STARTED, self._seed_step)

    def __call__(self, engine: Trainer) -> None:
        """Seed generators, sampler and data set of an engine for the epoch that begins."""
        seed = epoch_seed(self.seed, engine.state.epoch, process_rank())
        seed_epoch(seed)
        loader: Any = engine.data_loader
        if hasattr(loader.sampler, "set_step"):
            loader.sampler.set_step(engine.state.iteration)
        elif hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(engine.state.epoch)
        set_rnd(loader.dataset, seed)

    def _seed_step(self, engine: Trainer) -> None:
        seed_epoch(epoch_seed(self.seed, engine.state.iteration, process_rank()))


class ReuseMemory:
    """Keep freed memory for the next step while an engine runs; see ``reuse_memory``."""

    def attach(self, engine: Engine) -> None:
        """Let it begin when the engine starts."""
        engine.add_event_handler(Events.STARTED, reuse_memory)


class AccumulateGradients:
    """Take a step by parts of its batch, one after another, and add up their gradients: less memory, the same step.

    To be the ``iteration_update`` of a SupervisedTrainer. The batch and the number of steps stay what they are, so
    schedule, clipping, averaging and checkpoints need not know of it, and a run may go on with another number of
    parts. (MONAI's ``accumulation_steps`` makes an iteration of each part.) Each part fires the events of forward pass
    and loss; those of the backward pass and of the step come once. The loss of the step is the mean over its parts.

    Args:
        parts: how many.
        share: samples of a step in this process, of which each part takes as many.

    Raises:
        ValueError: the parts cannot share them equally.
    """

    def __init__(self, parts: int, share: int) -> None:
        if share % parts:
            raise ValueError(
                f"accumulate {parts} must divide the samples of a step in each process, {share}, which is batch_size by"
                " the number of processes"
            )
        self.parts = parts

    def __call__(self, engine: SupervisedTrainer, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Take a step on a batch; returns the output of its last part, with the loss of all."""
        network: Any = engine.network
        network.train()
        engine.optimizer.zero_grad(set_to_none=engine.optim_set_to_none)
        losses = []
        chunks = {key: value.chunk(self.parts) for key, value in batch.items()}
        for number in range(self.parts):
            part = {key: pieces[number] for key, pieces in chunks.items()}
            made = engine.prepare_batch(part, engine.state.device, engine.non_blocking, **engine.to_kwargs)
            inputs, targets, args, kwargs = made if len(made) == 4 else (*made, (), {})
            output = engine.state.output = {CommonKeys.IMAGE: inputs, CommonKeys.LABEL: targets}
            last = number == self.parts - 1
            with nullcontext() if last else getattr(network, "no_sync", nullcontext)():  # processes exchange once
                output[CommonKeys.PRED] = engine.inferer(inputs, network, *args, **kwargs)
                engine.fire_event(IterationEvents.FORWARD_COMPLETED)
                output[CommonKeys.LOSS] = engine.loss_function(output[CommonKeys.PRED], targets).mean()
                engine.fire_event(IterationEvents.LOSS_COMPLETED)
                (output[CommonKeys.LOSS] / self.parts).backward()
            losses.append(output[CommonKeys.LOSS].detach())
        output[CommonKeys.LOSS] = torch.stack(losses).mean()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        engine.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return output


class ClipGradients:
    """Clip the gradient norm of a network before every optimiser step; stop before one with a norm that is not finite.

    Args:
        network: in training.
        max_norm: above 0; longer gradients are shortened to it.

    Raises:
        ValueError: if max_norm is not above 0: gradients would vanish or change their sign.
    """

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_grad_norm {max_norm} must be above 0; 5.0 is usual, inf clips nothing")
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Trainer) -> None:
        """Clip after every backward pass of an engine."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Trainer) -> None:
        """Clip the gradients; raises FloatingPointError if their norm is not finite."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(_not_finite("gradient norm", norm, engine))


class StopOnNan:
    """Stop before the optimiser takes a step on a loss that is not finite."""

    def attach(self, engine: Trainer) -> None:
        """Look at every loss of an engine."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Trainer) -> None:
        """Raise FloatingPointError if the loss is not finite."""
        loss = engine.state.output["loss"]
        if not torch.isfinite(loss).all():
            raise FloatingPointError(_not_finite("loss", loss, engine))


def _not_finite(name: str, value: Tensor, engine: Trainer) -> str:
    return (
        f"{name} is {float(value)} in epoch {engine.state.epoch}, iteration {engine.state.iteration}; "
        f"lower --learning_rate, or use --amp false; {LAST} holds the epoch before"
    )


class Progress:
    """Progress bar over the iterations of an engine, with the loss where there is one; on terminals only."""

    def __init__(self, description: str) -> None:
        self.description = description

    def attach(self, engine: Engine) -> None:
        """Draw the bar of an engine, where there is a terminal."""
        if interactive():
            bar = ProgressBar(persist=False, desc=self.description)
            bar.attach(engine, output_transform=_loss_of)


def _loss_of(output: Any) -> dict[str, float]:
    first = output[0] if isinstance(output, list) and output else output
    loss = first.get("loss") if isinstance(first, Mapping) else None
    return {} if loss is None else {"loss": float(loss)}
