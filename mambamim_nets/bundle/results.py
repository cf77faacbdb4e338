"""What reports of new scans have in common: a table that several runs may fill, and a scan that fails alone."""

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.engines import Evaluator

from mambamim_nets.bundle.scans import ScanLoader

__all__ = ["ScanResults"]

logger = logging.getLogger("mambamim_nets")


class ScanResults:
    """Write the results of every scan as it is done, and a row of one table; attached to an evaluator.

    A scan whose results cannot be written is recorded as failed; the others go on. The table is sorted by scan, keeps
    the rows of earlier runs, and is replaced whole or not at all.

    Args:
        loader: of the scans.
        folder: where files go.
        table: name of the table in it, .csv.
        columns: of the table after the first, which is "scan".

    Raises:
        ValueError: if the folder's table has other columns.
    """

    def __init__(self, loader: ScanLoader, folder: str, table: str, columns: Sequence[str]) -> None:
        self.loader, self.folder, self.columns = loader, Path(folder), ["scan", *columns]
        self.table = self.folder / table
        self.rows = self._earlier_rows()

    def attach(self, engine: Evaluator) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)

    def write(self, name: str, item: Mapping[str, Any]) -> None:
        """Write the files of one scan from what the evaluator made of it, and its row by ``add_row``."""
        raise NotImplementedError

    def add_row(self, name: str, values: Sequence[str]) -> None:
        """Write the row of a scan, in the place of an earlier one; values after the scan's name."""
        self.rows[name] = [name, *values]
        part = self.table.with_name(f".{os.getpid()}.{self.table.name}")
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.columns, *(self.rows[key] for key in sorted(self.rows))])
        os.replace(part, self.table)

    def _collect(self, engine: Evaluator) -> None:
        for source, item in zip(engine.state.batch, engine.state.output, strict=True):
            name = source["name"]
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.write(name, item)
            except Exception as error:
                logger.exception("%s: its results could not be written", name)
                self.loader.failures[name] = f"{type(error).__name__}: {error}"

    def _earlier_rows(self) -> dict[str, list[str]]:
        if not self.table.is_file():
            return {}
        with self.table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        if not rows or rows[0] != self.columns:
            raise ValueError(
                f"{self.table} has other columns than this task's {self.columns}; give another --output_dir"
            )
        return {row[0]: row for row in rows[1:]}
