"""Samples by their numbers: equal for any number of processes, after any stop, whatever cannot be read."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, SpatialPadd
from store_files import store_of, write_sources
from torch.utils.data import DataLoader

from mambamim_nets.bundle.data.store import Store
from mambamim_nets.bundle.data.store_crops import StoreCrops, StoreSampler
from mambamim_nets.bundle.transforms.stored import DrawVisibled

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
