"""report.json and report.html: what an inference run read, with what, what came of each scan, and what it took.

report.json is replaced whole after each scan, and kept by later runs in the same folder: a scan keeps its entry until
it is done again, and an entry names the run that it is of. report.html shows the same to a person, with the pictures
inside, and is written at the end of a run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mambamim_nets.bundle.files import read_json, write_text
from mambamim_nets.bundle.handlers.provenance import made_with, now
from mambamim_nets.bundle.inference.scan_lists import source_files
from mambamim_nets.bundle.runtime import peak_memory
from mambamim_nets.bundle.visualize.report_page import run_page

__all__ = ["PAGE", "REPORT", "RunReport"]

REPORT, PAGE = "report.json", "report.html"
FORMAT = 1
MOST_PICTURES = 100  # inside of the page; it links to the others
PICTURE_WIDTH = 1000  # pixels
BLOCK = 1 << 20


class RunReport:
    """The report of the runs in one folder.

    Args:
        folder: where results go.

    Attributes:
        scans: by name, the entry of each scan; see `scan`.
        runs: by number, what each run was.

    Raises:
        ValueError: the folder has a report.json that is none of ours.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / REPORT
        held = read_json(self.path) if self.path.is_file() else {"scans": {}, "runs": {}}
        if not isinstance(held, dict) or not all(isinstance(held.get(key), dict) for key in ("scans", "runs")):
            raise ValueError(f"{self.path} is no report of inference; move it, or give another --output_dir")
        self.scans: dict[str, dict[str, Any]] = held["scans"]
        self.runs: dict[str, dict[str, Any]] = held["runs"]
        self.number = str(1 + max((int(key) for key in held["runs"] if key.isdigit()), default=0))
        self.results: list[str] = []

    def start(self, weights: str | Sequence[str] | None, device: Any, results: Sequence[str]) -> None:
        """Begin a run.

        Args:
            weights: as in `made_with`.
            device: that the network is on.
            results: names of the values that the page shows of a scan.
        """
        self.results = list(results)
        self.runs[self.number] = {
            "started": now(),
            "ended": None,
            **made_with(weights, device),
        }

    def scan(self, name: str, item: Mapping[str, Any], outcome: str, reason: str = "", **facts: Any) -> None:
        """Record what came of a scan.

        Args:
            name: of the scan.
            item: of `scans`, from which its files are known.
            outcome: "done", "incomplete" (a result is lacking) or "failed".
            reason: why it is not done.
            facts: what else is known: results, files, warnings, seconds.
        """
        self.scans[name] = {
            "outcome": outcome,
            "reason": reason,
            "input": _input(item),
            **facts,
            "peak_mib": _peak(),
            "finished": now(),
            "run": self.number,
        }
        self.write()

    def other_scan(self, name: str, item: Mapping[str, Any]) -> str:
        """Return the path of the scan that has an entry under a name, where it is not this item's; else ""."""
        held = self.scans.get(name, {}).get("input", {})
        if held.get("path") in (None, _path(item)) or held.get("sha256") == _input(item).get("sha256"):
            return ""
        return str(held["path"])

    def write(self) -> None:
        """Write report.json."""
        needed = {self.number, *(entry.get("run") for entry in self.scans.values())}
        runs = {key: run for key, run in self.runs.items() if key in needed}
        content = {"format": FORMAT, "runs": runs, "scans": dict(sorted(self.scans.items()))}
        write_text(self.path, json.dumps(content, indent=1, default=str) + "\n")

    def end(self) -> None:
        """End the run, and write report.html."""
        self.runs[self.number]["ended"] = now()
        self.write()
        pictures: dict[str, bytes | str] = {}
        for name, entry in sorted(self.scans.items()):
            found = [file for file in entry.get("files", []) if file.endswith(".png")]
            if found and (self.folder / found[0]).is_file():
                few = len(pictures) < MOST_PICTURES
                pictures[name] = _small(self.folder / found[0]) if few else found[0]
        page = run_page(self.runs[self.number], dict(sorted(self.scans.items())), self.results, pictures)
        write_text(self.folder / PAGE, page)


def _input(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return path, number of files, bytes and the SHA-256 of the files one after the other, in the order of names."""
    files = sorted(source_files(item))
    digest, size = hashlib.sha256(), 0
    try:
        for file in files:
            with open(file, "rb") as content:
                while block := content.read(BLOCK):
                    digest.update(block)
                    size += len(block)
    except OSError as error:
        return {"path": _path(item), "files": len(files), "unreadable": str(error)}
    return {"path": _path(item), "files": len(files), "bytes": size, "sha256": digest.hexdigest()}


def _path(item: Mapping[str, Any]) -> str | list[str]:
    """Return where a scan lies, absolute, since runs from several folders may share a report."""
    image = item["image"]
    return os.path.abspath(image) if isinstance(image, str) else [os.path.abspath(file) for file in image]


def _peak() -> dict[str, int]:
    """Return the most memory that the process has had so far, of a GPU what PyTorch has had, in MiB."""
    found = {}
    if (peak := peak_memory()) is not None:
        found["process"] = peak // 2**20
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.max_memory_allocated() // 2**20
    return found


def _small(path: Path) -> bytes:
    """Return a picture as JPEG of at most PICTURE_WIDTH pixels."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=85)
        return out.getvalue()
