"""What masked pre-training needs of a trainer: its batch, its loss, and pictures of reconstructions."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.data.utils import list_data_collate, set_rnd
from monai.engines import Trainer
from torch import Tensor, nn
from torch.utils.data import Dataset

from mambamim_nets.bundle.files import atomic_write
from mambamim_nets.bundle.runtime import bare, process_rank
from mambamim_nets.bundle.visualize.planes import log_figure, save_figure
from mambamim_nets.bundle.visualize.pretraining import reconstruction_figure
from mambamim_nets.masking import expand_visible

__all__ = ["ReconstructionPictures", "mim_batch", "mim_loss"]


def mim_batch(
    batch: Mapping[str, Tensor], device: torch.device, non_blocking: bool, **kwargs: Any
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], dict[str, Any]]:
    """Give the image as its own target: the ``prepare_batch`` of pre-training.

    Where ``distortions`` left a distorted copy, the network gets that, and the image as its second argument; where
    ``DrawVisibled`` drew the mask, that is its second argument. What has no part in the loss, because a face was
    removed there, is the third argument: voxels of the former, blocks of the latter.

    Raises:
        ValueError: the batch has masks of faces, and neither a distorted copy nor a mask.
    """

    def ready(key: str) -> Tensor:
        image = batch[key].to(device, non_blocking=non_blocking, **kwargs)
        return image.as_tensor() if hasattr(image, "as_tensor") else image

    image = ready("image")
    if "visible" in batch:
        return image, image, tuple(ready(key) for key in ("visible", "ignored") if key in batch), {}
    if "distorted" in batch:
        return ready("distorted"), image, (image, ready("face") > 0) if "face" in batch else (image,), {}
    if "face" in batch:
        raise ValueError(
            "the store has masks of removed faces (face_mask), and this method, which scores whole crops, cannot leave"
            " their voxels out: take a method that hides blocks or restores voxels, such as mambamim or models_genesis,"
            " or a store prepared without the column face_mask"
        )
    return image, image, (), {}


def mim_loss(output: Any, image: Tensor) -> Tensor:
    """Return the loss that a pre-training model (``pretraining.base``) computed: its trainer's ``loss_function``."""
    return output.loss


class ReconstructionPictures:
    """Rebuild one fixed, fixedly masked crop at intervals: a PNG (input | visible | rebuilt) and a TensorBoard image.

    The crop is item 0 of a data set, random transforms seeded, so that it is the same in every picture, and after every
    resume. ``reconstruction.png`` is the newest picture; ``reconstructions/<epoch>.png`` keeps all of them.

    Args:
        network: a pre-training model (``pretraining.base``), possibly wrapped for distributed training; one that
            rebuilds nothing gets no pictures.
        folder: where the files go.
        interval: epochs between pictures; the last epoch always has one.
        writer: a TensorBoard SummaryWriter, or None.
        dataset: such as the held-out crops of a store, whose masks are fixed too; None: that of the training.
    """

    def __init__(
        self, network: nn.Module, folder: str, interval: int, writer: Any = None, dataset: Dataset | None = None
    ) -> None:
        self.network, self.folder, self.interval, self.writer = network, Path(folder), interval, writer
        self.dataset = dataset
        self.batch: dict[str, Any] | None = None

    def attach(self, engine: Trainer) -> None:
        """Take the crop when an engine starts, and draw after epochs; in the first process only."""
        if process_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._take)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _take(self, engine: Trainer) -> None:
        loader: Any = engine.data_loader
        dataset = self.dataset if self.dataset is not None else loader.dataset
        set_rnd(dataset, 0)  # EpochSeed gives the epoch its own seed
        self.batch = list_data_collate([dataset[0]])

    def _draw(self, engine: Trainer) -> None:
        epoch = engine.state.epoch
        if self.batch is None or (epoch % self.interval and epoch != engine.state.max_epochs):
            return
        model: Any = bare(self.network)
        training, device = model.training, engine.state.device
        image, target, more, _ = mim_batch(self.batch, device, non_blocking=False)
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            output = model(image, *more)
            rebuilt = None if output.reconstruction is None else model.rebuild(image, output)
        model.train(training)
        if rebuilt is None:
            return
        kept, given = torch.ones_like(rebuilt[:, 0]), None
        if output.visible is None:
            given = image[:, 0]
        else:
            kept = expand_visible(output.visible, rebuilt.shape[2] // output.visible.shape[2])
        picture = target[:, 0], kept, rebuilt[:, 0]
        figure = reconstruction_figure(*picture, title=f"epoch {epoch}", given=given)
        newest = save_figure(figure, self.folder / "reconstruction.png")
        every = self.folder / "reconstructions" / f"{epoch:05d}.png"
        atomic_write(every, lambda part: shutil.copyfile(newest, part))
        if self.writer is not None:
            log_figure(self.writer, "reconstruction", reconstruction_figure(*picture, given=given), epoch)
