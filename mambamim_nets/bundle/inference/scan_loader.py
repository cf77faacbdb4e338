"""Load new scans one by one, and go on when one of them fails; the run ends with its name and the reason."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
from monai.data import Dataset, MetaTensor, list_data_collate
from tqdm import tqdm

from mambamim_nets.bundle.errors import first_line
from mambamim_nets.bundle.files import some

__all__ = ["OneByOne", "ScanLoader", "finish", "named_failures"]

logger = logging.getLogger("mambamim_nets")
NOT_BATCHED = frozenset({"loaded", "series", "warnings"})  # keys of an item that no network needs


class ScanLoader:
    """Load scans one by one as batches of one; a scan that fails is recorded, and the next one is loaded.

    Takes the place of a DataLoader in an evaluator. It has no length on purpose: an evaluator then runs until the
    scans are used up, however many of them fail.

    Args:
        dataset: of the items of `scans` and their transform.

    Attributes:
        failures: reason by scan name.
        incomplete: by scan name, what is missing of the results of a scan that is done otherwise.
        finished: names of scans to leave out, since an earlier run did them.
        keep_loaded: whether `loaded` is wanted, by a report that draws or measures it.
        loaded: first channel (1, D, H, W) of the current scan as `LoadScand` read it, on the scan's own grid.
        started: when loading the current scan began, by time.perf_counter.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.failures: dict[str, str] = {}
        self.incomplete: dict[str, str] = {}
        self.finished: frozenset[str] = frozenset()
        self.keep_loaded = False
        self.loaded: MetaTensor | None = None
        self.started = 0.0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield a batch of one for each scan that can be loaded."""
        self.failures, self.incomplete = {}, {}
        for index in tqdm(range(len(self.dataset)), desc="scans", unit="scan", disable=None):
            batch = self._load(index)
            if batch is not None:
                yield batch
            del batch  # or two scans would be in memory while the next is loaded
            self.loaded = None

    def _load(self, index: int) -> dict[str, Any] | None:
        item: Any = self.dataset.data[index]
        if item["name"] in self.finished:
            return None
        if "error" in item:
            self.fail(item["name"], item["error"])
            return None
        self.started = time.perf_counter()
        try:
            sample: Any = self.dataset[index]
            if self.keep_loaded:
                self.loaded = sample["loaded"]
            if "warnings" in sample:  # those of transforms too
                item["warnings"] = sample["warnings"]
            return list_data_collate([{key: value for key, value in sample.items() if key not in NOT_BATCHED}])
        except Exception as error:  # whatever one broken scan raises must not stop the others
            self.fail(item["name"], error)
            return None

    def fail(self, name: str, reason: str | Exception) -> None:
        """Record that a scan failed, and why; of an exception the log has the traceback at level DEBUG."""
        error = reason if isinstance(reason, Exception) else None
        self.failures[name] = str(reason) if error is None else _why(error)
        logger.error("%s cannot be segmented: %s", name, self.failures[name])
        logger.debug("%s", name, exc_info=error)


def _why(error: Exception) -> str:
    """Return what an error says, and where memory ran out, what to do."""
    text = first_line(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        detail = text.removeprefix("MemoryError").lstrip(": ").partition(". ")[0].rstrip(".")
        text = (
            f"memory ran out{f' ({detail})' if detail else ''}: crop the scan, lower --sw_batch_size, or use a machine"
            " with more memory"
        )
    return text


class OneByOne:
    """Run each iteration of an evaluator over scans; one that fails is recorded by its name, and the next one follows.

    The `iteration_update` of an evaluator whose data loader is a `ScanLoader`: what the network, the inferer and the
    postprocessing raise, memory that runs out too, ends the work on this scan alone.

    Args:
        loader: of the scans.
    """

    def __init__(self, loader: ScanLoader) -> None:
        self.loader = loader

    def __call__(self, engine: Any, batch: dict[str, Any]) -> Any:
        """Run one iteration; return its output, or an empty list for a scan that failed."""
        name = batch["name"][0]
        try:
            return engine._iteration(engine, batch)
        except Exception as error:
            self.loader.fail(name, error)
        engine.state.batch = []  # what handlers of the results go through
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return []


def named_failures(engine: Any, batch: dict[str, Any]) -> Any:
    """Run an iteration of an evaluator, and name the cases of its batch if it fails.

    It is the `iteration_update` of evaluation and validation.

    Raises:
        RuntimeError: from whatever the iteration raised, with the names of the cases of its batch.
    """
    names = [str(name) for name in batch["case"]]
    try:
        return engine._iteration(engine, batch)
    except Exception as error:
        raise RuntimeError(f"case {some(names)}: {_why(error)}") from error


def finish(loader: ScanLoader) -> None:
    """Log how many scans are done, and end the program with an error if that is not all.

    Raises:
        SystemExit: some failed, or lack a result; its message names them and the reasons, the exit status is 1.
    """
    total = len(loader.dataset)
    logger.info("%d of %d scans done", total - len(loader.failures), total)
    parts = [(loader.incomplete, "lack a result"), (loader.failures, "failed")]
    lines = [
        "\n".join([f"{len(which)} of {total} scans {what}:", *(f"{name}: {why}" for name, why in which.items())])
        for which, what in parts
        if which
    ]
    if lines:
        raise SystemExit("\n".join(lines))
