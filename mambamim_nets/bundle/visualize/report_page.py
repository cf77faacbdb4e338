"""The page of an inference run: one HTML file that needs nothing else, neither a network nor the files beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["run_page"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #202124 }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.note { background: #fef7e0; border-left: 4px solid #f9ab00; padding: .5rem .8rem; margin: 1rem 0 }
.table { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #dadce0; white-space: nowrap }
th { cursor: pointer; vertical-align: bottom; white-space: normal } th[data-order]::after { content: " \\25b4" }
th[data-order="-1"]::after { content: " \\25be" }
td { vertical-align: top } td:first-child, th:first-child, th:nth-child(3), .text { text-align: left }
.text:not(:empty) { white-space: normal; min-width: 18rem }
td:first-child, th:first-child { position: sticky; left: 0; background: #fff }
.failed td, .failed td:first-child { background: #fce8e6 } .incomplete td { background: #fef7e0 }
figure { margin: 0 0 2rem } img { width: 100% } summary { cursor: pointer }
dt { font-weight: 600; float: left; clear: left; width: 16rem } dd { margin: 0 0 0 16.5rem; overflow-wrap: anywhere }
"""
# a click on a heading sorts by its column, a second one the other way round; numbers by value, empty cells last
SCRIPT = """
document.querySelectorAll("th").forEach((head, column) => head.addEventListener("click", () => {
  const body = document.querySelector("tbody"), order = head.dataset.order === "1" ? -1 : 1;
  document.querySelectorAll("th").forEach(other => delete other.dataset.order);
  head.dataset.order = order;
  const value = row => row.cells[column].textContent;
  [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b), number = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
    if ((x === "") !== (y === "")) return x === "" ? 1 : -1;
    return order * (number ? x - y : x.localeCompare(y));
  }).forEach(row => body.append(row));
}));
"""


def run_page(
    run: Mapping[str, Any],
    scans: Mapping[str, Mapping[str, Any]],
    results: Sequence[str],
    pictures: Mapping[str, bytes | str],
) -> str:
    """Return the page of a run.

    Args:
        run: what it was: bundle, weights, versions, machine, settings, as report.json has it.
        scans: name -> entry, as report.json has it.
        results: names of the values of a scan that are columns of the table.
        pictures: name of a scan -> its picture as JPEG, or the name of a file beside the page.
    """
    title = run["bundle"].get("name") or "Inference"
    done = sum(entry["outcome"] == "done" for entry in scans.values())
    note = run["weights"].get("note", "")
    heads = ["scan", "outcome", "remarks", *results, "seconds"]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{done} of {len(scans)} scans done; {escape(str(run['started']))}</p>",
        f'<p class="note">{escape(note)}</p>' if note else "",
        '<div class="table"><table><thead><tr>',
        *(f"<th>{escape(head)}</th>" for head in heads),
        "</tr></thead><tbody>",
        *(_row(name, entry, results) for name, entry in scans.items()),
        "</tbody></table></div>",
        "<h2>Scans</h2>" if pictures else "",
        *(_figure(name, scans[name], picture) for name, picture in pictures.items()),
        "<h2>How this was made</h2>",
        *(_facts(part, run[part]) for part in ("weights", "versions", "machine", "settings") if run.get(part)),
        f"<script>{SCRIPT}</script></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _row(name: str, entry: Mapping[str, Any], results: Sequence[str]) -> str:
    values = entry.get("results", {})
    doubts = "; ".join(part for part in (entry.get("reason", ""), entry.get("warnings", "")) if part)
    seconds = f"{sum(entry['seconds'].values()):.1f}" if entry.get("seconds") else ""
    first = f'<td>{escape(name)}</td><td>{escape(entry["outcome"])}</td><td class="text">{escape(doubts)}</td>'
    others = [*(str(values.get(column, "")) for column in results), seconds]
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
    return f'<tr class="{escape(entry["outcome"])}">{first}{cells}</tr>'


def _figure(name: str, entry: Mapping[str, Any], picture: bytes | str) -> str:
    if isinstance(picture, str):
        return f'<p><a href="{escape(picture)}">{escape(name)}</a></p>'
    source = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    warnings = entry.get("warnings", "")
    below = f'<p class="note">{escape(warnings)}</p>' if warnings else ""
    return f'<figure><img src="{source}" alt="planes of {escape(name)}">{below}</figure>'


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items())
    return f"<details><summary>{escape(title)}</summary><dl>{items}</dl></details>"
