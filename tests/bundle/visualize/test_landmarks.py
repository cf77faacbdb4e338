"""Points over their scan, and curves of detection rates."""

import numpy as np
import pytest
import torch
from figures import panels, texts
from monai.data import MetaTensor

from mambamim_nets.bundle.metrics.landmarks import THRESHOLDS
from mambamim_nets.bundle.metrics.table import MEAN
from mambamim_nets.bundle.visualize.landmarks import landmark_figure, sdr_figure

NAMES, LENGTHS = ["a", "b"], {"width": ["a", "b"]}
POINTS = np.array([[10.0, 12.0, 14.0], [22.0, 12.0, 14.0]])


def drawn(affine, truth=None):
    image = MetaTensor(torch.rand(1, 20, 24, 18), affine=torch.tensor(affine))
    return landmark_figure(image, POINTS, NAMES, LENGTHS, "a case", truth)


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
    assert len(panels(figure)) == 6, "the whole scan, and what is around the points"
    for axis in panels(figure):
        picture = np.asarray(axis.images[0].get_array())
        left, right, bottom, top = axis.images[0].get_extent()
        row, column = np.unravel_index(picture.argmax(), picture.shape)
        assert picture.max() == 1
        x = left + (column + 0.5) / picture.shape[1] * (right - left)
        y = top - (row + 0.5) / picture.shape[0] * (top - bottom)
        (line,) = axis.lines
        np.testing.assert_allclose(line.get_xydata(), [(x, y)] * 2, atol=1e-4)


def test_the_legend_has_lengths_and_those_of_the_truth():
    assert "width   12.0 mm" in texts(drawn(np.eye(4)))
    shown = texts(drawn(np.eye(4), POINTS * [1.5, 1, 1]))
    assert "12.0 mm predicted (cross) / 18.0 mm true (circle)" in shown and "a case" in shown


def test_a_truth_that_is_missing_is_not_drawn():
    figure = drawn(np.eye(4), np.full((2, 3), np.nan))
    assert "12.0 mm predicted (cross) / nan mm true" in texts(figure)


def test_rates_are_curves_in_percent_with_their_mean_drawn_bold():
    rates = {"a": np.linspace(0, 1, len(THRESHOLDS)), MEAN: np.linspace(0, 0.5, len(THRESHOLDS))}
    figure = sdr_figure(rates, "rates")
    single, mean = figure.axes[0].lines
    assert single.get_ydata()[-1] == 100 and mean.get_ydata()[-1] == 50
    assert single.get_label() == "a" and mean.get_label() == "all points"
    assert mean.get_linewidth() > single.get_linewidth()
