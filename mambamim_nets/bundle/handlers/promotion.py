"""Put trained weights in the place of a bundle's own, if they are better on the same cases."""

import logging
import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from monai.engines import Evaluator
from torch import nn

from mambamim_nets.bundle.checkpoint_files import save
from mambamim_nets.bundle.files import write_text
from mambamim_nets.bundle.handlers.segmentation import CaseReport
from mambamim_nets.bundle.weights import trained_network
from mambamim_nets.checkpoint import half_precision, read_state

__all__ = ["promote"]

logger = logging.getLogger("mambamim_nets")


def promote(
    evaluator: Evaluator,
    network: nn.Module,
    report: CaseReport,
    candidate: str,
    shipped: str,
    record: Mapping[str, Any] | None = None,
) -> bool:
    """Evaluate both weights on the same cases; install the candidate if its mean Dice is higher.

    It is stored in half precision, as all shipped weights are. The weights that were there are kept beside it, as
    `model_until_<date>.pt` with their note. Tables and pictures that the report leaves are those of the candidate.

    Args:
        evaluator: with `report` attached; it evaluates `network`.
        network: takes the weights of both in turn.
        report: whose mean Dice decides.
        candidate: path of the trained weights.
        shipped: path of the bundle's own weights; need not exist.
        record: what both must be, as in `load_weights`.

    Returns:
        Whether the candidate was installed.

    Raises:
        FileNotFoundError, ValueError: as `load_weights`, before anything is changed.
    """
    if not isinstance(candidate, str):
        raise ValueError(f"checkpoint {list(candidate)}: promote.json compares one file of weights; give one")
    new, old = Path(candidate), Path(shipped)
    scores, pictures = {}, report.pictures
    trained_network(network, candidate, record)  # it is refused before the other weights are evaluated
    for path in (old, new) if old.is_file() else (new,):
        trained_network(network, str(path), record)
        report.evaluates(str(path))
        report.pictures = pictures
        evaluator.run()
        scores[path] = report.table.mean_dice()
        logger.info("mean Dice %.4f: %s", scores[path], path)
    if old in scores and not scores[new] > scores[old]:
        logger.info("%s stays: the candidate is not better", old)
        return False
    if old in scores:
        for path in (old, old.with_suffix(".txt")):
            if path.is_file():
                os.replace(path, _unused(path))
    save(old, half_precision(read_state(new)))
    note = f"These weights were installed from {new} on {date.today()}, mean Dice {scores[new]:.4f} when evaluated. "
    note += "They are for research only and not for diagnosis or treatment.\n"
    write_text(old.with_suffix(".txt"), note)
    logger.info("installed %s", old)
    return True


def _unused(path: Path) -> Path:
    """Return a name beside a file that no file has."""
    stem, number = f"{path.stem}_until_{date.today()}", 1
    while (target := path.with_name(f"{stem}{f'_{number}' if number > 1 else ''}{path.suffix}")).exists():
        number += 1
    return target
