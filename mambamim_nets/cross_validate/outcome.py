"""What a cross-validation hands over: weights of every fold in half precision, and the configuration that uses them.

`configs/cross_validated.json` comes after `inference.json`. What was written is on record, by digest, in
`outcome.json`; a file that is there and is not what was written is somebody's own, and is not replaced.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from mambamim_nets.bundle.checkpoint_files import BEST, save
from mambamim_nets.bundle.files import read_json, write_text
from mambamim_nets.bundle.weights import file_digest
from mambamim_nets.checkpoint import half_precision, read_state
from mambamim_nets.cross_validate.postprocessing import PostProcessing
from mambamim_nets.cross_validate.runs import Candidate, CrossValidation
from mambamim_nets.reproduce.runner import typed

__all__ = ["CONFIG", "check_outcome", "inference_command", "write_outcome"]

logger = logging.getLogger("mambamim_nets")
CONFIG, RECORD = "configs/cross_validated.json", "outcome.json"
LARGEST = 25_000_000  # bytes: what the model zoo keeps in its repository
NOT_OF_INFERENCE = {"dataset_dir", "device", "amp", "compile", "bundle_root"}  # of the machine and of training's data


def _files(work: CrossValidation) -> list[Path]:
    """Return every file that a cross-validation writes into its bundle."""
    weights = [work.bundle / "models" / f"fold_{fold}.pt" for fold in work.folds]
    return [work.bundle / CONFIG, *weights, *(path.with_suffix(".txt") for path in weights)]


def check_outcome(work: CrossValidation, overwrite: bool = False) -> None:
    """Refuse to replace files of the bundle that no run in this folder has written, or that were changed since.

    Raises:
        ValueError: that names the first of them.
    """
    record = work.folder / RECORD
    written = read_json(record) if record.is_file() else {}
    for path in _files(work):
        if path.is_file() and not overwrite and written.get(path.name) != file_digest(str(path)):
            raise ValueError(
                f"{path} was not written by a cross-validation in {work.folder}, or was changed since; move it away, or"
                " give --overwrite true"
            )


def write_outcome(work: CrossValidation, candidate: Candidate, found: PostProcessing, dice: float) -> list[Path]:
    """Write the weights of the folds, their notes, and the configuration for inference.

    Args:
        work: whose folds are all trained.
        candidate: that was chosen.
        found: post-processing that was chosen.
        dice: mean Dice out of fold, for the notes.

    Returns:
        The files.
    """
    config: dict[str, Any] = {"shipped": [f"models/fold_{fold}.pt" for fold in work.folds], **found.options}
    config |= _of_inference(work, {**work.options, **candidate.options})
    if candidate.network:
        network = read_json(work.bundle / candidate.network)
        config = {**network, **config}
    for fold in work.folds:
        target = work.bundle / "models" / f"fold_{fold}.pt"
        save(target, half_precision(read_state(work.run(candidate, fold).folder / BEST)))
        if target.stat().st_size > LARGEST:
            logger.warning("%s is larger than %d MB, which the model zoo wants elsewhere", target, LARGEST // 1_000_000)
        note = f"Fold {fold} of a cross-validation on {work.task}, {date.today()}, mean Dice of all folds {dice:.4f}."
        note += " For research only and not for diagnosis or treatment.\n"
        write_text(target.with_suffix(".txt"), note)
    write_text(work.bundle / CONFIG, json.dumps(config, indent=4) + "\n")
    files = _files(work)
    write_text(work.folder / RECORD, json.dumps({path.name: file_digest(str(path)) for path in files}, indent=1) + "\n")
    return files


def _of_inference(work: CrossValidation, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options of training that inference has too, such as size and spacing."""
    known = read_json(work.bundle / "configs" / "inference.json")
    return {key: value for key, value in options.items() if key.split("#")[0] in known and key not in NOT_OF_INFERENCE}


def inference_command(work: CrossValidation) -> str:
    """Return the command that segments a scan with the outcome."""
    configs = ["configs/inference.json", *work.configs[1:], CONFIG]
    files = str([str(work.bundle / name) for name in configs])
    return typed(["monai.bundle", "run", "--config_file", files, "--input", "scan.nii.gz"])
