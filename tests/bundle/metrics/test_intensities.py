"""Mean and standard deviation of a scan in each structure."""

import numpy as np
import pytest

from mambamim_nets.bundle.metrics.intensities import structure_intensities


def test_intensities_are_those_of_the_voxels_of_a_structure():
    rng = np.random.default_rng(0)
    image = (rng.normal(1e6, 3.0, (5, 6, 7))).astype(np.float32)
    label = rng.integers(0, 4, image.shape).astype(np.uint8)
    found = structure_intensities(image, label, {"whole": (1, 2, 3), "part": (2,), "absent": (9,)})
    assert list(found) == ["whole", "part"]
    for name, values in (("whole", (1, 2, 3)), ("part", (2,))):
        inside = image[np.isin(label, values)].astype(np.float64)
        assert found[name] == pytest.approx((inside.mean(), inside.std()), rel=1e-6)


def test_one_voxel_and_none():
    image, label = np.full((2, 2, 2), 7.0), np.zeros((2, 2, 2), np.uint8)
    assert structure_intensities(image, label, {"a": (1,)}) == {}
    label[0, 0, 0] = 1
    assert structure_intensities(image, label, {"a": (1,)}) == {"a": (7.0, 0.0)}
    with pytest.raises(ValueError, match=r"image \(2, 2, 2\) must have the shape of label \(2, 2, 1\)"):
        structure_intensities(image, label[..., :1], {"a": (1,)})
