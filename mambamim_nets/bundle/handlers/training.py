"""Ignite handlers that MONAI does not have: per-epoch seeds, gradient clipping, progress."""

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.data.utils import set_rnd
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from mambamim_nets.bundle.checkpoint_files import LAST
from mambamim_nets.bundle.runtime import epoch_seed, interactive, process_rank, reuse_memory, seed_epoch

__all__ = ["ClipGradients", "EpochSeed", "Progress", "ReuseMemory", "StopOnNan"]


class EpochSeed:
    """Seed everything random from (seed, epoch) at the start of each epoch: resuming repeats and skips nothing."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Trainer) -> None:
        """Seed at the start of every epoch of an engine."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Trainer) -> None:
        """Seed generators, sampler and data set of an engine for the epoch that begins."""
        seed = epoch_seed(self.seed, engine.state.epoch, process_rank())
        seed_epoch(seed)
        loader: Any = engine.data_loader
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(engine.state.epoch)
        set_rnd(loader.dataset, seed)


class ReuseMemory:
    """Keep freed memory for the next step while an engine runs; see ``reuse_memory``."""

    def attach(self, engine: Engine) -> None:
        """Let it begin when the engine starts."""
        engine.add_event_handler(Events.STARTED, reuse_memory)


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
