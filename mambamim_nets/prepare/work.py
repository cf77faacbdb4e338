"""One file or folder after another becomes volumes of a store, in as many processes as wanted, in bounded memory.

A process takes a scan only if its header says that it needs no more than the process's share of the memory that was
free at the start; larger ones are left for the end, and are done one at a time.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import torch

from mambamim_nets.bundle.data.memory import MARGIN, ScanMemory, free_memory
from mambamim_nets.bundle.data.store import Recipe
from mambamim_nets.bundle.data.store_files import StoreFiles, masks_of
from mambamim_nets.bundle.data.store_filter import Filter
from mambamim_nets.prepare.decide import masks_on_grid, prepared
from mambamim_nets.prepare.read import (
    Found,
    Refused,
    Scan,
    read_masks,
    read_voxels,
    stated_modality,
    subject_of,
    volumes_of,
)

__all__ = ["Done", "Job", "in_processes", "work_on"]

FILLED = 0.8  # of the free memory, shared by all processes
AHEAD = 4  # jobs that wait for each process


class Job(NamedTuple):
    """What to do with a file or folder.

    Attributes:
        found: which it is.
        files: of the store.
        recipe: of the store.
        axes: where the axes of files point that do not say so; None: those are refused.
        filter: expression; None: every sound volume is stored.
        share: bytes that a volume may need; None: what is free.
    """

    found: Found
    files: StoreFiles
    recipe: Recipe
    axes: str | None = None
    filter: str | None = None
    share: int | None = None


class Done(NamedTuple):
    """What became of a job.

    Attributes:
        job: which it was.
        lines: of the index, for each volume of it; None: nothing was done, since a volume needs more than the share.
    """

    job: Job
    lines: list[dict[str, Any]] | None


def work_on(job: Job) -> Done:
    """Read, judge and store all volumes of a file or folder.

    Raises:
        OSError: the store cannot be written.
    """
    found, memory = job.found, ScanMemory(job.recipe.spacing, remedy="or use a machine with more memory")
    line: dict[str, Any] = {"source": found.source, "root": found.root, "path": found.path}
    if found.modality is not None:
        line["stated"] = found.modality
    try:
        line["source_bytes"], line["source_time"] = found.signature()
    except OSError as error:
        mask = f": {error.filename}" if error.filename in found.masks.values() else ""
        line |= {"source_bytes": 0, "source_time": 0}
        gone = Refused("", f"{found.path}{mask} is gone since it was listed ({error.strerror})", again=True)
        return Done(job, [line | _refusal(gone, job)])
    scans, refused = volumes_of(found, job.axes)
    needed = [MARGIN * memory.load(scan.header, 1) for scan in scans if len(scan.header.shape) >= 3]
    if job.share is not None and max(needed, default=0) > job.share:
        return Done(job, None)
    lines = []
    for scan in scans:
        outcome = _store(job, scan, memory, line)
        if isinstance(outcome, Refused):
            refused.append(outcome)
        else:
            lines.append(outcome)
    if not (lines or refused):
        refused.append(Refused("", f"{found.path} holds no series of images"))
    return Done(job, lines + [line | _refusal(one, job) for one in refused])


def _refusal(refused: Refused, job: Job) -> dict[str, Any]:
    """Return what a line says of a volume that is not stored, with the options that may have refused it."""
    asked = [job.filter, job.axes]
    return {"series": refused.series, "refused": refused.reason, "again": refused.again, "asked": asked}


def _store(job: Job, scan: Scan, memory: ScanMemory, origin: Mapping[str, Any]) -> dict[str, Any] | Refused:
    """Return the line of a volume that is stored now, which begins with its origin, or why it is not stored."""
    found, series = job.found, scan.series.uid if scan.series is not None else ""
    if too_large := memory.refusal(scan.header, 1):
        return Refused(series, f"{found.path}: {too_large}", again=True)
    image, problem = read_voxels(found, scan, job.axes)
    if image is None or problem:
        return Refused(series, problem)
    try:
        masks = read_masks(found, image, job.axes)
        array, line = prepared(image, stated_modality(found, scan), job.recipe)
        bits = masks_on_grid(masks, line) if masks else None
    except ValueError as error:
        return Refused(series, f"{found.path}: {error}")
    del image, masks
    name = found.id(series)
    facts = {"id": name, "series": series, "subject": subject_of(found, scan), "metadata": found.metadata}
    line = {**origin, **line, **facts, "findings": {**line["findings"], **scan.findings}}
    if job.filter is not None and not Filter(job.filter)(Filter.facts(line)):
        return Refused(series, f"{found.path}: not wanted by filter {job.filter}")
    try:
        if bits is not None:
            line["masks"] = {"names": sorted(found.masks), **job.files.write_volume(masks_of(name), bits)}
        return {**line, **job.files.write_volume(name, array)}
    except OSError as error:
        raise OSError(
            f"--store {job.files} cannot be written ({error.strerror or error}): what is there is whole; make room or"
            " give rights, and the same command goes on from it"
        ) from error


def in_processes(jobs: Sequence[Job], workers: int) -> Iterator[Done]:
    """Yield what becomes of jobs, in the order in which they are done.

    Args:
        jobs: in any order.
        workers: processes; with 1 the work is done in this one.

    Raises:
        OSError: the store cannot be written, or a process was ended.
    """
    if workers == 1:
        yield from map(work_on, jobs)
        return
    free = free_memory()
    share = None if free is None else int(FILLED * free / workers)
    large: list[Job] = []
    spawned = multiprocessing.get_context("spawn")  # threads of PyTorch do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=spawned, initializer=_one_thread) as pool:
        left, running = iter(jobs), set[Future[Done]]()
        while True:
            for job in left:
                running.add(pool.submit(work_on, job._replace(share=share)))
                if len(running) >= AHEAD * workers:
                    break
            if not running:
                break
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                try:
                    done = future.result()
                except BrokenProcessPool:
                    raise OSError(
                        f"one of {workers} processes was ended from outside, most likely for lack of memory: give fewer"
                        " --workers; the same command goes on from what is done"
                    ) from None
                if done.lines is None:
                    large.append(done.job)
                else:
                    yield done
    yield from (work_on(job._replace(share=None)) for job in large)


def _one_thread() -> None:
    torch.set_num_threads(1)
