"""What of a scan lies outside of what training saw: field of view, spacing, volumes."""

import numpy as np
import pytest

from mambamim_nets.bundle.data.plausibility import extent, range_objections, volume_objections

SEEN = {
    "field_of_view_mm": [[30.0, 40.0, 24.0], [45.0, 60.0, 48.0]],
    "spacing_mm": [1.0, 1.2],
    "volumes_ml": {"anterior": [1.0, 2.5], "tumour": [0.0, 100.0]},
}


def test_a_border_of_zeros_is_no_part_of_the_field_of_view():
    values = np.zeros((10, 12, 9))
    values[2:5, 3:11, 8] = -1
    np.testing.assert_allclose(extent(values.shape, (1.0, 2.0, 3.0), values), (3, 16, 3))
    np.testing.assert_allclose(extent(values.shape, (1.0, 2.0, 3.0)), (10, 24, 27))
    assert not extent(values.shape, (1.0, 2.0, 3.0), np.zeros_like(values)).any()


@pytest.mark.parametrize(
    ("lengths", "spacing", "words"),
    [
        ((35.0, 50.0, 36.0), (1.0, 1.0, 1.0), []),
        ((25.0, 33.0, 59.0), (0.3, 0.3, 1.7), []),
        ((170.0, 50.0, 36.0), (1.0, 1.0, 1.0), ["170 mm from right to left, in training 30 to 45 mm"]),
        ((35.0, 50.0, 10.0), (1.0, 1.0, 1.0), ["10 mm from foot to head, in training 24 to 48 mm"]),
        ((35.0, 50.0, 36.0), (1.0, 1.0, 3.0), ["voxels of up to 3 mm, in training 1.2 mm"]),
        ((200.0, 220.0, 190.0), (1.0, 1.0, 1.0), ["right to left", "front to back", "foot to head"]),
    ],
)
def test_what_training_did_not_see_is_named(lengths, spacing, words):
    found = range_objections(SEEN, lengths, spacing)
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found, strict=True))


def test_volumes_of_five_times_as_much_or_a_fifth_are_named():
    assert not volume_objections(SEEN, {"anterior": 12.4, "tumour": 0.0})
    assert not volume_objections(SEEN, {"anterior": 0.21, "tumour": 499.0})
    (large,) = volume_objections(SEEN, {"anterior": 500.0, "tumour": 3.0})
    assert large == "anterior of 500 ml is not plausible: in training 1 to 2.5 ml"
    assert len(volume_objections(SEEN, {"anterior": 0.0, "tumour": 501.0})) == 2


def test_weights_that_say_nothing_know_everything():
    assert not range_objections({}, (1e3, 1e3, 1e3), (9.0, 9.0, 9.0)) and not volume_objections({}, {"liver": 1e6})
