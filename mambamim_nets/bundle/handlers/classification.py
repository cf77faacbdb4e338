"""Classification of whole scans: decision thresholds, and the reports of evaluation and inference.

A network has one logit, and its sigmoid is the probability of the positive class, the second of `classes`. Beside the
weights `<name>.pt` lies `<name>.json` with their decision threshold, chosen on the validation scans of their epoch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import Evaluator
from monai.visualize import GradCAM
from torch import nn

from mambamim_nets.bundle.checkpoint_files import BEST
from mambamim_nets.bundle.handlers.evaluation import CaseCollector
from mambamim_nets.bundle.handlers.scan_results import ScanResults
from mambamim_nets.bundle.inference.scan_loader import ScanLoader
from mambamim_nets.bundle.metrics.classification import (
    PREDICTIONS,
    ClassificationTable,
    ClassifiedScan,
    measures,
    youden,
)
from mambamim_nets.bundle.runtime import process_rank
from mambamim_nets.bundle.visualize.classification import roc_figure, saliency_figure
from mambamim_nets.bundle.visualize.planes import save_figure

__all__ = ["ClassReport", "DecisionReport", "DecisionThreshold", "decision_threshold"]

logger = logging.getLogger("mambamim_nets")
CAM_LAYER = "layer2"  # stride 8: the finest map that has seen enough context


# --- thresholds -----------------------------------------------------------------------------------


def decision_threshold(threshold: float | None, checkpoint: str, classes: Sequence[str]) -> float:
    """Return the probability from which a scan is called positive.

    Args:
        threshold: as given; None: the one that lies beside the weights.
        checkpoint: path of the weights, `<name>.pt`; the threshold is in `<name>.json`.
        classes: of the task, negative and positive.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no threshold, or one for other classes; or the threshold is not from 0 to 1.
    """
    if threshold is not None:
        return _probability(threshold)
    path = Path(checkpoint).with_suffix(".json")
    remedy = "copy it with its weights, or give --threshold a probability from 0 to 1"
    if not path.is_file():
        raise FileNotFoundError(f"{path}, the decision threshold of {checkpoint}, does not exist; {remedy}")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        stored, chosen_for = float(held["threshold"]), list(held["classes"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no decision threshold ({error}); {remedy}") from error
    if chosen_for != list(classes):
        raise ValueError(f"{path} is for the classes {chosen_for}, the task has {list(classes)}; use its own weights")
    return _probability(stored, path)


def _probability(threshold: float | str, source: object = "threshold") -> float:
    if not 0 <= float(threshold) <= 1:
        raise ValueError(f"{source}: {threshold} must be a probability from 0 to 1")
    return float(threshold)


# --- reports --------------------------------------------------------------------------------------


class _ScanCollector(CaseCollector[ClassificationTable]):
    """Collect the probabilities of an evaluator's scans.

    Expects `pred` (1,) probabilities and `label` (1,), and batches with case, subject, session and diagnosis.
    """

    def row(self, source: Mapping[str, Any], item: Mapping[str, Any]) -> ClassifiedScan:
        """Return what is known of a scan."""
        label, probability = (float(item[key].flatten()[0]) for key in ("label", "pred"))
        return ClassifiedScan(source["subject"], source["session"], source["diagnosis"], round(label), probability)


class DecisionThreshold(_ScanCollector):
    """Choose the decision threshold on the validation scans of the best epoch: the highest Youden index.

    `Checkpoints` writes it beside the weights of that epoch; attached to the validation evaluator.

    Args:
        classes: of the task, negative and positive.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = list(classes)

    def new_table(self) -> ClassificationTable:
        """Return a table of the classes."""
        return ClassificationTable(self.classes)

    def finish(self, engine: Evaluator) -> None:
        """Hand the threshold of the best epoch over to `Checkpoints`."""
        self.table.gather()
        if engine.state.best_metric_epoch != engine.state.epoch or process_rank() != 0:
            return
        probability, label = self.table.probability, self.table.label
        threshold = youden(probability, label)
        found = measures(probability, label, threshold)
        held = {
            "threshold": threshold,
            "classes": self.classes,
            "chosen": "highest sensitivity + specificity on the validation scans of the best epoch",
            "epoch": engine.state.epoch,
            "scans": len(label),
            **{key: round(float(found[key][0]), 6) for key in ("sensitivity", "specificity")},
        }
        engine.state.best_files = {Path(BEST).with_suffix(".json").name: json.dumps(held, indent=4) + "\n"}


class ClassReport(_ScanCollector):
    """Measure an evaluation: predictions.csv by scan, summary.csv and summary.md with intervals, roc.png.

    Attached to an evaluator.

    Args:
        classes: of the task, negative and positive.
        folder: where files go.
        checkpoint: the weights, which `decision_threshold` looks beside when the evaluation starts.
        threshold: as in `decision_threshold`.
        resamples: bootstrap draws.
    """

    def __init__(
        self,
        classes: Sequence[str],
        folder: str,
        checkpoint: str,
        threshold: float | None = None,
        resamples: int = 2000,
    ) -> None:
        super().__init__(folder, checkpoint=checkpoint)
        self.classes, self.checkpoint, self.threshold, self.resamples = list(classes), checkpoint, threshold, resamples

    def new_table(self) -> ClassificationTable:
        """Return a table that decides at the threshold of the weights."""
        threshold = decision_threshold(self.threshold, self.checkpoint, self.classes)
        return ClassificationTable(self.classes, threshold, self.resamples)

    def finish(self, engine: Evaluator) -> None:
        """Write the tables and the receiver operating characteristic (roc.png)."""
        summary, table = self.write_table(), self.table
        if process_rank() == 0:
            auc = table.scores()["auc"]
            figure = roc_figure(table.probability, table.label, table.threshold, auc, self.classes)
            save_figure(figure, self.folder / "roc.png")
            logger.info("measures of %s\n%s", self.folder, summary)


class DecisionReport(ScanResults):
    """Write what was decided for every new scan: a row of predictions.csv, and a picture of where the network looked.

    Expects `image` (C, D, H, W) as the network had it, RAS, and `pred` (1,) probabilities, and batches with
    `name`; attached to an evaluator. A scan whose results cannot be written is recorded as failed; the others go on.

    Args:
        loader: of the scans.
        network: in evaluation mode.
        classes: of the task, negative and positive.
        folder: where files go.
        checkpoint: the weights, which `decision_threshold` looks beside when the first scan is loaded.
        spacing: of the images in mm.
        threshold: as in `decision_threshold`.
        pictures: whether to draw pictures: Grad-CAM of the positive class, scaled to its own highest value.
        overwrite: do again what an earlier run has done.

    Raises:
        ValueError: if the folder's predictions.csv is of another task.
    """

    def __init__(
        self,
        loader: ScanLoader,
        network: nn.Module,
        classes: Sequence[str],
        folder: str,
        checkpoint: str,
        spacing: Sequence[float],
        threshold: float | None = None,
        pictures: bool = True,
        overwrite: bool = False,
    ) -> None:
        columns = [f"probability ({classes[1]})", "decision", "threshold"]
        super().__init__(loader, folder, PREDICTIONS, columns, checkpoint, overwrite)
        self.network, self.classes = network, list(classes)
        self.given, self.threshold = (threshold, checkpoint), 0.5
        self.spacing, self.pictures = tuple(spacing), pictures
        self.cam: GradCAM | None = None

    def files(self, name: str) -> list[str]:
        """Return the name of the picture."""
        return [f"{name}_saliency.png"] if self.pictures else []

    def made_with(self) -> list[Any]:
        """Add the threshold to what results depend on."""
        self.threshold = decision_threshold(*self.given, self.classes)
        return [*super().made_with(), self.threshold]

    def write(self, name: str, item: Mapping[str, Any]) -> list[str]:
        """Write the picture of a scan; return probability, decision and threshold."""
        image, probability, positive = item["image"], float(item["pred"].flatten()[0]), self.classes[1]
        if not np.isfinite(probability):
            raise ValueError(f"the probability is {probability}, which must be a finite number; try --amp false")
        decision = self.classes[int(probability >= self.threshold)]
        values = (name, positive, probability, self.threshold, decision)
        logger.info("%s: probability of %s %.3f, threshold %.3f: %s", *values)
        if self.pictures:
            title = self.title(name, f"{name}: {decision}, probability of {positive} {probability:.2f}")
            figure = saliency_figure(image[0], self.heat(image), title, f"speaks for {positive}", self.spacing)
            save_figure(figure, self.folder / f"{name}_saliency.png")
        return [f"{probability:.6f}", decision, f"{self.threshold:.6f}"]

    def heat(self, image: torch.Tensor) -> np.ndarray:
        """Return what in an image (C, D, H, W) speaks for the positive class, (D, H, W) in [0, 1]."""
        if self.cam is None:  # its hooks stay in the network
            self.cam = GradCAM(self.network, CAM_LAYER, postprocessing=lambda x: x)
        with torch.enable_grad():
            found = self.cam(torch.as_tensor(image)[None].float(), class_idx=0)
        self.network.zero_grad(set_to_none=True)
        values = found[0, 0].detach().clamp(min=0).cpu().numpy()
        return values / max(float(values.max()), 1e-12)
