"""Start the runs, several at a time, each in its own process; keep on when one fails; stop them all on Ctrl-C."""

import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from mambamim_nets.reproduce.plan import RECORD, Run

__all__ = ["Launch", "Process", "cores", "duration", "execute", "launcher", "typed"]

PACKAGES = ("mambamim-nets", "torch", "monai", "pytorch-ignite", "numpy")
LAST_LINES = 12  # of the log of a failed run
HEARTBEAT = 600  # seconds between two lines of progress while nothing ends
PATIENCE = 20  # seconds between the request to stop and the end by force


class Process(Protocol):
    """What is needed of a started command; `subprocess.Popen` has it."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


Launch = Callable[[Sequence[str], Path], Process]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def typed(words: Sequence[str]) -> str:
    """Return a command as it can be typed into a shell."""
    plain = [f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word) for word in words]
    return " ".join(["python", "-m", *plain])


def launcher(threads: int) -> Launch:
    """Return a function that starts `python -m monai.bundle run` with arguments, its output appended to a log.

    Args:
        threads: of each process, as OMP_NUM_THREADS.
    """

    def launch(arguments: Sequence[str], log: Path) -> Process:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "monai.bundle", "run", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process only, which then stops them in good order
            )

    return launch


class _Active:
    """A run in progress: the command that it is at, and since when."""

    def __init__(self, run: Run, launch: Launch) -> None:
        self.run, self.launch, self.step, self.started = run, launch, 0, time.monotonic()
        run.folder.mkdir(parents=True, exist_ok=True)
        self.earlier = float(run.record().get("spent", 0.0))
        _write_record(run, spent=self.earlier)
        self.process = launch(run.steps[0], run.log)

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def poll(self) -> int | None:
        """Return None while there is something to do, else the exit status; starts the next command."""
        status = self.process.poll()
        if status != 0:
            return status
        self.step += 1
        if self.step == len(self.run.steps):
            return 0
        self.process = self.launch(self.run.steps[self.step], self.run.log)
        return None


def execute(
    runs: Sequence[Run],
    launch: Launch,
    jobs: int = 1,
    changed: Callable[[], object] = lambda: None,
    say: Callable[[str], object] = print,
    pause: float = 0.3,
) -> dict[Run, str]:
    """Run what is not finished.

    Args:
        runs: in the order in which they are wanted; one that starts from another comes after it.
        launch: starts a command.
        jobs: how many run at a time.
        changed: called whenever a run has finished.
        say: takes the lines of progress.
        pause: seconds between two looks at the processes.

    Returns:
        The runs that failed or could not start, each with the reason.
    """
    waiting = [run for run in runs if not run.finished()]
    active: list[_Active] = []
    failed: dict[Run, str] = {}
    spent: dict[bool, list[float]] = {True: [], False: []}  # seconds of whole runs: of fine-tuning, of pre-training
    for run in runs:
        if run not in waiting and "seconds" in run.record():
            spent[len(run.steps) > 1].append(run.record()["seconds"])
    begun = told = time.monotonic()

    def outlook() -> str:
        todo = [(run, 0.0) for run in waiting] + [(item.run, item.seconds()) for item in active]
        done = sum(run.finished() for run in runs)
        return _outlook(done, len(runs), todo, spent, time.monotonic() - begun, jobs)

    say(f"{len(runs)} runs: {len(runs) - len(waiting)} finished before, {len(waiting)} to do, {jobs} at a time")
    try:
        while waiting or active:
            for run in list(waiting):
                if run.after in failed:
                    waiting.remove(run)
                    failed[run] = f"not started, because {run.after.name if run.after else ''} failed"
                    say(f"{run.name}: {failed[run]}")
                elif len(active) < jobs and (run.after is None or run.after.finished()):
                    waiting.remove(run)
                    active.append(_Active(run, launch))
                    say(f"started   {run.name}, log {run.log}")
            for item in list(active):
                status = item.poll()
                if status is None:
                    continue
                active.remove(item)
                run, seconds = item.run, item.earlier + item.seconds()
                if status == 0 and run.result.is_file():
                    _write_record(run, seconds=round(seconds, 1), **_circumstances())
                    spent[len(run.steps) > 1].append(seconds)
                    verdict = f"finished  {run.name} in {duration(seconds)}"
                    changed()
                else:
                    _write_record(run, spent=round(seconds, 1))
                    why = f"exit status {status}" if status else f"no {run.result.name} was written"
                    failed[run] = f"{why}, log {run.log}"
                    lines = run.log.read_text(errors="replace").splitlines()[-LAST_LINES:] if run.log.is_file() else []
                    verdict = "\n".join([f"FAILED    {run.name}: {failed[run]}", *(f"    {line}" for line in lines)])
                say(f"{verdict}\n          {outlook()}")
                told = time.monotonic()
            if time.monotonic() - told > HEARTBEAT:
                say(f"running   {', '.join(item.run.name for item in active)}: {outlook()}")
                told = time.monotonic()
            if active:
                time.sleep(pause)
    except BaseException:
        _stop(active)
        raise
    return failed


def duration(seconds: float) -> str:
    """Return a time in words: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _outlook(
    done: int,
    total: int,
    todo: Sequence[tuple[Run, float]],
    spent: dict[bool, list[float]],
    elapsed: float,
    jobs: int,
) -> str:
    text = f"{done} of {total} runs finished, {duration(elapsed)} elapsed"
    kinds = {len(run.steps) > 1 for run, _ in todo}
    if not todo:
        return text
    if not all(spent[kind] for kind in kinds):
        return f"{text}, time left not known yet"
    mean = {kind: sum(spent[kind]) / len(spent[kind]) for kind in kinds}
    left = sum(max(0.0, mean[len(run.steps) > 1] - gone) for run, gone in todo) / jobs
    return f"{text}, about {duration(left)} left"


def _write_record(run: Run, **facts: object) -> None:
    path = run.folder / RECORD
    part = path.with_name(f".{os.getpid()}.{path.name}")
    text = json.dumps({"settings": run.settings(), **facts}, indent=1)
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)


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


def _stop(active: Sequence[_Active]) -> None:
    """End the commands in progress; what they have written stays, and the next start continues from it."""
    for item in active:
        _signal(item.process, "SIGTERM")
    deadline = time.monotonic() + PATIENCE
    for item in active:
        try:
            item.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(item.process, "SIGKILL")
            item.process.wait()
        _write_record(item.run, spent=round(item.earlier + item.seconds(), 1))


def _signal(process: Process, name: str) -> None:
    """Send a signal to a command and the workers that it started."""
    if isinstance(process, subprocess.Popen) and hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, getattr(signal, name))
        except ProcessLookupError:
            return
    elif name == "SIGKILL":
        process.kill()
    else:
        process.terminate()
