"""The formats of scans: how the header and the voxels of each are read, and how a scan of any of them is loaded.

A new format of files is a row of `FORMATS`: its ending, a function that reads its header as it stands in the file, and
one that reads its voxels. Inference and the data sets then know it. A DICOM series is a folder of files; it is found by
`dicom_series`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, MapTransform

from mambamim_nets.bundle.files import stem
from mambamim_nets.bundle.io.dicom_series import Series
from mambamim_nets.bundle.io.headers import AFFINE_ERROR, UNORIENTED, Header, axes_affine, corners_apart, judged
from mambamim_nets.bundle.io.itk_files import itk_pixels, itk_voxels, mha_header, nrrd_header
from mambamim_nets.bundle.io.nifti import nibabel_header, nibabel_voxels

__all__ = ["ENDINGS", "FORMATS", "VOLUMES", "LoadScand", "ScanFormat", "read_header", "read_scan", "scan_header"]


class ScanFormat(NamedTuple):
    """How files of a format are read.

    Attributes:
        header: of a path; the fields as they stand in the file, in mm.
        voxels: of a path; an array with the axes of the file, and MONAI's meta data with the affine in RAS mm.
    """

    header: Callable[[str], Header]
    voxels: Callable[[str], tuple[np.ndarray, dict[str, Any]]]


NIBABEL = ScanFormat(nibabel_header, nibabel_voxels)
FORMATS: dict[str, ScanFormat] = {
    ".nii.gz": NIBABEL,
    ".nii": NIBABEL,
    ".mgz": NIBABEL,
    ".nrrd": ScanFormat(nrrd_header, itk_voxels),
    ".mha": ScanFormat(mha_header, itk_voxels),
}
ENDINGS = tuple(FORMATS)
# endings of volumes, in small letters; files of those beyond ENDINGS, or in capitals, are named where they are not read
VOLUMES = (*ENDINGS, ".mgh", ".hdr", ".mhd", ".nhdr")


def format_of(path: str) -> ScanFormat:
    """Return the format of a file by its ending; that of nibabel, which knows more of them, for every other."""
    return next((kind for ending, kind in FORMATS.items() if path.endswith(ending)), NIBABEL)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of a file, and judge its grid.

    Raises:
        Exception: whatever a reader raises on a file that is of no known format.
    """
    return judged(format_of(str(path)).header(str(path)))


def scan_header(image: str | Sequence[str], series: Series | None = None) -> Header:
    """Return what the header of a scan (of its first channel), or of its series, says about the grid.

    Raises:
        ValueError: the series has an error.
        Exception: whatever a reader raises on a broken file.
    """
    if series is None:
        return read_header(image if isinstance(image, str) else image[0])
    if series.affine is None:
        raise ValueError(series.error)
    return judged(Header(series.shape, tuple(float(edge) for edge in np.linalg.norm(series.affine[:3, :3], axis=0))))


def read_scan(image: str | Sequence[str], series: Series | None = None, axes: str | None = None) -> MetaTensor:
    """Read a scan.

    Args:
        image: file, or list of files (one for each channel); not used for a series.
        series: the DICOM series to read in place of files.
        axes: where the axes of files point that do not say so, such as "RAS"; their spacing is that of the file.

    Returns:
        (C, D, H, W) float32, C the channels; its affine in RAS mm.

    Raises:
        ImportError: reading needs a package that is not installed.
        ValueError: the files of the channels differ in their grids, the series has an error or its files changed, a
            file does not say where its axes point and `axes` neither, or a voxel is not finite in float32.
    """
    if series is not None:
        return _read_series(series)
    if not isinstance(image, str):
        return _stacked(image, [read_scan(path, axes=axes) for path in image])
    header = read_header(image)
    # not LoadImage, which makes every reader there is, with the warnings of each
    array, meta = format_of(image).voxels(image)
    if not header.oriented:
        if axes is None:
            raise ValueError(f"{image}: {UNORIENTED}")
        affine = axes_affine(axes, header)
        meta |= {"affine": affine, "original_affine": affine.copy(), "space": "RAS"}
    scan = _tensor(image, array, meta)
    if scan.ndim != 4:
        raise ValueError(f"{image}: {scan.ndim - 1} axes, and must be 3-D; extract one volume from it")
    return scan


def _read_series(series: Series) -> MetaTensor:
    """Take the voxels from ITK and the geometry from the headers that were read before.

    MONAI's ITKReader is not used: it cannot select a series by its SeriesInstanceUID, only by ITK's own long names.
    """
    series.require_unchanged()
    array, path = itk_pixels(series.files), os.path.dirname(series.files[0])
    if array.shape != series.shape:
        raise ValueError(
            f"{path}: {array.shape} voxels were read where the headers say {series.shape}: export it again"
        )
    affine = cast(np.ndarray, series.affine)
    meta = {"affine": affine, "original_affine": affine.copy(), "spatial_shape": np.array(array.shape), "space": "RAS"}
    meta["modality"] = "" if series.dataset is None else str(series.dataset.get("Modality") or "")
    return _tensor(path, array, {**meta, "original_channel_dim": float("nan")})


def _tensor(path: str, array: np.ndarray, meta: dict[str, Any]) -> MetaTensor:
    with np.errstate(over="ignore"):  # named below
        values = np.array(array, dtype=np.float32, order="C")
    count = int(values.size - np.isfinite(values).sum())
    if count:
        raise ValueError(
            f"{path}: {count} of {values.size} voxels are NaN or infinite in float32, and must be finite; replace them,"
            " or rescale the image"
        )
    scan: Any = MetaTensor.ensure_torch_and_prune_meta(values, meta)
    return cast(MetaTensor, EnsureChannelFirst()(scan))


def _stacked(paths: Sequence[str], parts: Sequence[MetaTensor]) -> MetaTensor:
    first = parts[0]
    for path, part in zip(paths, parts, strict=True):
        if part.shape[0] != 1:
            raise ValueError(f"{path}: {part.shape[0]} channels, and must have one, since each channel has its file")
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
    The first channel as it was loaded (1, D, H, W) stays under "loaded", for previews. An image that is in memory, as
    programs hand it over that read DICOM themselves, is taken as it is, without "loaded": MONAI Deploy would give that
    to the network.

    Args:
        keys: of what to load: paths, or images whose meta data say where their channels are.
        order: for each channel of the network its position in a file of several channels; None: as they are. Scans of
            one file per channel are in the network's order already.
    """

    def __init__(self, keys: KeysCollection = "image", order: Sequence[int] | None = None) -> None:
        super().__init__(keys)
        self.order = None if order is None else list(order)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the scan (C, D, H, W) in the place of its path."""
        out = dict(data)
        for key in self.key_iterator(out):
            image = out[key]
            if isinstance(image, MetaTensor):
                out[key] = cast(MetaTensor, EnsureChannelFirst()(image).float())
                continue
            source = image if isinstance(image, str) else image[0]
            name = out.get("name") or stem(source, ENDINGS)
            scan = read_scan(image, out.get("series"), out.get("axes"))
            parent = source if os.path.isdir(source) else os.path.dirname(source)
            scan.meta["filename_or_obj"] = os.path.join(parent, f"{name}.nii.gz")
            first = scan.as_tensor()[:1]
            out["loaded"] = MetaTensor(first if len(scan) == 1 else first.clone(), affine=scan.affine.clone())
            if self.order is not None and isinstance(image, str):
                scan = cast(MetaTensor, scan[self.order])
            out[key] = scan
        return out
