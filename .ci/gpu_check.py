"""Check a CUDA machine in about ten minutes, without a network: what the CPU cannot prove of this project.

Each step is a program of its own with a log of its own in the output folder; one that fails does not keep the others
from running. `gpu_check.json` and `gpu_check.md` say what came of each. What a machine lacks is skipped, and the page
says why. On a machine without a GPU every step that can runs at its smallest size, so that this script cannot rot.

    packages      build causal-conv1d and mamba-ssm from source packages in a folder (--packages), for this GPU
    tests         every test of the kernels that needs CUDA
    benchmarks    a pre-training step and whole networks against their baselines
    pre-training  50 steps of the base network at 96^3 in bfloat16
    fine-tuning   one epoch of the base segmentation network
    inference     these weights, on a scan of their training set
    agreement     the shipped weights on one scan, here and on the CPU: how many voxels differ
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLES = REPOSITORY / "bundles"
SOURCES = ("causal_conv1d", "mamba_ssm")  # in the order in which they are built
NO_GPU = "needs a CUDA device"
MOST_DIFFERENT = 1e-3  # of the voxels: those whose two best classes are as good as equal


class Step(NamedTuple):
    """One program.

    Attributes:
        name: heads its row, and names its log.
        command: to run.
        skip: why it is not run here; "" to run it.
        figures: reads what it measured when it has ended well.
    """

    name: str
    command: Sequence[str | Path]
    skip: str = ""
    figures: Callable[[], Mapping[str, Any]] = dict


def main() -> int:
    """Run the steps and write both files.

    Returns:
        1 if a step has failed or found no time, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=REPOSITORY / "build" / "gpu_check", help="folder of what is written"
    )
    parser.add_argument("--packages", type=Path, help="folder of causal_conv1d-*.tar.gz and mamba_ssm-*.tar.gz")
    parser.add_argument(
        "--minutes", type=float, default=10, help="for all steps together; what is left over is not run"
    )
    parser.add_argument("--steps", nargs="+", help="only these")
    parser.add_argument("--agreement", nargs=2, metavar=("SCAN", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.agreement:
        return agreement(*map(Path, options.agreement))
    options.output.mkdir(parents=True, exist_ok=True)
    steps = planned(options.output.resolve(), options.packages, gpu=torch.cuda.is_available())
    if unknown := sorted(set(options.steps or ()) - {step.name for step in steps}):
        parser.error(f"--steps {unknown} must be of {[step.name for step in steps]}")
    end = time.monotonic() + 60 * options.minutes
    rows = [
        run(step, options.output, end - time.monotonic())
        for step in steps
        if not options.steps or step.name in options.steps
    ]
    report = {"machine": machine(), "steps": rows}
    (options.output / "gpu_check.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (options.output / "gpu_check.md").write_text(page(report), encoding="utf-8")
    print(f"\nwrote {options.output / 'gpu_check.md'}")
    return int(any(row["outcome"] in ("failed", "no time left") for row in rows))


def planned(output: Path, packages: Path | None, gpu: bool) -> list[Step]:
    """List the steps for this machine; those on a CPU are as small as they can be."""
    python, device = sys.executable, "cuda:0" if gpu else "cpu"
    bundle_run = [python, "-m", "monai.bundle", "run", "--device", device]
    size = ["--size", "base", "--amp", "true"] if gpu else ["--size", "tiny", "--roi_size", "[32,32,32]"]
    small = [] if gpu else ["--spacing", "[8.0,8.0,8.0]"]
    data, pretrain, finetune = output / "data", output / "pretrain", output / "finetune"
    scan = data / "imagesTr" / "phantom_000.nii.gz"
    train = f"['{BUNDLES}/btcv_seg/configs/train.json']"
    benchmarks = output / "benchmarks.json"
    found = sources(packages)
    return [
        Step("packages", [python, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", *found],
             cannot_build(found, gpu)),
        Step("tests", [python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-k", "cuda or mamba_ssm",
                       REPOSITORY / "tests" / "ops"]),
        Step("benchmarks", [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--benchmark-only",
                            "--benchmark-json", benchmarks, REPOSITORY / "tests" / "benchmarks" / "test_bench_cuda.py"],
             "" if gpu else NO_GPU, lambda: medians(benchmarks)),
        Step("data", [python, "-c", "import sys; from mambamim_nets import phantom; "
                      f"phantom.write(sys.argv[1], 'abdomen', cases={8 if gpu else 2})", data]),
        Step("pre-training", [*bundle_run, "--config_file", BUNDLES / "pretrain" / "configs" / "train.json",
                              "--dataset_dir", data, "--output_dir", pretrain, *size, *small,
                              "--batch_size", "4" if gpu else "1", "--max_epochs", "17" if gpu else "1"],
             figures=lambda: progress(pretrain)),
        Step("fine-tuning", [*bundle_run, "--config_file", train, "--dataset_dir", data, "--fold", "all",
                             "--pretrained", pretrain / "encoder.pt", "--max_epochs", "1", "--val_interval", "1",
                             "--output_dir", finetune, *size, *small],
             figures=lambda: progress(finetune)),
        Step("inference", [*bundle_run, "--config_file", BUNDLES / "btcv_seg" / "configs" / "inference.json",
                           "--input", scan, "--checkpoint", finetune / "model_best.pt", "--output_dir",
                           output / "inference", *size, *small]),
        Step("agreement", [python, Path(__file__), "--agreement", scan, output / "agreement.json"],
             figures=lambda: json.loads((output / "agreement.json").read_text())),
    ]  # fmt: skip


def run(step: Step, output: Path, seconds: float) -> dict[str, Any]:
    """Run a step with its output in <name>.log, and return its row."""
    if step.skip or seconds <= 0:
        row = {"step": step.name, "outcome": "skipped" if step.skip else "no time left", "seconds": 0.0}
        print(f"{step.name}: {row['outcome']} {step.skip}", flush=True)
        return row | {"note": step.skip}
    log, start = output / f"{step.name}.log", time.monotonic()
    print(f"{step.name}: {log}", flush=True)
    with log.open("w", encoding="utf-8") as file:
        try:
            ended = subprocess.run(
                list(map(str, step.command)), stdout=file, stderr=subprocess.STDOUT, timeout=seconds, check=False,
                cwd=REPOSITORY, env=os.environ | architecture(),
            )  # fmt: skip
            outcome, note = ("passed", "") if ended.returncode == 0 else ("failed", f"exit {ended.returncode}")
        except subprocess.TimeoutExpired:
            outcome, note = "failed", f"broken off after {seconds:.0f} s"
    row = {"step": step.name, "outcome": outcome, "seconds": round(time.monotonic() - start, 1)}
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1].strip() if lines else ""
    if outcome == "failed" or "pytest" in map(str, step.command):
        note = ", ".join(filter(None, [note, last]))
    print(f"{step.name}: {outcome} in {row['seconds']} s {note}", flush=True)
    return row | {"note": note, "figures": dict(step.figures()) if outcome == "passed" else {}}


def agreement(scan: Path, result: Path) -> int:
    """Segment a scan with the shipped weights of btcv_seg on the GPU, if there is one, and on the CPU.

    Returns:
        1 if more than `MOST_DIFFERENT` of the voxels differ, else 0.
    """
    import numpy as np

    from mambamim_nets import segment

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    here, there = (
        np.asarray(segment(scan, BUNDLES / "btcv_seg", device=name).labels.dataobj) for name in (device, "cpu")
    )
    different = float((here != there).mean())
    result.write_text(json.dumps({"voxels that differ": different, "devices": [device, "cpu"]}), encoding="utf-8")
    return int(different > MOST_DIFFERENT)


def sources(packages: Path | None) -> list[Path]:
    """Return the source packages in a folder, in the order in which they are built."""
    if packages is None:
        return []
    found = [sorted(packages.glob(f"{name}*.tar.gz")) for name in SOURCES]
    return [paths[-1] for paths in found if paths]


def cannot_build(found: Sequence[Path], gpu: bool) -> str:
    """Return why the packages are not built here; "" if they can be."""
    reasons = {
        NO_GPU: not gpu,
        "installed": all(find_spec(name) for name in SOURCES),
        f"--packages must be a folder with {' and '.join(f'{name}-*.tar.gz' for name in SOURCES)}": len(found) < 2,
        "needs nvcc, the compiler of the CUDA toolkit": shutil.which("nvcc") is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def architecture() -> dict[str, str]:
    """Return what makes both packages build their own sources for this GPU alone, rather than fetch a wheel."""
    if not torch.cuda.is_available():
        return {}
    major, minor = torch.cuda.get_device_capability()
    return {
        "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "MAX_JOBS": str(os.cpu_count()),
        "CAUSAL_CONV1D_FORCE_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE",
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """Say what this was measured on."""
    found: dict[str, Any] = {"date": date.today().isoformat(), "python": platform.python_version()}
    for name in ("torch", "triton", "monai", "mamba-ssm", "causal-conv1d"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    if torch.cuda.is_available():
        of = torch.cuda.get_device_properties(0)
        found |= {"device": of.name, "memory (GiB)": round(of.total_memory / 2**30, 1), "CUDA": torch.version.cuda}
        return found
    return found | {"device": f"no GPU, {os.cpu_count()} cores, PyTorch for {torch.backends.cpu.get_cpu_capability()}"}


def progress(folder: Path) -> dict[str, Any]:
    """Return the first and last loss of a training, and how long its epochs took without the first one."""
    with (folder / "progress.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    loss = [float(row["train_loss"]) for row in rows]
    seconds = sorted(float(row["seconds"]) for row in rows[1:] or rows)
    return {
        "epochs": len(rows), "first loss": loss[0], "last loss": loss[-1],
        "median seconds of an epoch": seconds[len(seconds) // 2],
    }  # fmt: skip


def medians(path: Path) -> dict[str, float]:
    """Return the median seconds of every benchmark, and the ratios that it kept."""
    held = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    return {row["name"]: row["stats"]["median"] for row in held} | {
        f"{row['name']}: {name}": value for row in held for name, value in row["extra_info"].items()
    }


def page(report: Mapping[str, Any]) -> str:
    """Return the page of a report, in Markdown."""
    lines = ["# What this machine can do", ""]
    lines += [f"- {name}: {value}" for name, value in report["machine"].items()]
    lines += ["", "| step | outcome | seconds | note |", "|---|---|---|---|"]
    lines += [f"| {row['step']} | {row['outcome']} | {row['seconds']:.0f} | {row['note']} |" for row in report["steps"]]
    for row in report["steps"]:
        if row.get("figures"):
            lines += ["", f"## {row['step']}", *(f"- {name}: {value}" for name, value in row["figures"].items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
