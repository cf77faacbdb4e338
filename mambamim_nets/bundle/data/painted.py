"""Training crops painted on label maps: the data of the starter weights."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from monai.data import Dataset
from monai.data.utils import set_rnd
from monai.transforms import Randomizable

from mambamim_nets.bundle.labels import named_values
from mambamim_nets.phantom import subjects
from mambamim_nets.phantom.anatomies import NAMES, Anatomy, read_anatomy
from mambamim_nets.phantom.kinds import KINDS, label_of
from mambamim_nets.phantom.organs import Organ, read_organs
from mambamim_nets.phantom.painting import paint, target_values

__all__ = ["PaintedCrops"]

SEED_RANGE = 2**31 - 1


class PaintedCrops(Randomizable, Dataset):
    """A data set of crops with random contrast, painted on deformed label maps; see `mambamim_nets.phantom.painting`.

    Args:
        sources: bodies: a label map, {"path": file, "names": "btcv" | "amos" | "totalsegmentator"}, or a folder with
            one and with the names of its labels, {"path": folder}, both with "scan", the CT that was labelled, if
            crops of it are wanted too; phantoms, {"phantom": kind, "subjects": n}; organs that are placed into the
            bodies, {"organs": folder}. "weight" (1.0) of a body is its relative share of the crops.
        labels: name -> label value of the task.
        roi_size: (D, H, W) of a crop in voxels.
        spacing: mm, the same on every axis.
        samples: crops per epoch; every epoch paints new ones.
        random_style: probability that a crop's grey values ignore HU, as for MR.
        transform: what follows: intensity and random transforms, on keys image and label with a channel axis. Labels
            are 255, which the loss has to ignore, where a map cannot say what the task asks.
        cache_dir: folder for resampled maps of organs; None: they are read anew in each run.

    Raises:
        ValueError: if the spacing is not isotropic, no source is a body, or a source names no label map and no
            phantom, or has none of the labels.
    """

    def __init__(
        self,
        sources: Sequence[Mapping[str, Any]],
        labels: Mapping[str, int],
        roi_size: Sequence[int],
        spacing: Sequence[float],
        samples: int,
        transform: Any,
        random_style: float = 0.3,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if len(set(spacing)) != 1:
            raise ValueError(f"spacing {list(spacing)} must be the same on every axis to paint crops")
        super().__init__(list(range(samples)), transform)
        self.labels, self.roi_size, self.random_style = named_values(labels), tuple(roi_size), random_style
        self.anatomies: list[Anatomy] = []
        self.weights: list[float] = []
        self.organs: dict[str, list[Organ]] = {}
        for source in sources:
            if "organs" in source:
                for organ in read_organs(source["organs"], float(spacing[0]), cache_dir):
                    self.organs.setdefault(organ.name, []).append(organ)
                continue
            made = _anatomies(source, float(spacing[0]), self.labels)
            if any(set(self.labels).isdisjoint(target_values(anatomy, self.labels)) for anatomy in made):
                raise ValueError(f"source {dict(source)} has none of the task's structures {sorted(labels)}")
            self.anatomies += made
            self.weights += [float(source.get("weight", 1.0)) / len(made)] * len(made)
        if not self.anatomies:
            raise ValueError(
                f"sources {[dict(source) for source in sources]} must hold a body: a 'path' or a 'phantom'"
            )
        self.weights = [weight / sum(self.weights) for weight in self.weights]

    def set_random_state(self, seed: int | None = None, state: Any = None) -> "PaintedCrops":
        """Seed the crops and what follows them: `EpochSeed` goes no deeper than a data set that is random itself."""
        super().set_random_state(seed, state)
        set_rnd(self.transform, int(self.R.randint(SEED_RANGE)))
        return self

    def _transform(self, index: int) -> Any:
        anatomy = self.anatomies[self.R.choice(len(self.anatomies), p=self.weights)]
        seed = int(self.R.randint(SEED_RANGE))
        image, label = paint(anatomy, self.labels, self.roi_size, seed, self.random_style, self.organs)
        return self.transform({"image": image[None], "label": label[None]})


def _anatomies(source: Mapping[str, Any], spacing: float, labels: Mapping[int, str]) -> list[Anatomy]:
    if "path" in source and (source.get("names") in NAMES or (os.path.isdir(source["path"]) and "names" not in source)):
        return [read_anatomy(source["path"], NAMES.get(source.get("names", "")), spacing, source.get("scan"))]
    if source.get("phantom") not in KINDS:
        raise ValueError(
            f"source {dict(source)} must have 'path' and 'names', one of {sorted(NAMES)}, or a 'path' that is a folder "
            f"with names, or 'phantom', one of {sorted(KINDS)}, or 'organs'"
        )
    made = []
    for subject in range(source.get("subjects", 20)):
        ids, number, _, _ = subjects.tissues(source["phantom"], seed=100_000 + subject, spacing=spacing)
        made.append(Anatomy(ids, {value: label_of(name, labels.values()) for name, value in number.items()}, spacing))
    return made
