"""The kind "brain": stripped, and a tumour that each channel shows in its own way."""

import numpy as np

from mambamim_nets import phantom


def test_brain_is_stripped_and_its_channels_show_the_tumour_as_named():
    image, label, _ = phantom.make("brain", 1)
    flair, t1ce, t1, t2 = np.moveaxis(image, -1, 0)
    outside = (image == 0).all(-1)
    assert 0.4 < outside.mean() < 0.9 and not label[outside].any()
    healthy = ~outside & (label == 0)
    assert flair[label == 2].mean() > 1.3 * np.median(flair[healthy])
    assert t1ce[label == 4].mean() > 1.3 * np.median(t1ce[healthy])
    assert t1[label == 1].mean() < 0.8 * np.median(t1[healthy])
    assert t2[label == 1].mean() > 1.3 * np.median(t2[healthy])
