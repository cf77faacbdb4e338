"""Peak memory of one scan through the chain of the segmentation bundles, and its estimate by ``ScanMemory``.

    python tests/benchmarks/scan_memory.py "[200, 200, 200]" 1.0 1.5 1 4

The arguments are the shape of the scan, its spacing and the network's in mm, channels, classes, and max_gib (2). The
network only repeats its input, and windows are of 32^3, so that what is measured is what the scan takes and not what
the network does. The last line is JSON: bytes of the peak above what the process had before, and of the estimate.
"""

import gc
import json
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


class Repeat(torch.nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return windows[:, :1].repeat(1, self.outputs, 1, 1, 1)


def resident() -> int:
    """Return the bytes of this process that are in memory (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def main(shape: list[int], edge: float, wanted: float, channels: int, classes: int, max_gib: float = 2.0) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "scan.nii"))
        sides = [*shape, channels] if channels > 1 else shape
        voxels = np.random.default_rng(0).integers(-1000, 1000, sides).astype("int16")
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
        loader = mb.ScanLoader(Dataset([{"image": file, "name": "scan", "series": None}], Compose(steps)))
        loader.keep_loaded = True  # as where previews are drawn
        inferer = mb.AutocastInferer(SlidingWindowInfererAdapt((32, 32, 32), 4, 0.25, "gaussian"))
        evaluator = SupervisedEvaluator(
            torch.device("cpu"), loader, Repeat(classes), inferer=inferer, postprocessing=Compose([restore])
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
        evaluator.run()
        running = False
        watcher.join()
        use, header = mb.ScanMemory([wanted] * 3, classes, max_gib), read_header(file)
        estimate = max(use.load(header, channels), use.work(header, channels))
        print(json.dumps({"grid": use.grid(header), "peak": peak, "estimate": estimate}))


if __name__ == "__main__":
    main(*(json.loads(argument) for argument in sys.argv[1:]))
