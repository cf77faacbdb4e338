"""What results were made with, for the reports beside them: bundle, weights, versions, machine and settings."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mambamim_nets import __version__
from mambamim_nets.bundle.config import bundle_root
from mambamim_nets.bundle.files import read_json
from mambamim_nets.bundle.handlers.identity import run_settings
from mambamim_nets.bundle.weights import file_digest, weights_files, weights_note

__all__ = ["made_with", "now"]

PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "itk", "pydicom", "highdicom")


def made_with(weights: str | Sequence[str] | None, device: Any = None) -> dict[str, Any]:
    """Return what the run whose configuration is being evaluated makes its results with, ready for JSON.

    Args:
        weights: file of the weights, or files of an ensemble.
        device: that the network is on.

    Returns:
        "bundle" (name and version), "weights" ("sha256" of each file, and "note"), "versions", "machine", "settings".
    """
    return {
        "bundle": _bundle(),
        "weights": {
            "sha256": {path: file_digest(path) for path in weights_files(weights)},
            "note": weights_note(weights),
        },
        "versions": {"mambamim_nets": __version__, "python": platform.python_version(), **_versions()},
        "machine": _machine(device),
        "settings": run_settings().values,
    }


def now() -> str:
    """Return the time in ISO 8601, to the second, with the zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _bundle() -> dict[str, Any]:
    path = Path(bundle_root(), "configs", "metadata.json")
    metadata = read_json(path) if path.is_file() else {}
    return {"name": metadata.get("name", ""), "version": metadata.get("version", "")}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _machine(device: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"system": platform.platform(), "processors": os.cpu_count()}
    facts |= {"threads": torch.get_num_threads(), "device": str(device or "")}
    if getattr(device, "type", "") == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts
