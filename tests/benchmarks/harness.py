"""How benchmarks compare: interleaved rounds, ratios of neighbours in time, and proof of which path ran."""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rows import ROWS
from torch.utils._python_dispatch import TorchDispatchMode


class Times(dict[str, list[float]]):
    """Seconds of every round, by contender."""

    def median(self, name: str) -> float:
        return statistics.median(self[name])

    def ratio(self, slow: str, fast: str) -> float:
        """Return the median of the ratios within a round."""
        return statistics.median(a / b for a, b in zip(self[slow], self[fast], strict=True))


def compare(benchmark: Any, contenders: dict[str, Callable[[], Any]], rounds: int = 5, warmup: int = 1) -> Times:
    """Run all contenders in turn, round by round; the first is the one pytest-benchmark measures.

    Args:
        benchmark: the fixture.
        contenders: what to run, by name.
        rounds: measured rounds.
        warmup: rounds before them.

    Returns:
        Times of the measured rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}

    def timed(name: str) -> None:
        start = time.perf_counter()
        contenders[name]()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times[name].append(time.perf_counter() - start)

    first, *others = contenders

    def run_others() -> None:
        for name in others:
            timed(name)

    benchmark.pedantic(timed, args=(first,), setup=run_others, rounds=rounds, warmup_rounds=warmup)
    return Times({name: seconds[-rounds:] for name, seconds in times.items()})


def record(benchmark: Any, row: str, ours: float, baseline: float, ratio: float, unit: str) -> None:
    """Note a measured row of ``rows.ROWS`` for the page; ratio is baseline / ours, or ours / baseline for a share."""
    assert row in ROWS, f"{row} is in no table; add it to rows.py"
    measured = {"ours": ours, "baseline": baseline, "ratio": ratio, "unit": unit, "threads": torch.get_num_threads()}
    benchmark.extra_info.setdefault("rows", {})[row] = measured


def record_times(benchmark: Any, row: str, times: Times, ours: str, baseline: str) -> None:
    ratio = times.ratio(ours, baseline) if ROWS[row].share else times.ratio(baseline, ours)
    record(benchmark, row, times.median(ours), times.median(baseline), ratio, "s")


@contextlib.contextmanager
def spy(*functions: Callable[..., Any]) -> Iterator[dict[Callable[..., Any], list[Any]]]:
    """Replace functions wherever the package refers to them, and list the results of their calls."""
    results: dict[Callable[..., Any], list[Any]] = {function: [] for function in functions}

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            results[function].append(result)
            return result

        return call

    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "mambamim_nets"]
    replaced = []
    for function in functions:
        stand_in = wrapped(function)
        for module in modules:
            for name in [name for name, value in vars(module).items() if value is function]:
                setattr(module, name, stand_in)
                replaced.append((module, name, function))
    try:
        yield results
    finally:
        for module, name, function in replaced:
            setattr(module, name, function)


class ConvolutionWork(TorchDispatchMode):
    """Count the multiply-adds of forward convolutions by the dtype of their input."""

    def __init__(self) -> None:
        super().__init__()
        self.work: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if "conv" in name and "backward" not in name:
            x, weight = args[:2]
            transposed = "transpose" in name or (name.startswith("aten.convolution") and args[6])
            self.work[x.dtype] += (x if transposed else out).numel() * weight[0].numel()
        return out


def convolution_work(function: Callable[[], Any]) -> Counter[torch.dtype]:
    """Run a function and return the multiply-adds of its forward convolutions by dtype."""
    with ConvolutionWork() as mode:
        function()
    return mode.work


class Footprint(NamedTuple):
    """Peak resident memory of a step in MiB, whole and above the process before its first step; minor page faults."""

    total: float
    above: float
    faults: int


def footprint(workload: str, **arguments: Any) -> Footprint:
    """Measure the second step of a workload in a process of its own; see ``footprint.py``."""
    command = [sys.executable, str(Path(__file__).with_name("footprint.py")), workload, json.dumps(arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return Footprint(**json.loads(run.stdout.splitlines()[-1]))
