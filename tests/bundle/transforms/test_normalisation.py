"""Intensity rules."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mambamim_nets.bundle.transforms.normalisation import intensity, nonzero

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


def test_nonzero():
    assert nonzero(torch.tensor([0.0, -0.3, 2.0])).tolist() == [False, True, True], "below the mean is not background"
