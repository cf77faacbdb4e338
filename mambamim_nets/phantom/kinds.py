"""The kinds of synthetic subjects: one entry says everything in which a kind differs from the others.

A new kind is a new entry of `KINDS`; painting, writing data sets and painting crops read nothing else.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator

from mambamim_nets.phantom import body, brain, dementia, fetal, hippocampus
from mambamim_nets.phantom.canvas import Axes, Canvas
from mambamim_nets.phantom.kidneys import KITS_HU, masses
from mambamim_nets.phantom.pelvis import AMOS_HU
from mambamim_nets.phantom.upper_body import CTORG_HU

__all__ = ["KINDS", "Kind", "label_of"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is particular to one kind of subjects.

    Attributes:
        labels: label value to name.
        stream: what a subject's random numbers start from, with its seed. A new kind may have any; another number
            makes other subjects.
        paint: makes the canvas of tissues from a source of randomness, the axes in mm, and the seed.
        image: makes the intensities, (D, H, W) or (D, H, W, channels), from the same source, the canvas and the seed.
        modalities: name of each channel in order, as dataset.json has it.
        shape: voxels of the default grid.
        spacing: mm of the default grid, on every axis; with `shape` it is the field of view.
        least: smallest side of a grid, voxels.
        draw_shape: draws the shape of a subject from its source of randomness and the spacing, where subjects differ in
            it; None where they do not.
        points: returns the landmarks of a subject in RAS mm, drawn from its source of randomness; None without any.
        diagnoses: the diagnoses of seeds 0, 1, 2, ... in turn; () without any.
    """

    labels: Mapping[int, str]
    stream: int
    paint: Callable[[Generator, Axes, int], Canvas] = body.paint
    image: Callable[[Generator, Canvas, int], np.ndarray] = body.ct_image
    modalities: tuple[str, ...] = ("CT",)
    shape: tuple[int, int, int] = (112, 96, 96)
    spacing: float = 2.8
    least: int = 32
    draw_shape: Callable[[Generator, Sequence[float]], tuple[int, ...]] | None = None
    points: Callable[[Generator], dict[str, np.ndarray]] | None = None
    diagnoses: tuple[str, ...] = ()


def _numbered(*names: str) -> dict[int, str]:
    return dict(enumerate(names, start=1))


KINDS: dict[str, Kind] = {
    "abdomen": Kind(
        labels=_numbered(
            "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
            "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland", "left adrenal gland",
        ),
        stream=0,
    ),
    "brain": Kind(
        labels={1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}, stream=1,
        paint=brain.paint, image=brain.image, shape=(96, 112, 96), spacing=1.75,
        modalities=("flair", "t1ce", "t1", "t2"),  # the order of MONAI's BraTS21 lists
    ),
    "hippocampus": Kind(
        labels={1: "anterior", 2: "posterior"}, stream=2, modalities=("MRI",),
        paint=hippocampus.paint, image=hippocampus.image,
        shape=hippocampus.SHAPE, spacing=1.0, least=16, draw_shape=hippocampus.draw_shape,
    ),
    "pancreas": Kind(
        labels={1: "pancreas", 2: "pancreatic tumour"}, stream=3,
        paint=partial(body.paint, lesions=body.pancreatic_tumour),
    ),
    "hepatic_vessel": Kind(
        labels={1: "hepatic vessel", 2: "liver tumour"}, stream=4, paint=partial(body.paint, lesions=body.liver_tumours)
    ),
    "spleen": Kind(labels={1: "spleen"}, stream=5),
    "amos": Kind(
        labels=_numbered(
            "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
            "inferior vena cava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum",
            "urinary bladder", "prostate or uterus",
        ),
        stream=6, shape=(128, 108, 146),
        paint=partial(body.paint, values=AMOS_HU, half_side=206, centre=-64, hips=True),
        image=partial(body.ct_or_mr_image, values=AMOS_HU),
        modalities=("CT or MRI",),  # one channel, either of them in each subject
    ),
    "ctorg": Kind(
        labels=_numbered("liver", "bladder", "lungs", "kidneys", "bone", "brain"), stream=7,
        paint=partial(body.paint, values=CTORG_HU, half_side=472, centre=190, hips=True, head=True),
        image=partial(body.ct_image, values=CTORG_HU), shape=(90, 76, 236), spacing=4.0,
    ),
    "kits": Kind(
        labels={1: "kidney", 2: "tumour", 3: "cyst"}, stream=8,
        paint=partial(body.paint, values=KITS_HU, lesions=masses), image=partial(body.ct_image, values=KITS_HU),
    ),
    "dementia": Kind(
        labels={1: "ventricle", 2: "hippocampus"}, stream=7, modalities=("T1",), diagnoses=dementia.DIAGNOSES,
        paint=dementia.paint, image=dementia.image, shape=(84, 102, 84), spacing=2.0,
    ),
    "fetal": Kind(
        labels={1: "cerebellar hemispheres", 2: "vermis"}, stream=1000, modalities=("T2",), points=fetal.points,
        paint=fetal.paint, image=fetal.image, shape=(104, 104, 104), spacing=1.25, least=24,
    ),
}  # fmt: skip
"""By name. Labels are those of BTCV, BraTS, Medical Segmentation Decathlon, AMOS22, CT-ORG and KiTS23; "dementia" and
"fetal" have their own."""

ORGANS = {
    "stomach content": "stomach", "stomach gas": "stomach", "urine": "urinary bladder",
    "urine with contrast": "urinary bladder", "hepatic vessel": "liver",
}  # fmt: skip
"""Tissue to the organ in which it lies."""
GROUPS = {
    "right kidney": ("kidneys", "kidney"), "left kidney": ("kidneys", "kidney"), "tumour core": ("tumour",),
    "urinary bladder": ("bladder",), "lung": ("lungs",), "lung vessel": ("lungs",), "marrow": ("bone",),
    "brain fluid": ("brain",),
}  # fmt: skip
"""Organ or tissue to the labels that some data sets have for it together with others."""


def label_of(tissue: str, labels: Collection[str]) -> str:
    """Return the name under which a tissue counts in a task.

    Args:
        tissue: name of a tissue.
        labels: names of all labels of the task.

    Returns:
        The tissue itself if the task labels it; else the organ in which it lies; else the task's label for a group of
        such organs. A name that is not in `labels` is one that the task does not label.
    """
    if tissue in labels:
        return tissue
    organ = ORGANS.get(tissue, tissue)
    groups = () if organ in labels else GROUPS.get(organ, ())
    return next((group for group in groups if group in labels), organ)
