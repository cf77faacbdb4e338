"""The one writer of metric tables: a row for each case, joined over all processes, and the summary of their columns.

A task says in a subclass of `MetricTable` what a row is and which files follow from the rows. ignite gathers the rows.
MONAI's `MetricsSaver` is not used, because it does something else: one file for each metric, with four decimals and
the path of the image as the name of its case; its standard deviation divides by n; a case that a padded distributed
sampler hands out twice counts twice; and there is no Markdown.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import ignite.distributed as idist
import numpy as np

from mambamim_nets.bundle.files import write_csv, write_text

__all__ = ["COUNTED", "MEAN", "MetricTable", "Statistics", "Tables", "markdown_table"]

MEAN = "mean"  # name of the row over all structures or points
COUNTED = "mean ± standard deviation (median; n), n = values counted"

Row = TypeVar("Row")


class Statistics(NamedTuple):
    """Mean, standard deviation of the sample (n - 1) and median of a column's finite values, and how many they are."""

    mean: float
    std: float
    median: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Statistics:
        """Return the statistics of a column; values that are NaN or infinite are not counted."""
        counted = np.array([value for value in values if math.isfinite(value)], dtype=float)
        if not counted.size:
            return cls(math.nan, math.nan, math.nan, 0)
        std = float(counted.std(ddof=1)) if counted.size > 1 else math.nan
        return cls(float(counted.mean()), std, float(np.median(counted)), counted.size)

    @property
    def cells(self) -> list[str | int]:
        """The four cells of a summary.csv, in the order of the fields."""
        return [*(f"{value:.6f}" for value in (self.mean, self.std, self.median)), self.n]

    def text(self, digits: int) -> str:
        """Return the cell of a summary.md, as `COUNTED` describes it, with this many decimals."""
        if not self.n:
            return "- (n 0)"
        spread = "" if math.isnan(self.std) else f" ± {self.std:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread} ({self.median:.{digits}f}; {self.n})"


class Tables(NamedTuple):
    """What a table writes: the columns and rows of each CSV file, by its name, and the paragraphs of summary.md."""

    csv: Mapping[str, tuple[Sequence[str], Iterable[Sequence[Any]]]]
    markdown: Sequence[str]


class MetricTable(ABC, Generic[Row]):
    """Collect a row for each case, from one process or several, and write the tables that follow from them."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    @property
    def count(self) -> str:
        """The number of cases, in words."""
        return f"{len(self.rows)} case{'s' if len(self.rows) > 1 else ''}"

    def add(self, case: str, row: Row) -> None:
        """Add the row of a case; a repeated case (from a padded distributed sampler) is ignored."""
        self.rows.setdefault(case, row)

    def gather(self) -> None:
        """Join the rows of all processes, sorted by case: every process must call it, and has all of them after it."""
        parts: Any = idist.all_gather(self.rows)  # a list, as for everything that is no tensor
        self.rows = dict(sorted({case: row for part in reversed(parts) for case, row in part.items()}.items()))

    @abstractmethod
    def tabulate(self) -> Tables:
        """Return what follows from the rows of all processes."""

    def write(self, folder: str | os.PathLike[str], note: str = "", evaluated: str = "") -> str:
        """Write the CSV files of `tabulate` and summary.md; every process must call it, and the first one writes.

        Args:
            folder: made where it does not exist.
            note: what a reader of the numbers must know of the weights, such as that they are a demonstration; the
                column "weights" of each CSV file, and the first paragraph of summary.md.
            evaluated: which cases, with which weights; the last paragraph of summary.md.

        Returns:
            The content of summary.md, the same on every process.

        Raises:
            ValueError: no process has a case.
        """
        self.gather()
        if not self.rows:
            raise ValueError("no case was added to the table; evaluate at least one case before writing it")
        tables = self.tabulate()
        text = "\n\n".join([*([note] if note else []), *tables.markdown, *([evaluated] if evaluated else [])]) + "\n"
        if idist.get_rank() == 0:
            for name, (columns, rows) in tables.csv.items():
                write_csv(Path(folder) / name, [[*columns, "weights"], *([*row, note] for row in rows)])
            write_text(Path(folder) / "summary.md", text)
        return text


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], right: int = 0) -> str:
    """Return a table in Markdown.

    Args:
        columns: their titles.
        rows: cells; the first one of a row is bold where it is `MEAN`.
        right: how many of the last columns are aligned to the right.
    """
    named = ([f"**{MEAN}**" if row[0] == MEAN else row[0], *row[1:]] for row in rows)
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in (columns, *named)]
    return "\n".join([lines[0], "|" + "---|" * (len(columns) - right) + "---:|" * right, *lines[1:]])
