"""One file after another: a volume and its line, what is refused, and what has to wait for more memory."""

import os

import numpy as np
import pytest
from store_files import write_scan

from mambamim_nets.bundle.data.store import Recipe
from mambamim_nets.bundle.data.store_files import files_of
from mambamim_nets.prepare import work
from mambamim_nets.prepare.read import Found
from mambamim_nets.prepare.work import Job, in_processes, work_on

RECIPE = Recipe((4.0, 4.0, 4.0))


@pytest.fixture
def job(tmp_path):
    write_scan(tmp_path / "scans" / "sub-00" / "ct.nii.gz")
    found = Found("scans", str(tmp_path / "scans"), "sub-00/ct.nii.gz", subject="sub-00")
    return Job(found, files_of(tmp_path / "store"), RECIPE)


def test_a_volume_and_its_line(job):
    (line,) = work_on(job).lines
    assert (line["source"], line["path"], line["subject"]) == ("scans", "sub-00/ct.nii.gz", "sub-00")
    assert line["modality"] == "CT" and np.isfinite(line["quantiles"]).all() and "refused" not in line
    held = [os.path.join(folder, name) for folder, _, names in os.walk(job.files.folder) for name in names]
    assert [os.path.getsize(path) for path in held] == [line["file_bytes"]]


@pytest.mark.parametrize(
    ("change", "reason", "again"),
    [
        (lambda job: os.unlink(job.found.file), "is gone since it was listed", True),
        (lambda job: open(job.found.file, "wb").close(), "sub-00/ct.nii.gz", False),
    ],
    ids=["gone", "empty"],
)
def test_what_cannot_be_read_is_a_line_with_the_reason(job, change, reason, again):
    change(job)
    (line,) = work_on(job).lines
    assert reason in line["refused"] and line["again"] is again and line["asked"] == [None, None]
    assert not job.files.folder.exists()


def test_what_a_filter_does_not_want_is_not_stored(job):
    (line,) = work_on(job._replace(filter="modality == 'MR'")).lines
    assert "not wanted by filter modality == 'MR'" in line["refused"] and line["asked"] == ["modality == 'MR'", None]


def test_a_volume_above_its_share_of_the_memory_waits(job):
    assert work_on(job._replace(share=1000)).lines is None and not job.files.folder.exists()
    assert work_on(job._replace(share=2**30)).lines is not None


def test_one_worker_works_in_this_process_and_in_order(job, monkeypatch):
    monkeypatch.setattr(work, "work_on", lambda one: one)
    jobs = [job, job._replace(share=1), job]
    assert list(in_processes(jobs, 1)) == jobs
