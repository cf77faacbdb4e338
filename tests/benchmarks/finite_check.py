"""What it costs to see that a network's results are finite: one batch of windows with and without, in turn.

    OMP_NUM_THREADS=1 python tests/benchmarks/finite_check.py

Windows of 48^3, four a batch, 14 classes, size tiny. Prints the median of each, and of the difference.
"""

import statistics
import time

import torch
from monai.inferers import SimpleInferer

from mambamim_nets import HyMambaSeg
from mambamim_nets.bundle.inference.inferers import AutocastInferer, _Windows

ROUNDS = 11


def main() -> None:
    torch.manual_seed(0)
    network, windows = HyMambaSeg(1, 14, size="tiny").eval(), torch.rand(4, 1, 48, 48, 48)
    inferer, check = AutocastInferer(SimpleInferer()), _Windows._require_finite
    times: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(ROUNDS + 2):
        for name, method in (("with", check), ("without", lambda *_: None)):
            _Windows._require_finite = method  # type: ignore[method-assign]
            started = time.perf_counter()
            with torch.no_grad():
                inferer(windows, network)
            times[name].append(time.perf_counter() - started)
    kept = {name: values[2:] for name, values in times.items()}  # the first two warm up
    differences = [a - b for a, b in zip(kept["with"], kept["without"], strict=True)]
    out = network(windows).detach()
    started = time.perf_counter()
    for _ in range(ROUNDS):
        out.aminmax()
    alone = (time.perf_counter() - started) / ROUNDS
    print(
        f"{torch.get_num_threads()} threads, median of {ROUNDS}: {statistics.median(kept['with']):.3f} s with,"
        f" {statistics.median(kept['without']):.3f} s without, difference {1000 * statistics.median(differences):.1f}"
        f" ms; the reduction alone {1000 * alone:.2f} ms"
    )


if __name__ == "__main__":
    main()
