"""Peak memory and page faults of one step of a workload, after a warm-up step: footprint.py WORKLOAD ARGUMENTS.

WORKLOAD is a function of workloads.py, ARGUMENTS its keyword arguments as JSON. Linux only: the peak is reset through
/proc/self/clear_refs and read from /proc/self/status.
"""

import json
import resource
import sys
from pathlib import Path

import workloads


def status(field: str) -> float:
    """Return a field of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main() -> None:
    step = getattr(workloads, sys.argv[1])(**json.loads(sys.argv[2]))
    built = status("VmRSS")
    step()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = faults()
    step()
    total = status("VmHWM")
    print(json.dumps({"total": total, "above": total - built, "faults": faults() - before}))


if __name__ == "__main__":
    main()
