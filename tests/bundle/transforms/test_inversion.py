"""Results brought back a slab at a time equal what MONAI makes of the whole volume, bit for bit."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureTyped,
    Invertd,
    Orientationd,
    ScaleIntensityd,
    Spacingd,
    Zoomd,
)

from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.transforms import inversion
from mambamim_nets.bundle.transforms.inversion import by_parts, invert
from mambamim_nets.bundle.transforms.labels import RestoreLabelsd
from mambamim_nets.bundle.transforms.probabilities import RestoreProbabilitiesd

SHAPE = (29, 22, 17)


def turned(degrees: float, edges) -> np.ndarray:
    """An affine with axes to left and posterior, turned about two axes."""
    sine, cosine = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    about_z = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(edges)
    affine[:3, 3] = (12, 9, -7)
    return affine


def permuted() -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = -0.8, 1.1, -2.5, 1
    return affine


SPACING = Spacingd("image", pixdim=(1.5, 1.5, 1.5), mode="bilinear")
GRIDS = {  # of the scan, and what is done to it
    "oblique": (turned(12, (-0.9, -1.2, 2.1)), [SPACING]),
    "turned far": (turned(40, (-0.7, -0.7, 3.0)), [SPACING]),
    "axes in another order": (permuted(), [SPACING]),
    "halves of voxels, which tie": (np.diag([-0.75, -0.75, 3.0, 1]), [SPACING]),
    "its own spacing": (np.diag([-1.5, -1.5, 1.5, 1]), [SPACING]),
    "finer": (turned(5, (2.0, 2.0, 4.0)), [SPACING]),
    "one plane": (np.diag([1.0, 1.0, 90.0, 1]), [Spacingd("image", (1.0, 1.0, 2000.0), mode="bilinear")]),
    "corners aligned": (turned(3, (1, 1, 2)), [Spacingd("image", (1.5,) * 3, mode="bilinear", align_corners=True)]),
    "spline": (turned(3, (1, 1, 2)), [Spacingd("image", (1.5,) * 3, mode=1, padding_mode="nearest")]),
    "never resampled": (turned(3, (1, 1, 2)), []),
    "resampled twice": (np.diag([1.0, 1.0, 2.0, 1]), [Zoomd("image", 0.8, keep_size=False), SPACING]),
}


@pytest.fixture(autouse=True)
def thin_slabs(monkeypatch):
    """Slabs of two planes or three, and a last one that is thinner."""
    monkeypatch.setattr(inversion, "SLAB", 1000)
    monkeypatch.setattr(inversion, "PART", 960)


def case(name: str, outputs: int):
    """Preprocess a scan of which a part is cropped; return the steps, the scan, and logits on the network's grid."""
    affine, steps = GRIDS[name]
    generator = torch.Generator().manual_seed(3)
    image = MetaTensor(torch.rand(1, *SHAPE, generator=generator) + 1, affine=affine)
    image[:, :4], image.meta["spatial_shape"] = 0, np.array(SHAPE)
    crop = CropForegroundd("image", "image", allow_smaller=True)
    preprocessing = Compose(
        [Orientationd("image", "RAS", labels=None), crop, *steps, ScaleIntensityd("image"), EnsureTyped("image")]
    )
    data = preprocessing({"image": image})
    logits = torch.randn(outputs, *data["image"].shape[1:], generator=generator) * 3
    return preprocessing, {**data, "pred": MetaTensor(logits)}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("regions", [None, {"both": [1, 2], "inner": [2]}], ids=["classes", "regions"])
def test_slabs_equal_the_whole_volume(name, regions):
    targets = Targets({"outer": 1, "inner": 2}, regions)
    preprocessing, data = case(name, targets.out_channels)
    probabilities = targets.probabilities(data["pred"])
    smooth, nearest = (
        Invertd("pred", preprocessing, "image", nearest_interp=nearest, to_tensor=True) for nearest in (False, True)
    )
    whole = smooth({**data, "pred": probabilities.clone()})["pred"]
    decided = nearest({**data, "pred": targets.label_map(probabilities).float()})["pred"].round().to(torch.uint8)
    for max_gib, wanted in ((2.0, targets.label_map(whole)), (1e-9, decided)):
        found = RestoreLabelsd("pred", targets, preprocessing, max_gib=max_gib)(data)["pred"]
        assert found.dtype == torch.uint8 and found.shape == (1, *SHAPE)
        assert torch.equal(found.as_tensor(), wanted.as_tensor()) and found.any()
        assert torch.equal(found.affine, wanted.affine) and not found.applied_operations
    found = RestoreProbabilitiesd("pred", targets, preprocessing)(data)["probabilities"]
    assert found.dtype == torch.float32 and torch.equal(found.as_tensor(), whole.clamp(0, 1).as_tensor())


@pytest.mark.parametrize("name", ["oblique", "its own spacing"])
def test_no_more_than_a_slab_is_decided_at_once(name):
    seen = []

    def decide(slab):
        seen.append(slab.shape[1:].numel())
        return slab[:1]

    preprocessing, data = case(name, 2)
    assert invert("pred", preprocessing, "image", False, decide)(data)["pred"].shape == (1, *SHAPE)
    assert len(seen) > 5 and max(seen) <= 1000


def test_a_function_of_voxels_by_parts():
    values = torch.randn(5, 7, 19, 23, generator=torch.Generator().manual_seed(0))
    assert torch.equal(by_parts(lambda part: torch.softmax(part, dim=0), values), torch.softmax(values, dim=0))
    wide = by_parts(torch.sigmoid, values, torch.float64)
    assert wide.dtype == torch.float64 and torch.equal(wide, torch.sigmoid(values).double())
