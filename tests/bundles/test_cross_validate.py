"""A cross-validation of a bundle from end to end: killed in the middle, continued, and its ensemble used."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import BUNDLES, REPOSITORY, environment

from mambamim_nets import phantom


@pytest.mark.slow
def test_a_cross_validation_that_is_killed_goes_on_and_its_ensemble_segments(tmp_path, bundle_run):
    data = phantom.write(tmp_path / "data", "hippocampus", cases=4)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (data / "imagesTr").iterdir())
    (tmp_path / "folds.json").write_text(json.dumps([names[:2], names[2:4]]))
    bundle, out = tmp_path / "msd_seg", tmp_path / "out"
    shutil.copytree(BUNDLES / "msd_seg" / "configs", bundle / "configs")
    options = {"bundle": bundle, "dataset_dir": data, "fold_file": tmp_path / "folds.json", "output_dir": out}
    options |= {"folds": "0,1", "max_epochs": 1, "val_interval": 1, "device": "cpu", "roi_size": "[32,32,32]"}
    options |= {"batch_size": 2, "overlap": 0.0}
    command = [sys.executable, "-m", "mambamim_nets.cross_validate"]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    environ = environment(PYTHONPATH=os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])))

    killed = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (out / "scratch" / "fold_1" / "run.json").is_file() and killed.poll() is None:
        time.sleep(0.1)
    killed.send_signal(signal.SIGTERM)
    error = killed.communicate(timeout=120)[1]
    assert killed.returncode == 130 and "the same command again continues" in error, error
    first = (out / "scratch" / "fold_0" / "model_best.pt").stat()
    assert not (out / "summary.md").exists() and not (bundle / "models").exists()

    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "2 runs: 1 finished before, 1 to do" in done.stdout
    assert (out / "scratch" / "fold_0" / "model_best.pt").stat() == first, "a finished fold is left alone"
    for fold in (0, 1):
        assert (out / "scratch" / f"fold_{fold}" / "progress.png").is_file()
    with (out / "metrics.csv").open() as file:
        assert {row["case"] for row in csv.DictReader(file)} == set(names[:4])

    outcome = bundle_run(
        bundle, ["inference", "cross_validated"], input=str(data / "imagesTr" / f"{names[0]}.nii.gz"),
        output_dir=str(tmp_path / "results"), previews=False,
    )  # fmt: skip
    assert outcome.status == 0, outcome.log[-3000:]
    with (tmp_path / "results" / "volumes.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["weights"].startswith("mean of 2 networks: models/fold_0.pt sha256")
    assert "a cross-validation on Task04_Hippocampus" in row["weights"]
