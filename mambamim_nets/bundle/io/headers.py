"""What the header of a volume says about its grid, and what is wrong with it.

Readers repair headers without a word: nibabel takes the absolute value of a negative spacing, 1 for 0 and guessed axes
where a file has none, MONAI another matrix where two disagree, ITK 1 mm for a spacing that is missing. Each of these
changes what a network sees, so `nifti` and `itk_files` read the fields as they stand in the file, before a reader has
them. Voxels are not read.

Glossary
    axes: where the voxels' axes point, one letter each, R or L, A or P, S or I; RAS: right, anterior, superior.
    oriented: the file itself says where its axes point.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

__all__ = [
    "AFFINE_ERROR",
    "UNORIENTED",
    "Header",
    "assumed",
    "axes_affine",
    "checked_axes",
    "corners_apart",
    "judged",
    "length_problem",
    "spacing_problem",
]

AFFINE_ERROR = 0.1  # of a voxel's smallest edge, at a corner of the volume
SPACING_RANGE = (0.01, 50.0)  # mm: from microscopes to slices of a scout
PADDING = 512  # bytes that may follow the voxels: a block of a tape
AXES = ("RL", "AP", "SI")  # the first letter of each is the positive direction in RAS mm
UNORIENTED = (
    "no sform, qform or direction in the header, which must say where the axes of its voxels point; write the header;"
    " for inference, give --assume_axes with what is true of them, such as RAS"
)


class Header(NamedTuple):
    """What a header says.

    Attributes:
        shape: of the voxels, with the channels of a file of several as the last axis; () where unknown.
        spacing: of the first three axes, mm.
        oriented: whether the file says where its axes point.
        itemsize: bytes of a voxel once it is read, before it is cast to float32.
        length: bytes of the whole file before compression; 0 where unknown.
        problems: what forbids to use the file; `rule: remedy`, without its name.
        warnings: what a person should look at.
    """

    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    oriented: bool = True
    itemsize: int = 4
    length: int = 0
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def checked_axes(axes: str | None) -> str | None:
    """Return the letters of axes in capitals; None for None.

    Raises:
        ValueError: they are not one each of R or L, A or P, S or I.
    """
    if axes is None:
        return None
    letters = str(axes).upper()
    if len(letters) != 3 or not all(sum(letter in pair for letter in letters) == 1 for pair in AXES):
        raise ValueError(
            f"assume_axes {axes!r} must be three letters, one each of R or L, A or P, S or I, that say where the axes"
            " of the voxels point; such as RAS or LPS"
        )
    return letters


def axes_affine(axes: str, header: Header) -> np.ndarray:
    """Return the affine (4, 4), RAS mm, of voxels along these axes, with the middle of the volume at the origin."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (letter, edge) in enumerate(zip(axes, header.spacing, strict=True)):
        row = next(row for row, pair in enumerate(AXES) if letter in pair)
        affine[row, column] = edge if letter == AXES[row][0] else -edge
    affine[:3, 3] = -affine[:3, :3] @ (np.array(header.shape[:3]) - 1) / 2
    return affine


def assumed(axes: str, header: Header) -> str:
    """Return the warning about a file that does not name its axes, and whose axes are assumed."""
    edges = " x ".join(f"{edge:g}" for edge in header.spacing)
    return f"no orientation in the header: axes taken as {axes}, spacing {edges} mm"


def corners_apart(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest distance of a volume corner under two affines, in units of the smallest voxel edge."""
    corners = np.array([(*corner, 1.0) for corner in product(*((0, n - 1) for n in shape[:3]))])
    distance = np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max()
    return float(distance / np.linalg.norm(first[:3, :3], axis=0).min())


def judged(header: Header) -> Header:
    """Add to a header without problems what is wrong with its spacing."""
    problem = "" if header.problems else spacing_problem(header.spacing)
    return header._replace(problems=(problem,)) if problem else header


def spacing_problem(spacing: Sequence[float]) -> str:
    """Return what is wrong with a spacing in mm, with its rule and remedy, or ""."""
    rounded = [float(f"{edge:.6g}") for edge in spacing]
    if not all(edge > 0 and np.isfinite(edge) for edge in spacing):  # NaN too
        return f"spacing {rounded} mm must be above 0 on every axis; repair the header"
    low, high = SPACING_RANGE
    if not all(low <= edge <= high for edge in spacing):
        return f"spacing {rounded} mm must lie between {low:g} and {high:g} mm; repair the header"
    return ""


def length_problem(held: int, header: Header) -> str:
    """Return what is wrong with a file of more bytes before compression than its dimensions account for, or ""."""
    if not header.length or held <= header.length + PADDING:
        return ""
    return (
        f"{held} bytes, dimensions {list(header.shape)} account for {header.length}, and must agree;"
        " export the file again"
    )
