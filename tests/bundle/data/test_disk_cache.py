"""The cache on disk: a file for what is in it, and no other."""

import functools
import os

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import (
    Compose,
    CropForegroundd,
    Lambdad,
    LoadImaged,
    RandFlipd,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
    SpatialPadd,
)

from mambamim_nets import phantom
from mambamim_nets.bundle.data.datasets import ReplaceUnreadabled
from mambamim_nets.bundle.data.disk_cache import DiskCache, described


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = phantom.write(tmp_path_factory.mktemp("data") / "hippocampus", "hippocampus", cases=2)
    return sorted(map(str, (folder / "imagesTr").glob("*.nii.gz")))


def preparation(spacing=1.0, window=(0.5, 99.5), side=40):
    return Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Spacingd("image", [spacing] * 3),
            ScaleIntensityRangePercentilesd("image", *window, b_min=0.0, b_max=1.0, clip=True),
            SpatialPadd("image", [side] * 3),
        ]
    )


def prepared(images, folder, weight=1.0, tolerant=False, **options):
    """Return what a data set with a cache on disk gives, and the names of the cache's files."""
    items = [{"image": image, "case": os.path.basename(image), "weight": weight, "source": 0} for image in images]
    steps = preparation(**options)
    first = [ReplaceUnreadabled("image", steps)] if tolerant else list(steps.transforms)
    dataset = DiskCache(items, Compose([*first, RandFlipd("image", prob=0.0)]), str(folder))
    tensors = [dataset[i]["image"] for i in range(len(items))]
    return tensors, {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize(
    "options", [{"spacing": 2.0}, {"window": (5.0, 95.0)}, {"side": 64}], ids=["spacing", "intensity", "roi"]
)
def test_other_preparation_has_other_files_and_other_tensors(images, tmp_path, options, tolerant):
    first, before = prepared(images, tmp_path, tolerant=tolerant)
    second, after = prepared(images, tmp_path, tolerant=tolerant, **options)
    assert len(before) == 2 and len(after) == 4
    alone, _ = prepared(images, tmp_path / "alone", tolerant=tolerant, **options)
    for a, b, c in zip(first, second, alone, strict=True):
        assert torch.equal(b, c) and (a.shape != b.shape or not torch.equal(a, b))


def test_what_is_in_the_cache_is_used_again_whatever_the_weight_of_its_source(images, tmp_path):
    before = prepared(images, tmp_path)[1]
    marked = sorted(tmp_path.iterdir())[0]
    state = torch.load(marked, weights_only=True)
    torch.save({**state, "image": torch.full_like(state["image"], 7.0)}, marked)
    second, after = prepared(images, tmp_path, weight=3.0)
    assert after == before and sum(bool((tensor == 7).all()) for tensor in second) == 1


def test_an_image_that_was_written_again_is_read_again(images, tmp_path):
    own = [str(tmp_path / os.path.basename(image)) for image in images]
    for image, copy in zip(images, own, strict=True):
        with open(image, "rb") as source, open(copy, "wb") as target:
            target.write(source.read())
    (tmp_path / "cache").mkdir()
    before = prepared(own, tmp_path / "cache")[1]
    os.utime(own[0], (1.0, 1.0))
    assert len(prepared(own, tmp_path / "cache")[1] - before) == 1


def test_scans_from_the_disk_and_scans_just_made_form_a_batch(images, tmp_path):
    def loader(count):
        crop = Compose(
            [
                LoadImaged("image", ensure_channel_first=True),
                CropForegroundd("image", "image"),
                ResizeWithPadOrCropd("image", 40),
            ]
        )
        data = DiskCache([{"image": image} for image in images[:count]], crop, str(tmp_path))
        return DataLoader(data, batch_size=2)

    assert len(list(loader(1))) == 1
    (batch,) = loader(2)
    assert batch["image"].shape == (2, 1, 40, 40, 40) and batch["foreground_start_coord"].shape == (2, 3)


@pytest.mark.parametrize("damage", ["cut short", "empty", "text"])
def test_a_file_that_cannot_be_read_is_made_again(images, tmp_path, caplog, damage):
    whole, names = prepared(images, tmp_path)
    file = tmp_path / min(names)
    content = file.read_bytes()
    file.write_bytes({"cut short": content[:-200], "empty": b"", "text": b"not a tensor"}[damage])
    again, after = prepared(images, tmp_path)
    assert after == names and f"{file} of the cache cannot be read" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    caplog.clear()
    assert all(torch.equal(a, b) for a, b in zip(whole, prepared(images, tmp_path)[0], strict=True))
    assert "cannot be read" not in caplog.text


def scale(factor):
    return Lambdad("image", lambda image: image * factor)


class Cyclic:
    def __init__(self):
        self.me = self


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (lambda: ScaleIntensityRanged("image", 0, 1, 0, 1), lambda: ScaleIntensityRanged("image", 0, 1, 0, 1), None),
        (lambda: scale(2), lambda: scale(2), lambda: scale(3)),
        (lambda: Lambdad("image", np.abs), lambda: Lambdad("image", np.abs), lambda: Lambdad("image", np.sign)),
        (lambda: np.arange(5), lambda: np.arange(5), lambda: np.arange(5.0)),
        (lambda: {"a", "b", "c"}, lambda: {"c", "b", "a"}, lambda: {"a", "b"}),
        (lambda: functools.partial(max, 1), lambda: functools.partial(max, 1), lambda: functools.partial(min, 1)),
        (Cyclic, Cyclic, dict),
    ],
    ids=["transform", "closure", "function", "array", "set", "partial", "cyclic"],
)
def test_equal_objects_have_one_description_and_others_another(one, same, other):
    assert described(one()) == described(same())
    assert other is None or described(one()) != described(other())
