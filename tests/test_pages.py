"""The pages for people: their width, and that what bundles share is said once."""

import re
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
BUNDLES = sorted((REPOSITORY / "bundles").glob("*/docs/*.md"))
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), *BUNDLES]


def prose(page: Path) -> list[str]:
    """Return the lines of a page that are neither code nor table."""
    text = re.sub(r"\A---\n.*?^---$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)  # YAML
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line for line in text.splitlines() if not line.startswith("|")]


def test_pages_wrap_at_120_columns():
    pages = [page for page in PAGES if page.name != "RELIABILITY.md"]  # the words of the program, each on one line
    wide = [f"{page.relative_to(REPOSITORY)}: {line}" for page in pages for line in prose(page) if len(line) > 120]
    assert len(pages) > 15
    assert wide == []


def test_no_line_stands_in_four_bundles():
    """Headings are those of MONAI's template for a bundle's page; rules of tables and of code have no words."""
    count: Counter[str] = Counter()
    for page in (page for page in BUNDLES if page.name != "MODEL_CARD.md"):  # which are written by a program
        lines = {line.strip() for line in page.read_text(encoding="utf-8").splitlines()}
        count.update(line for line in lines if re.search(r"\w", line) and not line.startswith("#"))
    assert len(BUNDLES) >= 9
    assert {line: number for line, number in count.items() if number > 3} == {}


def test_every_link_of_a_page_leads_somewhere():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http") and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(REPOSITORY)}: {target}")
    assert broken == []
