"""Memory: what a scan will take, and what is free.

What a scan takes is worked out from its header before the work begins, since a kernel that runs out of memory ends the
whole run without a word. The estimate against the peak of the process, by tests/benchmarks/scan_memory.py on an x86-64
CPU, one thread, 27 November 2026; GiB, without the margin that a refusal adds:
    scan                  channels  classes  mm to mm     peak  estimate
    200 x 200 x 200       1         4        1   to 1.5   0.30  0.26
    200 x 200 x 200       1         4        1   to 0.8   0.95  0.96
    200 x 200 x 200       4         3        1   to 1.5   0.75  0.74
    160 x 160 x 280       1         14       2   to 4     0.41  0.32
    200 x 200 x 100       1         14       1   to 0.7   2.07  2.02
    256 x 256 x 450       1         14       2   to 4     0.64  0.71   label map alone brought back, max_gib 0.5
They include the preview and the row of a scan; of all but rows 4 and 6 before intensities were summed plane by plane.
With --probabilities the estimate was not compared with a peak. The activations of the network in one batch of windows
are the same for every scan, and not part of it.
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
SLAB = 2**19  # voxels of the scan's grid that results are brought back to at once
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
        probabilities: whether these are wanted on the scan's own grid too.
    """

    spacing: Sequence[float]
    outputs: int = 0
    max_gib: float | None = None
    device: torch.device | str = "cpu"
    remedy: str = "crop the scan, or use a machine with more memory"
    input_size: Sequence[int] | None = None
    probabilities: bool = False

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
        """Return the bytes that the results take at most: as logits, as probabilities, brought back, and written."""
        voxels, resampled = math.prod(header.shape[:3]), math.prod(self.grid(header))
        if not self.outputs:
            return 4 * resampled * channels
        loaded = 4 * voxels  # the first channel as it was loaded, for the preview
        blended = loaded + resampled * (4 * channels + 8 * self.outputs + 8)
        if self.max_gib is None:
            return blended + 8 * self.outputs * resampled
        decided_first = 4 * voxels * self.outputs > self.max_gib * GIB  # the label map alone is brought back
        back = loaded + resampled * (4 * channels + (4 * self.outputs + 9 if decided_first else 12 * self.outputs))
        back += SLAB * (60 + 14 * (1 if decided_first else self.outputs))
        if self.probabilities:  # on the scan's grid, and once more as they are turned
            back += 8 * voxels * self.outputs
        reported = loaded + 10 * voxels + (4 * voxels * self.outputs if self.probabilities else 0)
        return max(blended, back + 3 * voxels, reported)

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
