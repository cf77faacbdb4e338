"""Two torchruns on one machine as two nodes: what is killed is started again, and the end is that of a quiet run."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import processes
import psutil
import pytest
import torch
from helpers import BUNDLES, environment, finished
from torch.testing import assert_close

CONFIGS = [str(BUNDLES / "pretrain" / "configs" / f"{name}.json") for name in ("train", "multi_gpu_train", "store")]
STEPS = {"epoch_iterations": 5, "max_epochs": 4, "batch_size": 4, "checkpoint_iterations": 1, "picture_interval": 100}
PLAIN = {"optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.001}, "amp": False}
PATIENCE = 300  # seconds


class Node:
    """A torchrun of two nodes, with its worker in a group of processes of its own."""

    def __init__(self, rank: int, port: int, folder: Path, options: dict) -> None:
        self.log = folder / f"node_{rank}.log"
        line = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={rank}"]
        line += ["--nproc_per_node=1", "--max-restarts=3"]
        line += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
        line += ["--rdzv-id=test", f"--rdzv-conf=is_host={int(rank == 0)}", "--monitor-interval=0.1"]
        line += ["-m", "monai.bundle", "run", "--config_file", str(CONFIGS)]
        for key, value in {**options, "output_dir": folder / f"node_{rank}"}.items():
            line += [f"--{key}", str(value)]
        env = environment(CUDA_VISIBLE_DEVICES="", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=log, env=env, start_new_session=True)

    def workers(self) -> list[psutil.Process]:
        """Return the processes that train."""
        return [child for child in psutil.Process(self.process.pid).children() if "monai.bundle" in child.cmdline()]

    def kill(self) -> None:
        """Take the whole node away."""
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def settings(small, store) -> dict:
    """The options of a short pre-training from a store."""
    options = {key: value for key, value in small["pretrain"].items() if key != "device"}
    return {**options, **STEPS, **PLAIN, "store": str(store)}


@pytest.fixture
def nodes(settings, tmp_path) -> Iterator[Callable[..., list[Node]]]:
    """Return a function that starts nodes; what is left of them is killed at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[Node] = []

    def start(*ranks: int) -> list[Node]:
        new = [Node(rank, port, tmp_path, settings) for rank in ranks]
        started.extend(new)
        return new

    yield start
    for node in started:
        node.kill()


def saved(folder: Path, name: str = "checkpoint_last.pt") -> dict:
    return torch.load(folder / name, weights_only=True)


def wait_for_step(folder: Path, step: int) -> int:
    """Wait until a checkpoint of at least so many steps is there, and return how many it has."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if (folder / "checkpoint_last.pt").is_file() and (found := saved(folder)["trainer"]["iteration"]) >= step:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no step {step} in {folder} after {PATIENCE} s")


def end_well(nodes: list[Node]) -> None:
    for node in nodes:
        assert node.process.wait(timeout=PATIENCE) == 0, node.log.read_text()[-5000:]


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_node_cost_no_more_than_what_was_not_saved(
    nodes, two_processes, settings, tmp_path
):
    two_processes({**settings, "config_file": CONFIGS, "output_dir": str(tmp_path / "quiet")}, cwd=tmp_path)
    first, second = nodes(0, 1)
    wait_for_step(tmp_path / "node_0", 2)
    second.workers()[0].kill()
    after = wait_for_step(tmp_path / "node_0", 6)
    second.kill()
    (third,) = nodes(1)
    end_well([first, third])
    assert after < 20 and saved(tmp_path / "node_0")["trainer"]["iteration"] == 20
    for name in ("encoder.pt", "checkpoint_last.pt"):
        quiet, disturbed = (saved(tmp_path / folder, name) for folder in ("quiet", "node_0"))
        quiet, disturbed = quiet.get("model", quiet), disturbed.get("model", disturbed)
        assert quiet.keys() == disturbed.keys() and all(torch.equal(quiet[key], disturbed[key]) for key in quiet), name
    assert not list((tmp_path / "node_1").glob("*.pt")), "rank 0 alone writes"


def run_ranks(tmp_path: Path, ranks: list[dict[str, str]], *different: dict) -> list[subprocess.CompletedProcess]:
    """Pre-train in processes that find each other as those of torchrun do; each writes to the folder of its node."""
    env = environment(CUDA_VISIBLE_DEVICES="")
    lines = []
    for rank, options in zip(ranks, different, strict=True):
        options = {**options, "output_dir": tmp_path / f"node_{rank['GROUP_RANK']}"}
        line = ["-m", "monai.bundle", "run", "--config_file", str(CONFIGS)]
        lines.append([*line, *(part for key, value in options.items() for part in (f"--{key}", str(value)))])
    return processes.run(*lines, cwd=tmp_path, variables=[{**env, **rank} for rank in ranks], timeout=PATIENCE)


@pytest.mark.slow
def test_two_nodes_of_two_processes_take_the_steps_of_one_process(settings, workflow, tmp_path):
    finished(workflow("pretrain", ["train", "store"], **settings, output_dir=str(tmp_path / "one")))
    ended = run_ranks(tmp_path, processes.ranks(4, nodes=2), *[settings] * 4)
    assert [one.returncode for one in ended] == [0] * 4, ended[0].stderr[-5000:]
    one, four = saved(tmp_path / "one"), saved(tmp_path / "node_0")
    assert one["trainer"]["iteration"] == four["trainer"]["iteration"] == 20
    for key, value in one["model"].items():
        assert_close(four["model"][key], value, rtol=0, atol=1e-6, msg=key)
    assert not list((tmp_path / "node_1").glob("*.pt")), "rank 0 alone writes"


@pytest.mark.slow
def test_nodes_with_other_settings_are_refused_by_both(settings, tmp_path):
    ended = run_ranks(tmp_path, processes.ranks(2, nodes=2), settings, {**settings, "seed": 1})
    assert all(one.returncode != 0 for one in ended)
    said = "".join(one.stdout + one.stderr for one in ended)
    assert "process 1 differs from process 0: seed is 0 in process 0 and 1 in this" in said
    assert not list(tmp_path.glob("node_*/*.pt"))
