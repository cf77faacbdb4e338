"""Scans of another modality, or outside of what the weights saw, are refused; or segmented with a warning."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import NormalizeIntensityd, ScaleIntensityRanged, ScaleIntensityRangePercentilesd

from mambamim_nets.bundle.inference.known_scans import KnownScand
from mambamim_nets.bundle.transforms.normalisation import ScaleCTOrMRd
from mambamim_nets.checkpoint import stamped

SEEN = {"field_of_view_mm": [[10.0, 10.0, 10.0], [20.0, 20.0, 20.0]], "spacing_mm": [1.0, 1.0]}
SCALING = {
    "ct": ScaleIntensityRanged("image", -175, 250),
    "mr": ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1),
    "zscore": NormalizeIntensityd("image", nonzero=True),
    "ct_or_mr": ScaleCTOrMRd("image", (-175, 250), (0.5, 99.5)),
}


def scan(values: np.ndarray, modality: str = "", spacing: float = 1.0) -> dict:
    affine = torch.diag(torch.tensor([spacing, spacing, spacing, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.as_tensor(values, dtype=torch.float32)[None], affine=affine, meta={"modality": modality})
    return {"image": image, "name": "case"}


def uniform(low: float, high: float, side: int = 12) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, (side, side + 1, side + 2))


CT = np.where(uniform(0, 1) < 0.3, -1000.0, uniform(-150, 200))
MR, SIGNED_MR = uniform(0, 900), uniform(-3, 3)


@pytest.fixture
def weights(tmp_path):
    """Weights of a linear layer that say what they saw."""
    path = tmp_path / "model.pt"
    torch.save(stamped(torch.nn.Linear(1, 1).state_dict(), {"seen": SEEN}), path)
    return str(path)


@pytest.mark.parametrize(
    ("intensity", "values", "modality", "word"),
    [
        ("mr", MR, "", ""),
        ("mr", SIGNED_MR, "", ""),
        ("zscore", MR, "MR", ""),
        ("ct", CT, "", ""),
        ("ct", CT, "CT", ""),
        ("ct_or_mr", CT, "", ""),
        ("ct_or_mr", MR, "MR", ""),
        ("mr", CT, "", "near -1000, as air in CT does, and it must be MR"),
        ("zscore", CT, "", "must be MR"),
        ("mr", MR, "CT", "DICOM Modality is CT, and must be MR"),
        ("ct", MR, "", "fat and air lie below 0 in CT"),
        ("ct", CT, "MR", "DICOM Modality is MR, and must be CT"),
        ("ct_or_mr", MR, "PT", "DICOM Modality is PT, and must be CT or MR"),
    ],
)
def test_the_modality_of_a_scan_is_that_of_training(intensity, values, modality, word):
    item = scan(values, modality)
    if not word:
        assert "warnings" not in KnownScand("image", SCALING[intensity])(item)
        return
    with pytest.raises(ValueError, match=r"--force true segments it all the same") as refused:
        KnownScand("image", SCALING[intensity])(item)
    assert word in str(refused.value)
    (warning,) = KnownScand("image", SCALING[intensity], force=True)(item)["warnings"]
    assert warning.startswith("FORCED, these weights do not know such a scan") and word in warning


def test_a_field_of_view_that_training_did_not_see(weights):
    known, large = KnownScand("image", SCALING["mr"], weights), scan(uniform(1, 900, 60))
    assert "warnings" not in known(scan(MR))
    assert "warnings" not in known(scan(np.pad(MR, 40))), "zeros around a scan are no field of view"
    with pytest.raises(ValueError, match="60 mm from right to left, in training 10 to 20 mm"):
        known(large)
    earlier = {**large, "warnings": ["a slice may be missing"]}
    first, second = KnownScand("image", SCALING["mr"], weights, force=True)(earlier)["warnings"]
    assert first == "a slice may be missing" and "62 mm from foot to head" in second
    assert earlier["warnings"] == ["a slice may be missing"], "the item itself stays as it is"


def test_voxels_that_are_coarser_than_those_of_training(weights):
    with pytest.raises(ValueError, match="voxels of up to 3 mm, in training 1 mm"):
        KnownScand("image", SCALING["mr"], weights)(scan(uniform(1, 9, 5), spacing=3.0))
