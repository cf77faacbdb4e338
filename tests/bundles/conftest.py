"""Small data and the ways to run a bundle: in this process, through the command line, and on two processes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from helpers import BUNDLES, environment
from monai.bundle import ConfigWorkflow
from small import SMALL

from mambamim_nets import HyMambaSeg, phantom
from mambamim_nets.prepare.__main__ import prepare

KINDS = {"btcv_seg": "abdomen", "amos_seg": "amos", "brats_seg": "brain", "ctorg_seg": "ctorg", "kits23_seg": "kits"}
KINDS |= {"fetal_landmarks": "fetal"}


@pytest.fixture(scope="session")
def small() -> dict[str, dict[str, Any]]:
    """The small settings of each bundle."""
    return SMALL


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Six labelled and two unlabelled hippocampus phantoms."""
    return phantom.write(tmp_path_factory.mktemp("data") / "hippocampus", "hippocampus", cases=6)


@pytest.fixture(scope="module")
def store(data, tmp_path_factory) -> Path:
    """Prepare a store of all hippocampus phantoms."""
    folder = tmp_path_factory.mktemp("prepared") / "store"
    prepare(str(folder), sources=[str(data / "imagesTr"), str(data / "imagesTs")], spacing=[1, 1, 1], intensity="mr")
    return folder


@pytest.fixture(scope="session")
def data_of(data, tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that gives a bundle's own phantoms, coarse: five labelled and two unlabelled ones."""
    folder = tmp_path_factory.mktemp("coarse")

    def write(name: str) -> Path:
        if name not in KINDS:
            return data
        return phantom.write(folder / name, KINDS[name], cases=5, spacing=SMALL[name]["spacing"])

    return write


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that copies a bundle, without what runs left in it, alone into a new folder."""

    def copy(name: str) -> Path:
        target = tmp_path_factory.mktemp("alone") / name
        left = shutil.ignore_patterns("runs", "phantom", "predictions", "models", "__pycache__")
        return shutil.copytree(BUNDLES / name, target, ignore=left)

    return copy


@pytest.fixture(scope="session")
def command() -> Callable[..., str]:
    """Return a function that runs ``python -m monai.bundle run`` and gives its output, both streams."""

    def run(configs: list[Path] | Path | str, *options: str, cwd: Path, fails: bool = False) -> str:
        files = str([str(config) for config in configs]) if isinstance(configs, list) else str(configs)
        line = ["-m", "monai.bundle", "run", "--config_file", files, *options]
        (done,) = processes.run(line, cwd=cwd, variables=[environment()])
        output = done.stdout + done.stderr
        assert done.returncode == int(fails), output[-6000:]
        return output

    return run


SEVERAL_RUNS = """
import faulthandler, json, sys
import monai.bundle, torch
faulthandler.dump_traceback_later(600, exit=True)  # a hang shows where
end = torch.distributed.destroy_process_group
torch.distributed.destroy_process_group = lambda *group: end(*group) if group else None
for options in json.loads(sys.argv[1]):  # one process group serves all
    monai.bundle.run(**options)
end()
"""


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory) -> Callable[..., str]:
    """Return a function that runs a program, or bundles one after another, on two processes; it gives the output.

    Its arguments are those of the program, or for each bundle the options of ``monai.bundle.run``. With `torchrun` the
    processes are started by torchrun, else in the same way, but sooner.
    """
    script = tmp_path_factory.mktemp("launch") / "several_runs.py"
    script.write_text(SEVERAL_RUNS)

    def launch(*arguments: str | dict[str, Any], cwd: Path, torchrun: bool = False) -> str:
        if isinstance(arguments[0], dict):
            arguments = (str(script), json.dumps(arguments))
        env = environment(CUDA_VISIBLE_DEVICES="")
        if torchrun:
            line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
            done = [subprocess.run([*line, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=900)]
        else:
            variables = [{**env, **rank} for rank in processes.ranks(2)]
            done = processes.run(arguments, arguments, cwd=cwd, variables=variables, timeout=900)
        output = "".join(one.stdout + one.stderr for one in done)
        assert [one.returncode for one in done] == [0] * len(done), output[-6000:]
        return output

    return launch


@pytest.fixture(scope="session")
def workflow() -> Callable[..., ConfigWorkflow]:
    """Return a function that makes a ConfigWorkflow of a bundle in the repository, small, on the CPU, initialised."""

    def make(name: str, configs: Sequence[str] = ("train",), start: bool = True, **options: Any) -> ConfigWorkflow:
        files = [str(BUNDLES / name / "configs" / f"{config}.json") for config in configs]
        options = {"bundle_root": str(BUNDLES / name), **SMALL[name], **options}
        made = ConfigWorkflow(config_file=files, logging_file=False, workflow_type="train", **options)
        if start:
            made.initialize()
        return made

    return make


@pytest.fixture(scope="session")
def network_file(tmp_path_factory) -> Path:
    """Fixed random weights of the tiny network for the hippocampus task."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "network.pt"
    torch.save(HyMambaSeg(1, 3, size="tiny").state_dict(), path)
    return path
