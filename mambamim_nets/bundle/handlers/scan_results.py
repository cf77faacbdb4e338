"""What reports of new scans have in common: a table that several runs may fill, and a scan that fails alone.

A row is written last, after all files of its scan, and says in its last column what it was made from. So a scan whose
row is there, of the same input, weights and settings, is done; a run that was killed goes on with the others.
"""

import csv
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import Evaluator

from mambamim_nets import __version__
from mambamim_nets.bundle.files import only_run, release, remove_leftovers, write_csv
from mambamim_nets.bundle.handlers.identity import run_settings
from mambamim_nets.bundle.handlers.run_report import RunReport
from mambamim_nets.bundle.inference.scan_lists import source_files
from mambamim_nets.bundle.inference.scan_loader import ScanLoader
from mambamim_nets.bundle.weights import described_weights, file_digest, weights_caption, weights_files, weights_note

__all__ = ["ScanResults"]

logger = logging.getLogger("mambamim_nets")
# options that a result does not depend on; on the weights it does by their content, on files as each scan has them
NOT_OF_RESULTS = {"checkpoint", "force", "input", "max_gib", "overwrite", "previews", "shipped", "source"}
NOT_OF_RESULTS |= {"probabilities", "radiomics", "rtstruct"}  # further files, which a scan that is done must have
ADDED = ("warnings", "weights", "made from")  # columns after those of the task; tables of earlier versions lack some


class ScanResults:
    """Write the results of every scan as it is done, and a row of one table; attached to an evaluator.

    A scan whose results cannot be written is recorded as failed; the others go on. Scans that an earlier run has done
    are left out: their row is of the same files (by name, size and time of change), weights (by content), settings and
    version, and their results are still there. Results of another scan of the same name are not replaced. The table is
    sorted by scan, keeps the rows of earlier runs, and is replaced whole or not at all; beside it are report.json and
    report.html, see `RunReport`. While a run fills a folder, another one is refused there.

    Args:
        loader: of the scans; its data set's items say where they came from, and what is doubtful about them.
        folder: where files go.
        table: name of the table in it, .csv.
        columns: of the table between the first, "scan", and the last, "warnings", "weights" (the note beside them) and
            "made from".
        checkpoint: file of the weights, or files of an ensemble.
        overwrite: do again what an earlier run has done.
        loaded: whether the report needs scans as they were loaded, and the loader has to keep them.
        further: columns after the others that tables of earlier versions may lack, and the page does not show.

    Raises:
        ValueError: if the folder's table has other columns.
    """

    def __init__(
        self,
        loader: ScanLoader,
        folder: str,
        table: str,
        columns: Sequence[str],
        checkpoint: str | Sequence[str] | None = None,
        overwrite: bool = False,
        loaded: bool = False,
        further: Sequence[str] = (),
    ) -> None:
        self.loader, self.folder, self.results = loader, Path(folder), list(columns)
        self.columns, self.added = ["scan", *columns, *further, *ADDED], {*further, *ADDED}
        self.table = self.folder / table
        self.checkpoint, self.overwrite = checkpoint, overwrite
        self.note, self.weights = weights_note(checkpoint), described_weights(checkpoint)
        loader.keep_loaded = loaded
        self.items = {item["name"]: item for item in loader.dataset.data}
        self.rows = self._earlier_rows()
        self.made_from: dict[str, str] = {}
        self.noticed: dict[str, list[str]] = {}
        self.taken: set[str] = set()  # names that have results of another scan
        self.report = RunReport(self.folder)
        self.computing = 0.0  # when the work on the current scan began, once it was loaded

    def attach(self, engine: Evaluator) -> None:
        """Register the handlers of a run with its evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._complete)

    def write(self, name: str, item: Mapping[str, Any]) -> Sequence[str]:
        """Write the files of one scan from what the evaluator made of it; return its values in the task's columns."""
        raise NotImplementedError

    def files(self, name: str) -> list[str]:
        """Return the names of the files that a scan has when it is done."""
        raise NotImplementedError

    def check(self) -> None:
        """Give scans whose results cannot be written an "error", before any work on the first one."""

    def made_with(self) -> list[Any]:
        """Return what results depend on, beside their scan."""
        weights = "+".join(map(file_digest, weights_files(self.checkpoint)))
        return [__version__, weights, _settings()]

    def warn(self, name: str, warning: str) -> None:
        """Say in the log, and in the row of a scan, what is doubtful about it or its results."""
        logger.warning("%s: %s", name, warning)
        self.noticed.setdefault(name, []).append(warning)

    def lacks(self, name: str, what: str) -> None:
        """Say that a result of a scan is missing; the others are written, and the run ends with its name."""
        earlier = self.loader.incomplete.get(name)
        self.loader.incomplete[name] = f"{earlier}; {what}" if earlier else what
        self.warn(name, what)

    def warnings(self, name: str) -> str:
        """Return what is doubtful about a scan and its results, as one line."""
        listed = [*self.items[name].get("warnings", []), *self.noticed.get(name, [])]
        return "; ".join(" ".join(warning.split()) for warning in listed)

    def done(self, name: str, item: Mapping[str, Any]) -> None:
        """Write the files of a scan, and then its row; until then there is none, since files of another run may go."""
        if self.rows.pop(name, None):
            self._write_table()
        values = self.write(name, item)
        self.rows[name] = [name, *values, self.warnings(name), self.weights, self.made_from.get(name, "")]
        self._write_table()

    @property
    def loaded(self) -> MetaTensor:
        """First channel (1, D, H, W) of the current scan, as it was loaded."""
        if self.loader.loaded is None:
            raise RuntimeError("the loader keeps no scan: give the report loaded=True")
        return self.loader.loaded

    def title(self, name: str, text: str = "") -> str:
        """Return the title of a scan's picture, its name by default, with what is doubtful on a second line."""
        doubts = "; ".join(part for part in (weights_caption(self.note), self.warnings(name)) if part)
        return "\n".join(line for line in (text or name, doubts) if line)

    # --- the run ----------------------------------------------------------------------------------

    def _start(self, engine: Evaluator) -> None:
        only_run(self.folder, "inference")
        remove_leftovers(self.folder)
        self.check()
        self.rows, self.noticed = self._earlier_rows(), {}
        self.report = RunReport(self.folder)
        self._keep_others()
        made_with = self.made_with()
        self.made_from = {name: _made_from(item, made_with) for name, item in self.items.items()}
        done = [] if self.overwrite else [name for name in self.items if self._is_done(name)]
        self.loader.finished = frozenset(done)
        self.report.start(self.checkpoint, getattr(engine.state, "device", ""), self.results)
        if done:
            found = (len(done), len(self.items), self.table)
            logger.info("%d of %d scans are left out: %s has them; --overwrite true does them again", *found)

    def _keep_others(self) -> None:
        """Give scans an "error" whose results are there of another scan of their name, such as another patient's.

        Files of two exports may share names, sizes and times, so the place of a scan counts, or else its content.
        """
        self.taken = set()
        for name in self.rows.keys() & self.items.keys() if not self.overwrite else ():
            if other := self.report.other_scan(name, self.items[name]):
                self.taken.add(name)
                self.items[name]["error"] = (
                    f"{self.folder} has results of another scan of this name, {other}, which would be replaced; give"
                    " another --output_dir, or --overwrite true"
                )

    def _is_done(self, name: str) -> bool:
        row, made_from = self.rows.get(name, []), self.made_from[name]
        complete = len(row) == len(self.columns) and bool(made_from) and row[-1] == made_from
        return complete and all((self.folder / file).is_file() for file in self.files(name))

    def _begin(self, engine: Evaluator) -> None:
        self.computing = time.perf_counter()

    def _collect(self, engine: Evaluator) -> None:
        for source, item in zip(engine.state.batch, engine.state.output, strict=True):
            name, writing = source["name"], time.perf_counter()
            try:
                self.done(name, item)
            except Exception as error:
                self.loader.fail(name, error)
            else:
                begun = min(max(self.computing, self.loader.started), writing)
                self._report(name, (begun - self.loader.started, writing - begun, time.perf_counter() - writing))
        self._report_failures()

    def _complete(self, engine: Evaluator) -> None:
        self._report_failures()
        self.report.end()
        release(self.folder, "inference")

    def _report(self, name: str, seconds: Sequence[float]) -> None:
        lacking, row = self.loader.incomplete.get(name, ""), dict(zip(self.columns, self.rows[name], strict=True))
        self.report.scan(
            name,
            self.items[name],
            "incomplete" if lacking else "done",
            lacking,
            results={column: row[column] for column in self.columns[1 : -len(ADDED)]},
            warnings=row["warnings"],
            files=[file for file in self.files(name) if (self.folder / file).is_file()],
            seconds=dict(zip(("load", "compute", "write"), (round(part, 3) for part in seconds), strict=True)),
        )

    def _report_failures(self) -> None:
        for name, why in self.loader.failures.items():
            if name in self.taken:  # the entry is that of the other scan
                continue
            held = self.report.scans.get(name, {})
            if (held.get("run"), held.get("outcome")) != (self.report.number, "failed"):
                self.report.scan(name, self.items[name], "failed", why, warnings=self.warnings(name))

    # --- the table --------------------------------------------------------------------------------

    def _write_table(self) -> None:
        write_csv(self.table, [self.columns, *(self.rows[key] for key in sorted(self.rows))])

    def _earlier_rows(self) -> dict[str, list[str]]:
        if not self.table.is_file():
            return {}
        with self.table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        if rows and rows[0] == [name for name in self.columns if name not in self.added or name in rows[0]]:
            # of an earlier version, where it lacks some: its scans are done again
            held = [dict(zip(rows[0], row, strict=False)) for row in rows[1:] if row]
            rows = [self.columns, *([row.get(name, "") for name in self.columns] for row in held)]
        if not rows or rows[0] != self.columns:
            raise ValueError(
                f"{self.table} has the columns {rows[0] if rows else []}, which must be this task's {self.columns};"
                " give another --output_dir"
            )
        return {row[0]: row for row in rows[1:] if row}


def _settings() -> dict[str, Any]:
    """Return the settings of the run that results depend on."""
    values, made_of = run_settings()
    return {name: values[name] for name in values if not {name, *made_of[name]} & NOT_OF_RESULTS}


def _made_from(item: Mapping[str, Any], made_with: Sequence[Any]) -> str:
    """Return a hash of a scan's files and of what else its results depend on; "" if they cannot be found."""
    if "error" in item:
        return ""
    try:
        facts = [[os.path.basename(file), *_state(file)] for file in source_files(item)]
    except OSError:
        return ""
    return hashlib.sha256(json.dumps([facts, *made_with], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _state(file: str) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns
