"""Ignite handlers that MONAI does not have: per-epoch seeds, gradient clipping, progress, pictures."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.data.utils import set_rnd
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from mambamim_nets.bundle.checkpoints import LAST
from mambamim_nets.bundle.launch import bare, epoch_seed, interactive, process_rank, seed_epoch
from mambamim_nets.bundle.pictures import figure_array, reconstruction, reconstruction_figure
from mambamim_nets.masking import expand_visible

__all__ = [
    "ClipGradients",
    "EpochSeed",
    "Progress",
    "ReconstructionPictures",
    "StopOnNan",
    "mim_batch",
    "mim_loss",
]

logger = logging.getLogger("mambamim_nets")


class EpochSeed:
    """Seed everything random from (seed, epoch) at the start of each epoch: resuming repeats and skips nothing."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Trainer) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Trainer) -> None:
        seed = epoch_seed(self.seed, engine.state.epoch, process_rank())
        seed_epoch(seed)
        loader: Any = engine.data_loader
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(engine.state.epoch)
        set_rnd(loader.dataset, seed)


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
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Trainer) -> None:
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(_not_finite("gradient norm", norm, engine))


class StopOnNan:
    """Stop before the optimiser takes a step on a loss that is not finite."""

    def attach(self, engine: Trainer) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Trainer) -> None:
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
        if interactive():
            bar = ProgressBar(persist=False, desc=self.description)
            bar.attach(engine, output_transform=_loss_of)


def _loss_of(output: Any) -> dict[str, float]:
    first = output[0] if isinstance(output, list) and output else output
    loss = first.get("loss") if isinstance(first, Mapping) else None
    return {} if loss is None else {"loss": float(loss)}


def mim_batch(
    batch: Mapping[str, Tensor], device: torch.device, non_blocking: bool, **kwargs: Any
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], dict[str, Any]]:
    """Give the image as its own target: the ``prepare_batch`` of pre-training.

    Where ``distortions`` left a distorted copy, the network gets that, and the image as its second argument.
    """

    def ready(key: str) -> Tensor:
        image = batch[key].to(device, non_blocking=non_blocking, **kwargs)
        return image.as_tensor() if hasattr(image, "as_tensor") else image

    image = ready("image")
    return (ready("distorted"), image, (image,), {}) if "distorted" in batch else (image, image, (), {})


def mim_loss(output: Any, image: Tensor) -> Tensor:
    """Return the loss that a pre-training model computed (``nets.masked``): the ``loss_function`` of pre-training."""
    return output.loss


class ReconstructionPictures:
    """Rebuild one fixed, fixedly masked crop at intervals: a PNG (input | visible | rebuilt) and a TensorBoard image.

    Args:
        network: a pre-training model (``nets.masked``), possibly wrapped for distributed training; one that rebuilds
            nothing gets no pictures.
        folder: where ``reconstruction.png`` goes.
        interval: epochs between pictures; the last epoch always has one.
        writer: a TensorBoard SummaryWriter, or None.
    """

    def __init__(self, network: nn.Module, folder: str, interval: int, writer: Any = None) -> None:
        self.network, self.folder, self.interval, self.writer = network, Path(folder), interval, writer
        self.image: Tensor | None = None
        self.target: Tensor | None = None

    def attach(self, engine: Trainer) -> None:
        if process_rank() == 0:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _keep(self, engine: Trainer) -> None:
        if self.image is None:
            self.image, self.target = (engine.state.output[key][:1].detach().clone() for key in ("image", "label"))

    def _draw(self, engine: Trainer) -> None:
        epoch = engine.state.epoch
        if self.image is None or self.target is None or (epoch % self.interval and epoch != engine.state.max_epochs):
            return
        model: Any = bare(self.network)
        training, device = model.training, self.image.device
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            output = model(self.image)
            rebuilt = None if output.reconstruction is None else model.rebuild(self.image, output)
        model.train(training)
        if rebuilt is None:
            return
        kept, given = torch.ones_like(rebuilt[:, 0]), None
        if output.visible is None:
            given = self.image[:, 0]
        else:
            kept = expand_visible(output.visible, rebuilt.shape[2] // output.visible.shape[2])
        picture = self.target[:, 0], kept, rebuilt[:, 0]
        path = reconstruction(*picture, self.folder / "reconstruction.png", title=f"epoch {epoch}", given=given)
        logger.info("picture of a reconstruction: %s", path)
        if self.writer is not None:
            figure = reconstruction_figure(*picture, given=given)
            self.writer.add_image("reconstruction", figure_array(figure), epoch, dataformats="HWC")
