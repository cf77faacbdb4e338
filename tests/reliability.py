"""The page docs/RELIABILITY.md: a row for every fault that a test brings about, with what really happened."""

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[1] / "docs" / "RELIABILITY.md"
AREAS = (
    "Options",
    "Configuration",
    "Data sets",
    "Images",
    "DICOM",
    "Weights",
    "Training runs",
    "Several processes",
    "Inference",
    "Pre-training",
    "Stores",
    "Plans",
    "Cross-validation",
)
HEAD = """# What is refused, and what is warned of

Every row was brought about by a test, which wrote what happened into this page: `make reliability`. The tests fail
when a row no longer says what happens. *Refused* means that the exit status is not 0, that the words in the row are
the last on the screen, and that nothing was written that looks finished, but for a DICOM series whose DICOM-SEG alone
is missing; *warned* means that the run went on and said so in its log. Paths are shortened, and what differs from
machine to machine is left out (…). One end is not ours: a path into nothing, such as `--nothing#x 1`, is refused by
MONAI with a traceback and `KeyError`, before anything of a bundle is read.
"""
LONGEST = 400
_PATH = re.compile(r"(?<![\w.])(?:~|/)[^\s'\",:;()\[\]]*/")
_TRACEBACK = re.compile(r" \(traceback: [^)]*\)$")


class Row(NamedTuple):
    area: str
    fault: str
    kind: str
    words: str


class Rows:
    """The rows of the page as it is, and as the tests of this run make them."""

    def __init__(self, page: dict[tuple[str, str], Row]) -> None:
        self.page, self.made = page, {}

    @classmethod
    def read(cls, path: Path) -> "Rows":
        rows, area = {}, ""
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            if line.startswith("## "):
                area = line.removeprefix("## ").partition(" (")[0]
            elif line.startswith("| ") and not line.startswith(("| fault ", "| --- ")):
                fault, kind, words = (cell.replace("\\|", "|") for cell in re.split(r"(?<!\\) \| ", line[2:-2]))
                rows[area, fault] = Row(area, fault, kind, words)
        return cls(rows)

    def add(self, area: str, fault: str, kind: str, words: str, hide: str, test: str) -> None:
        assert area in AREAS, f"area {area!r} must be one of {AREAS}"
        words = _TRACEBACK.sub("", " ".join(words.split()))
        words = re.sub(r"^(WARNING|ERROR|INFO) [\w.]+: ", "", words)
        words = re.sub(hide, "…", words) if hide else words
        words = _PATH.sub("…/", words)
        words = words if len(words) <= LONGEST else words[: LONGEST - 2] + " …"
        self.merge(Row(area, fault, kind, words.replace("`", "'")), test)

    def merge(self, row: Row, test: str = "one of another process") -> None:
        """Take a row that a test of this run has made."""
        assert row[:2] not in self.made, f"two tests make the row {row.area}: {row.fault}; {test} is the second"
        self.made[row.area, row.fault] = row

    def check(self, area: str, fault: str) -> None:
        page, made = self.page.get((area, fault)), self.made[area, fault]
        assert page == made, f"{PAGE.name} is out of date, run make reliability:\npage {page}\nnow  {made}"

    def unseen(self) -> list[str]:
        return [f"{area}: {fault}" for area, fault in self.page if (area, fault) not in self.made]

    def write(self, path: Path, whole: bool) -> None:
        """Write the page: of a whole run what it made, otherwise what it made and the rows that stood there."""
        rows = self.made if whole else {**self.page, **self.made}
        by_area = defaultdict(list)
        for row in rows.values():
            by_area[row.area].append(row)
        parts = [HEAD, f"{len(rows)} rows.\n"]
        for area in AREAS:
            if by_area[area]:
                parts.append(f"## {area} ({len(by_area[area])})\n\n| fault | end | words |\n| --- | --- | --- |")
                cells = ([cell.replace("|", "\\|") for cell in row[1:]] for row in sorted(by_area[area]))
                parts += [f"| {' | '.join(row)} |" for row in cells]
                parts.append("")
        path.write_text("\n".join(parts), encoding="utf-8")
