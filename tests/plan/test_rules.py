"""Decisions from fingerprints made by hand."""

import math

import pytest
from plan.conftest import steps_of

from mambamim_nets.plan.measure import Step
from mambamim_nets.plan.rules import (
    GIB,
    Budget,
    augmentation,
    choose_crops,
    decide,
    fitted_roi,
    intensity,
    one_piece,
    presets,
    target_spacing,
)

CPU = Budget("base", "cpu", 16 * GIB)
TINY = Budget("tiny", "cpu", 16 * GIB)


def fingerprint(spacing=(1.0, 1.0, 1.0), shape=(200, 200, 200), tenth=None, ct=10, other=0, **changes):
    foreground = {"percentile_0.5": -60.0, "percentile_50": 60.0, "percentile_99.5": 180.0, "mean": 60.0, "std": 20.0}
    one = {"value": 1, "cases": 10, "missing_in": [], "median_ml": 100.0, "one_part_share": 1.0}
    return {
        "cases": 10,
        "subjects": 10,
        "spacing_mm": {"median": list(spacing), "tenth_percentile": list(tenth or spacing)},
        "cropped_shape": {"median": list(shape)},
        "cropped_mm": {"median": [edge * side for edge, side in zip(spacing, shape, strict=True)]},
        "modality": {"CT": ct, "other": other},
        "channels": {"image": {"lowest": -1000.0, "zeros": 0.0, "foreground": foreground}},
        "classes": {"organ": one},
        **changes,
    }


def test_spacing_is_the_median():
    assert target_spacing(fingerprint((0.8, 0.8, 1.5), (500, 500, 200)), CPU).value == [0.8, 0.8, 1.5]


def test_spacing_of_thick_slices_is_their_tenth_percentile():
    """As nnU-Net: more than three times as coarse, and less than a third of the voxels."""
    found = target_spacing(fingerprint((0.8, 0.8, 5.0), (500, 500, 40), tenth=(0.7, 0.7, 3.0)), CPU)
    assert found.value == [0.8, 0.8, 3.0] and "anisotropic" in found.why
    finer = target_spacing(fingerprint((0.8, 0.8, 5.0), (500, 500, 40), tenth=(0.7, 0.7, 0.5)), CPU)
    assert finer.value == [0.8, 0.8, 0.8], "never finer than within slices"
    many = target_spacing(fingerprint((0.8, 0.8, 5.0), (500, 500, 400), tenth=(0.7, 0.7, 3.0)), CPU)
    assert many.value == [0.8, 0.8, 5.0]


def test_the_tiny_network_sees_coarser_voxels_but_not_without_the_smallest_class():
    scan = fingerprint((1.0, 1.0, 1.0), (300, 300, 300))
    coarse = target_spacing(scan, TINY)
    covered = math.prod(300 / edge for edge in coarse.value)
    assert covered <= 4 * 48**3 and coarse.value[0] > 3.5 and "coarser" in coarse.why
    assert target_spacing(scan, CPU).value == [1.0, 1.0, 1.0]
    scan["classes"]["gland"] = {"cases": 5, "median_ml": 0.064}
    kept = target_spacing(scan, TINY)
    assert math.prod(kept.value) * 8 <= 64.5 and "gland" in kept.why


def test_thin_slices_are_coarsened_before_thick_ones():
    found = target_spacing(fingerprint((1.0, 1.0, 5.0), (300, 300, 100)), TINY).value
    assert found[0] > 2 and 1.9 < found[2] / found[0] < 2.1, "to twice the others, then together"


@pytest.mark.parametrize(
    ("shape", "voxels", "roi"),
    [
        ((35, 50, 36), 10**9, (32, 48, 32)),
        ((200, 200, 200), 96**3, (96, 96, 96)),
        ((400, 400, 40), 96**3, None),
        ((8, 9, 7), 10**9, (16, 32, 16)),
        ((500, 500, 500), 1, None),
    ],
)
def test_crops_have_the_aspect_of_the_scan(shape, voxels, roi):
    found = fitted_roi(shape, voxels)
    assert all(side % 16 == 0 for side in found)
    assert roi is None or found == roi
    assert math.prod(found) <= max(voxels, 16 * 16 * 32)
    if roi is None and voxels > 1:
        assert math.prod(found) > 0.7 * voxels and found[0] > 2 * found[2]


def test_crops_fill_the_memory_and_no_more():
    scan = fingerprint(shape=(300, 300, 300))
    large, small = (choose_crops(scan, (1, 1, 1), CPU._replace(bytes=n * GIB), steps_of) for n in (16, 2))
    assert large.roi == (96, 96, 96) and large.crops == 4
    assert math.prod(small.roi) * small.crops < math.prod(large.roi) * large.crops
    assert steps_of([(small.roi, small.crops)])[0].peak <= 2 * GIB


def test_a_step_that_takes_more_than_was_worked_out_is_made_smaller():
    """Measured is measured: the arithmetic of small steps may be wrong."""

    def steep(candidates):
        return [
            Step(step.roi, step.crops, step.peak * (4 if step.voxels > 10**5 else 1), 1.0)
            for step in steps_of(candidates)
        ]

    found = choose_crops(fingerprint(), (1, 1, 1), CPU._replace(bytes=4 * GIB), steep)
    assert steep([(found.roi, found.crops)])[0].peak <= 4 * GIB


def test_a_step_that_cannot_be_run_is_made_smaller():
    found = choose_crops(
        fingerprint(), (1, 1, 1), CPU, lambda wanted: [s for s in steps_of(wanted) if s.voxels < 500_000]
    )
    assert found.crops * math.prod(found.roi) < 500_000


def test_presets_grow_with_the_memory_and_fit():
    rows = presets(steps_of([((32, 32, 32), 1), ((32, 32, 32), 2)]), (400, 400, 400), "base")
    sizes = [math.prod(row["roi_size"]) * row["crops"] for row in rows]
    assert [row["gib"] for row in rows] == [8, 16, 24, 40, 80] and sizes == sorted(sizes) and sizes[0] < sizes[2]
    assert all(row["estimate_gib"] <= row["gib"] for row in rows)


@pytest.mark.parametrize(
    ("ct", "other", "zeros", "target"),
    [
        (10, 0, 0.0, "ScaleIntensityRanged"),
        (0, 10, 0.0, "ScaleIntensityRangePercentilesd"),
        (0, 10, 0.5, "NormalizeIntensityd"),
        (5, 5, 0.0, "mambamim_nets.bundle.ScaleCTOrMRd"),
    ],
    ids=["CT", "MR", "stripped", "both"],
)
def test_intensities_are_scaled_by_what_they_are(ct, other, zeros, target):
    scan = fingerprint(ct=ct, other=other)
    scan["channels"]["image"]["zeros"] = zeros
    assert intensity(scan).value["_target_"] == target


def test_a_narrow_foreground_keeps_a_window_for_soft_tissue():
    scan = fingerprint()
    scan["channels"]["image"]["foreground"] |= {"percentile_0.5": 40.0, "percentile_99.5": 120.0}
    found = intensity(scan).value
    assert (found["a_min"], found["a_max"]) == (-95, 255)


def test_sided_labels_are_not_flipped_left_to_right():
    axes = [
        [part["spatial_axis"] for part in augmentation(fingerprint(), (1, 1, 1), names).value if "Flip" in str(part)]
        for names in (["left kidney", "right kidney"], ["liver"])
    ]
    assert axes == [[1, 2], [0, 1, 2]]


def test_thick_slices_are_turned_within_themselves():
    turn = augmentation(fingerprint(), (1.0, 1.0, 5.0), ["liver"]).value[0]
    assert turn["rotate_range"] == [0.0, 0.0, 0.26]


def test_only_structures_in_one_piece_keep_their_largest_part():
    scan = fingerprint()
    assert one_piece(scan, None).value is True and one_piece(scan, {"a": [1]}).value is False
    scan["classes"]["vessels"] = {"cases": 5, "one_part_share": 0.2}
    assert one_piece(scan, None).value is False and "vessels" in one_piece(scan, None).why


def test_a_whole_scan_is_one_crop_and_hours_are_epochs():
    scan = fingerprint(shape=(40, 50, 36))
    spacing = target_spacing(scan, TINY)
    crops = choose_crops(scan, spacing.value, TINY, steps_of)
    found = decide(scan, TINY._replace(hours=1.0), crops, spacing, {"organ": 1}, None, 8)
    assert found["crops_per_scan"].value == 1 and found["batch_size"].value == 4
    assert found["max_epochs"].value == int(3600 / (1.4 * 2))
    assert found["loss"].value["_target_"] == "DiceCELoss"
    regions = decide(scan, TINY, crops, spacing, {"organ": 1}, {"organ": [1]}, 8)
    assert regions["loss"].value["_target_"] == "mambamim_nets.bundle.RegionLoss"
