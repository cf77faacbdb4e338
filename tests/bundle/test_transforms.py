"""Intensity rules, channel order, augmentation."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mambamim_nets.bundle.transforms import SelectChannelsd, augmentations, intensity, nonzero, stored_order

AFFINE = np.array([[-2.0, 0, 0, 5], [0, 0, 1, -3], [0, 1.5, 0, 2], [0, 0, 0, 1]])


def image(values, channels=1):
    data = torch.as_tensor(np.asarray(values, np.float32)).reshape(channels, -1, 1, 1)
    return MetaTensor(data, affine=AFFINE)


def applied(transform, values, channels=1):
    out = transform({"image": image(values, channels)})["image"]
    assert out.dtype == torch.float32
    np.testing.assert_allclose(np.asarray(out.affine), AFFINE)
    return out.as_tensor().reshape(channels, -1) if channels > 1 else out.as_tensor().flatten()


def test_ct_is_a_fixed_window():
    out = applied(intensity(["image"], "ct", -175, 250), [-1000, -175, 37.5, 250, 3000])
    torch.testing.assert_close(out, torch.tensor([0, 0, 0.5, 1, 1]))


def test_mr_is_percentiles_of_each_channel():
    values = np.stack([np.linspace(0, 800, 101), np.linspace(-50, 50, 101) ** 3])
    out = applied(intensity(["image"], "mr", 5, 95), values, channels=2)
    low, high = np.percentile(values, [5, 95], axis=1, keepdims=True)
    expected = np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
    torch.testing.assert_close(out, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("lowest", "kind"), [(-1000, "ct"), (-500.5, "ct"), (-500, "mr"), (-40, "mr"), (0, "mr")])
def test_ct_or_mr_follows_the_air_of_a_scan(lowest, kind):
    values = np.concatenate([[lowest], np.linspace(0, 900, 200)])
    limits = (-175, 250) if kind == "ct" else (0.5, 99.5)
    out = applied(intensity(["image"], "ct_or_mr", -175, 250), values)
    torch.testing.assert_close(out, applied(intensity(["image"], kind, *limits), values))


def test_zscore_ignores_and_keeps_zeros():
    values = np.zeros((2, 60))
    values[0, 10:40] = np.linspace(100, 900, 30)
    values[1, 5:50] = np.linspace(3, 4, 45)
    out = applied(intensity(["image"], "zscore"), values, channels=2)
    for channel, row in zip(out, values, strict=True):
        found = channel[row != 0]
        assert (channel[row == 0] == 0).all()
        torch.testing.assert_close(found.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_an_unknown_kind_of_intensity():
    with pytest.raises(ValueError, match="intensity kind 'hounsfield' must be 'ct', 'mr', 'ct_or_mr' or 'zscore'"):
        intensity(["image"], "hounsfield")


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [1, 3], [0, 2], [2]], ids=str)
def test_channels_are_selected_and_the_grid_stays(order):
    data = {"image": image(np.arange(12), channels=4), "name": "a"}
    out = SelectChannelsd("image", order)(data)
    assert out["name"] == "a" and isinstance(out["image"], MetaTensor)
    torch.testing.assert_close(out["image"].as_tensor(), data["image"].as_tensor()[order])
    np.testing.assert_allclose(np.asarray(out["image"].affine), AFFINE)
    assert data["image"].shape[0] == 4, "the input was changed"


def test_stored_order():
    channels = ["flair", "t1ce", "t1", "t2"]
    assert stored_order(channels, None) is None
    assert stored_order(channels, ["FLAIR", "T1w", "T1Gd", "T2w"]) == [0, 2, 1, 3], "names of the Decathlon"
    assert stored_order(channels, ["t1n", "t1c", "t2w", "t2f"]) == [3, 1, 0, 2], "names of BraTS 2023"
    assert stored_order(["CT"], ["ct"]) == [0]


@pytest.mark.parametrize(
    "stored", [["flair", "t1ce", "t1"], ["flair", "t1ce", "t1", "t1"], ["flair", "t1", "t2", "adc"], []], ids=str
)
def test_stored_channels_that_are_not_the_tasks(stored):
    with pytest.raises(ValueError, match=r"channel_order .* must hold each of the task's channels .* once"):
        stored_order(["flair", "t1ce", "t1", "t2"], stored)


def test_nonzero():
    assert nonzero(torch.tensor([0.0, -0.3, 2.0])).tolist() == [False, True, True], "below the mean is not background"


def test_augmentations_keep_image_and_label_together():
    label = torch.zeros(1, 16, 16, 16)
    label[:, 3:9, 5:12, 2:7] = 1
    transform = augmentations(
        ["image", "label"], rotate90=True, affine_prob=1.0, rotate=0.2, scale=0.1, intensity_prob=0.0
    ).set_random_state(seed=1)
    moved = 0
    for _ in range(8):
        out = transform({"image": label.clone(), "label": label.clone()})
        assert set(out["label"].unique().tolist()) <= {0.0, 1.0}
        assert ((out["image"] > 0.5) == (out["label"] > 0.5)).float().mean() > 0.99
        moved += not torch.equal(out["label"], label)
    assert moved == 8


def test_augmentations_without_axes_never_flip():
    transform = augmentations(["image", "label"], flip_axes=[], intensity_prob=0.0).set_random_state(seed=0)
    label = torch.arange(27.0).view(1, 3, 3, 3)
    for _ in range(20):
        assert torch.equal(transform({"image": label, "label": label})["label"], label)


def test_augmentations_of_intensity_leave_the_label():
    transform = augmentations(["image", "label"], [], intensity_prob=1.0, texture_prob=1.0).set_random_state(seed=0)
    label = torch.arange(27.0).view(1, 3, 3, 3)
    out = transform({"image": label / 27, "label": label})
    assert torch.equal(out["label"], label) and not torch.equal(out["image"], label / 27)
