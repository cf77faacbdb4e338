"""The canvas: balls swept along paths, what they may replace, and smooth random fields."""

import numpy as np
import pytest

from mambamim_nets.phantom.anatomy import Part
from mambamim_nets.phantom.canvas import Canvas

AXES = [np.arange(-20.0, 21.0, 2.0), np.arange(-16.0, 17.0, 2.0), np.arange(-12.0, 13.0, 2.0)]  # mm
X, Y, Z = np.meshgrid(*AXES, indexing="ij")


def drawn(*parts: Part, keep=()) -> Canvas:
    """Paint parts on a canvas that is not deformed, each where and as large as it says."""
    canvas = Canvas(np.random.default_rng(0), AXES, ("air", "fat", "bone"), size=20, bend=0, scale=0)
    canvas.fill("fat", X > 0)
    canvas.paint([part._replace(wobble=0) for part in parts], keep, shift=0, girth=0)
    return canvas


def test_a_ball_and_a_path_are_what_lies_within_their_radius():
    ball = drawn(Part("bone", [[(0, 0, 0, 7)]])).where("bone")
    np.testing.assert_array_equal(ball, X**2 + Y**2 + Z**2 < 49)
    along = drawn(Part("bone", [[(-10, 0, 0, 3), (10, 0, 0, 7)]])).where("bone")
    middle = (np.abs(X) < 1) & (np.abs(Z) < 1)  # where the radius is half way between both
    np.testing.assert_array_equal(along & middle, middle & (np.abs(Y) < 5))


def test_a_squashed_ball_is_wider_along_its_axis():
    found = drawn(Part("bone", [[(0, 0, 0, 5)]], squash=(2, 1, 1))).where("bone")
    np.testing.assert_array_equal(found, (X / 2) ** 2 + Y**2 + Z**2 < 25)


def test_a_mirrored_part_is_on_both_sides():
    found = drawn(Part("bone", [[(10, 4, 0, 5)]], mirror=True)).where("bone")
    assert found.any()
    np.testing.assert_array_equal(found, found[::-1])


@pytest.mark.parametrize(("only", "keep"), [(("fat",), ()), ((), ("air",))])
def test_a_part_replaces_only_what_it_may(only, keep):
    canvas = drawn(Part("bone", [[(0, 0, 0, 7)]], only=only), keep=keep)
    np.testing.assert_array_equal(canvas.where("bone"), (X > 0) & (X**2 + Y**2 + Z**2 < 49))
    assert canvas.where("air", "fat", "bone").all()


def test_waves_are_smooth_of_about_unit_variance_and_repeat_with_their_seed():
    axes = [np.linspace(-20, 20, 60)] * 3
    first, again, other = (
        Canvas(np.random.default_rng(seed), axes, ("air",), size=20, bend=0, scale=0).waves(12) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == (60, 60, 60) and 0.7 < first.std() < 1.3
    assert np.abs(np.diff(first, axis=0)).max() < 1.5 and np.abs(first - other).mean() > 0.5
