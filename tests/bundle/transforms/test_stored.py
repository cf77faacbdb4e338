"""Crops of a store are scaled as their whole volumes would be, and masked by their seeds."""

import numpy as np
import pytest
import torch
from helpers import refused
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)
from store_files import SPACING, lines_of, store_of, write_scan

from mambamim_nets.bundle.data.store import Store
from mambamim_nets.bundle.transforms.normalisation import ScaleCTOrMRd
from mambamim_nets.bundle.transforms.stored import DrawVisibled, ScaleStoredd

CT = {"a_min": -175, "a_max": 250, "b_min": 0.0, "b_max": 1.0, "clip": True}
MR = {"lower": 0.5, "upper": 99.5, "b_min": 0.0, "b_max": 1.0, "clip": True, "channel_wise": True}
SCALINGS = {
    "ct": ScaleIntensityRanged("image", **CT),
    "mr": ScaleIntensityRangePercentilesd("image", **MR),
    "zscore": NormalizeIntensityd("image", nonzero=True, channel_wise=True),
    "ct_or_mr": ScaleCTOrMRd("image", hu=[-175, 250], percentiles=[0.5, 99.5]),
}


@pytest.mark.parametrize(
    ("kind", "scaling"), [("ct", "ct"), ("ct", "ct_or_mr"), ("mr", "mr"), ("mr", "zscore"), ("mr", "ct_or_mr")]
)
def test_a_crop_is_what_the_whole_volume_scaled_has_in_its_place(tmp_path, kind, scaling):
    """The preprocessing of train.json on the source, against a box of the store: rounding apart, the same voxels."""
    path = write_scan(tmp_path / "scans" / "scan.nii.gz", 3, kind=kind)
    store_of(tmp_path / "store", tmp_path / "scans")
    volume = Store(tmp_path / "store").volume(0)
    steps = [
        LoadImaged("image", ensure_channel_first=True),
        Orientationd("image", axcodes="RAS", labels=None),
        Spacingd("image", pixdim=SPACING, mode="bilinear"),
    ]
    unscaled = Compose(steps)({"image": str(path)})
    if kind == "mr":  # what lies outside of the anatomy has no part in percentiles, as in train.json
        crop = CropForegroundd("image", "image", select_fn=lambda image: image != 0, allow_smaller=True)
        unscaled = Compose([*steps[:2], crop, steps[2]])({"image": str(path)})
    whole = SCALINGS[scaling](unscaled)["image"]
    start, size = (6, 5, 4), (16, 20, 12)
    affine = np.asarray(unscaled["image"].affine)
    (line,) = lines_of(tmp_path / "store")
    place = np.asarray(line["affine"]) @ [*start, 1]
    first = np.rint((np.linalg.inv(affine) @ place)[:3]).astype(int)
    box = tuple(slice(one, one + side) for one, side in zip(first, size, strict=True))
    image = torch.from_numpy(volume.read(start, size))[None]
    found = ScaleStoredd("image", SCALINGS[scaling])({"image": image, "stored": volume})
    assert set(found) == {"image"}
    torch.testing.assert_close(found["image"], torch.as_tensor(np.asarray(whole))[(slice(None), *box)].float(),
        rtol=2e-3, atol=3e-3)  # fmt: skip
    assert float(found["image"].std()) > 0.05


def test_other_scalings_and_percentiles_are_refused(tmp_path):
    write_scan(tmp_path / "scans" / "scan.nii.gz", kind="mr")
    store_of(tmp_path / "store", tmp_path / "scans")
    volume = Store(tmp_path / "store").volume(0)
    with refused("intensity ScaleIntensityd cannot be worked out for a crop of a store"):
        ScaleStoredd("image", ScaleIntensityd("image"))
    scale = ScaleStoredd("image", ScaleIntensityRangePercentilesd("image", 3, 97, 0.0, 1.0))
    with refused("percentiles 3 and 97 of the intensity must be among those that a store holds: 0, 0.5, 1"):
        scale({"image": torch.zeros(1, 4, 4, 4), "stored": volume})


def test_a_mask_follows_from_its_seed_alone():
    draw = DrawVisibled("image", 0.75)
    image = MetaTensor(torch.rand(1, 64, 32, 48))
    first, again, other = (draw({"image": image, "mask_seed": seed})["visible"] for seed in (5, 5, 6))
    assert first.shape == (1, 4, 2, 3) and first.dtype == torch.bool and int(first.sum()) == 6
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw({"image": image, "mask_seed": 7})
    assert torch.equal(torch.rand(3), expected), "nothing else that is random is moved"
