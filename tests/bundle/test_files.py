"""Files whole or not at all, what kills leave, and one run at a time in a folder."""

import csv
import errno
import os
import subprocess
import sys
import time

import pytest

from mambamim_nets.bundle import files
from mambamim_nets.bundle.files import HOST, atomic_write, only_run, release, remove_leftovers, write_csv, write_text

HOLD = """
import fcntl, os, sys, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(lock, fcntl.LOCK_EX)
os.write(lock, f"process {os.getpid()} on here".encode())
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def held(tmp_path):
    """A process that holds the lock of training in tmp_path / "run"."""
    (tmp_path / "run").mkdir()
    line = [sys.executable, "-c", HOLD, str(tmp_path / "run" / ".training.lock")]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_file_is_written_under_a_name_of_the_same_ending_in_the_same_folder(tmp_path):
    seen = []

    def write(part):
        seen.append(part)
        part.write_text("new")
        assert (tmp_path / "new" / "scan.nii.gz").exists() is False

    assert atomic_write(tmp_path / "new" / "scan.nii.gz", write) == tmp_path / "new" / "scan.nii.gz"
    assert seen[0].parent == tmp_path / "new" and seen[0].name.endswith(f"-{os.getpid()}-scan.nii.gz")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scan.nii.gz"]
    assert (tmp_path / "new" / "scan.nii.gz").read_text() == "new"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(tmp_path, error):
    write_text(tmp_path / "table.csv", "old")

    def write(part):
        part.write_text("half")
        raise error

    with pytest.raises(type(error)):
        atomic_write(tmp_path / "table.csv", write)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("table.csv", "old")]


def test_tables_and_texts(tmp_path):
    write_csv(tmp_path / "table.csv", [["case", "ml"], ["a,b", 1.5]])
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["case", "ml"], ["a,b", "1.5"]]
    write_text(tmp_path / "note.md", "Größe\n")
    assert (tmp_path / "note.md").read_bytes() == "Größe\n".encode()


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path, gone):
    hour, day = time.time() - 2 * 3600, time.time() - 25 * 3600
    left = {
        f".part-{HOST}-{gone}-model_best.pt": (b"half", None),
        f".part-{HOST}-{os.getpid()}-volumes.csv": (b"of an earlier process of this number", None),
        ".part-elsewhere-12-volumes.csv": (b"half", day),
        "tmpab12_cd3": (b"PK\x03\x04" + bytes(26) + b"archive/data.pkl", hour),
        "tmpempty001": (b"", hour),
    }
    kept = {
        "volumes.csv": (b"scan", day),
        f".part-{HOST}-{os.getppid()}-volumes.csv": (b"another process writes it", None),
        ".part-elsewhere-13-volumes.csv": (b"perhaps it is written", hour),
        f".part-{HOST}-{gone}": (b"no such name is given", day),
        "tmpab12_cd4": (b"PK\x03\x04" + bytes(26) + b"archive/data.pkl", None),
        "tmpfile_001": (b"notes of a person", day),
        "tmparchives": (b"PK\x03\x04" + bytes(26) + b"letters.docx", day),
    }
    for name, (content, when) in {**left, **kept}.items():
        (tmp_path / name).write_bytes(content)
        if when is not None:
            os.utime(tmp_path / name, (when, when))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / f".part-{HOST}-{gone}-model.pt").touch()
    (tmp_path / f".part-{HOST}-{gone}-link").symlink_to(tmp_path / "volumes.csv")
    assert {path.name for path in remove_leftovers(tmp_path)} == set(left)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "below", f".part-{HOST}-{gone}-link"}
    assert (tmp_path / "below" / f".part-{HOST}-{gone}-model.pt").exists()


def test_a_file_that_this_process_is_writing_is_not_removed(tmp_path):
    def write(part):
        part.write_text("half")
        assert remove_leftovers(tmp_path) == []

    atomic_write(tmp_path / "model.pt", write)
    assert remove_leftovers(tmp_path / "none") == []


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, held, reliability):
    with pytest.raises(ValueError, match="another training is at work there") as caught:
        only_run(tmp_path / "run")
    assert f"process {held.pid} on here" in str(caught.value)
    only_run(tmp_path / "run", "inference")  # other work does not wait
    held.kill()
    held.wait()
    only_run(tmp_path / "run")
    only_run(tmp_path / "run")  # the same process again
    hide = r"process \d+ on here"
    reliability("Several processes", "a second run in the output folder of a running one", caught.value, hide=hide)


def test_a_released_folder_is_free_for_others(tmp_path):
    only_run(tmp_path)
    once = HOLD.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB").replace("time.sleep(60)", "")
    line = [sys.executable, "-c", once, str(tmp_path / ".training.lock")]
    assert "BlockingIOError" in subprocess.run(line, capture_output=True, text=True).stderr
    release(tmp_path)
    release(tmp_path)
    assert subprocess.run(line, capture_output=True, text=True).stdout == "held\n"


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    only_run(tmp_path)
    assert "no locks here ([Errno 38] Function not implemented)" in caplog.text
    assert (tmp_path / ".training.lock") not in files._held
