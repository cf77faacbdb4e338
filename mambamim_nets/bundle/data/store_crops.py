"""Crops of a prepared store, by their numbers: the same ones for any number of processes, and after any stop.

Sample number k of a run is a function of the seed and of k alone: which volume, where in it, how it is augmented and
which of its blocks are hidden come from numpy's Philox generator, whose key is the seed and whose counter is k. So
nothing has to be kept but how many samples there have been: step t of a run takes the samples t B to t B + B - 1 (B is
the batch size over all processes), and process r of w the r-th of w equal shares of them.

A volume that cannot be read is replaced by another draw of the same sample, its next counter, and named in the log;
every process would replace it by the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import Dataset, Sampler

from mambamim_nets.bundle.data.store import Store

__all__ = ["Sample", "StoreCrops", "StoreSampler"]

logger = logging.getLogger("mambamim_nets")
STREAMS = {"training": 0, "validation": 1}  # second half of the key: numbers that have nothing to do with each other
ATTEMPTS = 20


class Sample(NamedTuple):
    """What is drawn for a sample.

    Attributes:
        volume: its place in the store.
        place: of the crop, from 0 to below 1 on each axis.
        augmentation: seed of its random transforms.
        mask: seed of its hidden blocks.
    """

    volume: int
    place: tuple[float, float, float]
    augmentation: int
    mask: int


class StoreCrops(Dataset[dict[str, torch.Tensor]]):
    """Crops of the volumes of a store; item k is sample k of the run, however large k is.

    Args:
        store: its volumes.
        roi_size: sides of a crop, in voxels; a volume that is shorter gives what it has.
        seed: of the run.
        transform: called with {"image": (1, D, H, W) float32 in HU or the units of the source, "stored": the
            StoredVolume, "mask_seed": a whole number}; its random state is set for each sample before. What it returns
            as tensors goes into the batch.
        weights: how often the volumes of a source are drawn, by the name of the source: one of weight 2 twice as often
            as one of weight 1, whatever the sizes of the two. None: all volumes equally often.
        spacing: that the run asks for, in mm; must be the store's. None: not compared.
        stream: "validation" draws other samples than "training" for the same seed.

    Raises:
        ValueError: the spacing is another, or a weight names no source or is not above 0.
    """

    def __init__(
        self,
        store: Store,
        roi_size: Sequence[int],
        seed: int,
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        weights: Mapping[str, float] | None = None,
        spacing: Sequence[float] | None = None,
        stream: Literal["training", "validation"] = "training",
    ) -> None:
        if spacing is not None and not np.allclose(spacing, store.spacing, rtol=1e-4):
            raise ValueError(
                f"spacing {list(spacing)} must be that of the store {store.files}, {store.spacing}; leave --spacing"
                " out, or prepare another store"
            )
        self.data = store
        self.roi_size = np.asarray(roi_size, dtype=np.int64)
        self.transform = transform
        self.key = np.array([seed, STREAMS[stream]], dtype=np.uint64)
        self._last_of = self._shares(weights)

    def _shares(self, weights: Mapping[str, float] | None) -> np.ndarray | None:
        """Return the cumulative shares of all volumes, from 0 to 1; None if all are equal."""
        if not weights:
            return None
        store = self.data
        unknown = sorted(set(weights) - set(store.sources))
        if unknown or any(not 0 < float(weight) < float("inf") for weight in weights.values()):
            raise ValueError(
                f"source_weights {dict(weights)} must give sources of the store, {', '.join(sorted(store.sources))},"
                f" numbers above 0{f'; unknown: {unknown}' if unknown else ''}; leave a source out by --filter"
            )
        numbers = store.source_numbers
        sizes = np.bincount(numbers, minlength=len(store.sources))
        each = np.array([float(weights.get(name, 1.0)) for name in store.sources]) / np.maximum(sizes, 1)
        ends = np.cumsum(each[numbers])
        return ends / ends[-1]

    def __len__(self) -> int:
        return len(self.data)

    def draw(self, number: int, attempt: int = 0) -> Sample:
        """Draw a sample.

        Args:
            number: k.
            attempt: how many volumes could not be read in its place.
        """
        chance = np.random.Generator(np.random.Philox(key=self.key, counter=[0, 0, attempt, number]))
        where, *place = chance.random(4).tolist()
        seeds = chance.integers(2**32, size=2, dtype=np.uint64)
        if self._last_of is None:
            volume = int(where * len(self.data))
        else:
            volume = int(np.searchsorted(self._last_of, where, side="right"))
        return Sample(min(volume, len(self.data) - 1), tuple(place), int(seeds[0]), int(seeds[1]))

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Return a sample, read and transformed.

        Raises:
            OSError: a row of volumes cannot be read.
        """
        for attempt in range(ATTEMPTS):
            sample = self.draw(number, attempt)
            volume = self.data.volume(sample.volume)
            try:
                image = self._crop(volume, sample)
            except (OSError, RuntimeError, ValueError) as error:
                logger.warning(
                    "%s of the store cannot be read (%s): another volume takes its place in sample %d; python -m"
                    " mambamim_nets.prepare --verify finds all of them",
                    *(volume.id, " ".join(str(error).split())[:200], number),
                )
                continue
            item: Mapping[str, Any] = {"image": image, "stored": volume, "mask_seed": sample.mask}
            if self.transform is not None:
                if hasattr(self.transform, "set_random_state"):
                    self.transform.set_random_state(seed=sample.augmentation)
                item = self.transform(item)
            return {key: value for key, value in item.items() if isinstance(value, torch.Tensor)}
        raise OSError(
            f"store {self.data.files}: {ATTEMPTS} volumes in a row cannot be read; is the disk there? Then python -m"
            " mambamim_nets.prepare --verify says what is broken"
        )

    def _crop(self, volume: Any, sample: Sample) -> torch.Tensor:
        shape = np.asarray(volume.shape)
        size = np.minimum(shape, self.roi_size)
        start = np.floor(np.asarray(sample.place) * (shape - size + 1)).astype(np.int64)
        return torch.from_numpy(volume.read(start.tolist(), size.tolist()))[None]


class StoreSampler(Sampler[int]):
    """The numbers of the samples that one process takes in an epoch, or in what is left of it.

    Args:
        batch_size: samples of a step, over all processes.
        iterations: steps of an epoch.
        processes: how many there are; None: those of torch.distributed.
        rank: number of this one.

    Attributes:
        share: samples of a step in this process.

    Raises:
        ValueError: the processes cannot share a batch equally.
    """

    def __init__(self, batch_size: int, iterations: int, processes: int | None = None, rank: int | None = None) -> None:
        several = dist.is_available() and dist.is_initialized()
        self.processes = processes if processes is not None else dist.get_world_size() if several else 1
        self.rank = rank if rank is not None else dist.get_rank() if several else 0
        if batch_size % self.processes:
            raise ValueError(
                f"batch_size {batch_size} is that of all processes together and must be a multiple of their number,"
                f" {self.processes}; try {(batch_size // self.processes + 1) * self.processes}"
            )
        self.batch_size, self.iterations = batch_size, iterations
        self.share = batch_size // self.processes
        self.step = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the first step of an epoch; the first epoch is 1."""
        self.set_step((epoch - 1) * self.iterations)

    def set_step(self, step: int) -> None:
        """Go to a step of the run, which may be in the midst of an epoch; the first step is 0."""
        self.step = step

    def __iter__(self) -> Iterator[int]:
        first = self.step
        for step in range(first, (first // self.iterations + 1) * self.iterations):
            start = step * self.batch_size + self.rank * self.share
            yield from range(start, start + self.share)

    def __len__(self) -> int:
        return self.iterations * self.share
