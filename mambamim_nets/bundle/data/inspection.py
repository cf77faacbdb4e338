"""Read one image, all of it, and say what is wrong with it and what to look at."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from mambamim_nets.bundle.data.duplicates import voxel_digest
from mambamim_nets.bundle.data.memory import reading_refusal
from mambamim_nets.bundle.io.headers import (
    AFFINE_ERROR,
    UNORIENTED,
    assumed,
    axes_affine,
    corners_apart,
    length_problem,
)
from mambamim_nets.bundle.io.scan_formats import read_header

__all__ = ["AS_READ", "Inspection", "Volume", "image_problems", "inspect_image", "read_volume"]


FLOAT32_MAX = float(np.finfo(np.float32).max)
FEWEST_STEPS = 16  # of float32 between the lowest and the highest value: fewer are no image any more
AS_READ = "as read"  # in the place of axes: those that nibabel assumes


class Volume(NamedTuple):
    """Voxels of an image as stored, D x H x W or with channels on a fourth axis, and its affine to RAS mm."""

    data: np.ndarray
    affine: np.ndarray


class Inspection(NamedTuple):
    """What reading an image found: the shape of its grid and its affine (None where unknown), and lines about it.

    `digests`: of its files, where they were wanted and there is no problem; see `duplicates.voxel_digest`.
    """

    grid: tuple[tuple[int, ...], np.ndarray] | None
    problems: list[str]
    warnings: list[str]
    digests: list[str]


def inspect_image(
    image: str | Sequence[str],
    in_channels: int,
    axes: str | None = None,
    digest: bool = False,
    visit: Callable[[Volume], object] | None = None,
) -> Inspection:
    """Read one image, all of it, and judge it.

    Args:
        image: path, or one path per channel.
        in_channels: of the network.
        axes: where the axes of files point that do not say so themselves, such as "RAS"; None: that is a problem.
        digest: whether digests are wanted; they are given where there is no problem.
        visit: is called with the volume of each file that is sound, so that it need not be read again.
    """
    paths = [image] if isinstance(image, (str, os.PathLike)) else list(image)
    if len(paths) > 1 and len(paths) != in_channels:
        line = (
            f"{paths[0]}: the image has {len(paths)} files, but in_channels is {in_channels}; list one file per "
            "channel, or set in_channels"
        )
        return Inspection(None, [line], [], [])
    problems: list[str] = []
    warnings: list[str] = []
    digests: list[str] = []
    grid = None
    for path in paths:
        volume, found, looks = read_volume(path, axes)
        problems += found
        warnings += looks
        if volume is None:
            continue
        found = image_problems(path, volume, in_channels, alone=len(paths) == 1)
        problems += found
        if found:
            continue
        if digest:
            digests.append(voxel_digest(volume.data))
        if visit is not None:
            visit(volume)
        shape = volume.data.shape[:3]
        if grid is None:
            grid = (shape, volume.affine)
        elif shape != grid[0]:
            problems.append(
                f"{path}: shape {shape} must equal the first channel's, {grid[0]}; resample the channels to one grid"
            )
        elif (distance := corners_apart(grid[1], volume.affine, shape)) > AFFINE_ERROR:
            problems.append(
                f"{path}: corners lie {distance:.3g} voxels from the first channel's, but affines must agree; resample "
                "the channels to one grid"
            )
    return Inspection(grid, problems, warnings, [] if problems else digests)


def image_problems(path: str, volume: Volume, in_channels: int, alone: bool) -> list[str]:
    """Return what is wrong with a volume that could be read, as at most one line.

    Args:
        path: of its file, for the line.
        volume: as read.
        in_channels: of the network.
        alone: whether it is the only file of its image, and so must hold all channels.
    """
    data, affine = volume
    shape = data.shape
    if in_channels > 1 and alone:
        if len(shape) != 4:
            return [
                f"{path}: shape {shape} must be 4-D with in_channels {in_channels} as its last axis; give one file per "
                "channel, or set in_channels 1"
            ]
        if shape[3] != in_channels:
            return [
                f"{path}: the image has {shape[3]} channels, but in_channels is {in_channels}; choose the channels, or "
                "set in_channels"
            ]
    elif len(shape) != 3:
        return [f"{path}: shape {shape} must be 3-D; extract one volume from it"]
    if not data.size:
        return [f"{path}: shape {shape} must have voxels on every axis; export it again"]
    if data.dtype.kind not in "biuf":
        return [f"{path}: voxel type {data.dtype} must be a real number; convert it to grey values"]
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        return [f"{path}: affine {affine[:3].round(3).tolist()} must be finite and invertible; repair the header"]
    with np.errstate(invalid="ignore"):
        # NaN and infinity pass through to one of them
        lowest, highest = data.min(axis=(0, 1, 2)), data.max(axis=(0, 1, 2))
    if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
        count = int(data.size - np.isfinite(data).sum())
        return [f"{path}: {count} of {data.size} voxels are NaN or infinite; replace them, or leave the file out"]
    extreme = float(max(abs(float(value)) for value in (*np.ravel(lowest), *np.ravel(highest))))
    if extreme > FLOAT32_MAX:
        return [f"{path}: values up to {extreme:.3g} must lie within {FLOAT32_MAX:.2g} (float32); rescale the image"]
    constant = np.flatnonzero(lowest == highest)
    if constant.size:
        where = f" in channel {constant.tolist()}" if len(shape) == 4 else ""
        return [f"{path}: every voxel is {np.ravel(lowest)[constant[0]]:g}{where}, so it is empty; leave the file out"]
    finest = np.maximum(np.abs(lowest), np.abs(highest)) * float(np.finfo(np.float32).eps)
    blurred = np.flatnonzero(highest.astype(float) - lowest.astype(float) < FEWEST_STEPS * finest)
    if blurred.size:
        low, high = (np.ravel(values)[blurred[0]] for values in (lowest, highest))
        return [
            f"{path}: values from {low:.9g} to {high:.9g} must differ by at least {FEWEST_STEPS} steps of float32, or"
            " rounding loses the image; take the offset away (scl_inter of the header, or of the values)"
        ]
    return []


def read_volume(path: str, axes: str | None = None) -> tuple[Volume | None, list[str], list[str]]:
    """Read a volume; return None, with the problems, where that cannot be done, and what to look at."""
    if not os.path.isfile(path):
        return None, [f"{path} is missing; complete the download or correct the list"], []
    try:
        image = nib.load(path)
        if not isinstance(image, SpatialImage):
            return None, [f"{path} must be a volume and is a {type(image).__name__}; convert it to NIfTI"], []
        header = read_header(path)
        problems, warnings = [f"{path}: {line}" for line in header.problems], [f"{path}: {w}" for w in header.warnings]
        affine = np.asarray(image.affine, dtype=float)
        if not header.oriented and axes is not None:
            if axes != AS_READ:
                affine = axes_affine(axes, header)
            warnings.append(f"{path}: {assumed(''.join(nib.aff2axcodes(affine)), header)}")
        elif not header.oriented and not problems:
            problems.append(f"{path}: {UNORIENTED}")
        if not problems and (refusal := reading_refusal(header)):
            problems.append(f"{path}: {refusal}")
        if problems:
            return None, problems, warnings
        image, held = _whole(path, image)
        volume = Volume(np.asanyarray(image.dataobj), affine)
        if surplus := length_problem(held, header):
            return None, [f"{path}: {surplus}"], warnings
    except Exception as error:  # whatever a reader raises on a broken file is the finding
        reason = " ".join(str(error).split()) or "no reason given"
        line = f"{path} cannot be read as NIfTI ({type(error).__name__}, {reason[:200]}); copy or download it again"
        return None, [line], []
    return volume, [], warnings


def _whole(path: str, image: Any) -> tuple[Any, int]:
    """Return an image as read from the whole of its file, and how many bytes that holds, 0 where it does not matter.

    The checksum of gzip lies at the end of a file, which nibabel does not read.
    """
    if not path.endswith(".nii.gz"):
        return image, os.path.getsize(path) if path.endswith(".nii") else 0
    with gzip.open(path) as file:
        content = file.read()
    return type(image).from_bytes(content), len(content)
