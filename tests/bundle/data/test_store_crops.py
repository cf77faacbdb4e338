"""Samples by their numbers: equal for any number of processes, after any stop, whatever cannot be read."""

import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import refused
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, SpatialPadd
from store_files import store_of, write_scan, write_sources
from torch.utils.data import DataLoader

from mambamim_nets.bundle.data.store import BODY, FACE, Store, StoredVolume
from mambamim_nets.bundle.data.store_crops import StoreCrops, StoreSampler
from mambamim_nets.bundle.data.store_files import BloscFiles
from mambamim_nets.bundle.transforms.stored import DrawVisibled
from mambamim_nets.prepare.__main__ import prepare

ROI = (16, 48, 16)  # the second side is longer than the volumes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("crops")
    write_sources(root / "scans", scans=5)
    write_sources(root / "more", scans=2)
    store_of(root / "store", root / "scans")
    store_of(root / "store", root / "more")
    return root / "store"


def transform():
    return Compose(
        [
            SpatialPadd("image", ROI),
            RandFlipd("image", prob=0.5, spatial_axis=0),
            Compose([RandGaussianNoised("image", prob=0.9, std=5.0)]),
            DrawVisibled("image", 0.5),
        ]
    )


def crops(folder, **options):
    return StoreCrops(Store(folder), ROI, **{"seed": 3, "transform": transform(), **options})


def batches(folder, processes, epochs=(1, 2), workers=0, batch_size=8, iterations=3, **options):
    """Return the global batches of epochs, put together from those of all processes."""
    every = []
    for epoch in epochs:
        shares = []
        for rank in range(processes):
            sampler = StoreSampler(batch_size, iterations, processes, rank)
            sampler.set_epoch(epoch)
            loader = DataLoader(
                crops(folder, **options), batch_size=sampler.share, sampler=sampler, num_workers=workers
            )
            assert len(loader) == iterations
            shares.append(list(loader))
        for parts in zip(*shares, strict=True):
            every.append({key: torch.cat([torch.as_tensor(part[key]) for part in parts]) for key in parts[0]})
    return every


def bytes_of(batches):
    return [{key: value.numpy().tobytes() for key, value in batch.items()} for batch in batches]


@pytest.fixture(scope="module")
def alone(folder):
    return batches(folder, 1)


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_global_batches_are_the_same_to_the_byte_for_any_number_of_processes(folder, alone, processes):
    assert bytes_of(batches(folder, processes)) == bytes_of(alone)
    assert alone[0]["image"].shape == (8, 1, *ROI) and alone[0]["visible"].shape == (8, 1, 1, 3, 1)
    assert len({value["image"] for value in bytes_of(alone)}) == 6, "no batch comes twice"


@pytest.mark.parametrize("workers", [1, 3])
def test_global_batches_do_not_depend_on_the_workers(folder, alone, workers):
    assert bytes_of(batches(folder, 1, workers=workers)) == bytes_of(alone)


def test_an_epoch_begins_where_the_one_before_ended_on_any_number_of_processes(folder, alone):
    assert bytes_of(batches(folder, 4, epochs=(2,))) == bytes_of(alone[3:])
    assert bytes_of(batches(folder, 2, epochs=(1,), iterations=6)) == bytes_of(alone), "epochs are only numbers"


def test_an_epoch_can_begin_in_its_midst():
    sampler = StoreSampler(4, 3, 2, 1)
    sampler.set_step(4)
    assert list(sampler) == [18, 19, 22, 23], "steps 4 and 5, the second half of the four samples of each"


def test_another_seed_and_another_stream_are_other_samples(folder):
    draws = [
        [crops(folder, **options).draw(number) for number in range(50)]
        for options in ({}, {"seed": 4}, {"stream": "validation"})
    ]
    assert all(not set(a) & set(b) for a, b in ((draws[0], draws[1]), (draws[0], draws[2]), (draws[1], draws[2])))
    again = [crops(folder).draw(number) for number in reversed(range(50))]
    assert again[::-1] == draws[0], "a sample depends on its number alone"


def test_draws_are_uniform_and_large_numbers_are_as_good(folder):
    dataset = crops(folder)
    drawn = [dataset.draw(2**40 + number) for number in range(4000)]
    counts = np.bincount([sample.volume for sample in drawn], minlength=7)
    assert counts.sum() == 4000 and np.all(abs(counts - 4000 / 7) < 4 * np.sqrt(4000 / 7))
    places = np.array([sample.place for sample in drawn])
    assert abs(places.mean(0) - 0.5).max() < 0.02 and places.min() >= 0 and places.max() < 1
    assert abs(np.corrcoef(places.T) - np.eye(3)).max() < 0.06
    assert len({sample.mask for sample in drawn}) == 4000


def test_every_place_of_a_crop_can_be_drawn(folder):
    dataset = StoreCrops(Store(folder, filter="source == 'more' and modality == 'CT'"), (16, 16, 16), seed=0)
    volume = dataset.data.volume(0)
    starts = []
    for number in range(300):
        sample = dataset.draw(number)
        start = [int(place * (side - 15)) for place, side in zip(sample.place, volume.shape, strict=True)]
        starts.append(start)
        if number < 10:
            image = dataset[number]["image"][0].numpy()
            np.testing.assert_array_equal(image, volume.read(start, (16, 16, 16)))
    for axis, side in enumerate(volume.shape):
        assert {start[axis] for start in starts} == set(range(side - 15)), "the first and the last place among them"


def test_sources_are_drawn_by_their_weights_whatever_their_sizes(folder):
    dataset = crops(folder, weights={"more": 3.0})
    sources = [dataset.data[dataset.draw(number).volume]["source"] for number in range(2000)]
    assert sources.count("more") / 2000 == pytest.approx(0.75, abs=0.04)
    for weights in ({"none": 1.0}, {"more": 0.0}, {"more": float("nan")}):
        with refused("source_weights", "must give sources of the store, more, scans", "by --filter"):
            crops(folder, weights=weights)


def test_several_crops_of_a_volume_are_its_own_and_follow_from_their_number(folder):
    dataset = crops(folder, crops_per_volume=3)
    drawn = [dataset.draw(number) for number in range(60)]
    volumes = [sample.volume for sample in drawn]
    assert all(len(set(volumes[first : first + 3])) == 1 for first in range(0, 60, 3)) and len(set(volumes)) == 7
    assert len({sample.place for sample in drawn}) == len({sample.mask for sample in drawn}) == 60
    assert len({sample.augmentation for sample in drawn}) == 60
    single = [crops(folder).draw(number) for number in range(60)]
    assert [sample[1:] for sample in drawn] == [sample[1:] for sample in single]
    alone = bytes_of(batches(folder, 1, crops_per_volume=4))
    for processes, workers in ((2, 0), (8, 0), (1, 2)):
        assert bytes_of(batches(folder, processes, workers=workers, crops_per_volume=4)) == alone
    assert bytes_of(batches(folder, 4, epochs=(2,), crops_per_volume=4)) == alone[3:], "also after a stop"


def test_the_file_of_several_crops_is_read_once_and_as_a_whole(folder, monkeypatch):
    read = []
    content = BloscFiles.content
    monkeypatch.setattr(BloscFiles, "content", lambda self, name: read.append(name) or content(self, name))
    several = StoreCrops(Store(folder), ROI, seed=3, crops_per_volume=4)
    found = [several[number]["image"] for number in range(8)]
    assert read == [several.data.volume(several.draw(number).volume).id for number in (0, 4)]
    read.clear()
    one = StoreCrops(Store(folder), ROI, seed=3)
    for number, image in enumerate(found):
        volume, sample = one.data.volume(several.draw(number).volume), several.draw(number)
        start = [int(p * (s - min(s, r) + 1)) for p, s, r in zip(sample.place, volume.shape, ROI, strict=True)]
        np.testing.assert_array_equal(
            image[0], volume.read(start, [min(s, r) for s, r in zip(volume.shape, ROI, strict=True)])
        )
    assert read == []


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A store of two CT and an MR, one with a mask of the face and one with a mask of the body."""
    root = tmp_path_factory.mktemp("masked")
    rows = ["image,face_mask,body_mask"]
    for number, kind in enumerate(("ct", "ct", "mr")):
        path = write_scan(root / "scans" / f"{kind}_{number}.nii.gz", number, kind=kind)
        image = nib.load(path)
        part = np.zeros(image.shape, np.uint8)
        part[: image.shape[0] // 2] = 1
        nib.save(nib.Nifti1Image(part, image.affine), root / f"mask_{number}.nii.gz")
        named = {0: f"mask_{number}.nii.gz,", 1: f",mask_{number}.nii.gz", 2: ","}[number]
        rows.append(f"scans/{path.name},{named}")
    (root / "scans.csv").write_text("\n".join(rows) + "\n")
    store_of(root / "store", root / "scans.csv")
    return root / "store"


def test_masks_lie_beside_their_volume_on_its_grid(masked):
    store = Store(masked)
    volumes = {volume.id.split("-")[0]: volume for volume in map(store.volume, range(3))}
    assert [volumes[name].masks for name in ("ct_0", "ct_1", "mr_2")] == [FACE, BODY, 0] and store.has_faces
    # the first axis of the files points to the left and that of the store to the right, so the first half is the second
    for name, bit in (("ct_0", FACE), ("ct_1", BODY)):
        volume = volumes[name]
        mask = volume.read_mask(bit, (0, 0, 0), volume.shape)
        middle = volume.shape[0] // 2
        assert mask[: middle - 1].max() == 0 and mask[middle + 1 :].min() == 1
    assert volumes["mr_2"].read_mask(FACE, (0, 0, 0), (4, 5, 6)).sum() == 0
    assert prepare(str(masked), verify=True) == f"3 volumes of {masked} are as they were written"


def test_no_block_of_a_removed_face_is_scored_and_it_moves_with_the_image(masked):
    mark = 999.0  # what the image is where the face is, so that they are seen to move together

    def marked(item):
        return {**item, "image": torch.where(item["face"] > 0, torch.full_like(item["image"], mark), item["image"])}

    flips = [RandFlipd(["image", "face"], prob=0.5, spatial_axis=axis) for axis in range(3)]
    pad = SpatialPadd(["image", "face"], (32, 48, 32))
    dataset = StoreCrops(Store(masked), (32, 48, 32), 0, Compose([marked, pad, *flips, DrawVisibled("image", 0.5)]))
    faces = 0
    for number in range(20):
        item = dataset[number]
        assert set(item) == {"image", "visible", "ignored"} and item["visible"].sum() == 6
        blocks = torch.nn.functional.max_pool3d((item["image"] == mark).float(), 16) > 0
        assert torch.equal(blocks, item["ignored"])
        faces += int(blocks.any())
        assert (item["visible"] & blocks).sum() == max(0, 6 - int((~blocks).sum())), "kept where there are no others"
    assert 0 < faces < 20


def test_an_augmentation_that_leaves_the_mask_behind_is_refused(masked, reliability):
    with refused("RandFlipd of the augmentation moves 'image' alone") as end:
        StoreCrops(Store(masked), ROI, 0, transform())
    reliability("Stores", "an augmentation that moves the image and not the mask of its face", end.value)
    StoreCrops(Store(masked, filter="path != 'scans/ct_0.nii.gz'"), ROI, 0, transform())


def test_crops_whose_centre_is_air_are_drawn_less_often(masked, monkeypatch):
    store = Store(masked, filter="path == 'scans/ct_1.nii.gz'")
    dataset, starts = StoreCrops(store, (8, 8, 8), seed=0), []
    read = StoredVolume.read
    monkeypatch.setattr(
        StoredVolume, "read", lambda self, start, *more: starts.append(start) or read(self, start, *more)
    )
    for number in range(100):
        dataset[number]
    volume = store.volume(0)
    inside = [volume.read_mask(BODY, [first + 4 for first in start], (1, 1, 1)).item() for start in starts]
    assert 85 <= sum(inside) < 100, "half of all places lie in the body, and four are tried"
    again = list(starts)
    starts.clear()
    for number in reversed(range(100)):
        dataset[number]
    assert starts[::-1] == again


def test_a_volume_that_cannot_be_read_is_replaced_by_the_next_draw_and_named(tmp_path, folder, alone, caplog):
    copy = shutil.copytree(folder, tmp_path / "store")
    victim = Store(copy).volume(2)
    path = Path(victim.files.path(victim.id))
    path.write_bytes(path.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING, "mambamim_nets"):
        found = bytes_of(batches(copy, 1))
    lines = [record.getMessage() for record in caplog.records]
    assert lines and all(f"{victim.id} of the store cannot be read" in line for line in lines)
    assert "another volume takes its place in sample" in lines[0] and "--verify finds all of them" in lines[0]
    dataset = crops(folder)
    broken = [number for number in range(48) if dataset.draw(number).volume == 2]
    assert 0 < len(broken) < 48
    dataset = crops(copy)
    for number in broken[:2]:
        attempt = next(n for n in range(1, 20) if dataset.draw(number, n).volume != 2)
        other = dataset.draw(number, attempt)
        assert other != dataset.draw(number) and other.volume != 2
    images = [torch.cat([batch["image"] for batch in batches_]) for batches_ in (alone, batches(copy, 1))]
    same = [torch.equal(*pair) for pair in zip(*images, strict=True)]
    assert [number for number, equal in enumerate(same) if not equal] == broken, "no other sample changes"
    assert found == bytes_of(batches(copy, 2)), "every process replaces it by the same one"


def test_a_store_that_cannot_be_read_at_all_ends_the_run(tmp_path, folder):
    copy = shutil.copytree(folder, tmp_path / "store")
    dataset = crops(copy)
    shutil.rmtree(copy / "volumes")
    with refused("20 volumes in a row cannot be read; is the disk there?"):
        dataset[0]


def test_a_mistake_of_a_transform_is_not_taken_for_a_broken_file(folder):
    def mistaken(item):
        raise ValueError("a mistake")

    with refused("a mistake"):
        crops(folder, transform=mistaken)[0]


def test_the_spacing_of_a_run_is_that_of_the_store(folder):
    assert crops(folder, spacing=[2.0, 2, 2.0]).data.spacing == [2.0, 2.0, 2.0]
    with refused("spacing [1.5, 1.5, 1.5] must be that of the store", "leave --spacing out"):
        crops(folder, spacing=[1.5, 1.5, 1.5])


def test_a_batch_that_processes_cannot_share_is_refused():
    assert StoreSampler(8, 5, 4, 1).share == 2 and len(StoreSampler(8, 5, 4, 1)) == 10
    with refused("batch_size 6 is that of all processes together and must be a multiple of their number, 4; try 8"):
        StoreSampler(6, 5, 4, 0)
