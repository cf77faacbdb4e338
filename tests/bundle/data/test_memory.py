"""Scans too large for the memory are refused, by an estimate that real peaks stay below."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mambamim_nets import phantom
from mambamim_nets.bundle.data import memory
from mambamim_nets.bundle.data.inspection import inspect_image
from mambamim_nets.bundle.data.memory import ScanMemory
from mambamim_nets.bundle.io.headers import Header

MIB = 2**20
UNLIMITED_1 = 9223372036854771712


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8192 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
MACHINES = {
    "no control group": ({}, 8 * MIB),
    "version 2": (
        {
            "proc/self/cgroup": "0::/user/job\n",
            f"{V2}/user/job/memory.max": f"{5 * MIB}\n",
            f"{V2}/user/job/memory.current": f"{3 * MIB}\n",
            f"{V2}/user/job/memory.stat": f"anon {2 * MIB}\ninactive_file {MIB}\n",
        },
        3 * MIB,
    ),
    "version 2, the group above is tighter": (
        {
            "proc/self/cgroup": "0::/user/job\n",
            f"{V2}/user/job/memory.max": "max\n",
            f"{V2}/user/job/memory.current": f"{MIB}\n",
            f"{V2}/user/memory.max": f"{2 * MIB}\n",
            f"{V2}/user/memory.current": f"{MIB}\n",
        },
        MIB,
    ),
    "version 2, seen from inside a container": (
        {
            "proc/self/cgroup": "0::/docker/0123\n",
            f"{V2}/memory.max": f"{4 * MIB}\n",
            f"{V2}/memory.current": f"{5 * MIB}\n",
        },
        0,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/job\n0::/\n",
            f"{V1}/job/memory.limit_in_bytes": f"{6 * MIB}\n",
            f"{V1}/job/memory.usage_in_bytes": f"{4 * MIB}\n",
            f"{V1}/job/memory.stat": f"total_inactive_file {MIB // 2}\n",
            f"{V1}/memory.limit_in_bytes": f"{UNLIMITED_1}\n",
            f"{V1}/memory.usage_in_bytes": f"{7 * MIB}\n",
        },
        2 * MIB + MIB // 2,
    ),
}


@pytest.mark.parametrize("kind", MACHINES)
def test_free_memory_of_a_machine(kind, tmp_path):
    files, expected = MACHINES[kind]
    assert memory.free_memory(machine(tmp_path, files)) == expected


def test_free_memory_is_unknown_without_proc_and_nothing_is_refused(tmp_path, monkeypatch):
    assert memory.free_memory(tmp_path) is None
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    assert ScanMemory([1.0] * 3).refusal(Header((10000,) * 3, (20.0,) * 3), 1) == ""
    assert memory.reading_refusal(Header((10000,) * 3)) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="proc is on Linux")
def test_free_memory_of_this_machine():
    assert 0 < memory.free_memory() < 2**50


# --- what a scan takes ----------------------------------------------------------------------------


def free(monkeypatch, gib: float) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: int(gib * memory.GIB))


def test_a_scan_is_refused_by_its_size_after_resampling(monkeypatch):
    free(monkeypatch, 8)
    use = ScanMemory([1.5, 1.5, 1.5], outputs=4)
    header = Header((120, 120, 90), (1.5, 1.5, 1.5))
    assert use.refusal(header, 1) == ""
    refused = use.refusal(header._replace(spacing=(20.0, 20.0, 20.0)), 1)
    assert "120 x 120 x 90 voxels of 20 x 20 x 20 mm need about" in refused
    assert "as 1600 x 1600 x 1200 voxels of 1.5 x 1.5 x 1.5 mm, and 8.0 GiB are free: correct" in refused


def test_more_of_anything_takes_more():
    header = Header((100, 90, 80), (1.0, 1.0, 2.0))
    use = ScanMemory([1.0, 1.0, 1.0], outputs=3, max_gib=2.0)
    assert use.grid(header) == (100, 90, 160)
    assert use.load(header, 4) > use.load(header, 1)
    assert use.work(header, 1) < ScanMemory([1.0, 1.0, 1.0], outputs=14, max_gib=2.0).work(header, 1)
    assert use.work(header, 1) < ScanMemory([0.5, 1.0, 1.0], outputs=3, max_gib=2.0).work(header, 1)
    assert ScanMemory([1.0] * 3, outputs=14, max_gib=0.01).work(header, 1) < ScanMemory(
        [1.0] * 3, outputs=14, max_gib=2.0
    ).work(header, 1), "a label map alone is brought back"
    wanted = ScanMemory([1.0] * 3, outputs=3, max_gib=2.0, probabilities=True)
    assert wanted.work(header, 1) > use.work(header, 1) + 4 * 3 * 100 * 90 * 80
    assert use.kept(header, 2, label=True) == 100 * 90 * 160 * 9
    assert ScanMemory([1.0] * 3, input_size=[8, 8, 8]).kept(header, 1, label=False) == 512 * 4


def test_a_gpu_has_room_where_the_cpu_has_not(monkeypatch):
    free(monkeypatch, 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * memory.GIB, 80 * memory.GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * memory.GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: memory.GIB)
    header = Header((200, 200, 200), (1.0, 1.0, 1.0))
    use = dict(spacing=[1.0, 1.0, 1.0], outputs=14)
    assert ScanMemory(**use, device="cpu").refusal(header, 1)
    assert ScanMemory(**use, device="cuda:0").refusal(header, 1) == "", "4 GiB there: free, or kept by PyTorch"
    assert ScanMemory(**use, device=torch.device("cuda")).refusal(header._replace(spacing=(1.5,) * 3), 1)


@pytest.mark.slow
def test_real_peaks_are_below_the_estimate(monkeypatch):
    """The chain of the segmentation bundles on one scan, the peak of the process against the estimate."""
    script = Path(__file__).parents[2] / "benchmarks" / "scan_memory.py"
    done = subprocess.run(
        [sys.executable, script, "[160,160,160]", "1.0", "0.9", "1", "4"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["estimate"] / 1.6 < found["peak"] < memory.MARGIN * found["estimate"], found


# --- in runs --------------------------------------------------------------------------------------


def scan(path: Path, edge: float = 1.0, shape=(36, 34, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).random(shape, dtype="float32")
    nib.save(nib.Nifti1Image(values, np.diag([edge, edge, edge, 1.0])), path)
    return path


HIDE = r"[\d.]+(?= GiB)"


def test_a_scan_too_large_for_the_memory_in_inference(bundle_run, reliability, tmp_path, monkeypatch):
    free(monkeypatch, 4)
    scan(tmp_path / "scans" / "large.nii.gz", edge=20.0)
    scan(tmp_path / "scans" / "small.nii.gz")
    end = bundle_run("msd_seg", "inference", input=str(tmp_path / "scans"), previews=False)
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["small_seg.nii.gz"]
    assert "1 of 2 scans failed" in end.log
    reliability("Inference", "a scan of 20 mm that is too large once it is resampled", end, hide=HIDE)


def test_voxels_that_do_not_fit_into_the_memory_are_not_read(tmp_path, monkeypatch):
    file = scan(tmp_path / "scan.nii.gz")
    assert not inspect_image(str(file), 1).problems
    free(monkeypatch, 1e-4)
    (problem,) = inspect_image(str(file), 1).problems
    assert problem.startswith(f"{file}: 36 x 34 x 32 voxels need") and "to be read, and 0.0 GiB are free" in problem


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return phantom.write(tmp_path_factory.mktemp("data") / "hippocampus", "hippocampus", cases=5)


@pytest.fixture
def coarse(data, tmp_path):
    """The data set with one case whose header says 30 mm; and that case."""
    folder = Path(shutil.copytree(data, tmp_path / "own"))
    case = json.loads((folder / "dataset.json").read_text())["training"][1]
    for key in ("image", "label"):
        image = nib.load(folder / case[key])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([30.0, 30.0, 30.0, 1.0])), folder / case[key])
    return folder, Path(case["image"]).name


def test_a_case_too_large_for_the_memory_in_training(coarse, bundle_run, reliability, tmp_path, monkeypatch):
    folder, name = coarse
    free(monkeypatch, 4)
    end = bundle_run("msd_seg", dataset_dir=str(folder), max_epochs=1)
    assert name in end.last and not list(tmp_path.rglob("*.pt"))
    reliability("Data sets", "a case of 30 mm that is too large once it is resampled", end, hide=HIDE)


@pytest.mark.slow
def test_an_image_too_large_for_the_memory_in_pretraining(coarse, bundle_run, reliability, tmp_path, monkeypatch):
    folder, name = coarse
    free(monkeypatch, 4)
    end = bundle_run("pretrain", sources=[str(folder)], max_epochs=1)
    assert (tmp_path / "out" / "encoder.pt").is_file()
    assert "1 of 7 images left out" in end.log
    fault = "an image of 30 mm that is too large once it is resampled"
    reliability("Pre-training", fault, end, warning=f"{name}: ", hide=HIDE)


@pytest.mark.slow
def test_a_cache_that_does_not_fit_into_the_memory_is_warned_of(data, bundle_run, reliability, monkeypatch):
    original = memory.ScanMemory.warn_of_cache

    def with_little_memory(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(memory, "free_memory", lambda: 200_000)
            original(*arguments)

    monkeypatch.setattr(memory.ScanMemory, "warn_of_cache", with_little_memory)
    end = bundle_run("msd_seg", dataset_dir=str(data), max_epochs=1)
    words, hide = "give --cache_rate", rf"{HIDE}|(?<=cache_rate )[\d.]+|\d+(?= scans)"
    reliability("Training runs", "a cache too large for the memory", end, warning=words, hide=hide)
