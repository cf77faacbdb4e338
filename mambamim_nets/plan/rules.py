"""Decide how to train on a data set. Each rule has its source or reason in docs/PLANNING.md, under its own heading.

A decision is a value and why it was taken, in a sentence with the numbers that decided. The order of the task block is
that of `decide`. Axes are right, anterior, superior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mambamim_nets.bundle.data.memory import GIB
from mambamim_nets.plan.measure import Step
from mambamim_nets.plan.names import sided_pairs

__all__ = ["Budget", "Crops", "Decision", "choose_crops", "decide", "median_shape", "presets", "target_spacing"]

MULTIPLE = 16  # of every side of a crop: four halvings
ANISOTROPIC = 3  # nnU-Net: spacing, and number of voxels, of the worst axis against the others
COVERED = 4  # nnU-Net's low resolution: a crop is at least a quarter of the median scan
FEWEST_VOXELS = 8  # of the smallest class, at a coarser spacing
LARGEST = {("tiny", "cpu"): 48**3, ("tiny", "cuda"): 64**3, ("base", "cpu"): 96**3, ("base", "cuda"): 128**3}
CROPS = (2, 4)  # fewest and most in a step
WHOLE = 0.5  # share of the median scan from which a second crop of a scan shows the same again
RESERVE = 0.85  # share of the budget that a step may take
NARROWEST = 350.0  # HU, a soft-tissue window
STRIPPED = 0.25  # share of zeros in the cropped image from which it counts as skull-stripped
MIXED = 0.1  # share of the scans from which a second modality is one of the data set
ONE_PIECE = 0.95  # share of the cases in which every class has one part
ITERATIONS = {"tiny": 2000, "base": 50_000}  # of our own tiny bundles; MambaMIM section 4.2
LEARNING_RATE = {"tiny": 1e-3, "base": 1e-4}
OVERHEAD = 1.4  # of an epoch's steps: loading, augmentation, validation
PRESETS = (8, 16, 24, 40, 80)  # GiB


class Decision(NamedTuple):
    """A value, and why."""

    value: Any
    why: str


class Budget(NamedTuple):
    """What a training may use.

    Attributes:
        size: of the network.
        device: "cpu" or "cuda".
        bytes: that a step may take.
        hours: of one fold; None: as many iterations as usual.
        free: bytes for preprocessed scans.
        why: this size.
    """

    size: Literal["tiny", "base"]
    device: str
    bytes: int
    hours: float | None = None
    free: int = 8 * GIB
    why: str = ""


class Crops(NamedTuple):
    """What a training step is made of.

    Attributes:
        roi: size of a crop, voxels.
        crops: how many of them make a step.
        steps: all that were measured.
        seconds: of the chosen step.
        why: these crops.
    """

    roi: tuple[int, int, int]
    crops: int
    steps: list[Step]
    seconds: float
    why: str


# --- grid -----------------------------------------------------------------------------------------


def target_spacing(fingerprint: Mapping[str, Any], budget: Budget) -> Decision:
    """Return the median spacing, finer along a coarse axis, coarser for the small network; mm."""
    spacing = np.array(fingerprint["spacing_mm"]["median"], float)
    extent = np.array(fingerprint["cropped_mm"]["median"], float)
    why = "median of the data set"
    worst = int(spacing.argmax())
    others = [axis for axis in range(3) if axis != worst]
    shape = np.array(fingerprint["cropped_shape"]["median"], float)
    if spacing[worst] > ANISOTROPIC * spacing[others].max() and shape[worst] * ANISOTROPIC < shape[others].min():
        fine = float(fingerprint["spacing_mm"]["tenth_percentile"][worst])
        spacing[worst] = max(fine, float(spacing[others].max()))
        why += f"; {'RAS'[worst]} axis is anisotropic and takes its tenth percentile"
    largest = LARGEST[budget.size, budget.device]
    if budget.size == "tiny":
        before = spacing.copy()
        smallest = _smallest_class(fingerprint)
        while np.prod(extent / spacing) > COVERED * largest:
            finer = spacing < spacing.max() / 2
            coarser = np.where(finer if finer.any() else True, spacing * 1.02, spacing)
            if smallest and np.prod(coarser) * FEWEST_VOXELS > 1000 * smallest[1]:
                why += f"; not coarser, so that {smallest[0]} keeps {FEWEST_VOXELS} voxels"
                break
            spacing = coarser
        if (spacing > before).any():
            why += (
                f", {_sides(before, 3)} mm, made coarser until a crop of the tiny network covers a quarter of the"
                " median scan"
            )
    return Decision([float(f"{edge:.3g}") for edge in spacing], why)


def _smallest_class(fingerprint: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the class of the smallest median volume, and that volume in ml; None without classes."""
    volumes = [(held["median_ml"], name) for name, held in fingerprint["classes"].items() if held["cases"]]
    return (min(volumes)[1], min(volumes)[0]) if volumes else None


def median_shape(fingerprint: Mapping[str, Any], spacing: Sequence[float]) -> list[int]:
    """Return the voxels of the median scan, cropped to what it shows, at a spacing in mm."""
    return [max(1, round(mm / edge)) for mm, edge in zip(fingerprint["cropped_mm"]["median"], spacing, strict=True)]


def fitted_roi(shape: Sequence[int], voxels: float) -> tuple[int, int, int]:
    """Return the largest crop of at most so many voxels with about the aspect of a scan.

    Starts at the scan, each side the nearest multiple of 16, and shortens the side that is longest against the scan's,
    as nnU-Net does. A side is at least 16 voxels, and one of a crop at least 32: instance norm needs two values.
    """
    roi = [MULTIPLE * max(1, round(side / MULTIPLE)) for side in shape]
    if roi == [MULTIPLE] * 3:
        roi[int(np.argmax(shape))] = 2 * MULTIPLE
    while math.prod(roi) > voxels:
        ratios = [side / length if side > MULTIPLE else 0.0 for side, length in zip(roi, shape, strict=True)]
        if max(ratios) == 0 or sorted(roi) == [MULTIPLE, MULTIPLE, 2 * MULTIPLE]:
            break
        roi[int(np.argmax(ratios))] -= MULTIPLE
    return roi[0], roi[1], roi[2]


# --- memory ---------------------------------------------------------------------------------------


def _memory_line(steps: Sequence[Step]) -> tuple[float, float]:
    """Return bytes without any crop and bytes per voxel, by least squares over measured steps."""
    several = [step for step in steps if step.crops > 1] or steps  # with one small crop, most is what compiling takes
    voxels, peaks = [step.voxels for step in several], [step.peak for step in several]
    if len(set(voxels)) < 2:
        return 0.0, peaks[0] / voxels[0]
    slope, base = np.polyfit(voxels, peaks, 1)
    return max(0.0, float(base)), max(1.0, float(slope))


def _fitted(
    steps: Sequence[Step], shape: Sequence[int], most: int, size: str, device: str
) -> tuple[tuple[int, int, int], int]:
    """Return crop and number of crops that fit into so many bytes, by arithmetic on measured steps."""
    base, slope = _memory_line(steps)
    voxels = (RESERVE * most - base) / slope
    roi = fitted_roi(shape, min(LARGEST[size, device], voxels / CROPS[0]))
    return roi, max(1, min(CROPS[1], int(voxels // math.prod(roi))))


def choose_crops(
    fingerprint: Mapping[str, Any],
    spacing: Sequence[float],
    budget: Budget,
    measure: Callable[[Sequence[tuple[Sequence[int], int]]], list[Step]],
) -> Crops:
    """Choose the largest crops whose step fits into the memory, by measuring real steps.

    Args:
        fingerprint: of the data set.
        spacing: of the network's grid, mm.
        budget: what a step may take.
        measure: as `measured_steps`, with the network given.

    Raises:
        ValueError: not even the smallest crops fit.
    """
    shape = median_shape(fingerprint, spacing)
    small = (32, 32, 32)
    steps = measure([(small, 2), (small, 4)])
    roi, crops = _fitted(steps, shape, budget.bytes, budget.size, budget.device)
    while True:
        # after a small step, which is measured even where the larger one runs out of memory
        run = measure([(small, 1), (roi, crops)])
        steps += [step for step in run if step not in steps]
        found = [step for step in run if (step.roi, step.crops) == (roi, crops)]
        if found and found[0].peak <= budget.bytes:
            break
        if crops > 1:
            crops -= 1
        elif math.prod(smaller := fitted_roi(shape, math.prod(roi) * 0.7)) < math.prod(roi):
            roi, crops = smaller, CROPS[0]
        else:
            raise ValueError(
                f"--memory_gib {budget.bytes / GIB:.1f} is too little for size {budget.size}, whose smallest step takes"
                f" {steps[0].peak / GIB:.1f} GiB; give more" + (", or --size tiny" if budget.size == "base" else "")
            )
    last = found[0]
    why = (
        f"{_covered(roi, shape):.0%} of the median scan, {_sides(shape)} voxels at this spacing; a step of {crops}"
        f" crops took {last.peak / GIB:.2f} GiB and {last.seconds:.2g} s, measured on {budget.device}"
    )
    return Crops(roi, crops, steps, last.seconds, why)


def _covered(roi: Sequence[int], shape: Sequence[int]) -> float:
    """Return the share of the median scan that a crop covers."""
    return math.prod(min(side, length) for side, length in zip(roi, shape, strict=True)) / math.prod(shape)


def presets(steps: Sequence[Step], shape: Sequence[int], size: str) -> list[dict[str, Any]]:
    """Return crops for GPUs of several sizes, by arithmetic on the measured steps; none of them was run."""
    rows: list[dict[str, Any]] = []
    for gib in PRESETS:
        roi, crops = _fitted(steps, shape, gib * GIB, size, "cuda")
        base, slope = _memory_line(steps)
        needed = base + slope * crops * math.prod(roi)
        rows.append({"gib": gib, "roi_size": list(roi), "crops": crops, "estimate_gib": round(needed / GIB, 2)})
    return [row for row in rows if row["estimate_gib"] <= row["gib"]]


# --- what the network sees ------------------------------------------------------------------------


def intensity(fingerprint: Mapping[str, Any]) -> Decision:
    """Return the transform that scales intensities: a fixed range of HU for CT, else each scan by its own values."""
    counts, channels = fingerprint["modality"], fingerprint["channels"]
    image, to_unit = {"keys": "image"}, {"b_min": 0.0, "b_max": 1.0, "clip": True}
    share = counts["CT"] / max(1, counts["CT"] + counts["other"])
    if share >= MIXED:
        hu, why = _window(channels)
        if share <= 1 - MIXED:
            return Decision(
                {"_target_": "mambamim_nets.bundle.ScaleCTOrMRd", **image, "hu": hu, "percentiles": [0.5, 99.5]},
                f"{counts['CT']} scans are CT and {counts['other']} are not; CT: {why}; others: their own percentiles",
            )
        return Decision(
            {"_target_": "ScaleIntensityRanged", **image, "a_min": hu[0], "a_max": hu[1], **to_unit},
            f"CT, since lowest values lie below -500; {why}",
        )
    zeros = max(held["zeros"] for held in channels.values())
    if zeros >= STRIPPED:
        return Decision(
            {"_target_": "NormalizeIntensityd", **image, "nonzero": True, "channel_wise": True},
            f"not in HU, and {zeros:.0%} of the cropped image is exactly 0, as where the skull was taken away: mean and"
            " deviation of what is not 0",
        )
    return Decision(
        {"_target_": "ScaleIntensityRangePercentilesd", **image, "lower": 0.5, "upper": 99.5, **to_unit,
         "channel_wise": True},
        "not in HU: each scan's own 0.5 and 99.5 percentiles",
    )  # fmt: skip


def _window(channels: Mapping[str, Any]) -> tuple[list[int], str]:
    """Return the range of HU that CT is scaled from, a multiple of 5 at both ends, and why."""
    foregrounds = [held["foreground"] for held in channels.values()]
    low = min(held["percentile_0.5"] for held in foregrounds)
    high = max(held["percentile_99.5"] for held in foregrounds)
    width = max(high - low, NARROWEST)
    low, high = (low + high - width) / 2, (low + high + width) / 2
    widened = f", widened to {NARROWEST:g} HU" if width == NARROWEST else ""
    hu = [5 * math.floor(low / 5), 5 * math.ceil(high / 5)]
    return hu, f"0.5 and 99.5 percentiles of the foreground in HU{widened}"


def augmentation(fingerprint: Mapping[str, Any], spacing: Sequence[float], names: Sequence[str]) -> Decision:
    """Return random transforms: turns, scales, flips along axes without sided labels, and intensities."""
    both = ["image", "label"]
    pairs = sided_pairs(names)
    coarse = max(spacing) > ANISOTROPIC * min(spacing)
    axis = int(np.argmax(spacing))
    turns = [0.26 if not coarse or number == axis else 0.0 for number in range(3)]
    axes = [1, 2] if pairs else [0, 1, 2]
    mr = fingerprint["modality"]["CT"] < fingerprint["modality"]["other"]
    image: dict[str, Any] = {"keys": "image"}
    found: list[dict[str, Any]] = [
        {
            "_target_": "RandAffined", "keys": both, "prob": 0.3, "rotate_range": turns,
            "scale_range": [0.15, 0.15, 0.15], "mode": ["bilinear", "nearest"], "padding_mode": "border",
        },
        *({"_target_": "RandFlipd", "keys": both, "prob": 0.5, "spatial_axis": flipped} for flipped in axes),
        {"_target_": "RandScaleIntensityd", **image, "factors": 0.1, "prob": 0.3},
        {"_target_": "RandShiftIntensityd", **image, "offsets": 0.1, "prob": 0.3},
        {"_target_": "RandGaussianNoised", **image, "prob": 0.15, "std": 0.05},
    ]  # fmt: skip
    if mr:
        found.append({"_target_": "RandAdjustContrastd", **image, "prob": 0.2, "gamma": [0.7, 1.5]})
    why = (
        f"no flip along the left-right axis, since labels have sides ({pairs[0][0]}, {pairs[0][1]})"
        if pairs
        else "flips along all axes, since no pair of labels is left and right"
    )
    if coarse:
        why += f"; turns within slices only, across which voxels are {max(spacing) / min(spacing):.1f} times longer"
    return Decision(found, why + ("; contrast varies, as MR has no unit" if mr else ""))


def one_piece(fingerprint: Mapping[str, Any], regions: Mapping[str, Any] | None) -> Decision:
    """Return whether only the largest part of each structure is kept in results."""
    shares = {name: held["one_part_share"] for name, held in fingerprint["classes"].items() if held["cases"]}
    if regions:
        return Decision(False, "it is for exclusive classes, and these are regions")
    torn = {name: share for name, share in shares.items() if share < ONE_PIECE}
    if torn or not shares:
        name = min(torn, key=lambda key: torn[key]) if torn else ""
        return Decision(False, f"{name} is in one piece in {torn[name]:.0%} of its cases only" if torn else "no class")
    return Decision(True, f"every class is in one piece in at least {ONE_PIECE:.0%} of its cases")


# --- the whole task block -------------------------------------------------------------------------


def decide(
    fingerprint: Mapping[str, Any],
    budget: Budget,
    crops: Crops,
    spacing: Decision,
    labels: Mapping[str, int],
    regions: Mapping[str, Sequence[int]] | None,
    training_cases: int,
) -> dict[str, Decision]:
    """Take the decisions of the task block from the intensities on, in its order, and those of the body.

    Args:
        fingerprint: of the data set.
        budget: of the training.
        crops: as chosen.
        spacing: as chosen.
        labels: name -> label value.
        regions: name -> label values; None: exclusive classes.
        training_cases: of one fold.
    """
    shape = median_shape(fingerprint, spacing.value)
    whole = _covered(crops.roi, shape) >= WHOLE
    per_scan, batch = (1, min(crops.crops, training_cases)) if whole else (crops.crops, 1)
    steps = math.ceil(training_cases / batch)
    seconds = crops.seconds * OVERHEAD * steps
    if budget.hours:
        epochs = max(1, int(budget.hours * 3600 / seconds))
        length = (
            f"{budget.hours:g} hours at {seconds:.0f} s an epoch, measured steps and {OVERHEAD - 1:.0%} for the rest"
        )
    else:
        epochs = math.ceil(ITERATIONS[budget.size] / steps)
        length = f"{ITERATIONS[budget.size]} steps, {steps} an epoch, about {epochs * seconds / 3600:.1f} hours here"
    kept = fingerprint["cases"] * math.prod(shape) * (4 * len(fingerprint["channels"]) + 1)
    rate = math.floor(100 * min(1.0, budget.free / max(1, kept))) / 100
    loss: dict[str, Any] = {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True}
    overlapping = Decision(loss, "exclusive classes: cross-entropy and Dice")
    if regions:
        loss = {"_target_": "mambamim_nets.bundle.RegionLoss", "regions": "@regions"}
        overlapping = Decision(loss, "regions: binary cross-entropy and Dice of each")
    return {
        "intensity": intensity(fingerprint),
        "spacing": spacing,
        "roi_size": Decision(list(crops.roi), crops.why),
        "keep_largest": one_piece(fingerprint, regions),
        "crops_per_scan": Decision(
            per_scan, "a crop covers most of a scan" if whole else "a scan once read gives all crops"
        ),
        "batch_size": Decision(batch, "as many crops as memory holds" if whole else "its crops fill the step"),
        "augmentation": augmentation(fingerprint, spacing.value, list(labels)),
        "loss": overlapping,
        "learning_rate": Decision(LEARNING_RATE[budget.size], f"usual for size {budget.size}"),
        "max_epochs": Decision(epochs, length),
        "val_interval": Decision(max(1, epochs // 20), "about twenty validations"),
        "size": Decision(budget.size, budget.why),
        "cache_rate": Decision(rate, f"preprocessed scans take about {kept / GIB:.2g} GiB"),
    }


def _sides(values: Sequence[float] | np.ndarray, digits: int = 4) -> str:
    return " x ".join(f"{value:.{digits}g}" for value in values)
