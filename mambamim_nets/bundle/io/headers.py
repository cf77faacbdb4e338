"""What the header of a volume says about its grid, read as it stands in the file, and what is wrong with it.

Readers repair headers without a word: nibabel takes the absolute value of a negative spacing, 1 for 0 and guessed axes
where a file has none, MONAI another matrix where two disagree, ITK 1 mm for a spacing that is missing. Each of these
changes what a network sees, so the fields are read here before a reader has them. Voxels are not read.

Glossary
    axes: where the voxels' axes point, one letter each, R or L, A or P, S or I; RAS: right, anterior, superior.
    oriented: the file itself says where its axes point.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.data.utils import correct_nifti_header_if_necessary
from nibabel.nifti1 import Nifti1Header, Nifti1Pair
from nibabel.spatialimages import SpatialImage

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
    "read_header",
]


AFFINE_ERROR = 0.1  # of a voxel's smallest edge, at a corner of the volume
SPACING_RANGE = (0.01, 50.0)  # mm: from microscopes to slices of a scout
PADDING = 512  # bytes that may follow the voxels: a block of a tape
UNITS = {1: "metres", 3: "micrometres"}
AXES = ("RL", "AP", "SI")  # the first letter of each is the positive direction in RAS mm
DEFLATE = 1032  # times: what gzip can compress at most


class Header(NamedTuple):
    """What a header says.

    Args:
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
    """Say which axes are assumed of a file that does not name them."""
    edges = " x ".join(f"{edge:g}" for edge in header.spacing)
    return f"no orientation in the header: axes taken as {axes}, spacing {edges} mm"


def corners_apart(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """Return the largest distance of a volume corner under two affines, in units of the smallest voxel edge."""
    corners = np.array([(*corner, 1.0) for corner in product(*((0, n - 1) for n in shape[:3]))])
    distance = np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max()
    return float(distance / np.linalg.norm(first[:3, :3], axis=0).min())


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of a NIfTI, .mgz, .nrrd or .mha file, and judge its grid.

    Raises:
        Exception: whatever a reader raises on a file that is none of these.
    """
    name = str(path)
    if name.endswith(".nrrd"):
        header = _of_nrrd(name)
    elif name.endswith(".mha"):
        header = _of_mha(name)
    else:
        image: Any = nib.load(name)
        if not isinstance(image, SpatialImage):
            return Header()
        header = _of_nifti(image) if isinstance(image, Nifti1Pair) else _of_other(name, image)
    return judged(header)


def judged(header: Header) -> Header:
    """Add to a header without problems what is wrong with its spacing."""
    problem = "" if header.problems else _spacing_problem(header.spacing)
    return header._replace(problems=(problem,)) if problem else header


def _spacing_problem(spacing: Sequence[float]) -> str:
    rounded = [float(f"{edge:.6g}") for edge in spacing]
    if not all(edge > 0 and np.isfinite(edge) for edge in spacing):  # NaN too
        return f"spacing {rounded} mm: must be above 0 on every axis: repair the header"
    low, high = SPACING_RANGE
    if not all(low <= edge <= high for edge in spacing):
        return f"spacing {rounded} mm: must lie between {low:g} and {high:g} mm: repair the header"
    return ""


# --- NIfTI ----------------------------------------------------------------------------------------


def _of_nifti(image: Any) -> Header:
    holder = image.file_map.get("header", image.file_map["image"])
    with holder.get_prepare_fileobj("rb") as file:
        raw: Any = type(image).header_class.from_fileobj(file, check=False)
    shape = tuple(int(n) for n in image.shape)
    spacing = tuple(float(edge) for edge in raw["pixdim"][1:4])
    dtype = raw.get_data_dtype()
    slope, inter = (float(raw[field]) for field in ("scl_slope", "scl_inter"))
    scaled = np.isfinite(slope) and (slope, inter) not in ((0.0, inter), (1.0, 0.0))
    length = int(raw.get_data_offset()) + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    header = Header(shape, spacing, itemsize=8 if scaled else dtype.itemsize, length=length)
    problems = list(_field_problems(raw, slope, inter)) or list(_cut_short(image, header))
    if problems or len(shape) < 3:
        return header._replace(problems=tuple(problems))
    codes = {"sform": int(raw["sform_code"]), "qform": int(raw["qform_code"])}
    if not any(code > 0 for code in codes.values()):
        return header._replace(oriented=False)
    affine = np.asarray(image.affine, dtype=float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        line = f"affine {affine[:3].round(3).tolist()}: must be finite and invertible: repair the header"
        return header._replace(problems=(line,))
    header = header._replace(spacing=tuple(float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0)))
    return _compared(header, image, affine, codes)


def _field_problems(raw: Nifti1Header, slope: float, inter: float) -> Iterator[str]:
    dims = [int(n) for n in raw["dim"][1 : 1 + max(3, int(raw["dim"][0]))]]
    if not all(n > 0 for n in dims[: int(raw["dim"][0])]):
        yield f"dimensions {dims}: must be above 0: export the file again"
    spacing = [float(f"{edge:.6g}") for edge in raw["pixdim"][1:4]]
    if problem := _spacing_problem(spacing):
        yield f"pixdim, {problem}"
    if not (np.isfinite(slope) and np.isfinite(inter)):
        yield f"scl_slope {slope:g}, scl_inter {inter:g}: must be finite: repair the header or export the file again"
    units = int(raw["xyzt_units"]) & 7
    if units in UNITS:
        yield f"spacing in {UNITS[units]} (xyzt_units {units}): must be in mm: convert the header"


def _cut_short(image: Any, header: Header) -> Iterator[str]:
    """Say if a file must be shorter than its dimensions, so that they are not taken for a need of memory."""
    path = str(image.file_map["image"].filename)
    held = os.path.getsize(path)
    if held * (DEFLATE if path.endswith(".gz") else 1) < header.length:
        yield f"{held} bytes for dimensions {list(header.shape)}: must be whole: copy or download the file again"


def length_problem(held: int, header: Header) -> str:
    """Say if a file of ``held`` bytes before compression has more than its dimensions account for."""
    if not header.length or held <= header.length + PADDING:
        return ""
    return (
        f"{held} bytes, dimensions {list(header.shape)} account for {header.length}: must agree: export the file again"
    )


def _compared(header: Header, image: Any, affine: np.ndarray, codes: dict[str, int]) -> Header:
    """Judge whether the geometries that a NIfTI header may hold agree, and whether MONAI reads the one that counts."""
    pixdim = [float(f"{edge:.6g}") for edge in image.header["pixdim"][1:4]]
    taken = np.asarray(correct_nifti_header_if_necessary(nib.load(image.get_filename())).affine)
    apart = corners_apart(affine, taken, header.shape)
    if apart > AFFINE_ERROR:
        line = (
            f"sform and pixdim {pixdim} contradict each other, corners {apart:.3g} voxels apart: must"
            " agree: repair the header"
        )
        return header._replace(problems=(line,))
    if all(code > 0 for code in codes.values()):
        apart = corners_apart(affine, np.asarray(image.get_qform()), header.shape)
        if not apart <= AFFINE_ERROR:
            line = f"sform and qform put corners {apart:.3g} voxels apart: the sform is taken: look at left and right"
            return header._replace(warnings=(line,))
    return header


# --- other formats --------------------------------------------------------------------------------


def _of_other(path: str, image: SpatialImage) -> Header:
    """Read .mgz from its bytes, which nibabel completes where goodRASFlag is 0, and others from what nibabel has."""
    shape = tuple(int(n) for n in image.shape)
    itemsize = int(image.get_data_dtype().itemsize)
    if not path.endswith((".mgz", ".mgh")):
        return Header(shape, tuple(float(edge) for edge in image.header.get_zooms()[:3]), itemsize=itemsize)
    with gzip.open(path) if path.endswith(".mgz") else open(path, "rb") as file:
        oriented, *spacing = struct.unpack(">h3f", file.read(42)[28:])
    if not oriented:  # FreeSurfer: the spacing is not valid either, and 1 mm
        return Header(shape, (1.0, 1.0, 1.0), oriented=False, itemsize=itemsize)
    return Header(shape, tuple(spacing), itemsize=itemsize)


def _of_nrrd(path: str) -> Header:
    fields = _fields(path, ":", lambda line: not line)
    shape = tuple(int(n) for n in fields.get("sizes", "").split())
    vectors = [
        np.array(v.split(","), dtype=float) for v in re.findall(r"\(([^)]*)\)", fields.get("space directions", ""))
    ]
    if vectors:
        spacing = [float(np.linalg.norm(vector)) for vector in vectors]
    else:
        spacing = [float(edge) for edge in fields.get("spacings", "").split()]
    return _of_text(shape, spacing, oriented=bool(vectors) and "space" in fields, field="space directions")


def _of_mha(path: str) -> Header:
    fields = _fields(path, "=", lambda line: line.startswith("ElementDataFile"))
    shape = tuple(int(n) for n in fields.get("dimsize", "").split())
    given = fields.get("elementspacing", fields.get("elementsize", ""))
    oriented = any(name in fields for name in ("transformmatrix", "orientation", "rotation"))
    return _of_text(shape, [float(edge) for edge in given.split()], oriented, field="ElementSpacing")


def _of_text(shape: tuple[int, ...], spacing: Sequence[float], oriented: bool, field: str) -> Header:
    if len(spacing) < 3:
        line = f"no spacing in the header ({field}): must have one: write the header anew"
        return Header(shape, problems=(line,), oriented=oriented)
    return Header(shape, tuple(spacing[:3]), oriented)


def _fields(path: str, mark: str, last: Any) -> dict[str, str]:
    """Return the fields of a text header, names in lower case."""
    found: dict[str, str] = {}
    with Path(path).open("rb") as file:
        for line in iter(file.readline, b""):
            text = line.decode("latin-1").strip()
            name, separator, value = text.partition(mark)
            if separator:
                found[name.strip().lower()] = value.lstrip("=").strip()
            if last(text) or file.tell() > 2**20:
                break
    return found


UNORIENTED = (
    "no sform, qform or direction in the header: must say where the axes of its voxels point: write the header; for"
    " inference, give --assume_axes with what is true of them, such as RAS"
)
