"""Augmentation moves image and label together."""

import torch

from mambamim_nets.bundle.transforms.augmentation import augmentations


def test_augmentations_keep_image_and_label_together():
    label = torch.zeros(1, 16, 16, 16)
    label[:, 3:9, 5:12, 2:7] = 1
    transform = augmentations(
        ["image", "label"], rotate90=True, affine_prob=1.0, rotate=0.2, scale=0.1, intensity_prob=0.0
    ).set_random_state(seed=1)
    moved = 0
    for _ in range(8):
        out = transform({"image": label.clone(), "label": label.clone()})
        assert set(out["label"].unique().tolist()) <= {0.0, 1.0}
        assert ((out["image"] > 0.5) == (out["label"] > 0.5)).float().mean() > 0.99
        moved += not torch.equal(out["label"], label)
    assert moved == 8


def test_augmentations_without_axes_never_flip():
    transform = augmentations(["image", "label"], flip_axes=[], intensity_prob=0.0).set_random_state(seed=0)
    label = torch.arange(27.0).view(1, 3, 3, 3)
    for _ in range(20):
        assert torch.equal(transform({"image": label, "label": label})["label"], label)


def test_augmentations_of_intensity_leave_the_label():
    transform = augmentations(["image", "label"], [], intensity_prob=1.0, texture_prob=1.0).set_random_state(seed=0)
    label = torch.arange(27.0).view(1, 3, 3, 3)
    out = transform({"image": label / 27, "label": label})
    assert torch.equal(out["label"], label) and not torch.equal(out["image"], label / 27)
