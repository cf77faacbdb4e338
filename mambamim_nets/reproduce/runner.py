"""Start the runs, several at a time, each in its own process; keep on when one fails; stop them all on Ctrl-C.

What is finished is on record in the folder of each run, in `run.json`, so the same command continues where it stopped.
"""

import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import Protocol

from mambamim_nets.reproduce.plan import RECORD, Run, replacing
from mambamim_nets.reproduce.results import keep

__all__ = ["Launch", "Launcher", "duration", "execute", "listed", "terminable", "threads_each", "typed"]

PACKAGES = ("mambamim-nets", "torch", "monai", "pytorch-ignite", "numpy")
DEVICE = re.compile(r"^  device +(\S+)$", re.MULTILINE)  # as every bundle's log announces it
LAST_LINES = 12  # of the log of a failed run
HEARTBEAT = 600  # seconds between two lines of progress while nothing ends
PATIENCE = 20  # seconds between the request to stop and the end by force


class Launch(Protocol):
    """Runs commands for `execute`, from several threads at once."""

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        """Run a command to its end, its output appended to a log, and return its exit status."""

    def stop(self) -> None:
        """End the commands that are running, and start no more."""


class Launcher:
    """Runs `python -m monai.bundle run` with arguments, each in a process of its own.

    Args:
        threads: of each process, as OMP_NUM_THREADS.
    """

    def __init__(self, threads: int) -> None:
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def __call__(self, arguments: Sequence[str], log: Path) -> int:
        """Run a command to its end, its output appended to a log, and return its exit status."""
        with log.open("ab") as out, self._lock:
            if self._stopped:
                return -signal.SIGTERM
            process = subprocess.Popen(
                [sys.executable, "-m", "monai.bundle", "run", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,  # Ctrl-C reaches this process only, which then stops them in good order
            )
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.discard(process)
        return status

    def stop(self) -> None:
        """End the commands that are running and start no more; what they have written stays."""
        with self._lock:
            self._stopped, running = True, list(self._running)
        for process in running:
            _end(process)
        deadline = time.monotonic() + PATIENCE
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _end(process, by_force=True)


def _end(process: subprocess.Popen[bytes], by_force: bool = False) -> None:
    """Ask a command, and the workers that it started, to end."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL if by_force else signal.SIGTERM)
        except ProcessLookupError:
            return
    else:
        process.kill()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(jobs: int) -> int:
    """Return how many threads each of some runs at a time takes: OMP_NUM_THREADS, else a share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) else max(1, cores() // jobs)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM, as a scheduler sends it, end everything as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def typed(words: Sequence[str]) -> str:
    """Return a command as it can be typed into a shell."""
    plain = [f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word) for word in words]
    return " ".join(["python", "-m", *plain])


def listed(runs: Iterable[Run]) -> str:
    """Return the commands of runs as a person would type them, below the name of each."""
    lines: list[str] = []
    for run in runs:
        lines.append(f"# {run.name}{', finished' if run.finished() else ''}")
        lines += [typed(["monai.bundle", "run", *step]) for step in run.steps]
    return "\n".join(lines)


def execute(
    runs: Sequence[Run],
    launch: Launch,
    jobs: int = 1,
    changed: Callable[[], object] = lambda: None,
    say: Callable[[str], object] = print,
) -> dict[Run, str]:
    """Run what is not finished.

    Args:
        runs: in the order in which they are wanted; one that starts from another comes after it.
        launch: runs a command.
        jobs: how many run at a time.
        changed: called whenever a run has finished.
        say: takes the lines of progress.

    Returns:
        The runs that failed or could not start, each with the reason.
    """
    waiting = [run for run in runs if not run.finished()]
    took = {run: run.record().get("seconds", 0.0) for run in runs if run not in waiting}
    active: dict[Future[str], tuple[Run, float]] = {}  # each with the time of its start
    failed: dict[Run, str] = {}
    begun = spoken = time.monotonic()

    def outlook() -> str:
        now = time.monotonic()
        todo = dict.fromkeys(waiting, 0.0) | {run: now - start for run, start in active.values()}
        done = sum(run.finished() for run in runs)
        return f"{done} of {len(runs)} runs finished, {duration(now - begun)} elapsed{_left(todo, took, jobs)}"

    say(f"{len(runs)} runs: {len(took)} finished before, {len(waiting)} to do, {jobs} at a time")
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or active:
                for run in list(waiting):
                    if run.after in failed:
                        waiting.remove(run)
                        failed[run] = f"not started, because {run.after.name if run.after else ''} failed"
                        say(f"{run.name}: {failed[run]}")
                    elif len(active) < jobs and (run.after is None or run.after.finished()):
                        waiting.remove(run)
                        say(f"started   {run.name}, log {run.log}")
                        active[pool.submit(_perform, run, launch)] = run, time.monotonic()
                for future in wait(active, 1, FIRST_COMPLETED).done:  # for a second: Windows takes no Ctrl-C meanwhile
                    run, start = active.pop(future)
                    if reason := future.result():
                        failed[run] = f"{reason}, log {run.log}"
                        log = run.log.read_text(errors="replace") if run.log.is_file() else ""
                        lines = [f"    {line}" for line in log.splitlines()[-LAST_LINES:]]
                        verdict = "\n".join([f"FAILED    {run.name}: {failed[run]}", *lines])
                    else:
                        took[run] = time.monotonic() - start
                        verdict = f"finished  {run.name} in {duration(took[run])}"
                        changed()
                    say(f"{verdict}\n          {outlook()}")
                    spoken = time.monotonic()
                if time.monotonic() - spoken > HEARTBEAT:
                    say(f"running   {', '.join(run.name for run, _ in active.values())}: {outlook()}")
                    spoken = time.monotonic()
        except BaseException:
            launch.stop()
            raise
    return failed


def _perform(run: Run, launch: Launch) -> str:
    """Run the commands of a run and put on record that it has finished; return why it failed, "" if it did not."""
    begun = time.monotonic()
    run.folder.mkdir(parents=True, exist_ok=True)
    _write_record(run)
    for step in run.steps:
        if status := launch(step, run.log):
            return f"exit status {status}"
    if not run.result.is_file():
        return f"no {run.result.name} was written"
    facts = {"seconds": round(time.monotonic() - begun, 1), **_circumstances(), "device": _devices(run)}
    _write_record(run, **facts)
    if run.kept is not None:
        keep(run.result, run.kept, facts)
    return ""


def duration(seconds: float) -> str:
    """Return a time in words: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _left(todo: Mapping[Run, float], took: Mapping[Run, float], jobs: int) -> str:
    """Say how long runs will take that have run for some seconds, by the mean of finished runs of the same kind."""
    left = 0.0
    for run, gone in todo.items():
        same = [seconds for other, seconds in took.items() if len(other.steps) == len(run.steps)]
        if not same:
            return ", time left not known yet"
        left += max(0.0, mean(same) - gone)
    return f", about {duration(left / jobs)} left" if todo else ""


def _write_record(run: Run, **facts: object) -> None:
    with replacing(run.folder / RECORD) as part:
        part.write_text(json.dumps({"settings": run.settings(), **facts}, indent=1) + "\n", encoding="utf-8")


def _devices(run: Run) -> str:
    """Return the devices that the run's log names."""
    log = run.log.read_text(encoding="utf-8", errors="replace") if run.log.is_file() else ""
    return ", ".join(sorted(set(DEVICE.findall(log))))


def _circumstances() -> dict[str, object]:
    """Return when and on what a run ended."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{_processor()}, {cores()} cores, {platform.platform()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *map(_version, PACKAGES)]),
    }


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # run from a checkout that is not installed
        return f"{package} not installed"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
