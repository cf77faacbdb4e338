"""The page of a run: one file, nothing of it taken as HTML, sorted by a click in a browser."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest
from helpers import environment

from mambamim_nets.bundle.visualize.report_page import run_page

RUN = {
    "started": "2026-11-26T23:00:00+0000",
    "bundle": {"name": "Organs <of> the abdomen", "version": "0.1.0"},
    "weights": {"sha256": {"model.pt": "ab12"}, "note": "These weights are a demonstration."},
    "versions": {"torch": "2.13.0"},
    "machine": {"device": "cpu"},
    "settings": {"overlap": 0.5, "labels": {"liver": 1}},
}
SCANS = {
    "a": {"outcome": "done", "results": {"liver (ml)": "900.5"}, "seconds": {"load": 1.0, "compute": 2.5}},
    "b": {"outcome": "incomplete", "reason": "no DICOM-SEG", "results": {"liver (ml)": "1200.0"}, "warnings": "slices"},
    "c<script>": {"outcome": "failed", "reason": "cannot <be> read"},
    "d": {"outcome": "done", "results": {"liver (ml)": "88.0"}},
}
JPEG = b"\xff\xd8\xff"


class Elements(html.parser.HTMLParser):
    """Collect the elements of a page, and check that each is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.found = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page() -> str:
    return run_page(RUN, SCANS, ["liver (ml)"], {"a": JPEG, "d": "d_preview.png"})


def test_a_page_holds_everything_and_needs_nothing():
    text = page()
    elements = Elements(text)
    assert "2 of 4 scans done" in text and "These weights are a demonstration." in text
    assert "cannot &lt;be&gt; read" in text and "no DICOM-SEG; slices" in text and "3.5" in text
    assert "c<script>" not in text and "<of>" not in text
    for tag, attributes in elements.found:
        assert tag not in ("link", "iframe") and not (tag == "script" and attributes)
        assert all(not value.startswith(("http", "//")) for key, value in attributes.items() if key in ("src", "href"))
    assert [attributes["href"] for tag, attributes in elements.found if tag == "a"] == ["d_preview.png"]
    assert [tag for tag, _ in elements.found].count("tr") == 5 and "http" not in text


CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
ORDER = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent)"
CLICKS = f"""<script>
const order = () => {ORDER}, heads = document.querySelectorAll("th"), found = [];
for (const column of [3, 3, 0]) {{ heads[column].click(); found.push(order()); }}
document.title = JSON.stringify(found);
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium-headless-shell")
def test_a_browser_sorts_the_table(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page().replace("</body>", CLICKS + "</body>"))
    line = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    run = subprocess.run(
        [*line, "--dump-dom", path.as_uri()], capture_output=True, text=True, check=True, env=environment(), timeout=120
    )
    title = re.search(r"<title>(.*?)</title>", run.stdout)
    assert title, run.stdout[:2000]
    by_volume, reverse, by_name = json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">"))
    assert by_volume == ["d", "a", "b", "c<script>"], "by value, not as text; nothing comes last"
    assert reverse == ["b", "a", "d", "c<script>"] and by_name == ["a", "b", "c<script>", "d"]
