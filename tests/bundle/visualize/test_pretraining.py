"""Reconstructions: one window for all panels, what is hidden, what the network was given."""

import numpy as np
from figures import SHAPE, panels, scan, texts

from mambamim_nets.bundle.visualize.pretraining import reconstruction_figure


def test_reconstruction_panels_share_a_window_and_hide_in_grey():
    visible = np.zeros(SHAPE, bool)
    visible[7:] = True
    figure = reconstruction_figure(scan(), visible, 10 * scan(1), title="epoch 3")
    axes = panels(figure)
    assert len(axes) == 9
    assert len({axis.images[0].get_clim() for axis in axes}) == 1
    cover = np.asarray(axes[1].images[1].get_array())
    assert (cover[:, :6, 3] == 0).all()  # right side is kept, and drawn on the left
    assert (cover[:, 6:, 3] == 1).all()
    assert f"visible ({100 * 6 / 13:.0f} %)" in texts(figure) and "epoch 3" in texts(figure)


def test_a_reconstruction_shows_what_the_network_was_given():
    figure = reconstruction_figure(scan(), np.ones(SHAPE, bool), scan(1), given=scan(2))
    first = figure.axes[:3]
    assert [axis.get_title() for axis in first] == ["input", "distorted", "rebuilt"]
    shown = [axis.images[0].get_array() for axis in first]
    assert not np.array_equal(shown[0], shown[1]) and not np.array_equal(shown[1], shown[2])
