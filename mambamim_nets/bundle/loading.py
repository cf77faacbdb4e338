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

from mambamim_nets.bundle.check import AFFINE_ERROR, corners_apart
from mambamim_nets.bundle.datalist import stem
from mambamim_nets.bundle.series import INSTALL, series_files, series_geometry

__all__ = ["ENDINGS", "NIBABEL", "LoadScand", "read_scan"]

NIBABEL = (".nii.gz", ".nii", ".mgz")
ITK = (".nrrd", ".mha")
ENDINGS = NIBABEL + ITK
_LOADING = threading.Lock()


def read_scan(image: str | Sequence[str], series: str = "") -> MetaTensor:
    """Read a scan.

    Args:
        image: file, list of files (one for each channel), or folder of a DICOM series.
        series: SeriesInstanceUID of a DICOM series.

    Returns:
        (C, D, H, W) float32, C the channels; its affine in RAS mm.

    Raises:
        ImportError: reading needs a package that is not installed.
        ValueError: the files of the channels differ in their grids, or the slices of a series form none.
    """
    if not isinstance(image, str):
        return _stacked(image, [read_scan(path) for path in image])
    if image.endswith(NIBABEL) and not os.path.isdir(image):
        reader: ImageReader = NibabelReader()
    else:
        itk = _itk()
        if not image.endswith(ITK) or os.path.isdir(image):
            return _read_series(itk, image, series)
        reader = ITKReader()
    # not LoadImage, which makes every reader there is, with the warnings of each
    array, meta = reader.get_data(reader.read(image))
    scan = _tensor(array, meta)
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
    source = files if len(files) > 1 else files[0]
    volume = itk.array_from_image(itk.imread(source, pixel_type=itk.F, imageio=itk.GDCMImageIO.New()))
    array = volume.T  # (k, j, i) -> (i, j, k)
    if array.shape != shape:
        raise ValueError(f"{path}: voxels {array.shape} were read where the headers say {shape}; export it again")
    meta = {"affine": affine, "original_affine": affine.copy(), "spatial_shape": np.array(shape), "space": "RAS"}
    return _tensor(array, {**meta, "original_channel_dim": float("nan")})


def _tensor(array: np.ndarray, meta: dict[str, Any]) -> MetaTensor:
    scan: Any = MetaTensor.ensure_torch_and_prune_meta(np.array(array, dtype=np.float32, order="C"), meta)
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
            scan = read_scan(image, str(out.get("series", "")))
            if self.order is not None and isinstance(image, str):
                scan = cast(MetaTensor, scan[self.order])
            parent = source if os.path.isdir(source) else os.path.dirname(source)
            scan.meta["filename_or_obj"] = os.path.join(parent, f"{name}.nii.gz")
            out[key] = scan
        return out
