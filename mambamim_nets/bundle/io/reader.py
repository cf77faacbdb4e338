"""Load scans: files of several formats, one file per channel, DICOM series."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ITKReader, MetaTensor, NibabelReader
from monai.data.image_reader import ImageReader
from monai.transforms import EnsureChannelFirst, MapTransform

from mambamim_nets.bundle.files import stem
from mambamim_nets.bundle.io.dicom_series import series_files, series_geometry
from mambamim_nets.bundle.io.dicom_slices import INSTALL
from mambamim_nets.bundle.io.headers import (
    AFFINE_ERROR,
    UNORIENTED,
    Header,
    axes_affine,
    corners_apart,
    judged,
    read_header,
)

__all__ = ["ENDINGS", "NIBABEL", "LoadScand", "read_scan", "scan_header"]

NIBABEL = (".nii.gz", ".nii", ".mgz")
ITK = (".nrrd", ".mha")
ENDINGS = NIBABEL + ITK
# MONAI tries an optional GPU decoder of DICOM whenever it makes a reader, and warns each time
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
_LOADING = threading.Lock()


def read_scan(image: str | Sequence[str], series: str = "", axes: str | None = None) -> MetaTensor:
    """Read a scan.

    Args:
        image: file, list of files (one for each channel), or folder of a DICOM series.
        series: SeriesInstanceUID of a DICOM series.
        axes: where the axes of files point that do not say so, such as "RAS"; their spacing is that of the file.

    Returns:
        (C, D, H, W) float32, C the channels; its affine in RAS mm.

    Raises:
        ImportError: reading needs a package that is not installed.
        ValueError: the files of the channels differ in their grids, the slices of a series form none, a file does not
            say where its axes point and `axes` neither, or a voxel is not finite in float32.
    """
    if not isinstance(image, str):
        return _stacked(image, [read_scan(path, axes=axes) for path in image])
    if image.endswith(NIBABEL) and not os.path.isdir(image):
        reader: ImageReader = NibabelReader()
    else:
        itk = _itk()
        if not image.endswith(ITK) or os.path.isdir(image):
            return _read_series(itk, image, series)
        reader = ITKReader()
    header = read_header(image)
    # not LoadImage, which makes every reader there is, with the warnings of each
    array, meta = reader.get_data(reader.read(image))
    if not header.oriented:
        if axes is None:
            raise ValueError(f"{image}: {UNORIENTED}")
        affine = axes_affine(axes, header)
        meta |= {"affine": affine, "original_affine": affine.copy(), "space": "RAS"}
    scan = _tensor(image, array, meta)
    if scan.ndim != 4:
        raise ValueError(f"{image}: {scan.ndim - 1} axes: must be 3-D: extract one volume from it")
    return scan


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


def _read_series(itk: Any, path: str, series: str) -> MetaTensor:
    """Take the voxels from ITK, which decodes what scanners write, and the geometry from the slices' positions.

    MONAI's ITKReader is not used: it cannot select a series by its SeriesInstanceUID, only by ITK's own long names.
    """
    files = series_files(path, series)
    affine, shape = series_geometry(files)
    try:
        volume = _decoded(itk, files if len(files) > 1 else files[0])
    except Exception as error:  # whatever ITK raises on pixels that it cannot decode, it does not say which
        raise ValueError(
            f"{_undecodable(itk, files) or path}: its pixel data cannot be decoded: copy or export the series again"
        ) from error
    array = volume.T  # (k, j, i) -> (i, j, k)
    if array.shape != shape:
        raise ValueError(f"{path}: voxels {array.shape} were read where the headers say {shape}; export it again")
    meta = {"affine": affine, "original_affine": affine.copy(), "spatial_shape": np.array(shape), "space": "RAS"}
    return _tensor(path, array, {**meta, "original_channel_dim": float("nan")})


def _decoded(itk: Any, source: str | list[str]) -> np.ndarray:
    array: np.ndarray = itk.array_from_image(itk.imread(source, pixel_type=itk.F, imageio=itk.GDCMImageIO.New()))
    return array


def _undecodable(itk: Any, files: Sequence[str]) -> str:
    """Return the first slice that cannot be decoded alone, or ""."""
    for file in files:
        try:
            _decoded(itk, [file])
        except Exception:  # as above
            return file
    return ""


def scan_header(image: str | Sequence[str], series: str = "") -> Header:
    """Return what the header of a scan (of its first channel), or the slices of its series, say about the grid.

    Raises:
        ValueError: the slices of a series form no grid.
        Exception: whatever a reader raises on a broken file.
    """
    first = image if isinstance(image, str) else image[0]
    if first.endswith(ENDINGS) and not os.path.isdir(first):
        return read_header(first)
    affine, shape = series_geometry(series_files(first, series))
    return judged(Header(shape, tuple(float(edge) for edge in np.linalg.norm(affine[:3, :3], axis=0))))


def _tensor(path: str, array: np.ndarray, meta: dict[str, Any]) -> MetaTensor:
    with np.errstate(over="ignore"):  # named below
        values = np.array(array, dtype=np.float32, order="C")
    count = int(values.size - np.isfinite(values).sum())
    if count:
        raise ValueError(
            f"{path}: {count} of {values.size} voxels are NaN or infinite in float32: must be finite: replace them, or"
            " rescale the image"
        )
    scan: Any = MetaTensor.ensure_torch_and_prune_meta(values, meta)
    return cast(MetaTensor, EnsureChannelFirst()(scan))


def _stacked(paths: Sequence[str], parts: Sequence[MetaTensor]) -> MetaTensor:
    first = parts[0]
    for path, part in zip(paths, parts, strict=True):
        if part.shape[0] != 1:
            raise ValueError(f"{path}: {part.shape[0]} channels: must be one, since each channel has its file")
        apart = corners_apart(np.asarray(first.affine), np.asarray(part.affine), first.shape[1:])
        if part.shape != first.shape or apart > AFFINE_ERROR:
            raise ValueError(
                f"{path}: shape {tuple(part.shape[1:])}, corners {apart:.3g} voxels from {paths[0]} of shape"
                f" {tuple(first.shape[1:])}: channels must have one grid: resample them to it"
            )
    return MetaTensor(torch.cat([part.as_tensor() for part in parts]), meta=first.meta)


class LoadScand(MapTransform):
    """Load an item of `scans`; see `read_scan`.

    "filename_or_obj" of its meta data becomes a path that ends in the scan's name, so that results are named after it.

    Args:
        keys: of what to load.
        order: for each channel of the network its position in a file of several channels; None: as they are. Scans of
            one file per channel are in the network's order already.
    """

    def __init__(self, keys: KeysCollection = "image", order: Sequence[int] | None = None) -> None:
        super().__init__(keys)
        self.order = None if order is None else list(order)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            image = out[key]
            source = image if isinstance(image, str) else image[0]
            name = out.get("name") or stem(source, ENDINGS)
            scan = read_scan(image, str(out.get("series", "")), out.get("axes"))
            if self.order is not None and isinstance(image, str):
                scan = cast(MetaTensor, scan[self.order])
            parent = source if os.path.isdir(source) else os.path.dirname(source)
            scan.meta["filename_or_obj"] = os.path.join(parent, f"{name}.nii.gz")
            out[key] = scan
        return out
