"""Measure the memory and the time of a training step, in a process of its own: `python -m mambamim_nets.plan.measure`.

What is measured is what a training does: network, loss, AdamW, forward, backward and update on random crops. On a GPU
the peak is PyTorch's, of all it has reserved there; on a CPU it is the largest resident set of the process less what
was resident before the network was built. The process takes one table as JSON and writes one line for each candidate.
"""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mambamim_nets.bundle.files import read_json
from mambamim_nets.bundle.runtime import peak_memory

__all__ = ["Network", "Step", "known_steps", "measured_steps"]

logger = logging.getLogger("mambamim_nets")
TIMEOUT = 1200.0  # seconds for all candidates of a call


class Step(NamedTuple):
    """A training step as it was measured.

    Attributes:
        roi: voxels of a crop along each axis.
        crops: in the step.
        peak: bytes.
        seconds: of one step.
    """

    roi: tuple[int, int, int]
    crops: int
    peak: int
    seconds: float

    @property
    def voxels(self) -> int:
        """Return the voxels of all crops."""
        return self.crops * math.prod(self.roi)


class Network(NamedTuple):
    """What is trained, and on what.

    Attributes:
        in_channels, out_channels, size: as of HyMambaSeg.
        device: such as "cpu" or "cuda:0".
        regions: as in `Targets`; {} for exclusive classes.
    """

    in_channels: int
    out_channels: int
    size: str
    device: str
    regions: dict[str, list[int]]


def measured_steps(candidates: Sequence[tuple[Sequence[int], int]], network: Network) -> list[Step]:
    """Run a real step of each candidate, smallest first, in one process.

    Args:
        candidates: size of a crop in voxels, and number of crops.
        network: what is trained.

    Returns:
        The steps of the candidates that fitted; those from the first on that did not are missing.

    Raises:
        RuntimeError: not even the first could be measured.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate[1] * math.prod(candidate[0]))
    request = {**network._asdict(), "candidates": [[list(roi), crops] for roi, crops in ordered]}
    command = [sys.executable, "-m", "mambamim_nets.plan.measure", json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        output, errors = done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        output, errors = _text(error.stdout), f"more than {TIMEOUT:.0f} s"
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"roi"')]
    steps = [Step(tuple(line["roi"]), line["crops"], line["peak"], line["seconds"]) for line in lines]
    if not steps:
        last = errors.strip().splitlines()[-1:] or ["no reason given"]
        raise RuntimeError(
            f"a training step of size {network.size} with {ordered[0][1]} crops of {list(ordered[0][0])} voxels could"
            f" not be measured on {network.device}: {last[0]}; try --size tiny, or --device cpu"
        )
    return steps


def known_steps(bundle: Path, network: Network) -> list[Step]:
    """Return the steps that an earlier plan of this bundle has measured with the same network on the same device."""
    path = bundle / "configs" / "plan.json"
    held = read_json(path) if path.is_file() else {}
    if held.get("network") != network._asdict():
        return []
    return [Step(tuple(step["roi"]), step["crops"], step["peak"], step["seconds"]) for step in held["measured"]]


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _run(request: Mapping[str, Any]) -> None:
    """Measure each candidate and write its line as soon as it is known."""
    from monai.losses import DiceCELoss

    from mambamim_nets import HyMambaSeg
    from mambamim_nets.bundle.labels import RegionLoss

    device = torch.device(request["device"])
    regions, labels = request["regions"], request["out_channels"]
    loss: torch.nn.Module = RegionLoss(regions) if regions else DiceCELoss(to_onehot_y=True, softmax=True)
    before = peak_memory() or 0
    network = HyMambaSeg(request["in_channels"], request["out_channels"], size=request["size"]).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    for roi, crops in request["candidates"]:
        image = torch.rand(crops, request["in_channels"], *roi, device=device)
        label = torch.randint(0, labels, (crops, 1, *roi), device=device).float()
        for _ in range(2):  # the first step allocates, compiles and warms up
            start = time.perf_counter()
            optimizer.zero_grad()
            # bfloat16, as a training on a GPU computes by default
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = network(image)
            loss(logits.float(), label).backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else (peak_memory() or 0) - before
        print(json.dumps({"roi": roi, "crops": crops, "peak": peak, "seconds": round(seconds, 4)}), flush=True)


if __name__ == "__main__":
    _run(json.loads(sys.argv[1]))
