"""Radiomics: refused by a sentence without pyradiomics; with it, what it says of a box whose answer is known."""

import sys

import numpy as np
import pytest

from mambamim_nets.bundle.metrics.radiomics import radiomics_table, require_radiomics


def test_without_pyradiomics_the_option_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "radiomics", None)
    with pytest.raises(ImportError, match=r"needs pyradiomics, which is not installed; build it by .* or leave"):
        require_radiomics()


def test_a_box_has_the_volume_and_the_mean_that_it_has():
    pytest.importorskip("radiomics", reason="pyradiomics is built from source, see docs/BUNDLES.md")
    image = np.random.default_rng(0).normal(40, 10, (20, 30, 25)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[2:10, 5:15, 6:12] = 1
    label[12:18, 5:15, 6:12] = 2
    label[0, 0, 0] = 3
    structures = {"liver": [1], "both": [1, 2], "spleen": [3], "stomach": [4]}
    (heading, *lines), refused = radiomics_table(image, label, (1.0, 2.0, 3.0), structures)
    found = {line[0]: dict(zip(heading, line, strict=True)) for line in lines}
    assert list(found) == ["liver", "both"] and list(refused) == ["spleen"], "one voxel is refused, none is left out"
    assert float(found["liver"]["original_shape_VoxelVolume"]) == 8 * 10 * 6 * 6
    assert float(found["both"]["original_shape_VoxelVolume"]) == (8 + 6) * 10 * 6 * 6
    mean = image[label == 1].mean()
    assert float(found["liver"]["original_firstorder_Mean"]) == pytest.approx(mean, rel=1e-4)
    assert float(found["liver"]["original_shape_Maximum3DDiameter"]) == pytest.approx(
        np.linalg.norm([7 * 1, 9 * 2, 5 * 3]), rel=0.1
    )
