"""Curves of a training."""

import math

from mambamim_nets.bundle.visualize.planes import figure_array
from mambamim_nets.bundle.visualize.training import curves_figure


def test_each_panel_has_its_curves_without_what_is_not_finite():
    panels = {
        "loss": {"train_loss": [(1, 0.5), (2, math.nan), (3, 0.25)]},
        "Dice": {"liver": [(2, 0.5)], "$x": [(2, 0.25)]},
        "nothing": {"never": [(1, math.nan)]},
    }
    figure = curves_figure(panels, "a_run")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "Dice"]
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[1, 0.5], [3, 0.25]]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["liver", "$x"]
    picture = figure_array(figure)
    assert picture.shape[2] == 3 and picture.std() > 0


def test_long_names_are_not_cut_off():
    name = "portal vein and splenic vein of the left side"
    figure = curves_figure({"Dice": {name: [(1, 0.5)], "liver": [(1, 0.25)]}})
    figure_array(figure)
    legend = figure.axes[0].get_legend()
    assert " ".join(legend.get_texts()[0].get_text().split()) == name
    assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_a_run_without_values_is_an_empty_picture():
    assert curves_figure({}).axes == []
