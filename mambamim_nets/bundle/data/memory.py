"""Memory: what a scan will take, and what is free.

What a scan takes is worked out from its header before the work begins, since a kernel that runs out of memory ends the
whole run without a word. The estimate against the peak of the process, by tests/benchmarks/scan_memory.py on an x86-64
CPU, one thread, 26 November 2026; GiB, without the margin that a refusal adds:
    scan, 1 mm        channels  classes  to mm       peak  estimate
    200 x 200 x 200   1         4        1.5         0.66  0.68
    200 x 200 x 200   1         4        0.8         1.50  1.57
    200 x 200 x 200   4         3        1.5         0.75  0.74
    200 x 200 x 100   1         14       0.7         3.02  3.07
    300 x 300 x 250   1         14       1.2         5.67  5.87
    360 x 360 x 300   1         5        1.5         3.25  3.62
    200 x 200 x 200   1         14       1.5         0.75  0.80   label map alone brought back
A whole run of btcv_seg, inference.json as it stands, on 400 x 400 x 300 voxels of 0.8 x 0.8 x 1 mm peaked at 2.6 GiB
above one on 40^3 voxels where 2.0 are estimated (the label map alone brought back), and with --max_gib 20 at 7.6 where
6.6 are (/usr/bin/time -f %M, the same machine and day); the margin covers that. Rows 4 to 7 and these whole runs were
measured before the first channel of a scan was kept for its preview, 4 bytes a voxel, which estimates now add. The
activations of the network in one batch of windows are the same for every scan, and not part of it.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mambamim_nets.bundle.io.headers import Header
from mambamim_nets.bundle.io.scan_formats import read_header

__all__ = ["ScanMemory", "free_memory", "reading_refusal"]

logger = logging.getLogger("mambamim_nets")
GIB = 2**30
READERS = 4  # threads that read headers
MARGIN = 1.4  # of an estimate, for what reports and the heap take
NO_LIMIT = 2**60  # bytes: what a control group without a limit says
# files of a control group that hold its limit and its use, and in memory.stat what of that gives way: files in cache
GROUP_2 = ("memory.max", "memory.current", "inactive_file")
GROUP_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


# --- what is free ---------------------------------------------------------------------------------


def free_memory(root: Path = Path("/")) -> int | None:
    """Return how many bytes this process can still take, by the kernel and by its control groups; None if unknown.

    Args:
        root: of the file system that holds proc and sys.
    """
    bounds = [*_available(root), *_left_in_groups(root)]
    return min(bounds) if bounds else None


def _available(root: Path) -> list[int]:
    lines = _lines_of(root / "proc/meminfo")
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def _left_in_groups(root: Path) -> list[int]:
    """Return what each control group of this process leaves of its limit, version 2 and version 1, and those above."""
    left = []
    for line in _lines_of(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            if not controllers:
                left += _left_in_group(root / "sys/fs/cgroup" / folder, *GROUP_2)
                left += _left_in_group(root / "sys/fs/cgroup/unified" / folder, *GROUP_2)
            elif "memory" in controllers.split(","):
                left += _left_in_group(root / "sys/fs/cgroup/memory" / folder, *GROUP_1)
    return left


def _left_in_group(folder: Path, limit: str, usage: str, cached: str) -> list[int]:
    limits, used = _lines_of(folder / limit), _lines_of(folder / usage)
    if not limits or not used or not limits[0].isdigit() or int(limits[0]) >= NO_LIMIT:
        return []
    stat = dict(line.split()[:2] for line in _lines_of(folder / "memory.stat") if " " in line)
    return [max(0, int(limits[0]) - int(used[0]) + int(stat.get(cached, 0)))]


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # another system, or a group seen from inside a container
        return []


def _free_on(device: torch.device | str) -> int | None:
    """Return the free bytes of a CUDA device, those that PyTorch keeps for later too; None for any other."""
    if torch.device(device).type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


# --- what a scan takes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ScanMemory:
    """What the work on one scan takes, judged from its header.

    Args:
        spacing: of the network's grid, mm.
        outputs: channels of the network's result at that spacing; 0 for results of a few numbers.
        max_gib: as in ``RestoreLabelsd``, where results are brought back to the scan's own grid; None: they are not.
        device: of the network. With a GPU, results are kept there or, where they do not fit, by the CPU.
        remedy: what a person may do where there is too little.
        input_size: voxels that a scan is cropped or padded to after resampling; None: it keeps them all.
    """

    spacing: Sequence[float]
    outputs: int = 0
    max_gib: float | None = None
    device: torch.device | str = "cpu"
    remedy: str = "crop the scan, or use a machine with more memory"
    input_size: Sequence[int] | None = None

    def grid(self, header: Header) -> tuple[int, ...]:
        """Return the number of voxels along each axis after resampling."""
        sides = zip(header.shape, header.spacing, self.spacing, strict=False)
        return tuple(max(1, round(number * edge / wanted)) for number, edge, wanted in sides)

    def kept(self, header: Header, channels: int, label: bool) -> int:
        """Return the bytes of a preprocessed scan, as a cache keeps it; at most, before it is cropped to what shows."""
        return math.prod(self.input_size or self.grid(header)) * (4 * channels + int(label))

    def warn_of_cache(self, items: Sequence[Mapping[str, Any]], cache_rate: float) -> None:
        """Warn if preprocessed scans may take more memory than is free.

        Args:
            items: with "image" (path, or one per channel), and "label" (path) where there is a label map.
            cache_rate: share of them that is to be kept, from 0 to 1.
        """
        free = free_memory()
        if free is None or not cache_rate:
            return

        def kept(item: Mapping[str, Any]) -> int:
            paths = [item["image"]] if isinstance(item["image"], str) else list(item["image"])
            header = read_header(paths[0])
            channels = header.shape[3] if len(header.shape) > 3 else len(paths)
            return self.kept(header, channels, label=isinstance(item.get("label"), str))

        with ThreadPoolExecutor(READERS) as pool:
            needed = cache_rate * sum(pool.map(kept, items))
        if needed > free:
            logger.warning(
                "a cache of %d scans in memory may take %.1f GiB, and %.1f GiB are free: give --cache_rate %.2g, or add"
                " disk_cache.json to --config_file",
                len(items),
                needed / GIB,
                free / GIB,
                cache_rate * 0.8 * free / needed,
            )

    def load(self, header: Header, channels: int) -> int:
        """Return the bytes that loading and resampling take at most: in float64, with a grid of coordinates."""
        voxels, resampled = math.prod(header.shape[:3]), math.prod(self.grid(header))
        return voxels * channels * (header.itemsize + 17) + resampled * (48 + 8 * channels)

    def work(self, header: Header, channels: int) -> int:
        """Return the bytes that the results take at most: as logits, as probabilities, and brought back."""
        voxels, resampled = math.prod(header.shape[:3]), math.prod(self.grid(header))
        if not self.outputs:
            return 4 * resampled * channels
        loaded = 4 * voxels  # the first channel as it was loaded, for the preview
        blended = loaded + resampled * (4 * channels + 8 * self.outputs + 8)
        if self.max_gib is None:
            return blended + 8 * self.outputs * resampled
        if 4 * voxels * self.outputs > self.max_gib * GIB:  # the label map alone is brought back
            return max(blended, loaded + resampled * (14 * self.outputs + 24) + 42 * voxels)
        return max(blended, loaded + resampled * (16 * self.outputs + 8) + voxels * (8 * self.outputs + 34))

    def refusal(self, header: Header, channels: int) -> str:
        """Return why a scan is too large for the memory that is free; "" if it is not, or if that is unknown."""
        if len(header.shape) < 3:
            return ""
        host, device = free_memory(), _free_on(self.device)
        load, work = (int(MARGIN * part) for part in (self.load(header, channels), self.work(header, channels)))
        if host is None or (load <= host and work <= max(host, device or 0)):
            return ""
        size = " x ".join(map(str, self.grid(header)))
        return (
            f"{' x '.join(map(str, header.shape[:3]))} voxels of {_mm(header.spacing)} mm need about"
            f" {max(load, work) / GIB:.1f} GiB as {size} voxels of {_mm(self.spacing)} mm, and"
            f" {host / GIB:.1f} GiB are free: correct the spacing if it is wrong, {self.remedy}"
        )


def reading_refusal(header: Header) -> str:
    """Return why the voxels of a file cannot even be read into the memory that is free; "" if they can."""
    free, needed = free_memory(), header.length + math.prod(header.shape) * header.itemsize
    if free is None or needed <= free:
        return ""
    size = " x ".join(map(str, header.shape))
    return (
        f"{size} voxels need {needed / GIB:.1f} GiB to be read, and {free / GIB:.1f} GiB are free: crop the scan, or"
        " use a machine with more memory"
    )


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{edge:.4g}" for edge in spacing[:3])
