"""Random fields of view: image and label stay together, borders have label 0, and intensities are normalised anew."""

import numpy as np
import pytest
import torch
from monai.transforms import ScaleIntensityRangePercentilesd

from mambamim_nets.bundle.transforms.field_of_view import RandFieldOfViewd

SHAPE, BORDER = (11, 13, 9), (4, 6, 3)


def case() -> dict[str, torch.Tensor]:
    """Return an image whose voxels are all different and above 0, and a label that follows from it."""
    image = torch.arange(1, np.prod(SHAPE) + 1, dtype=torch.float32).reshape(1, *SHAPE) / np.prod(SHAPE)
    return {"image": image, "label": (image > 0.5).to(torch.uint8)}


def drawn(seed: int, **options) -> dict[str, torch.Tensor]:
    return RandFieldOfViewd(["image", "label"], BORDER, **options).set_random_state(seed)(case())


@pytest.mark.parametrize("seed", range(12))
def test_label_and_image_stay_together(seed):
    out = drawn(seed, border_prob=0.8, cut_prob=0.8)
    assert out["image"].shape == out["label"].shape and out["label"].dtype == torch.uint8
    inside = out["label"] == 1
    original = case()
    assert torch.isin(out["image"][inside], original["image"][original["label"] == 1]).all()
    assert all(
        round(side * 0.7) - 1 <= here <= side + 2 * most
        for side, most, here in zip(SHAPE, BORDER, out["image"].shape[1:], strict=True)
    )


def test_borders_are_of_every_kind_and_without_label():
    kinds = {"zeros": 0, "one value": 0, "others": 0}
    for seed in range(40):
        out = drawn(seed, border_prob=1.0, cut_prob=0.0)
        values = set(case()["image"].flatten().tolist())
        border = out["image"][~torch.isin(out["image"], torch.tensor(sorted(values)))]
        kinds[
            "zeros" if len(border) and not border.any() else "one value" if border.unique().numel() == 1 else "others"
        ] += 1
        assert out["label"].sum() == case()["label"].sum(), "no voxel of the label is lost, and none is added"
    assert all(kinds.values()), kinds


def test_without_luck_nothing_changes():
    out = drawn(
        0, border_prob=0.0, cut_prob=0.0, normalise=ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True)
    )
    assert torch.equal(out["image"], case()["image"]) and torch.equal(out["label"], case()["label"])


def test_another_field_of_view_has_percentiles_of_its_own():
    normalise = ScaleIntensityRangePercentilesd("image", 0.0, 100.0, 0, 1)
    for seed in range(6):
        out = drawn(seed, border_prob=0.0, cut_prob=1.0, cut=0.4, normalise=normalise)
        assert out["image"].min() == 0 and out["image"].max() == pytest.approx(1)
        assert out["image"].shape != case()["image"].shape


def test_a_seed_repeats_itself():
    first, second = (drawn(5, border_prob=1.0, cut_prob=1.0) for _ in range(2))
    assert torch.equal(first["image"], second["image"])
