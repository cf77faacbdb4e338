"""Label maps that painted crops are made from: the organs of a phantom, and two blocks."""

from pathlib import Path

import nibabel as nib
import numpy as np

from mambamim_nets import phantom
from mambamim_nets.phantom.anatomies import NAMES, Anatomy

SPACING = 6.0
BTCV = NAMES["btcv"]


def write_organs(folder: Path) -> Path:
    """Write a label map of the 13 BTCV organs, without anything around them."""
    subject = phantom.make("abdomen", 0, spacing=SPACING)
    path = folder / "label.nii.gz"
    nib.save(nib.Nifti1Image(subject.label, subject.affine), path)
    return path


def blocks(shape: tuple[int, int, int] = (44, 44, 6)) -> Anatomy:
    """Return two organs apart, of 4 mm voxels."""
    ids = np.zeros(shape, np.uint8)
    ids[2:6, 10:30], ids[34:40, 10:30] = 1, 2
    return Anatomy(ids, {0: "air", 1: "spleen", 2: "liver"}, 4.0)
