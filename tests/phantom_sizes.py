"""Where a label of a synthetic subject lies, and how large it is."""

import nibabel as nib
import numpy as np

from mambamim_nets.phantom import KINDS, Subject


def centres(subject: Subject, kind: str) -> dict[str, np.ndarray]:
    """Return the centroid of every label in RAS mm, by name."""
    return {
        name: nib.affines.apply_affine(subject.affine, np.argwhere(subject.label == value).mean(0))
        for value, name in KINDS[kind].labels.items()
    }


def millilitres(subject: Subject, value: int) -> float:
    """Return the volume of a label."""
    return (subject.label == value).sum() * abs(np.linalg.det(subject.affine[:3, :3])) / 1000
