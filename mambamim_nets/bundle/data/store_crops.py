"""Crops of a prepared store, by their numbers: the same ones for any number of processes, and after any stop.

Sample number k of a run is a function of the seed and of k alone: which volume, where in it, how it is augmented and
which of its blocks are hidden come from numpy's Philox generator, whose key is the seed and whose counter is k. So
nothing has to be kept but how many samples there have been: step t of a run takes the samples t B to t B + B - 1 (B is
the batch size over all processes), and process r of w the r-th of w equal shares of them.

With n crops per volume, samples of the same k // n are of one volume, which is a function of the seed and k // n; their
places, augmentation and masks are their own. They follow on each other in a batch, as MONAI's crops of one image do, so
one worker takes them from a file that it reads once, as a whole, whatever the number of workers and processes. A batch
of B crops is then of B / n volumes.

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
from monai.transforms import Compose
from torch.utils.data import Dataset, Sampler

from mambamim_nets.bundle.data.store import BODY, FACE, Store, StoredVolume

__all__ = ["Sample", "StoreCrops", "StoreSampler"]

logger = logging.getLogger("mambamim_nets")
STREAMS = {"training": 0, "validation": 1}  # second half of the key: numbers that have nothing to do with each other
ATTEMPTS = 20
PLACES = 4  # of a crop at most, where there is a mask of the body, until its centre lies in it
SAMPLE, VOLUME, PLACE = range(3)  # second word of the counter: what is drawn


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
            StoredVolume, "mask_seed": a whole number}, and "face": (1, D, H, W) uint8, 1 where a face was removed, if
            the store has such masks; its random state is set for each sample before. What it returns
            as tensors goes into the batch.
        weights: how often the volumes of a source are drawn, by the name of the source: one of weight 2 twice as often
            as one of weight 1, whatever the sizes of the two. None: all volumes equally often.
        spacing: that the run asks for, in mm; must be the store's. None: not compared.
        stream: "validation" draws other samples than "training" for the same seed.
        crops_per_volume: how many samples that follow on each other are of one volume.

    Raises:
        ValueError: the spacing is another, a weight names no source or is not above 0, or a transform moves the image
            without the mask of its face.
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
        crops_per_volume: int = 1,
    ) -> None:
        if spacing is not None and not np.allclose(spacing, store.spacing, rtol=1e-4):
            raise ValueError(
                f"spacing {list(spacing)} must be that of the store {store.files}, {store.spacing}; leave --spacing"
                " out, or prepare another store"
            )
        if store.has_faces:
            _check_moves(transform)
        self.data = store
        self.roi_size = np.asarray(roi_size, dtype=np.int64)
        self.transform = transform
        self.crops_per_volume = crops_per_volume
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
        chance = self._chance(SAMPLE, attempt, number)
        where, *place = chance.random(4).tolist()
        seeds = chance.integers(2**32, size=2, dtype=np.uint64)
        if self.crops_per_volume > 1:
            where = self._chance(VOLUME, attempt, number // self.crops_per_volume).random()
        if self._last_of is None:
            volume = int(where * len(self.data))
        else:
            volume = int(np.searchsorted(self._last_of, where, side="right"))
        return Sample(min(volume, len(self.data) - 1), tuple(place), int(seeds[0]), int(seeds[1]))

    def _chance(self, what: int, attempt: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.key, counter=[0, what, attempt, number]))

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Return a sample, read and transformed.

        Raises:
            OSError: a row of volumes cannot be read.
        """
        for attempt in range(ATTEMPTS):
            sample = self.draw(number, attempt)
            volume = self.data.volume(sample.volume)
            try:
                places = [sample.place]
                if volume.has_body:
                    places += self._chance(PLACE, attempt, number).random((PLACES - 1, 3)).tolist()
                crop = self._crop(volume, places)
            except (OSError, RuntimeError, ValueError) as error:
                logger.warning(
                    "%s of the store cannot be read (%s): another volume takes its place in sample %d; python -m"
                    " mambamim_nets.prepare --verify finds all of them",
                    *(volume.id, " ".join(str(error).split())[:200], number),
                )
                continue
            item: Mapping[str, Any] = {**crop, "stored": volume, "mask_seed": sample.mask}
            if self.transform is not None:
                if hasattr(self.transform, "set_random_state"):
                    self.transform.set_random_state(seed=sample.augmentation)
                item = self.transform(item)
            return {key: value for key, value in item.items() if isinstance(value, torch.Tensor)}
        raise OSError(
            f"store {self.data.files}: {ATTEMPTS} volumes in a row cannot be read; is the disk there? Then python -m"
            " mambamim_nets.prepare --verify says what is broken"
        )

    def _crop(self, volume: StoredVolume, places: Sequence[Sequence[float]]) -> dict[str, torch.Tensor]:
        """Read a crop at the first place whose centre is in the body, or else at the last."""
        shape, whole = np.asarray(volume.shape), self.crops_per_volume > 1
        size = np.minimum(shape, self.roi_size)
        for place in places:
            start = np.floor(np.asarray(place) * (shape - size + 1)).astype(np.int64)
            if len(places) == 1 or volume.read_mask(BODY, (start + size // 2).tolist(), (1, 1, 1), whole).any():
                break
        crop = {"image": torch.from_numpy(volume.read(start.tolist(), size.tolist(), whole))[None]}
        if self.data.has_faces:
            crop["face"] = torch.from_numpy(volume.read_mask(FACE, start.tolist(), size.tolist(), whole))[None]
        return crop


def _check_moves(transform: Any) -> None:
    """Refuse a transform that moves the voxels of an image and not those of the mask of its face."""
    for one in transform.flatten().transforms if isinstance(transform, Compose) else [transform]:
        keys = getattr(one, "keys", ())
        if type(one).__module__.startswith("monai.transforms.spatial") and "image" in keys and "face" not in keys:
            raise ValueError(
                f"{type(one).__name__} of the augmentation moves 'image' alone, and the store has masks of faces:"
                ' give it "keys": ["image", "face"], "allow_missing_keys": true'
            )


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
