"""Features of a scan: where its tokens lie, which of them are inside, and what the table says."""

import csv

import numpy as np
import pytest
import torch
from monai.data import Dataset, MetaTensor

from mambamim_nets.bundle.handlers.features import FeatureReport
from mambamim_nets.bundle.inference.scan_loader import ScanLoader

AFFINE = torch.tensor([[-2.0, 0, 0, 7], [0, 3, 0, 8], [0, 0, 4, 9], [0, 0, 0, 1]], dtype=torch.double)


@pytest.fixture
def report(tmp_path):
    return FeatureReport(ScanLoader(Dataset([{"image": "a.nii", "name": "a", "series": None}])), str(tmp_path))


def test_tokens_lie_at_the_centres_of_their_blocks(report, tmp_path):
    image = torch.zeros(2, 8, 4, 6)
    image[1, 5, 2, 1] = 0.5  # in the block (1, 0, 0) of 4 x 4 x 3 voxels
    features = torch.randn(5, 2, 1, 2, dtype=torch.bfloat16)
    report.done("a", {"image": MetaTensor(image, affine=AFFINE), "pred": features})
    with np.load(tmp_path / "a_features.npz") as found:
        np.testing.assert_array_equal(found["features"], features.float())
        assert found["inside"].tolist() == [[[False, False]], [[True, False]]]
        np.testing.assert_array_equal(found["mean"], features[:, 1, 0, 0].float())
        np.testing.assert_allclose(found["spacing"], (2, 3, 4))
        np.testing.assert_allclose(found["affine"] @ [1, 0, 1, 1], AFFINE.numpy() @ [5.5, 1.5, 4, 1])
    with (tmp_path / "features.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["scan"], row["tokens"], row["tokens inside"]) == ("a", "4", "1")
    assert report.files("a") == ["a_features.npz"]


def test_a_scan_without_foreground_says_what_to_check(report, tmp_path):
    with pytest.raises(ValueError, match="no voxel is above 0 after preprocessing; check --intensity"):
        report.done("a", {"image": MetaTensor(torch.zeros(1, 4, 4, 4)), "pred": torch.zeros(3, 1, 1, 1)})
    assert not list(tmp_path.glob("*.npz"))
