"""Benchmarks: pytest-benchmark comparisons, run by make bench; their baselines are tested by make test."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # baselines, harness and the like are plain modules beside the tests


def pytest_configure(config):
    config.addinivalue_line("markers", "long: a benchmark of many minutes, which make bench leaves out")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["versions"] = {name: version(name) for name in ("torch", "monai", "numba", "numpy")}
    machine_info["threads"] = torch.get_num_threads()
    machine_info["capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine_info["arguments"] = " ".join(config.invocation_params.args)
