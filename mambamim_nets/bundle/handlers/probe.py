"""Whether pre-training still helps: a linear segmentation on top of the frozen encoder, after epochs, as a curve.

A few labelled crops, always the same ones, go through the encoder as it is. At some voxels of the training crops its
feature maps are read, and linear discriminant analysis says which plane separates the labels: in closed form, so that
nothing is trained and nothing can be tuned. Then each validation crop is segmented with it at full resolution, and
compared with its label. The number is no result of a task, only one curve to be compared with itself.

Glossary
    F       channels of all feature maps together
    mu_c    mean features of label c, (F)
    S       covariance of the features around the means of their labels, (F, F)
    pi_c    share of the voxels that have label c
    score   of label c at features x: mu_c S^-1 x - mu_c S^-1 mu_c / 2 + log pi_c
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.data.utils import set_rnd
from monai.engines import Trainer
from torch import Tensor, nn

from mambamim_nets.bundle.runtime import bare, process_rank

__all__ = ["LinearProbe", "discriminant"]

logger = logging.getLogger("mambamim_nets")
VOXELS = 400  # of each label in a crop, at which features are read
SHRINKAGE = 0.01  # of the diagonal, added to the covariance: of few voxels it has no inverse
DICE = "probe_dice"


class LinearProbe:
    """Measure a linear segmentation on the features of a frozen encoder before training and after epochs.

    The mean Dice over the labels, and that of each, become curves of TensorBoard, a line of the log, and columns of
    `progress.csv`, whose epoch 0 is that before training. Training is not changed. Of several processes the first one
    measures, and the others wait.

    Args:
        network: a pre-training model (``pretraining.base``), possibly wrapped for distributed training.
        training: data set of crops, or of lists of them: {"image": (C_in, D, H, W), "label": (1, D, H, W)}, sides
            multiples of 16. Each is read once, and its random transforms are seeded.
        validation: the same, of other persons.
        labels: name -> value of each structure; everything else is background.
        interval: epochs between measurements; the last epoch always has one.
        writer: a TensorBoard SummaryWriter, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        training: Any,
        validation: Any,
        labels: Mapping[str, int],
        interval: int = 1,
        writer: Any = None,
    ) -> None:
        self.network, self.training, self.validation = network, training, validation
        self.labels, self.interval, self.writer = dict(labels), interval, writer
        self.crops: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.voxels: list[Tensor] = []

    def attach(self, engine: Trainer) -> None:
        """Read the crops when an engine starts, and measure after epochs; in the first process only."""
        if process_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.EPOCH_STARTED, self._forget)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._follow)

    def _start(self, engine: Trainer) -> None:
        self.crops = {part: self._read(getattr(self, part)) for part in ("training", "validation")}
        generator = torch.Generator().manual_seed(0)
        self.voxels = [_some_of_each(label, len(self.labels) + 1, generator) for _, label in self.crops["training"]]
        if engine.state.iteration == 0:
            engine.state.probed_before = self._measure(engine, 0)

    def _forget(self, engine: Trainer) -> None:
        engine.state.probed = {}

    def _follow(self, engine: Trainer) -> None:
        if engine.state.epoch % self.interval == 0 or engine.state.epoch == engine.state.max_epochs:
            engine.state.probed = self._measure(engine, engine.state.epoch)

    def _read(self, dataset: Any) -> list[tuple[Tensor, Tensor]]:
        """Return all crops (1, C_in, D, H, W), with the numbers of their labels (D, H, W), 0 of the background."""
        set_rnd(dataset, 0)
        found = []
        for number in range(len(dataset)):
            item = dataset[number]
            for crop in item if isinstance(item, Sequence) else [item]:
                image, values = (torch.as_tensor(crop[key]).as_subclass(Tensor) for key in ("image", "label"))
                label = torch.zeros(values.shape[1:], dtype=torch.long)
                for place, value in enumerate(self.labels.values(), 1):
                    label[values[0] == value] = place
                found.append((image[None].float(), label))
        return found

    def _measure(self, engine: Trainer, epoch: int) -> dict[str, float]:
        encoder: Any = bare(self.network).encoder
        device, training = engine.state.device, encoder.training
        encoder.eval()
        with torch.no_grad():
            dice = self._dice(encoder, device)
        encoder.train(training)
        mean = sum(dice.values()) / len(dice)
        named = {DICE: mean, **{f"{DICE} of {name}": value for name, value in dice.items()}}
        when = f"after epoch {epoch}/{engine.state.max_epochs}" if epoch else "before training"
        logger.info("probe %s: Dice %.4f, %s", when, mean, ", ".join(f"{n} {value:.4f}" for n, value in dice.items()))
        for name, value in named.items() if self.writer is not None else ():
            self.writer.add_scalar(name.replace(" of ", "/"), value, epoch)
        return named

    def _dice(self, encoder: nn.Module, device: torch.device) -> dict[str, float]:
        classes = len(self.labels) + 1
        read, found, voxels = [], [], torch.zeros(classes)
        for (image, label), places in zip(self.crops["training"], self.voxels, strict=True):
            read.append(_features_at(encoder(image.to(device)), places.to(device), label.shape).cpu())
            found.append(label[tuple(places.T)])
            voxels += torch.bincount(label.flatten(), minlength=classes)
        weight, bias = discriminant(torch.cat(read), torch.cat(found), voxels)
        both = torch.zeros(classes, classes)  # voxels by label and by what was found
        for image, label in self.crops["validation"]:
            scores = _scores(encoder(image.to(device)), weight.to(device), bias.to(device), label.shape)
            pairs = classes * label + scores.argmax(0).cpu()
            both += torch.bincount(pairs.flatten(), minlength=classes**2).view(classes, classes)
        dice = 2 * both.diagonal() / (both.sum(0) + both.sum(1)).clamp(min=1)
        return dict(zip(self.labels, dice[1:].tolist(), strict=True))


def _some_of_each(label: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """Draw some voxels of each label of a crop: (N, 3), indices."""
    drawn = []
    for number in range(classes):
        voxels = (label == number).nonzero()
        drawn.append(voxels[torch.randperm(len(voxels), generator=generator)[:VOXELS]])
    return torch.cat(drawn)


def _features_at(maps: Sequence[Tensor], voxels: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the features (N, F) of voxels (N, 3), each map (1, C, d, h, w) interpolated as in `_scores`."""
    sides = torch.tensor(shape, device=voxels.device)
    points = ((2 * voxels + 1) / sides - 1).flip(-1)[None, None, None]  # grid_sample wants x, y, z from -1 to 1
    options: dict[str, Any] = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
    return torch.cat([F.grid_sample(one.float(), points, **options)[0, :, 0, 0] for one in maps]).T


def discriminant(features: Tensor, labels: Tensor, voxels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the linear discriminant functions of labels.

    Args:
        features: (N, F).
        labels: (N), whole numbers from 0.
        voxels: (C), how often each label is met; one that is never met is never found.

    Returns:
        Weights (C, F) and biases (C): the scores of x are weights x + biases.
    """
    x, classes = features.double(), len(voxels)
    means = torch.stack([x[labels == c].mean(0) if (labels == c).any() else x.mean(0) for c in range(classes)])
    around = x - means[labels]
    covariance = around.T @ around / len(x)
    covariance += torch.diag(SHRINKAGE * covariance.diagonal() + 1e-12)
    weights = torch.linalg.solve(covariance, means.T).T
    biases = (voxels.double() / voxels.sum()).log() - (weights * means).sum(1) / 2
    return weights.float(), biases.float()


def _scores(maps: Sequence[Tensor], weights: Tensor, biases: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the scores (C, D, H, W) of all voxels: what is linear in features may be interpolated after it."""
    scores = biases[:, None, None, None].expand(len(biases), *shape)
    for one, part in zip(maps, weights.split([one.shape[1] for one in maps], dim=1), strict=True):
        coarse = F.conv3d(one.float(), part[:, :, None, None, None])
        scores = scores + F.interpolate(coarse, size=tuple(shape), mode="trilinear", align_corners=False)[0]
    return scores
