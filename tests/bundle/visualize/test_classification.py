"""Pictures of where a network looked."""

import numpy as np
import pytest

from mambamim_nets.bundle.visualize.classification import saliency_figure


def test_pictures_cut_the_highest_value():
    image, heat = np.random.default_rng(0).random((2, 24, 30, 20), np.float32)
    heat[:] = 0
    heat[5, 20, 11] = 1
    titles = [axis.get_title() for axis in saliency_figure(image, heat).axes]
    assert titles == ["axial 12/20", "coronal 21/30", "sagittal 6/24"]
    without = saliency_figure(image, heat * 0, "nothing", "speaks for AD", (3, 3, 3)).axes
    assert without[0].get_title() == "axial 11/20" and without[0].get_ylabel() == "speaks for AD"
    with pytest.raises(ValueError, match="must have the shape of image"):
        saliency_figure(image, heat[1:])
