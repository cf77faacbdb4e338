"""Peak memory of one scan through the chain of the segmentation bundles, and its estimate by ``ScanMemory``.

    python tests/benchmarks/scan_memory.py "[200, 200, 200]" 1.0 1.5 1 4

The arguments are the shape of the scan, its spacing and the network's in mm, channels, classes, and max_gib (2). The
scan consists of blocks, the network turns its intensity into classes, and windows are of 32^3, so that what is measured
is what the scan takes and not what the network does; results are written as inference writes them. The last line is
JSON: bytes of the peak above what the process had before, and of the estimate; seconds that the CPU worked; SHA-256 of
the label map, for a comparison of two versions.
"""

import gc
import hashlib
import json
import math
import sys
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInfererAdapt
from monai.transforms import Compose, EnsureTyped, Orientationd, ScaleIntensityRanged, Spacingd

from mambamim_nets import bundle as mb
from mambamim_nets.bundle.io.scan_formats import read_header

BLOCK = 32  # voxels of one intensity along each axis


class Bands(torch.nn.Module):
    """Find as many classes as asked for, in bands of the first channel's intensity."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.centres = torch.linspace(0, 1, outputs).view(1, -1, 1, 1, 1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return -50 * (windows[:, :1] - self.centres) ** 2


def resident() -> int:
    """Return the bytes of this process that are in memory (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def main(shape: list[int], edge: float, wanted: float, channels: int, classes: int, max_gib: float = 2.0) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "scan.nii"))
        coarse = np.random.default_rng(0).integers(-300, 400, [math.ceil(side / BLOCK) for side in shape], "int16")
        voxels = coarse.repeat(BLOCK, 0).repeat(BLOCK, 1).repeat(BLOCK, 2)[: shape[0], : shape[1], : shape[2]]
        if channels > 1:
            voxels = np.stack([voxels] * channels, axis=-1)
        nib.save(nib.Nifti1Image(voxels, np.diag([-edge, -edge, edge, 1.0])), file)
        del voxels
        steps = [
            mb.LoadScand("image"),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", [wanted] * 3, mode="bilinear"),
            ScaleIntensityRanged("image", -175, 250, 0.0, 1.0, clip=True),
            EnsureTyped("image", dtype="float32"),
        ]
        targets = mb.Targets({str(value): value for value in range(1, classes)})
        restore = mb.RestoreLabelsd("pred", targets, Compose(steps), max_gib=max_gib)
        parts = mb.KeepPartsd("pred", targets, keep_largest=True)
        loader = mb.ScanLoader(Dataset([{"image": file, "name": "scan", "series": None}], Compose(steps)))
        inferer = mb.AutocastInferer(SlidingWindowInfererAdapt((32, 32, 32), 4, 0.25, "gaussian"))
        evaluator = SupervisedEvaluator(
            torch.device("cpu"),
            loader,
            Bands(classes),
            inferer=inferer,
            postprocessing=Compose([restore, parts]),
            val_handlers=[mb.ScanReport(loader, targets, folder, window=(-175, 250))],
        )
        gc.collect()
        before, peak, running = resident(), 0, True

        def watch() -> None:
            nonlocal peak
            while running:
                peak = max(peak, resident() - before)
                time.sleep(0.002)

        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.process_time()
        evaluator.run()
        seconds = round(time.process_time() - started, 2)
        running = False
        watcher.join()
        use, header = mb.ScanMemory([wanted] * 3, classes, max_gib), read_header(file)
        estimate = max(use.load(header, channels), use.work(header, channels))
        label = np.asarray(nib.load(Path(folder, "scan_seg.nii.gz")).dataobj)
        found = {"peak": peak, "estimate": estimate, "seconds": seconds}
        print(json.dumps({"grid": use.grid(header), **found, "sha256": hashlib.sha256(label.tobytes()).hexdigest()}))


if __name__ == "__main__":
    main(*(json.loads(argument) for argument in sys.argv[1:]))
