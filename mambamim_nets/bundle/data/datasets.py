"""From the folder of a data set to batches: checked cases, folds, caching, samplers."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from monai.data import CacheDataset, Dataset, DistributedSampler
from monai.transforms import Compose, MapTransform, Transform
from torch.utils.data import Sampler, WeightedRandomSampler

from mambamim_nets import phantom
from mambamim_nets.bundle.data.disk_cache import DiskCache
from mambamim_nets.bundle.data.labelled import labelled_cases
from mambamim_nets.bundle.data.memory import GIB, ScanMemory, free_memory
from mambamim_nets.bundle.data.splits import folds, limit_cases, named_in, split, with_listed_parts
from mambamim_nets.bundle.data.unlabelled import unlabelled_images
from mambamim_nets.bundle.data.verification import check_labelled, check_unlabelled
from mambamim_nets.bundle.io.headers import read_header

__all__ = [
    "cached",
    "dataset_folder",
    "fold_cases",
    "labelled",
    "named",
    "source_sampler",
    "training_sampler",
    "unlabelled",
    "validation_sampler",
]

logger = logging.getLogger("mambamim_nets")
READERS = 4  # threads that read headers


def named(labels: Sequence[str]) -> dict[int, str]:
    """Number class names from 1: label value -> name."""
    return dict(enumerate(labels, start=1))


class _Guarded(MapTransform):
    """Run a transform; if it fails on a scan, log which and why and use another scan that was read before."""

    def __init__(self, transform: Transform) -> None:
        super().__init__("image")
        self.transform = transform
        self.spare: Any = None

    def __call__(self, data: Mapping[str, Any]) -> Any:
        try:
            out = self.transform(data)
        except Exception as error:
            if self.spare is None:
                raise
            logger.warning("%s could not be read (%s): another scan takes its place", data["image"], error)
            return self.spare
        self.spare = out
        return out


def cached(
    data: Sequence[Mapping[str, Any]],
    preprocessing: Compose,
    augmentation: Compose,
    cache: Literal["memory", "disk", "none"] = "memory",
    cache_rate: float = 1.0,
    cache_dir: str | None = None,
    tolerant: bool = False,
    memory: ScanMemory | None = None,
) -> Dataset:
    """Return a data set that keeps the deterministic part of its transforms.

    Args:
        data: items with file names.
        preprocessing: deterministic transforms, done once per scan where there is a cache.
        augmentation: random transforms.
        cache: "memory" (``cache_rate`` of the scans), "disk" (tensors below ``cache_dir``, for large sets; see
            ``DiskCache``), or "none".
        cache_rate: share of the scans kept in memory.
        cache_dir: folder of the disk cache.
        tolerant: a scan that stops being readable is logged and replaced by another instead of ending the run
            (pre-training).
        memory: what a scan takes; a cache in memory that may not fit is warned of. None: it is not.
    """
    if tolerant:
        transform = Compose([_Guarded(preprocessing), augmentation])
    else:  # flat, since MONAI takes a nested Compose for a random transform and would cache what comes before it only
        transform = Compose([*preprocessing.flatten().transforms, *augmentation.transforms])
    if cache == "memory":
        if memory is not None:
            _warn_of_cache(data, cache_rate, memory)
        return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=1, copy_cache=False)
    if cache == "disk":
        if cache_dir is None:
            raise ValueError("cache 'disk' needs cache_dir")
        return DiskCache(data, transform, cache_dir)
    if cache == "none":
        return Dataset(data, transform)
    raise ValueError(f"cache {cache!r} must be 'memory', 'disk' or 'none'")


def _warn_of_cache(data: Sequence[Mapping[str, Any]], cache_rate: float, memory: ScanMemory) -> None:
    """Warn if preprocessed scans may take more memory than is free."""
    free = free_memory()
    if free is None:
        return
    with ThreadPoolExecutor(READERS) as pool:
        needed = cache_rate * sum(pool.map(lambda item: _kept(item, memory), data))
    if needed > free:
        logger.warning(
            "a cache of %d scans in memory may take %.1f GiB, and %.1f GiB are free: give --cache disk, or --cache_rate"
            " %.2g",
            len(data),
            needed / GIB,
            free / GIB,
            cache_rate * 0.8 * free / needed,
        )


def _kept(item: Mapping[str, Any], memory: ScanMemory) -> int:
    paths = [item["image"]] if isinstance(item["image"], str) else list(item["image"])
    header = read_header(paths[0])
    channels = header.shape[3] if len(header.shape) > 3 else len(paths)
    return memory.kept(header, channels, label=isinstance(item.get("label"), str))


def labelled(
    folder: str, channels: Sequence[str], labels: dict[int, str], cache_file: str, memory: ScanMemory | None = None
) -> list[dict[str, Any]]:
    """List and check the labelled cases of a folder; see ``labelled_cases`` and ``check_labelled``.

    Args:
        folder: the data set.
        channels: names of the network's input channels, in its order.
        labels: label value -> class name.
        cache_file: where the check remembers what it found sound.
        memory: what the work on a case takes.
    """
    cases = labelled_cases(folder, channels)
    check_labelled(cases, len(channels), labels, cache_file=cache_file, memory=memory)
    return cases


def fold_cases(
    cases: Sequence[Mapping[str, Any]],
    folder: str,
    fold: int | str,
    part: Literal["train", "val"],
    fold_file: str | None = None,
    train_cases: int | None = None,
    seed: int = 0,
    published: str | None = None,
) -> list[dict[str, Any]]:
    """Return the training or validation cases of a fold.

    Args:
        cases: all labelled cases.
        folder: data set folder; its ``split.json`` or ``splits_final.json`` is used if ``fold_file`` is not given.
        fold: 0 .. 4; or "official": as the Decathlon-style list ``fold_file`` says, or else ``dataset.json``; or
            "all": train on every case.
        part: which part.
        fold_file: JSON of folds; else made, by subject, where no file applies.
        train_cases: how many training cases to keep (few-label experiments), drawn by ``seed``.
        seed: of that draw; the folds themselves never depend on it.
        published: JSON of folds that comes with the bundle; used where neither ``fold_file`` nor a file of the data set
            is there, if it names exactly the cases of the data set.
    """
    source = fold_file
    if fold == "official":
        listed = with_listed_parts(cases, source) if source else cases
        chosen = split(listed, fold, (), part)
        source = source or "the data set's own lists"
    else:
        found = (str(p) for name in ("split.json", "splits_final.json") if (p := Path(folder, name)).is_file())
        source = source or next(found, None)
        if source is None and published is not None and named_in(published) == {item["case"] for item in cases}:
            source = published
        chosen = split(cases, fold, folds(cases, fold_file=source), part)
    if part == "train" and train_cases:
        chosen = limit_cases(chosen, train_cases, seed)
    logger.info("%s: %d cases of fold %s (%s)", part, len(chosen), fold, source or "folds made by subject")
    return chosen


def unlabelled(
    sources: Any,
    in_channels: int,
    cache_file: str,
    fold_file: str | None = None,
    hold_out_fold: int | None = None,
    memory: ScanMemory | None = None,
) -> list[dict[str, Any]]:
    """List and check unlabelled images of any number of sources; broken ones are named and left out.

    Args:
        sources: see ``unlabelled_images``.
        in_channels: channels every image must have.
        cache_file: where the check remembers what it found sound.
        fold_file: JSON of folds, as in fine-tuning.
        hold_out_fold: fold whose images must stay unseen, so that evaluating on it later is fair.
        memory: what the work on an image takes.

    Raises:
        ValueError: if only one of the last two is given, the fold is not in the sources, or an image of the fold is in
            the sources under another name.
    """
    items = unlabelled_images(sources)
    if (fold_file is None) != (hold_out_fold is None):
        raise ValueError(f"fold_file {fold_file} and hold_out_fold {hold_out_fold} must be given together")
    kept, unseen = items, []
    if fold_file is not None and hold_out_fold is not None:
        named_cases = [{"case": case_name(item["image"]), **item} for item in items]
        divided = folds(named_cases, fold_file=fold_file)
        kept, unseen = (split(named_cases, hold_out_fold, divided, part) for part in ("train", "val"))
        logger.info("held out %d images of fold %s (%s)", len(unseen), hold_out_fold, fold_file)
    return check_unlabelled(kept, in_channels, cache_file=cache_file, unseen=unseen, memory=memory)


def case_name(path: str | Sequence[str]) -> str:
    """Return the file name of a scan (of its first channel) without .nii or .nii.gz."""
    first = path if isinstance(path, str) else path[0]
    return Path(first).name.removesuffix(".gz").removesuffix(".nii")


def source_sampler(items: Sequence[Mapping[str, Any]], seed: int = 0) -> WeightedRandomSampler | None:
    """Return a sampler that honours the weights of the sources, or None if all weights are equal.

    A source of weight w is drawn w times as often as one of weight 1, whatever the sizes of the two; an epoch has as
    many draws as there are images.
    """
    share = _draw_weights(items)
    return WeightedRandomSampler(share, num_samples=len(items)) if share else None


def _draw_weights(items: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Return how often to draw each item, relatively; None if the weights of all sources are equal."""
    weights = [float(item.get("weight", 1.0)) for item in items]
    if len(set(weights)) <= 1:
        return None
    sizes = Counter(item["source"] for item in items)
    return [weight / sizes[item["source"]] for weight, item in zip(weights, items, strict=True)]


def training_sampler(dataset: Dataset, seed: int = 0, items: Sequence[Mapping[str, Any]] | None = None) -> Sampler:
    """Return the sampler of one process of several: shuffled, every process with the same number of samples.

    Args:
        dataset: the whole data set.
        seed: of the order, the same in every process; ``EpochSeed`` changes it from epoch to epoch.
        items: what the data set was made of, if its source weights are to be honoured as in ``source_sampler``; then
            every process draws from the whole set, by the seed that ``EpochSeed`` gives it.
    """
    share = _draw_weights(items) if items is not None else None
    if share:
        return WeightedRandomSampler(share, num_samples=math.ceil(len(dataset) / dist.get_world_size()))
    return DistributedSampler(dataset, seed=seed)


def validation_sampler(dataset: Dataset) -> DistributedSampler:
    """Return the sampler of one process of several, without padding, so that no case counts twice.

    Raises:
        ValueError: if there are more processes than cases.
    """
    processes = dist.get_world_size()
    if len(dataset) < processes:
        raise ValueError(
            f"{len(dataset)} validation cases are too few for {processes} processes; "
            f"use --nproc_per_node={len(dataset)}"
        )
    return DistributedSampler(dataset, even_divisible=False, shuffle=False)


def dataset_folder(dataset_dir: str, bundle_root: str, kind: str, cases: int) -> str:
    """Return the folder of the data set; for the literal "phantom", generate the embedded one once and reuse it.

    Args:
        dataset_dir: a folder, or "phantom".
        bundle_root: where the phantom is written, under ``phantom/<kind>_<cases>``.
        kind: which phantom.
        cases: how many labelled phantom cases.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    if dataset_dir == "phantom":
        return str(phantom.write(Path(bundle_root, "phantom", f"{kind}_{cases}"), kind, cases=cases))
    folder = Path(dataset_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"dataset_dir {dataset_dir} does not exist; give the folder of the data set as downloaded, or 'phantom' "
            "for synthetic data"
        )
    return str(folder.resolve())
