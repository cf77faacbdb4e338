"""Training crops painted on label maps: the data of the starter weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from monai.data import Dataset
from monai.data.utils import set_rnd
from monai.transforms import Randomizable

from mambamim_nets.bundle.labels import named_values
from mambamim_nets.phantom import subjects
from mambamim_nets.phantom.kinds import KINDS, label_of
from mambamim_nets.phantom.painting import NAMES, Anatomy, paint, read_anatomy

__all__ = ["PaintedCrops"]

SEED_RANGE = 2**31 - 1


class PaintedCrops(Randomizable, Dataset):
    """A data set of crops with random contrast, painted on deformed label maps; see `mambamim_nets.phantom.painting`.

    Args:
        sources: label maps, {"path": ..., "names": "btcv" | "amos" | "totalsegmentator", "weight": 1.0}, and phantoms,
            {"phantom": kind, "subjects": n, "weight": 1.0}. `weight` is the relative share of the crops.
        labels: name -> label value of the task.
        roi_size: (D, H, W) of a crop in voxels.
        spacing: mm, the same on every axis.
        samples: crops per epoch; every epoch paints new ones.
        random_style: probability that a crop's grey values ignore HU, as for MR.
        transform: what follows: intensity and random transforms, on keys image and label with a channel axis.

    Raises:
        ValueError: if the spacing is not isotropic, or a source names no label map and no phantom, or has none
            of the labels.
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
    ) -> None:
        if len(set(spacing)) != 1:
            raise ValueError(f"spacing {list(spacing)} must be the same on every axis to paint crops")
        super().__init__(list(range(samples)), transform)
        self.labels, self.roi_size, self.random_style = named_values(labels), tuple(roi_size), random_style
        self.anatomies: list[Anatomy] = []
        self.weights: list[float] = []
        for source in sources:
            made = _anatomies(source, float(spacing[0]), self.labels)
            if any(set(labels).isdisjoint(anatomy.names.values()) for anatomy in made):
                raise ValueError(f"source {dict(source)} has none of the task's structures {sorted(labels)}")
            self.anatomies += made
            self.weights += [float(source.get("weight", 1.0)) / len(made)] * len(made)
        self.weights = [weight / sum(self.weights) for weight in self.weights]

    def set_random_state(self, seed: int | None = None, state: Any = None) -> "PaintedCrops":
        """Seed the crops and what follows them: `EpochSeed` goes no deeper than a data set that is random itself."""
        super().set_random_state(seed, state)
        set_rnd(self.transform, int(self.R.randint(SEED_RANGE)))
        return self

    def _transform(self, index: int) -> Any:
        anatomy = self.anatomies[self.R.choice(len(self.anatomies), p=self.weights)]
        seed = int(self.R.randint(SEED_RANGE))
        image, label = paint(anatomy, self.labels, self.roi_size, seed, self.random_style)
        return self.transform({"image": image[None], "label": label[None]})


def _anatomies(source: Mapping[str, Any], spacing: float, labels: Mapping[int, str]) -> list[Anatomy]:
    if "path" in source and source.get("names") in NAMES:
        return [read_anatomy(source["path"], NAMES[source["names"]], spacing)]
    if source.get("phantom") not in KINDS:
        raise ValueError(
            f"source {dict(source)} must have 'path' and 'names', one of {sorted(NAMES)}, or 'phantom', one of "
            f"{sorted(KINDS)}"
        )
    made = []
    for subject in range(source.get("subjects", 20)):
        ids, number, _, _ = subjects.tissues(source["phantom"], seed=100_000 + subject, spacing=spacing)
        made.append(Anatomy(ids, {value: label_of(name, labels.values()) for name, value in number.items()}, spacing))
    return made
