"""Crops a second from a prepared store and from the caches of today, on one core: `python tests/benchmarks/store.py`.

    python tests/benchmarks/store.py --sources /data/scans --folder build/bench [--copies 4] [--samples 100]

It prepares a store of the sources, with every file `copies` times under another name, and fills a `DiskCache` and a
`CacheDataset` with the same. Then it takes turns: `samples` crops of 96^3 of each, five rounds, and prints the medians.
Times are seconds of the processor, in user and system, so other work on the machine counts little.
Each crop is scaled, padded and flipped as in the bundle's train.json; volumes are drawn uniformly from all. What is
read was written just before, so it is in the page cache unless it is larger than the memory: the page says warm.
"""

import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable
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
    parser.update({"bundle_root": str(CONFIGS.parent), "device": "cpu", "intensity": "ct_or_mr", **options})
    return parser


def main(sources: str, folder: str, copies: int = 1, samples: int = 100, memory: bool = True) -> None:
    """Measure and print a table."""
    torch.set_num_threads(1)
    work = Path(folder)
    scans = copies_of(sources, work / "scans", copies)
    if not (work / "store").exists():
        prepare(str(work / "store"), sources=[{"path": str(scans), "name": "scans"}])
    files = sorted(map(str, scans.rglob("*.nii.gz")))
    items = [{"image": file, "source": "scans"} for file in files]
    transform = parts("train").get_parsed_content("train#transform")
    stored = parts("train", "store", store=str(work / "store")).get_parsed_content("train#dataset")
    assert isinstance(stored, StoreCrops) and isinstance(stored.data, Store) and len(stored.data) == len(files)
    disk = DiskCache(items, transform, work / "cache")
    for place in range(len(items)):
        disk[place]
    chance = np.random.default_rng(0)
    numbers = iter(range(10**9))
    bare = StoreCrops(stored.data, ROI, seed=1)
    ways: dict[str, Callable[[], Any]] = {
        "store": lambda: stored[next(numbers)],
        "store, voxels only": lambda: bare[next(numbers)],
        "disk_cache.json": lambda: disk[int(chance.integers(len(items)))],
    }
    if memory:
        cached = CacheDataset(items, transform, cache_rate=1.0, copy_cache=False, progress=False, num_workers=1)
        ways["in memory"] = lambda: cached[int(chance.integers(len(items)))]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):  # the first one warms up
        for name, crop in ways.items():
            begin = time.process_time()
            for _ in range(samples):
                crop()
            times[name].append((time.process_time() - begin) / samples)
    sizes = {
        "store": size_of(work / "store" / "volumes", "*.b2nd"),
        "disk_cache.json": size_of(work / "cache", "*.pt"),
    }
    source = sum(os.path.getsize(file) for file in files)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, one used"
    )
    print(f"{len(files)} volumes, {source / MIB:.0f} MiB as .nii.gz; median of {ROUNDS} rounds of {samples} crops")
    for name, values in times.items():
        each = statistics.median(values[1:])
        size = f", {sizes[name] / MIB:.0f} MiB, {sizes[name] / source:.2f} of the source" if name in sizes else ""
        print(f"{name}: {1 / each:.1f} crops/s, {1000 * each:.1f} ms ({1000 * min(values[1:]):.1f} to"
              f" {1000 * max(values[1:]):.1f}){size}")  # fmt: skip
    ratio = statistics.median(
        values := [b / a for a, b in zip(times["store"][1:], times["disk_cache.json"][1:], strict=True)]
    )
    print(f"store against disk_cache.json: {ratio:.1f} times the crops ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    fire.Fire(main)
