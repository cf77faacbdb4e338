"""What all tests share: a bundle run as from the command line but in this process, and the page of what is refused."""

import contextlib
import gc
import io
import json
import logging
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
from helpers import BUNDLES, REPOSITORY
from monai.bundle.config_item import ComponentLocator
from reliability import PAGE, Row, Rows
from small import SMALL, narrow_networks, pictures

from mambamim_nets.bundle import errors


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit status and what it printed, last line last."""

    status: int
    log: str

    @property
    def lines(self) -> list[str]:
        return self.log.splitlines()

    @property
    def last(self) -> str:
        return self.lines[-1] if self.lines else ""


@contextlib.contextmanager
def _everything_printed() -> Iterator[io.StringIO]:
    """Collect standard output, standard error and the log, from INFO on, in one text."""
    text = io.StringIO()
    root = logging.getLogger()
    handler, level, handlers = logging.StreamHandler(text), root.level, list(root.handlers)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    # without those that an earlier test left behind, with a stream that is closed by now
    root.handlers = [*(one for one in handlers if not getattr(getattr(one, "stream", None), "closed", False)), handler]
    root.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            yield text
    finally:
        root.handlers = handlers
        root.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def _looked_through_once() -> Iterator[None]:
    """Keep which classes MONAI has: each of its configurations looks through all its modules again, for 0.1 s."""
    found: dict[tuple[str, ...], dict[str, list]] = {}
    look = ComponentLocator._find_classes_or_functions

    def once(locator: ComponentLocator, names: Sequence[str]) -> dict[str, list]:
        if (key := tuple(names)) not in found:
            found[key] = look(locator, names)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ComponentLocator, "_find_classes_or_functions", once)
        yield


@pytest.fixture(scope="session", autouse=True)
def _coarse_pictures() -> Iterator[None]:
    """Draw coarse pictures: most tests look whether they are there."""
    with pictures(0.25):
        yield


@pytest.fixture
def full_pictures() -> Iterator[None]:
    """Draw pictures as users get them."""
    with pictures(1):
        yield


@pytest.fixture
def narrow() -> Iterator[None]:
    """Make the networks of size tiny narrow during a test."""
    with narrow_networks():
        yield


@pytest.fixture(scope="module")
def all_narrow() -> Iterator[None]:
    """Make the networks of size tiny narrow in all tests of a file, and in what they share."""
    with narrow_networks():
        yield


@pytest.fixture
def bundle_run(tmp_path, monkeypatch) -> Callable[..., Outcome]:
    """Return a function that runs a bundle in this process and ends as ``python -m monai.bundle run`` would.

    Its options are those of the command line, over the small settings of tests/small.py as far as the
    configurations have them; what it writes goes below tmp_path unless an option says otherwise.
    """

    def run(bundle: str | Path, configs: str | Sequence[str] = "train", /, **options: Any) -> Outcome:
        folder = BUNDLES / bundle if isinstance(bundle, str) else bundle
        names = [configs] if isinstance(configs, str) else list(configs)
        files = [str(folder / "configs" / f"{name}.json") for name in names]
        known = {key.split("#")[0] for file in files for key in json.loads(Path(file).read_text())}
        small = {"output_dir": str(tmp_path / "out"), **SMALL[folder.name]}
        options = {**{key: value for key, value in small.items() if key in known}, **options}
        kept = (sys.excepthook, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), os.getcwd())
        status, last = 0, ""
        started: list[bool] = []
        monkeypatch.setattr(errors, "install", lambda: started.append(True))
        with _everything_printed() as text:
            try:
                monai.bundle.run(config_file=files, logging_file=False, **options)
            except SystemExit as end:
                status, last = (end.code, "") if isinstance(end.code, int) else (int(bool(end.code)), end.code or "")
            except Exception as error:
                if not started:  # in MONAI's own part of the start, which ends as Python does
                    last = "".join(traceback.format_exception(error))
                status, last = 1, last or errors.ends_with_a_sentence(error)
            finally:
                errors.keep_tracebacks_in(None)
                sys.excepthook = kept[0]
                signal.signal(signal.SIGTERM, kept[1])
                signal.signal(signal.SIGINT, kept[2])
                os.chdir(kept[3])
        return Outcome(status, text.getvalue() + last)

    return run


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return a function that gives a file or folder of real scans, and skips the test where it is missing.

    Real scans are never part of the repository; MAMBAMIM_DATA names their folder.
    """
    folder = Path(os.environ.get("MAMBAMIM_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"{folder / name} is not there: MAMBAMIM_DATA must name the folder of the real scans")
        return folder / name

    return find


# --- docs/RELIABILITY.md --------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-reliability",
        action="store_true",
        help=f"run only the tests that have rows in {PAGE.name}, and write the page from what happened",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.rows = Rows.read(PAGE)  # type: ignore[attr-defined]
    config.left_out = False  # type: ignore[attr-defined]


def pytest_collection_finish() -> None:
    # what is imported by now stays, and no collection need look through it; what tests leave is collected less often
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(trylast=True)  # after -m has chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("write_reliability"):
        items[:] = [item for item in items if "reliability" in getattr(item, "fixturenames", ())]
    # workers take files in this order: the long ones first, so that none of them begins when all else has ended
    tests = Counter(item.path for item in items)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: 0 if item.path in slow else 1 / tests[item.path])


@pytest.fixture
def reliability(request) -> Callable[..., None]:
    """Return a function that checks how a fault ended, and that docs/RELIABILITY.md has it so.

    Its arguments are the area of the page; the fault, in words; and what came of it: an Outcome of ``bundle_run``,
    which must have failed with one sentence as its last words, or with ``warning`` have ended well with that text in
    a line of the log; or an exception, where only callers from Python meet it. ``hide`` is a regular expression of
    what differs from machine to machine.
    """
    rows, writes = request.config.rows, request.config.getoption("write_reliability")

    def row(area: str, fault: str, end: Outcome | BaseException, warning: str = "", hide: str = "") -> None:
        if isinstance(end, BaseException):
            words = errors.sentence_of(end)
        elif warning:
            assert end.status == 0, end.log[-4000:]
            found = [line for line in end.lines if warning in line]
            assert found, f"no line with {warning!r} in\n{end.log[-4000:]}"
            words = found[0]
        else:
            assert end.status != 0, f"{fault} ended with exit status 0:\n{end.log[-4000:]}"
            assert "Traceback (most recent call last)" not in end.log, end.log[-4000:]
            assert "Failed to evaluate" not in end.last, end.last
            words = end.last
        assert words.strip(), f"{fault} ended without a word"
        rows.add(area, fault, "warned" if warning else "refused", words, hide, request.node.name)
        if not writes:
            rows.check(area, fault)

    return row


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        item.config.left_out = True  # type: ignore[attr-defined]


def _everything_ran(config: pytest.Config) -> bool:
    """Return whether every test of the repository ran: no other folder was named, and none was left out."""
    tests = str(PAGE.parents[1] / "tests")
    named = {os.path.abspath(config.invocation_params.dir / argument) for argument in config.args} != {tests}
    left_out = config.left_out or config.getoption("ignore") or config.getoption("ignore_glob")  # type: ignore[attr-defined]
    return not (named or left_out or config.getoption("collectonly"))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of pytest-xdist has found, in the process that started it."""
    output = getattr(node, "workeroutput", {})  # none of a worker that crashed
    for row in output.get("rows", ()):
        node.config.rows.merge(Row(*row))
    node.config.left_out |= output.get("left_out", True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config, rows = session.config, session.config.rows  # type: ignore[attr-defined]
    if hasattr(config, "workeroutput"):  # in a worker; the process that started it goes on from here
        config.workeroutput |= {"rows": [tuple(row) for row in rows.made.values()], "left_out": config.left_out}
        return
    whole = _everything_ran(config)
    if config.getoption("write_reliability"):
        if exitstatus in (0, 1):
            rows.write(PAGE, whole and exitstatus == 0)
    elif whole and exitstatus == 0 and (gone := rows.unseen()):
        print(f"\n{PAGE.name} has rows that no test made, run make reliability: {gone[:5]}")
        session.exitstatus = 1
