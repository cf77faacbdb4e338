"""From the folder of a data set to batches: checked cases, folds, caching, samplers."""

import logging
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from monai.config import KeysCollection
from monai.data import Dataset, DistributedSampler
from monai.transforms import MapTransform, Transform
from torch.utils.data import Sampler, WeightedRandomSampler

from mambamim_nets.bundle.data.datalists import compare_labels
from mambamim_nets.bundle.data.labelled import labelled_cases
from mambamim_nets.bundle.data.memory import ScanMemory
from mambamim_nets.bundle.data.splits import (
    folds,
    limit_cases,
    named_in,
    split,
    with_listed_parts,
    with_numbered_subjects,
)
from mambamim_nets.bundle.data.store import Store
from mambamim_nets.bundle.data.unlabelled import unlabelled_images
from mambamim_nets.bundle.data.verification import check_labelled, check_unlabelled
from mambamim_nets.bundle.files import some
from mambamim_nets.bundle.labels import named_values
from mambamim_nets.phantom import write as write_phantom

__all__ = [
    "ReplaceUnreadabled",
    "dataset_folder",
    "fold_cases",
    "labelled",
    "scan_source",
    "source_sampler",
    "training_sampler",
    "unlabelled",
    "validation_sampler",
]

logger = logging.getLogger("mambamim_nets")
PUBLISHED = "folds.json"  # in a bundle's configs: the folds of a published split
FOLDS = 5  # that are made where no file says how to divide


class ReplaceUnreadabled(MapTransform):
    """Run a transform; if it fails on a scan, log which and why and use another scan that was read before.

    For pre-training, where one file that stops being readable must not end a run of days.

    Args:
        keys: of the image, whose file the log names.
        transform: reads and prepares a scan.

    Raises:
        Exception: whatever the transform raises on the first scan of a process, when there is no other yet.
    """

    def __init__(self, keys: KeysCollection, transform: Transform) -> None:
        super().__init__(keys)
        self.transform = transform
        self.spare: Any = None

    def __call__(self, data: Mapping[Hashable, Any]) -> Any:
        """Return what the transform makes of a scan, or of the last one that could be read."""
        try:
            out = self.transform(data)
        except Exception as error:
            if self.spare is None:
                raise
            logger.warning("%s could not be read (%s): another scan takes its place", data[self.keys[0]], error)
            return self.spare
        self.spare = out
        return out


def labelled(
    folder: str,
    channels: Sequence[str],
    labels: Mapping[str, int],
    cache_file: str,
    memory: ScanMemory | None = None,
    subjects: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """List and check the labelled cases of a folder; see ``labelled_cases`` and ``check_labelled``.

    Args:
        folder: the data set; what its ``dataset.json`` calls label values is compared, see ``compare_labels``.
        channels: names of the network's input channels, in its order.
        labels: class name -> label value.
        cache_file: where the check remembers what it found sound.
        memory: what the work on a case takes.
        subjects: which cases are of one person where the data set does not say it; see ``with_numbered_subjects``.
    """
    cases = labelled_cases(folder, channels)
    compare_labels(Path(folder, "dataset.json"), labels)
    if subjects:
        cases = with_numbered_subjects(cases, **subjects)
    check_labelled(cases, len(channels), named_values(labels), cache_file=cache_file, memory=memory)
    return cases


def fold_cases(
    cases: Sequence[Mapping[str, Any]],
    folder: str,
    fold: int | str,
    part: Literal["train", "val"],
    fold_file: str | None = None,
    train_cases: int | None = None,
    seed: int = 0,
    bundle_root: str | None = None,
    memory: ScanMemory | None = None,
    cache_rate: float = 0.0,
) -> list[dict[str, Any]]:
    """Return the training or validation cases of a fold.

    Args:
        cases: all labelled cases.
        folder: data set folder; its ``split.json`` or ``splits_final.json`` is used if ``fold_file`` is not given.
        fold: 0 .. 4; or "official": as the Decathlon-style list ``fold_file`` says, or else ``dataset.json``; or
            "all": train on every case, and validate on fold 0 of them, or of fewer than five subjects on all.
        part: which part.
        fold_file: JSON of folds; else made, by subject, where no file applies.
        train_cases: how many training cases to keep (few-label experiments), drawn by ``seed``.
        seed: of that draw; the folds themselves never depend on it.
        bundle_root: folder of the bundle; its ``configs/folds.json``, if it has one, is used where neither
            ``fold_file`` nor a file of the data set is there, if it names exactly the cases of the data set.
        memory: what a scan takes; a cache in memory that may not fit is warned of. None: it is not.
        cache_rate: share of the cases that is to be kept in memory.
    """
    source = fold_file
    if fold == "all" and part == "train":  # which needs no folds, nor subjects enough for them
        chosen, source = split(cases, fold, (), part), "no folds"
    elif fold == "official":
        listed = with_listed_parts(cases, source) if source else cases
        chosen = split(listed, fold, (), part)
        source = source or "the data set's own lists"
    else:
        found = (str(p) for name in ("split.json", "splits_final.json") if (p := Path(folder, name)).is_file())
        source = source or next(found, None)
        published = Path(bundle_root, "configs", PUBLISHED) if bundle_root is not None else None
        if source is None and published is not None and published.is_file():
            source = str(published) if _divides(published, {item["case"] for item in cases}, part) else None
        subjects = {item.get("subject", item["case"]) for item in cases}
        undivided = fold == "all" and source is None and len(subjects) < FOLDS
        chosen = split(cases, fold, () if undivided else folds(cases, source, FOLDS), part)
    if part == "train" and train_cases:
        chosen = limit_cases(chosen, train_cases, seed)
    logger.info("%s: %d cases of fold %s (%s)", part, len(chosen), fold, source or "folds made by subject")
    if memory is not None:
        memory.warn_of_cache(chosen, cache_rate)
    return chosen


def _divides(fold_file: Path, cases: set[str], part: str) -> bool:
    """Return whether a bundle's own folds are those of a data set; of nearly the same cases it is a warning."""
    named = named_in(fold_file)
    if named != cases and named & cases and part == "val":  # which every run asks for
        others = (("only in the file", named - cases), ("only in the data set", cases - named))
        logger.warning(
            "%s is not used, since it names other cases: %s; folds are made anew, and weights of the old ones may have"
            " seen what is held out now: complete the data set, or give folds of all cases by --fold_file",
            fold_file,
            "; ".join(f"{some(sorted(names), 3)} {where}" for where, names in others if names),
        )
    return named == cases


def unlabelled(
    sources: Any,
    in_channels: int,
    cache_file: str,
    fold_file: str | None = None,
    hold_out_fold: int | None = None,
    memory: ScanMemory | None = None,
    cache_rate: float = 0.0,
    intensity: str = "",
) -> list[dict[str, Any]]:
    """List and check unlabelled images of any number of sources; broken ones are named and left out.

    Args:
        sources: see ``unlabelled_images``.
        in_channels: channels every image must have.
        cache_file: where the check remembers what it found sound.
        fold_file: JSON of folds, as in fine-tuning.
        hold_out_fold: fold whose images must stay unseen, so that evaluating on it later is fair.
        memory: what the work on an image takes.
        cache_rate: share of the images that is to be kept in memory, compared with what is free.
        intensity: how intensities are scaled, such as "ct"; images of another modality are left out.

    Raises:
        ValueError: if only one of ``fold_file`` and ``hold_out_fold`` is given, the fold is not in the sources, or an
            image of the fold is in the sources under another name.
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
    sound = check_unlabelled(
        kept, in_channels, cache_file=cache_file, unseen=unseen, memory=memory, intensity=intensity
    )
    if memory is not None:
        memory.warn_of_cache(sound, cache_rate)
    return sound


def case_name(path: str | Sequence[str]) -> str:
    """Return the file name of a scan (of its first channel) without .nii or .nii.gz."""
    first = path if isinstance(path, str) else path[0]
    return Path(first).name.removesuffix(".gz").removesuffix(".nii")


def source_sampler(items: Sequence[Mapping[str, Any]]) -> WeightedRandomSampler | None:
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

    Raises:
        ValueError: the data set is a store, whose configuration must come after that of several processes.
    """
    if isinstance(items, Store):
        raise ValueError("store.json must be the last of the configurations, after multi_gpu_train.json")
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


def dataset_folder(dataset_dir: str | None, bundle_root: str, phantom: Mapping[str, Any] | None) -> str:
    """Return the folder of the data set; for the literal "phantom", generate the embedded one once and reuse it.

    Args:
        dataset_dir: a folder, or "phantom".
        bundle_root: where the phantom is written, under ``phantom/<kind>_<cases>``.
        phantom: "kind" of the phantom, and how many labelled "cases" it has; None: the bundle has none.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if it is None, or a phantom is wanted of a bundle that has none.
    """
    if dataset_dir is None:
        raise ValueError("dataset_dir must be a folder, or 'phantom', and is null; give the folder of the data set")
    if dataset_dir == "phantom":
        if phantom is None:
            raise ValueError(
                "dataset_dir 'phantom' has no meaning here, since this bundle has no synthetic data; give the folder of"
                " the data set with --dataset_dir, for new scans --input"
            )
        kind, cases = phantom["kind"], phantom["cases"]
        return str(write_phantom(Path(bundle_root, "phantom", f"{kind}_{cases}"), kind, cases=cases))
    folder = Path(dataset_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"dataset_dir {dataset_dir} does not exist; give the folder of the data set as downloaded, or 'phantom' "
            "for synthetic data"
        )
    return str(folder.resolve())


def scan_source(input: str | None, dataset_dir: str | None, bundle_root: str, phantom: Mapping[str, Any] | None) -> str:
    """Return where the scans of an inference are: ``input``, or else the test images of the data set.

    Args:
        input: a file, a folder or a pattern; None: ``imagesTs`` of ``dataset_folder``.
        dataset_dir: see ``dataset_folder``.
        bundle_root: see ``dataset_folder``.
        phantom: see ``dataset_folder``.
    """
    return input or str(Path(dataset_folder(dataset_dir, bundle_root, phantom), "imagesTs"))
