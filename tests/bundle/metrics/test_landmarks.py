"""Tables and pictures of landmark errors."""

import csv

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from mambamim_nets.bundle.metrics.landmarks import THRESHOLDS, LandmarkCase, LandmarkTable, length_mm
from mambamim_nets.bundle.visualize.landmarks import landmark_figure, sdr_figure

NAMES, LENGTHS = ["a", "b", "c"], {"AB": ["a", "b"]}
TRUTH = np.array([(0.0, 0, 0), (10, 0, 0), (0, 5, 0)])


@pytest.fixture
def table():
    made = LandmarkTable(NAMES, LENGTHS)
    made.add("one", LandmarkCase(TRUTH + np.array((0, 0, 1)), TRUTH, np.ones(3)))
    moved = TRUTH + np.array([(0, 0, 0), (3, 0, 0), (0, 4, 0)])
    made.add("two", LandmarkCase(moved, np.where([[True], [True], [False]], TRUTH, np.nan), np.array((1, 0.5, 0.1))))
    return made


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_tables_hold_what_was_measured(table, tmp_path):
    text = table.write(tmp_path)
    errors = {(row["case"], row["name"]): float(row["error_mm"]) for row in rows(tmp_path / "metrics.csv")}
    assert errors[("one", "c")] == 1 and errors[("two", "b")] == 3 and np.isnan(errors[("two", "c")])
    lengths = {row["case"]: row for row in rows(tmp_path / "lengths.csv")}
    assert [float(lengths["two"][key]) for key in ("predicted_mm", "reference_mm", "error_mm")] == [13, 10, 3]
    assert float(lengths["one"]["error_mm"]) == 0
    summary = {(row["name"], row["metric"]): row for row in rows(tmp_path / "summary.csv")}
    assert summary[("c", "radial_error_mm")]["n"] == "1", "a missing point is counted nowhere"
    mean = summary[("mean", "radial_error_mm")]
    assert float(mean["mean"]) == pytest.approx((1 + 1.5) / 2)
    assert float(mean["std"]) == pytest.approx(np.std([1, 1.5], ddof=1), abs=1e-6)
    assert float(summary[("AB", "length_error_mm")]["mean"]) == 1.5
    assert "| **mean** | 1.25 ± 0.35 (1.25; 2) | 80 % | 80 % | 100 % |" in text


def test_detection_rates_go_from_0_to_6_mm_in_tenths(table, tmp_path):
    rates = table.detection_rates()
    assert len(THRESHOLDS) == 61 and THRESHOLDS[10] == pytest.approx(1) and list(rates) == [*NAMES, "mean"]
    assert rates["mean"][9] == pytest.approx(0.2) and rates["mean"][10] == pytest.approx(0.8)
    assert rates["b"][29] == 0.5 and rates["b"][30] == 1
    assert all((np.diff(rate) >= 0).all() for rate in rates.values())
    table.write(tmp_path)
    assert [row["threshold_mm"] for row in rows(tmp_path / "sdr.csv")][:3] == ["0.0", "0.1", "0.2"]
    (axis,) = sdr_figure(rates, "2 cases").axes
    drawn = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert list(drawn) == [*NAMES, "all points"] and drawn["all points"][10] == pytest.approx(80)


def test_what_does_not_fit_is_refused(table):
    with pytest.raises(ValueError, match="no case was added"):
        LandmarkTable(NAMES, LENGTHS).write("nowhere")
    with pytest.raises(ValueError, match=r"case 'x': points \(2, 3\), \(3, 3\) must be \(3, 3\)"):
        table.add("x", LandmarkCase(TRUTH[:2], TRUTH, np.ones(3)))


@pytest.mark.parametrize("codes", ["RAS", "LPI"])
def test_crosses_are_drawn_where_the_points_are(codes):
    """An image with one bright voxel: in every plane the cross of its point lies on it, however the scan is stored."""
    affine = torch.diag(torch.tensor((2.0, 3.0, 2.5, 1.0), dtype=torch.double))
    if codes == "LPI":
        affine = affine @ torch.diag(torch.tensor((-1.0, -1.0, -1.0, 1.0), dtype=torch.double))
    image = MetaTensor(torch.zeros(1, 20, 24, 30), affine=affine)
    image[0, 5, 15, 9] = 1
    bright = (affine @ torch.tensor((5.0, 15, 9, 1), dtype=torch.double))[:3].numpy()
    figure = landmark_figure(image, np.stack([bright, bright]), ["a", "b"], {"AB": ["a", "b"]})
    panels = [axis for axis in figure.axes if axis.images]
    assert len(panels) == 6
    for axis in panels:
        picture = np.asarray(axis.images[0].get_array())
        left, right, bottom, top = axis.images[0].get_extent()
        row, column = np.unravel_index(picture.argmax(), picture.shape)
        assert picture.max() == 1
        x = left + (column + 0.5) / picture.shape[1] * (right - left)
        y = top - (row + 0.5) / picture.shape[0] * (top - bottom)
        (line,) = axis.lines
        np.testing.assert_allclose(line.get_xydata(), [(x, y)] * 2, atol=1e-4)
    assert length_mm(np.stack([bright, bright + np.array((3, 4, 0))]), ["a", "b"], ["a", "b"]) == pytest.approx(5)
