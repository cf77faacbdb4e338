"""Channels are put into the order of a task."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mambamim_nets.bundle.transforms.channels import SelectChannelsd, stored_order

AFFINE = np.array([[-2.0, 0, 0, 5], [0, 0, 1, -3], [0, 1.5, 0, 2], [0, 0, 0, 1]])


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [1, 3], [0, 2], [2]], ids=str)
def test_channels_are_selected_and_the_grid_stays(order):
    values = torch.arange(12.0).reshape(4, 3, 1, 1)
    data = {"image": MetaTensor(values, affine=AFFINE), "name": "a"}
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
