"""Crops a second from a prepared store and from the caches of today, on one core: `python tests/benchmarks/store.py`.

    python tests/benchmarks/store.py --sources /data/scans --folder build/bench [--copies 4] [--samples 100] [--cold]

It prepares a store of the sources, as blosc2 and with the extra [zarr] as Zarr at a file:// URL, with every file
`copies` times under another name, and fills a `DiskCache` and a `CacheDataset` with the same. Then it takes turns:
`samples` crops of 96^3 of each, five rounds, and prints the medians.
Times are seconds of the processor, in user and system, so other work on the machine counts little.
Each crop is scaled, padded and flipped as in the bundle's train.json; volumes are drawn uniformly from all. What is
read was written just before, so it is in the page cache unless it is larger than the memory: the page says warm.

With `--cold` the files of all volumes are put out of the page cache (posix_fadvise) before each crop, and the time is
that of a clock, with whatever else the machine does.

`--nnunet` adds crops that nnU-Net's dataset class reads, for which nnunetv2 must be installed: the voxels of the store
as its preprocessing would leave them, float32 with mean 0 and deviation 1, in its own chunks for crops of 96^3.
"""

import importlib.util
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset

from mambamim_nets.bundle.data.disk_cache import DiskCache
from mambamim_nets.bundle.data.store import Store
from mambamim_nets.bundle.data.store_crops import StoreCrops
from mambamim_nets.prepare.__main__ import prepare

INTENSITY = "ct_or_mr"
CONFIGS = Path(__file__).parents[2] / "bundles" / "pretrain" / "configs"
ROUNDS = 5
ROI = [96, 96, 96]
MIB = 2**20


def copies_of(sources: str, folder: Path, copies: int) -> Path:
    """Copy every file several times, once; what is left of an earlier run is used again."""
    if folder.exists():
        return folder
    for path in sorted(Path(sources).glob("*.nii.gz")):
        for number in range(copies):
            if not path.name.endswith("_seg.nii.gz"):
                target = folder / f"copy_{number}" / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    return folder


def size_of(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())


def parts(*configs: str, **options: Any) -> ConfigParser:
    """Return the configuration of pre-training."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in configs])
    parser.update({"bundle_root": str(CONFIGS.parent), "device": "cpu", "intensity": INTENSITY, **options})
    return parser


def of_nnunet(store: Store, folder: Path) -> Callable[[], torch.Tensor]:
    """Write the volumes of a store as nnU-Net does, and return a function that reads crops as its loader does."""
    from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    if not folder.exists():
        folder.mkdir(parents=True)
        for number in range(len(store)):
            volume = store.volume(number)
            voxels = volume.read((0, 0, 0), volume.shape, whole=True)[None]
            voxels = (voxels - voxels.mean()) / voxels.std()
            blocks, chunks = comp_blosc2_params(voxels.shape, ROI)
            labels = np.zeros(voxels.shape, np.int8)
            nnUNetDatasetBlosc2.save_case(voxels, labels, {}, str(folder / volume.id), chunks, blocks)
    data = nnUNetDatasetBlosc2(str(folder))
    chance = np.random.default_rng(0)

    def crop() -> torch.Tensor:
        image = data[data.identifiers[chance.integers(len(data.identifiers))]][0]
        starts = [int(chance.integers(max(0, side - roi) + 1)) for side, roi in zip(image.shape[1:], ROI, strict=True)]
        box = [[start, start + roi] for start, roi in zip(starts, ROI, strict=True)]
        return torch.from_numpy(crop_and_pad_nd(image, box, 0)).float()

    return crop


def evict(folder: Path) -> None:
    """Put all files of a folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(ways: dict[str, Callable[[], Any]], samples: int, cold: tuple[Path, ...] = ()) -> dict[str, list[float]]:
    """Return seconds for a crop of each way and round: of the processor, or where folders are evicted, of a clock."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    clock = time.perf_counter if cold else time.process_time
    for number in range(ROUNDS + 1):
        for name, crop in ways.items():
            spent = 0.0
            for _ in range(samples):
                for folder in cold:
                    evict(folder)
                begin = clock()
                crop()
                spent += clock() - begin
            if number:  # the first round warms up
                times[name].append(spent / samples)
    return times


def printed(times: dict[str, list[float]], sizes: dict[str, int], source: int) -> None:
    for name, values in times.items():
        each = statistics.median(values)
        size = f", {sizes[name] / MIB:.0f} MiB, {sizes[name] / source:.2f} of the source" if name in sizes else ""
        print(f"{name}: {1 / each:.1f} crops/s, {1000 * each:.1f} ms ({1000 * min(values):.1f} to"
              f" {1000 * max(values):.1f}){size}")  # fmt: skip


def main(
    sources: str,
    folder: str,
    copies: int = 1,
    samples: int = 100,
    memory: bool = True,
    cold: bool = False,
    spacing: Sequence[float] = (1.5, 1.5, 1.5),
    zarr: bool = importlib.util.find_spec("zarr") is not None,
    nnunet: bool = False,
) -> None:
    """Measure and print a table."""
    torch.set_num_threads(1)
    work = Path(folder)
    scans = copies_of(sources, work / "scans", copies)
    places = {"store": str(work / "store")}
    if zarr:
        places["Zarr"] = f"file://{(work / 'zarr').absolute()}"
    for place in places.values():
        if not Path(place.removeprefix("file://")).exists():
            prepare(place, sources=[{"path": str(scans), "name": "scans"}], spacing=spacing, intensity=INTENSITY)
    files = sorted(map(str, scans.rglob("*.nii.gz")))
    items = [{"image": file, "source": "scans"} for file in files]
    transform = parts("train", spacing=list(spacing)).get_parsed_content("train#transform")
    numbers = iter(range(10**9))
    ways: dict[str, Callable[[], Any]] = {}
    for name, place in places.items():
        stored = parts("train", "store", store=place).get_parsed_content("train#dataset")
        assert isinstance(stored, StoreCrops) and isinstance(stored.data, Store) and len(stored.data) == len(files)
        bare = StoreCrops(stored.data, ROI, seed=1)
        several = StoreCrops(Store(place), ROI, seed=1, crops_per_volume=4)
        ways |= {
            name: lambda stored=stored: stored[next(numbers)],
            f"{name}, voxels only": lambda bare=bare: bare[next(numbers)],
            f"{name}, voxels only, 4 crops of a volume": lambda several=several: several[next(numbers)],
        }
    if nnunet:
        ways["nnU-Net, voxels only"] = of_nnunet(Store(work / "store"), work / "nnunet")
    sizes = {
        "store": size_of(work / "store", "*.b2nd"),
        "Zarr": size_of(work / "zarr" / "volumes", "*"),
        "nnU-Net, voxels only": size_of(work / "nnunet", "*.b2nd"),
    }
    source = sum(os.path.getsize(file) for file in files)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, one used"
    )
    print(f"{len(files)} volumes, {source / MIB:.0f} MiB as .nii.gz; median of {ROUNDS} rounds of {samples} crops")
    disk = DiskCache(items, transform, work / "cache")
    for place in range(len(items)):
        disk[place]
    chance = np.random.default_rng(0)
    ways["disk_cache.json"] = lambda: disk[int(chance.integers(len(items)))]
    if memory and not cold:
        cached = CacheDataset(items, transform, cache_rate=1.0, copy_cache=False, progress=False, num_workers=1)
        ways["in memory"] = lambda: cached[int(chance.integers(len(items)))]
    sizes["disk_cache.json"] = size_of(work / "cache", "*.pt")
    volumes = [work / "store" / "volumes", work / "zarr" / "volumes", work / "nnunet", work / "cache"]
    os.sync()  # what was just written must be on the disk before it can be put out of the page cache
    times = measured(ways, samples, tuple(volumes) if cold else ())
    printed(times, sizes, source)
    ratio = statistics.median(values := [b / a for a, b in zip(times["store"], times["disk_cache.json"], strict=True)])
    print(f"store against disk_cache.json: {ratio:.1f} times the crops ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    fire.Fire(main)
