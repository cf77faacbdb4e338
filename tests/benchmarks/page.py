"""Write docs/BENCHMARKS.md from the JSON files of pytest-benchmark: page.py RESULT.json ... --output PAGE.

Of several files the later ones win, row by row, so that a long run and a short one make one page.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rows import GPU, ROWS, Row

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
INTRODUCTION = """# Benchmarks

Written by `make bench`; do not edit. A ratio is the median over rounds of two runs that follow each other in the same
process, at least five rounds after a warm-up; times are medians. Both sides hold the same weights and inputs and
compute the same result: `tests/benchmarks/test_baselines.py` compares outputs and all gradients. A benchmark fails when
the fast path is not the one that ran. Speed is baseline / ours: more is better. A share ("of it") is ours / baseline:
less is better.
"""
BASELINES = """## Baselines
They are written from their definitions, in `tests/benchmarks/baselines.py`.

- **dense-masked**: the same encoder, every convolution on the whole volume, then times the up-sampled mask. It has
  channels-last memory, the fewest multiplications by the mask that keep hidden voxels at zero, our scan and our TOKI.
  *With the unread skip*: the step also computes the skip map at stride 1, which the decoder never reads, as the public
  code does. Its decoder has width 768 in every row.
- **looped TOKI**: a Python loop over samples and gaps, z_j = sum_n Abar^(j-n) Bbar s_n with powers of Abar, elementwise
  where it is diagonal.
- **reference scan**: exp(Delta A) and Delta B u as (B, D, L, N) tensors, then a Python loop over L that indexes them,
  as mamba_ssm's `selective_scan_ref` does. *Steps cut by unbind*: the same loop, but its backward pass does not fill a
  whole tensor with zeros at every step.
- **parallel scan**: the same two tensors, then a work-efficient scan of log depth over L, in place, with its own
  backward scan, as mamba.py's pscan does.
- **networks**: MONAI's UNETR (feature size 16), SwinUNETR (48), MedNeXt-B (kernel 3) and DynUNet as nnU-Net plans it
  for 96^3 (five levels, 32 to 320 channels); random weights, 1 channel, 14 classes, batch 1, fp32 on the CPU and bf16
  autocast on CUDA; the training step is cross-entropy and AdamW.

Peak memory is the resident peak of the second step in a process of its own, as the kernel reports it; page faults are
the minor faults of that step.
"""
COMMANDS = """## Commands
```
make bench                                       all but the long benchmarks
make bench BENCH_ARGS="-k scan"                  some of them; writes build/BENCHMARKS.md
make bench BENCH_ARGS="-m long"                  batch 2 and 4, torch.compile, training steps of whole networks
python tests/benchmarks/page.py A.json B.json    one page from several runs; later files win
```
"""


def rows_of(results: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Collect the measured rows of result files; later files win."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        for benchmark in result["benchmarks"]:
            found |= benchmark["extra_info"].get("rows", {})
    return found


def quantity(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"
    return f"{value:,.0f}" + (f" {unit}" if unit == "MiB" else "")


def line(row: Row, measured: dict[str, Any] | None) -> str:
    """Format a table row."""
    if measured is None:
        cells = ["not measured", "", "", ""]
    else:
        ratio = f"{measured['ratio']:.2g} of it" if row.share else f"{measured['ratio']:.3g} x"
        sides = [quantity(measured[side], measured["unit"]) for side in ("ours", "baseline")]
        cells = [f"**{ratio}**", *sides, str(measured["threads"])]
    return "| " + " | ".join([row.what, row.against, row.at_least, row.reach, *cells]) + " |"


def table(section: str, measured: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of one section."""
    lines = [f"## {section}"]
    if section == GPU and not any(row in measured for row in ROWS if ROWS[row].section == GPU):
        lines.append("Not measured: no CUDA device on this machine. These rows skip without one.\n")
    lines.append("| what | against | at least | reach for | measured | ours | baseline | threads |")
    lines.append("|---|---|---|---|---|---|---|---|")
    lines += [line(row, measured.get(name)) for name, row in ROWS.items() if row.section == section]
    return [*lines, ""]


def machine(result: dict[str, Any]) -> list[str]:
    """Describe where a result file comes from, one table row per line."""
    info, commit = result["machine_info"], result["commit_info"]
    cpu = info["cpu"]
    flags = [flag for flag in FLAGS if flag in cpu.get("flags", [])]
    versions = [f"{name} {number}" for name, number in info["versions"].items()]
    return [
        f"| date | {result['datetime'][:16].replace('T', ' ')} UTC |",
        f"| commit | {commit['id']}{', with uncommitted changes' if commit['dirty'] else ''} |",
        f"| machine | {cpu.get('brand_raw', 'unknown')}, {cpu['count']} cores ({', '.join(flags)}); "
        f"{info['cuda'] or 'no GPU'}; {info['threads']} threads |",
        f"| versions | Python {info['python_version']}, {', '.join(versions)} |",
        f"| command | `pytest {info['arguments']}` |",
    ]


def page(results: list[dict[str, Any]]) -> str:
    """Return the page."""
    measured = rows_of(results)
    lines = [INTRODUCTION]
    for result in results:
        lines += ["| | |", "|---|---|", *machine(result), ""]
    for section in dict.fromkeys(row.section for row in ROWS.values()):
        lines += table(section, measured)
    return "\n".join([*lines, BASELINES, COMMANDS])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the page of benchmarks.")
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of pytest-benchmark, oldest first")
    parser.add_argument("--output", type=Path, default=Path("docs/BENCHMARKS.md"), help="the page")
    arguments = parser.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(page(results), encoding="utf-8", newline="\n")
    print("written:", arguments.output)


if __name__ == "__main__":
    main()
