"""What weights say that they saw: measured on files by hand, with what augmentation adds."""

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, NormalizeIntensityd, RandAffined, RandFlipd, ScaleIntensityRanged

from mambamim_nets.bundle.handlers.training_ranges import TrainingRanges, mirrored_axes
from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.transforms.field_of_view import RandFieldOfViewd

TARGETS = Targets({"core": 1, "rim": 2}, {"all": [1, 2], "core": [1]})
NOTHING = Compose([])
CT, MR = Compose([ScaleIntensityRanged("image", -175, 250)]), Compose([NormalizeIntensityd("image", nonzero=True)])


@pytest.fixture
def cases(tmp_path):
    """Two images in zeros, one of them with its axes along left, superior and anterior, the first with two channels."""
    image, label = np.zeros((10, 12, 14, 2)), np.zeros((10, 12, 14))
    image[2:8, 1:11, 3:9], label[3, 4:6, 5], label[3, 4, 6] = 5, 1, 2
    first = np.diag([1.0, 1.5, 2.0, 1.0])
    second = np.array([[-2.0, 0, 0, 0], [0, 0, 1.0, 0], [0, 3.0, 0, 0], [0, 0, 0, 1]])
    items = []
    for name, affine, values in (("a", first, image), ("b", second, image[..., 0])):
        nib.save(nib.Nifti1Image(values, affine), tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), tmp_path / f"{name}_seg.nii.gz")
        items.append({"image": str(tmp_path / f"{name}.nii.gz"), "label": str(tmp_path / f"{name}_seg.nii.gz")})
    items[1]["image"] = [items[1]["image"]] * 2
    return items


def test_ranges_are_those_of_the_files(cases):
    seen = TrainingRanges(cases, MR, NOTHING, TARGETS).record()["seen"]
    # a: 6 x 10 x 6 voxels of 1 x 1.5 x 2; b: 6 of 2 mm from right to left, 6 of 1 to the front, 10 of 3 up
    assert seen["field_of_view_mm"] == [[6.0, 6.0, 12.0], [12.0, 15.0, 30.0]]
    assert seen["spacing_mm"] == [1.0, 3.0]
    assert seen["volumes_ml"] == {"all": [0.009, 0.018], "core": [0.006, 0.012]}


def test_of_ct_the_whole_image_is_the_field_of_view(cases):
    seen = TrainingRanges(cases, CT, NOTHING, TARGETS).record()["seen"]
    assert seen["field_of_view_mm"] == [[10.0, 14.0, 28.0], [20.0, 18.0, 36.0]]


def test_what_augmentation_adds_and_cuts_off_is_seen_too(cases):
    varied = Compose([RandFieldOfViewd(["image", "label"], [10, 20, 5], cut=0.25)])
    low, high = TrainingRanges(cases[:1], MR, varied, TARGETS).record()["seen"]["field_of_view_mm"]
    assert low == [3.0, 7.5, 6.0] and high == [46.0, 95.0, 32.0]


def test_mirrored_axes_are_those_of_flips():
    flips = [RandFlipd(["image"], prob=0.5, spatial_axis=axis) for axis in (2, 0)]
    never = RandFlipd(["image"], prob=0.0, spatial_axis=1)
    assert mirrored_axes(Compose([RandAffined(["image"]), Compose(flips), never])) == [0, 2]
    assert mirrored_axes(NOTHING) == []
    assert TrainingRanges(None, CT, Compose(flips), TARGETS).record() == {"mirrored": [0, 2]}


def test_where_no_label_maps_are_learnt_there_are_no_volumes(cases):
    images = [{"image": item["image"]} for item in cases]
    seen = TrainingRanges(images, MR, NOTHING).record()["seen"]
    assert seen == {"field_of_view_mm": [[6.0, 6.0, 12.0], [12.0, 15.0, 30.0]], "spacing_mm": [1.0, 3.0]}
