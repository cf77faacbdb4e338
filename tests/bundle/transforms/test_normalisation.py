"""Intensity rules."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import NormalizeIntensityd, ScaleIntensityd, ScaleIntensityRanged, ScaleIntensityRangePercentilesd

from mambamim_nets.bundle.transforms.normalisation import RequireFinited, ScaleCTOrMRd, nonzero, scaling_of

AFFINE = np.array([[-2.0, 0, 0, 5], [0, 0, 1, -3], [0, 1.5, 0, 2], [0, 0, 0, 1]])


def image(values, channels=1):
    data = torch.as_tensor(np.asarray(values, np.float32)).reshape(channels, -1, 1, 1)
    return MetaTensor(data, affine=AFFINE)


def applied(transform, values, channels=1):
    out = transform({"image": image(values, channels)})["image"]
    assert out.dtype == torch.float32
    np.testing.assert_allclose(np.asarray(out.affine), AFFINE)
    return out.as_tensor().reshape(channels, -1) if channels > 1 else out.as_tensor().flatten()


CT = ScaleIntensityRanged("image", -175, 250, 0.0, 1.0, clip=True)
MR = ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0, clip=True, channel_wise=True)
BOTH = ScaleCTOrMRd("image", hu=[-175, 250], percentiles=[0.5, 99.5])


@pytest.mark.parametrize(("lowest", "kind"), [(-1000, "ct"), (-500.5, "ct"), (-500, "mr"), (-40, "mr"), (0, "mr")])
def test_ct_or_mr_follows_the_air_of_a_scan(lowest, kind):
    values = np.concatenate([[lowest], np.linspace(0, 900, 200)])
    torch.testing.assert_close(applied(BOTH, values), applied(CT if kind == "ct" else MR, values))


def test_ct_or_mr_scales_each_channel_of_mr_by_its_own_percentiles():
    values = np.stack([np.linspace(0, 800, 101), np.linspace(-50, 50, 101) ** 3 / 1000])
    low, high = np.percentile(values, [5, 95], axis=1, keepdims=True)
    expected = np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
    out = applied(ScaleCTOrMRd("image", hu=[-175, 250], percentiles=[5, 95]), values, channels=2)
    torch.testing.assert_close(out, torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("transform", "kind", "limits"),
    [
        (CT, "ct", [-175, 250]),
        (MR, "mr", [0.5, 99.5]),
        (BOTH, "ct_or_mr", [-175, 250]),
        (NormalizeIntensityd("image", nonzero=True, channel_wise=True), "zscore", []),
        (ScaleIntensityd("image"), "ScaleIntensityd", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_record_says_of_a_scaling(transform, kind, limits):
    said = {"intensity": kind, "intensity_range": limits}
    assert scaling_of([RequireFinited("image"), transform]) == said
    assert scaling_of([RequireFinited("image")]) == {}


def test_nonzero():
    assert nonzero(torch.tensor([0.0, -0.3, 2.0])).tolist() == [False, True, True], "below the mean is not background"
