"""From a scan to a stored volume: grid, type, foreground, and what is odd."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from store_files import SPACING, write_scan

from mambamim_nets.bundle.data.store import QUANTILES, Recipe
from mambamim_nets.prepare.decide import modality, prepared

RECIPE = Recipe(tuple(SPACING))


def scan_of(values, spacing=(2.0, 2.0, 2.0)):
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(torch.as_tensor(values, dtype=torch.float32)[None], affine=affine)


def noise(low, high, shape=(30, 34, 28), seed=0):
    return np.random.default_rng(seed).uniform(low, high, shape)


def test_ct_is_int16_in_hu_cropped_to_the_body():
    values = np.full((40, 44, 30), -1000.0)
    values[5:33, 6:40, 2:27] = noise(-80, 250, (28, 34, 25))
    array, line = prepared(scan_of(values), None, RECIPE)
    assert array.dtype == np.int16 and array.shape == (28, 34, 25) == tuple(line["shape"])
    assert line["box"] == [[5, 6, 2], [33, 40, 27]] and line["scale"] == 1.0 and line["modality"] == "CT"
    np.testing.assert_allclose(array, values[5:33, 6:40, 2:27], atol=0.51)
    assert np.asarray(line["affine"])[:3, 3].tolist() == [10.0, 12.0, 4.0]
    assert line["foreground"] == pytest.approx(28 * 34 * 25 / values.size, abs=1e-4)
    np.testing.assert_allclose(line["quantiles"], np.percentile(values, QUANTILES), atol=1e-3)


@pytest.mark.parametrize("highest", [2e-4, 1.0, 900.0, 1.7e6], ids=str)
def test_mr_is_float16_whatever_its_units(highest):
    values = np.zeros((40, 40, 40))
    values[5:35, 5:35, 5:35] = noise(highest / 50, highest, (30, 30, 30))
    array, line = prepared(scan_of(values), None, RECIPE)
    assert array.dtype == np.float16 and array.shape == (30, 30, 30) and line["modality"] == "MR"
    assert np.log2(line["scale"]) % 1 == 0 and 8192 <= array.max() <= 65504
    back = array.astype(np.float32) * line["scale"]
    np.testing.assert_allclose(back, values[5:35, 5:35, 5:35], rtol=6e-4)
    inside = values[values != 0]
    assert line["mean"] == pytest.approx(inside.mean(), rel=1e-3) and line["std"] == pytest.approx(
        inside.std(), rel=1e-3
    )


def test_orientation_and_spacing_are_those_of_the_store(tmp_path):
    image = nib.load(write_scan(tmp_path / "scan.nii.gz", shape=(40, 44, 36), spacing=(1.0, 3.0, 2.5)))
    scan = MetaTensor(torch.from_numpy(image.get_fdata(dtype=np.float32)[None]), affine=torch.from_numpy(image.affine))
    array, line = prepared(scan, None, RECIPE)
    affine = np.asarray(line["affine"])
    assert nib.aff2axcodes(affine) == ("R", "A", "S") and np.allclose(np.diag(affine)[:3], SPACING)
    assert line["spacing"] == [1.0, 3.0, 2.5]
    # a voxel of the middle, by its place in the world
    place = affine @ [*(side // 2 for side in array.shape), 1]
    i, j, k = np.rint((np.linalg.inv(image.affine) @ place)[:3]).astype(int)
    around = np.asarray(image.dataobj)[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2]
    assert around.min() <= array[tuple(side // 2 for side in array.shape)] <= around.max()


@pytest.mark.parametrize(
    ("said", "intensity", "low", "expected"),
    [
        (None, "ct_or_mr", -1000, "CT"),
        (None, "ct_or_mr", -400, "MR"),
        ("PT", "ct_or_mr", -1000, "PT"),
        ("MR", "ct", 0, "CT"),
        (None, "mr", -1000, "MR"),
    ],
)
def test_the_modality_is_said_or_seen(said, intensity, low, expected):
    assert modality(said, np.array([low, 100.0]), Recipe(tuple(SPACING), intensity)) == expected


@pytest.mark.parametrize(
    ("finding", "values", "spacing", "said"),
    [
        ("coarse", noise(1, 900), (2.0, 2.0, 6.0), None),
        ("thin", noise(1, 900, (40, 40, 12)), (2.0, 2.0, 2.0), None),
        ("few_values", noise(1, 900).round(-2), (2.0, 2.0, 2.0), None),
        ("intensity", noise(0, 900), (2.0, 2.0, 2.0), "CT"),
        ("clipped", noise(-900, 40000), (2.0, 2.0, 2.0), "CT"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_odd_is_found(finding, values, spacing, said):
    array, line = prepared(scan_of(values, spacing), said, RECIPE)
    assert set(line["findings"]) == {finding} and line["findings"][finding]
    assert prepared(scan_of(noise(1, 900)), None, RECIPE).line["findings"] == {}
    assert np.isfinite(array.astype(np.float32)).all()


def test_a_nearly_empty_scan_is_found_and_an_empty_one_refused():
    values = np.full((60, 60, 60), -1000.0)
    values[::2] += 1
    with pytest.raises(ValueError, match="no voxel is above -500 HU"):
        prepared(scan_of(values), None, RECIPE)
    values[20:28, 20:28, 20:28] = noise(0, 200, (8, 8, 8))
    assert "nearly_empty" in prepared(scan_of(values), None, RECIPE).line["findings"]
