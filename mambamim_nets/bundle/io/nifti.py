"""NIfTI and FreeSurfer files, by nibabel: their headers as they stand in the file, and their voxels."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelReader
from monai.data.utils import correct_nifti_header_if_necessary
from nibabel.nifti1 import Nifti1Header, Nifti1Pair
from nibabel.spatialimages import SpatialImage

from mambamim_nets.bundle.io.headers import AFFINE_ERROR, Header, corners_apart, spacing_problem

__all__ = ["nibabel_header", "nibabel_voxels"]

UNITS = {1: "metres", 3: "micrometres"}  # of xyzt_units
DEFLATE = 1032  # times: what gzip can compress at most


def nibabel_voxels(path: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Read voxels with their channels on the last axis, if any, and MONAI's meta data.

    Raises:
        Exception: whatever nibabel raises on a broken file.
    """
    reader = NibabelReader()
    return reader.get_data(reader.read(path))


def nibabel_header(path: str) -> Header:
    """Read the header of a file that nibabel knows; an empty one if it is no volume.

    Raises:
        Exception: whatever nibabel raises on a file that it does not know.
    """
    image: Any = nib.load(path)
    if not isinstance(image, SpatialImage):
        return Header()
    return _of_nifti(image) if isinstance(image, Nifti1Pair) else _of_other(path, image)


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
        line = f"affine {affine[:3].round(3).tolist()} must be finite and invertible; repair the header"
        return header._replace(problems=(line,))
    header = header._replace(spacing=tuple(float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0)))
    return _compared(header, image, affine, codes)


def _field_problems(raw: Nifti1Header, slope: float, inter: float) -> Iterator[str]:
    dims = [int(n) for n in raw["dim"][1 : 1 + max(3, int(raw["dim"][0]))]]
    if not all(n > 0 for n in dims[: int(raw["dim"][0])]):
        yield f"dimensions {dims} must be above 0; export the file again"
    spacing = [float(f"{edge:.6g}") for edge in raw["pixdim"][1:4]]
    if problem := spacing_problem(spacing):
        yield f"pixdim, {problem}"
    if not (np.isfinite(slope) and np.isfinite(inter)):
        yield f"scl_slope {slope:g}, scl_inter {inter:g} must be finite; repair the header or export the file again"
    units = int(raw["xyzt_units"]) & 7
    if units in UNITS:
        yield f"spacing in {UNITS[units]} (xyzt_units {units}) must be in mm; convert the header"


def _cut_short(image: Any, header: Header) -> Iterator[str]:
    """Say if a file must be shorter than its dimensions, so that they are not taken for a need of memory."""
    path = str(image.file_map["image"].filename)
    held = os.path.getsize(path)
    if held * (DEFLATE if path.endswith(".gz") else 1) < header.length:
        yield f"{held} bytes are too few for dimensions {list(header.shape)}; copy or download the file again"


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
