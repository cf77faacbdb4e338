"""The kind "fetal": points that are exactly the ends of what is painted."""

import nibabel as nib
import numpy as np

from mambamim_nets import phantom
from mambamim_nets.phantom import fetal


def test_points_of_fetal_heads_are_the_ends_of_what_is_painted():
    for seed in range(2):
        edge = 1.4  # a voxel's, by which the painted end may miss the exact one
        subject, points = phantom.make("fetal", seed, spacing=edge), phantom.landmarks("fetal", seed)
        assert tuple(points) == fetal.POINTS
        ends = {1: [("TCD_start", "TCD_end")], 2: [("HDV_start", "HDV_end"), ("ADV_start", "ADV_end")]}
        for value, pairs in ends.items():
            voxels = nib.affines.apply_affine(subject.affine, np.argwhere(subject.label == value))
            for start, end in pairs:
                along = (points[start] - points[end]) / np.linalg.norm(points[start] - points[end])
                reach = voxels @ along
                np.testing.assert_allclose(
                    (reach.max(), reach.min()), (points[start] @ along, points[end] @ along), atol=edge
                )
        right, front, up = np.eye(3)
        for pair, axis in (("TCD", right), ("ADV", front), ("HDV", up)):  # turned by 30 degrees, tilted by 12
            assert (points[f"{pair}_start"] - points[f"{pair}_end"]) @ axis > 0
        assert 20 < np.linalg.norm(points["TCD_start"] - points["TCD_end"]) < 45
    poses = [fetal.draw(np.random.default_rng(seed)).rotation for seed in range(20)]
    assert max(np.arccos((np.trace(pose) - 1) / 2) for pose in poses) > np.deg2rad(15)
    assert phantom.landmarks("abdomen", 0) == {}
