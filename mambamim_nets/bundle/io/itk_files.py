"""NRRD and MetaImage files, and the pixels of DICOM series, by ITK; headers are read as they stand in the file.

ITK is asked for the voxels of what scanners write, since it decodes all of it, JPEG Lossless too.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ITKReader

from mambamim_nets.bundle.io.dicom_files import INSTALL
from mambamim_nets.bundle.io.headers import Header

__all__ = ["itk_pixels", "itk_voxels", "mha_header", "nrrd_header"]

_LOADING = threading.Lock()
# MONAI tries an optional GPU decoder of DICOM whenever it makes a reader, and warns each time
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")


def itk_voxels(path: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Read voxels with their channels on the last axis, if any, and MONAI's meta data.

    Raises:
        ImportError: ITK is not installed.
        Exception: whatever ITK raises on a broken file.
    """
    _itk()
    reader = ITKReader()
    return reader.get_data(reader.read(path))


def itk_pixels(files: Sequence[str]) -> np.ndarray:
    """Decode the slices of a DICOM series, or its one multi-frame file.

    Args:
        files: in the order of their slices.

    Returns:
        (columns, rows, slices) float32, with slope and intercept applied.

    Raises:
        ImportError: ITK is not installed.
        ValueError: a file cannot be decoded.
    """
    itk = _itk()
    try:
        return _decoded(itk, files if len(files) > 1 else files[0]).T
    except Exception as error:  # whatever ITK raises on pixels that it cannot decode, it does not say which
        raise ValueError(
            f"{_undecodable(itk, files)}: its pixel data cannot be decoded: copy or export the series again"
        ) from error


def _itk() -> Any:
    """Return ITK with what is used of it loaded: its types warn while they load, and crash if warnings are errors."""
    with _LOADING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import itk
        except ImportError as error:
            raise ImportError(INSTALL) from error
        for name in ("Image", "ImageIOFactory", "ImageFileReader", "ImageSeriesReader", "GDCMImageIO", "PyBuffer"):
            getattr(itk, name)
    return itk


def _decoded(itk: Any, source: str | Sequence[str]) -> np.ndarray:
    array: np.ndarray = itk.array_from_image(itk.imread(source, pixel_type=itk.F, imageio=itk.GDCMImageIO.New()))
    return array


def _undecodable(itk: Any, files: Sequence[str]) -> str:
    """Return the first file that cannot be decoded alone, or else the folder of all."""
    for file in files:
        try:
            _decoded(itk, [file])
        except Exception:  # as above
            return file
    return str(Path(files[0]).parent)


# --- headers that are text ------------------------------------------------------------------------


def nrrd_header(path: str) -> Header:
    """Read the header of a .nrrd file.

    Raises:
        Exception: the fields are not those of the format.
    """
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


def mha_header(path: str) -> Header:
    """Read the header of a .mha file.

    Raises:
        Exception: the fields are not those of the format.
    """
    fields = _fields(path, "=", lambda line: line.startswith("ElementDataFile"))
    shape = tuple(int(n) for n in fields.get("dimsize", "").split())
    given = fields.get("elementspacing", fields.get("elementsize", ""))
    oriented = any(name in fields for name in ("transformmatrix", "orientation", "rotation"))
    return _of_text(shape, [float(edge) for edge in given.split()], oriented, field="ElementSpacing")


def _of_text(shape: tuple[int, ...], spacing: Sequence[float], oriented: bool, field: str) -> Header:
    if len(spacing) < 3:
        line = f"no spacing in the header ({field}), which must have one; write the header anew"
        return Header(shape, problems=(line,), oriented=oriented)
    return Header(shape, tuple(spacing[:3]), oriented)


def _fields(path: str, mark: str, last: Callable[[str], bool]) -> dict[str, str]:
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
