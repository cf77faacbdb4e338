"""Features of new scans: one vector per scan, in one table."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mambamim_nets.bundle.files import atomic_write
from mambamim_nets.bundle.handlers.scan_results import ScanResults
from mambamim_nets.bundle.inference.scan_loader import ScanLoader

__all__ = ["FeatureReport"]

logger = logging.getLogger("mambamim_nets")
FEATURES = "features.csv"


class FeatureReport(ScanResults):
    """Write the encoder's features of every new scan: `<name>_features.npz`.

    Expects `image` (C_in, D, H, W) of `LoadScand`, 0 where padded, and `pred` (C, d, h, w), its features on a
    coarser grid, and batches with `name`; attached to an evaluator. A row of features.csv says of each scan how many
    tokens it has, and how many inside. A scan whose features cannot be written is recorded as failed. Arrays:
        features   (C, d, h, w) float32, one token per block of voxels
        inside     (d, h, w) bool, blocks with any voxel above 0: not background or padding only
        mean       (C,) float32, mean of the features inside
        affine     (4, 4) float64, from token indices to RAS mm, at the centre of each block
        spacing    (3,) float64, mm of the voxels that the network read

    Args:
        loader: of the scans.
        folder: where files go.
        checkpoint: file of the weights.
        overwrite: do again what an earlier run has done.
    """

    def __init__(self, loader: ScanLoader, folder: str, checkpoint: str | None = None, overwrite: bool = False) -> None:
        super().__init__(loader, folder, FEATURES, ["tokens", "tokens inside"], checkpoint, overwrite)

    def files(self, name: str) -> list[str]:
        """Return the name of the file of features."""
        return [f"{name}_features.npz"]

    def write(self, name: str, item: Mapping[str, Any]) -> list[str]:
        """Write the features of a scan; return how many tokens it has, and how many are inside."""
        image, pred = item["image"], item["pred"]
        features = torch.as_tensor(pred).float().cpu()
        voxels = torch.as_tensor(image).cpu()
        blocks = [side // tokens for side, tokens in zip(voxels.shape[1:], features.shape[1:], strict=True)]
        inside = torch.nn.functional.max_pool3d((voxels > 0).float(), blocks).amax(0) > 0
        if not inside.any():
            raise ValueError("no voxel is above 0 after preprocessing; check --intensity")
        centres = np.diag([*blocks, 1.0])
        centres[:3, 3] = [(block - 1) / 2 for block in blocks]
        arrays: dict[str, Any] = {
            "features": features.numpy(),
            "inside": inside.numpy(),
            "mean": features[:, inside].mean(1).numpy(),
            "affine": np.asarray(image.affine, dtype=float) @ centres,
            "spacing": np.asarray(image.pixdim, dtype=float),
        }
        path = atomic_write(self.folder / f"{name}_features.npz", lambda part: np.savez_compressed(part, **arrays))
        logger.info("%s: features %s of %d blocks", path, tuple(features.shape), int(inside.sum()))
        return [str(inside.numel()), str(int(inside.sum()))]
