"""Paint one synthetic subject of any kind and look its image and label up in the painted tissues."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from mambamim_nets.phantom.canvas import Canvas
from mambamim_nets.phantom.kinds import KINDS, label_of

__all__ = ["Shape", "Spacing", "Subject", "Tissues", "complete_grid", "landmarks", "make", "tissues"]

Shape = Sequence[int] | None
Spacing = Sequence[float] | float | None


class Subject(NamedTuple):
    """Image float32 (D, H, W) or (D, H, W, 4), label uint8 (D, H, W), affine float64 (4, 4) to RAS mm."""

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray


class Tissues(NamedTuple):
    """Tissue uint8 (D, H, W), name -> its value there, label uint8 (D, H, W), affine float64 (4, 4) to RAS mm."""

    tissue: np.ndarray
    names: dict[str, int]
    label: np.ndarray
    affine: np.ndarray


def _labels(canvas: Canvas, kind: str) -> np.ndarray:
    """Look the label of every voxel up by the name of its tissue."""
    values = {name: value for value, name in KINDS[kind].labels.items()}
    return np.array([values.get(label_of(tissue, values), 0) for tissue in canvas.index], np.uint8)[canvas.tissue]


def complete_grid(kind: str, shape: Shape, spacing: Spacing) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Check shape and spacing, and derive what is not given from the field of view of the kind.

    Args:
        kind: one of KINDS.
        shape: (D, H, W) in voxels, or None.
        spacing: mm per axis, one number for all axes, or None.

    Returns:
        Shape and spacing of the three axes.

    Raises:
        ValueError: on an unknown kind, or a shape or spacing out of range.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    default, side, least = KINDS[kind].shape, KINDS[kind].spacing, KINDS[kind].least
    view = np.array(default) * side
    if spacing is not None:
        spacing = tuple(float(s) for s in np.atleast_1d(spacing))
        spacing = spacing * 3 if len(spacing) == 1 else spacing
        if len(spacing) != 3 or not all(0.3 <= s <= 12 for s in spacing):
            raise ValueError(f"spacing {spacing} must be 1 or 3 lengths of 0.3 to 12 mm; leave it out for {side} mm")
    if shape is None:
        shape = default if spacing is None else tuple(int(n) for n in np.rint(view / spacing))
    shape = tuple(int(n) for n in shape)
    if len(shape) != 3 or not all(least <= n <= 512 for n in shape):
        raise ValueError(
            f"shape {shape} of a {kind!r} subject must have three axes of {least} to 512 voxels; try {default}"
        )
    return shape, spacing or tuple(float(s) for s in view / shape)


def make(kind: str, seed: int, shape: Shape = None, spacing: Spacing = None) -> Subject:
    """Make one synthetic subject; the same arguments give the same arrays.

    Args:
        kind: one of KINDS. "abdomen" carries the 13 BTCV labels; "spleen", "pancreas" and "hepatic_vessel" are other
            subjects of the same body with the Decathlon labels of those tasks, "kits" with tumours and cysts in the
            kidneys; "amos" reaches down to the hips and carries the 15 AMOS22 labels; "ctorg" reaches from the hips to
            the crown, with the 6 CT-ORG labels; "brain" is skull-stripped, with BraTS labels and the channels flair,
            t1ce, t1, t2 last; "hippocampus" is a crop of varying shape and scale; "dementia" is a skull-stripped
            T1-like brain with atrophy as in its diagnosis; "fetal" is a skull-stripped brain before birth, turned
            by up to 30 degrees about any axis, whose points `landmarks` returns.
        seed: 0 or above. Of "amos", seeds 4, 9, 14, ... are MR-like, all others CT-like. Of "dementia", seeds 0, 1,
            2, 3, 4, ... have the diagnoses NC, AD, sMCI, pMCI, NC, ...
        shape: (D, H, W) in voxels. Alone it keeps the field of view and changes the spacing; on coarse grids small
            organs may vanish.
        spacing: mm per axis or one number. Alone it keeps the field of view and changes the shape.

    Returns:
        Subject: image float32 (D, H, W) or (D, H, W, 4), in HU or arbitrary MR units; label uint8; affine to RAS mm.

    Raises:
        ValueError: on an unknown kind, a negative seed, or a shape or spacing out of range.
    """
    rng, canvas, affine = _subject(kind, seed, shape, spacing)
    image = KINDS[kind].image(rng, canvas, seed)
    return Subject(image.astype(np.float32), _labels(canvas, kind), affine)


def landmarks(kind: str, seed: int) -> dict[str, np.ndarray]:
    """Return the points of the subject that `make` makes of these arguments, on any grid.

    Args:
        kind: one of KINDS; all but "fetal" have no points, {}.
        seed: as in `make`.

    Returns:
        Name to (3,) float64, exact, in RAS mm.
    """
    points = KINDS[kind].points
    return {} if points is None else points(_random(kind, seed))


def _random(kind: str, seed: int) -> Generator:
    return np.random.default_rng([KINDS[kind].stream, seed])


def tissues(kind: str, seed: int, spacing: Spacing = None) -> Tissues:
    """Return the tissues of one synthetic subject, on which `make` with the same arguments looks its intensities up.

    Args:
        kind: as in `make`.
        seed: as in `make`.
        spacing: as in `make`.

    Returns:
        Tissues: the map, the value of each tissue's name in it, the label and the affine of the same subject.

    Raises:
        ValueError: as in `make`.
    """
    _, canvas, affine = _subject(kind, seed, None, spacing)
    return Tissues(canvas.tissue, dict(canvas.index), _labels(canvas, kind), affine)


def _subject(kind: str, seed: int, shape: Shape, spacing: Spacing) -> tuple[Generator, Canvas, np.ndarray]:
    """Paint the tissues of a subject; return its source of randomness, where painting left it, canvas and affine."""
    chosen, spaced = complete_grid(kind, shape, spacing)
    if seed < 0:
        raise ValueError(f"seed {seed} must be 0 or above")
    rng = _random(kind, seed)
    draw_shape = KINDS[kind].draw_shape
    if draw_shape is not None and shape is None:
        chosen = draw_shape(rng, spaced)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(chosen, spaced, strict=True)]
    canvas = KINDS[kind].paint(rng, axes, seed)
    affine = np.diag((*spaced, 1.0))
    affine[:3, 3] = [axis[0] for axis in axes]
    return rng, canvas, affine
