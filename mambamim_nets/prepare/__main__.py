"""`python -m mambamim_nets.prepare --sources /data/ct --store /data/store`: prepare volumes for pre-training."""

from __future__ import annotations

import difflib
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

from tqdm import tqdm

from mambamim_nets.bundle.data.memory import ScanMemory
from mambamim_nets.bundle.data.store import Recipe, read_recipe
from mambamim_nets.bundle.data.store_files import StoreFiles, files_of, masks_of
from mambamim_nets.bundle.data.store_filter import FINDINGS, Filter
from mambamim_nets.bundle.files import first_lines, only_run, release, remove_leftovers
from mambamim_nets.bundle.io.headers import checked_axes
from mambamim_nets.bundle.io.scan_formats import ENDINGS
from mambamim_nets.bundle.option_kinds import to_spacing
from mambamim_nets.command_line import run
from mambamim_nets.prepare.read import Found, Source, found_in, sources_of, volumes_of
from mambamim_nets.prepare.work import Job, in_processes
from mambamim_nets.prepare.write import Index, keep_recipe

__all__ = ["main", "prepare"]

logger = logging.getLogger("mambamim_nets")
INTENSITIES = ("ct", "mr", "ct_or_mr")
FACTS = {"id", "source", "path", "subject", "modality", "foreground"} | {
    f"{name}_{axis}" for name in ("spacing", "shape") for axis in "xyz"
}
GIB = 2**30


def prepare(
    store: str,
    sources: Any = None,
    part: int = 0,
    parts: int = 1,
    workers: int = 1,
    spacing: Sequence[float] = (1.5, 1.5, 1.5),
    intensity: str = "ct_or_mr",
    assume_axes: str | None = None,
    filter: str | None = None,
    verify: bool = False,
    dry_run: bool = False,
) -> str:
    """Resample, crop, compress and index the volumes of any number of sources, for pre-training that reads crops.

    The same command again goes on where it was stopped, and does what is new or has changed. Volumes of sources that
    are not named any more stay.

    Args:
        store: folder of the store, made where it does not exist; or a URL, such as s3://bucket/store, whose volumes
            are Zarr arrays.
        sources: paths, or {'path': ..., 'name': ..., 'key': ...}: a folder of NIfTI, NRRD or MHA files or of DICOM
            series, searched below; a Decathlon or nnU-Net folder or list; a .csv or .tsv with a column image and, if
            wanted, subject, modality, face_mask, body_mask and others that filters can name; or one file.
        part: number of this job, from 0.
        parts: how many independent jobs share the work.
        workers: processes of this job.
        spacing: edges of a voxel in mm that all volumes are resampled to.
        intensity: what the volumes are: ct, mr, or ct_or_mr, which asks each of them.
        assume_axes: where the axes of files point that do not say so, such as RAS; without it those are refused.
        filter: which volumes to store, such as "modality == 'CT' and spacing_z <= 3"; training has the same option.
        verify: read back everything that is in the store, and write nothing.
        dry_run: read headers only, and say what there is.

    Returns:
        What was done, in a few lines.

    Raises:
        ValueError, OSError: an option is refused, or the store cannot be written or is broken.
    """
    files = files_of(os.path.expanduser(str(store)))
    for name, value, least in (("part", part, 0), ("parts", parts, 1), ("workers", workers, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"option --{name} {value!r} must be a whole number of at least {least}")
    if part >= parts:
        raise ValueError(f"option --part {part} must be below --parts {parts}: the first part is 0")
    if verify:
        return _verified(files)
    axes = checked_axes(assume_axes)
    recipe = _recipe(spacing, intensity, files.format)
    listed = sources_of(sources)
    every = [one for source in listed for one in _all_of(source)]
    if filter is not None:
        _check_filter(str(filter), every)
    found = [one for one in every if _part_of(one, parts) == part]
    if dry_run:
        return _foreseen(found, recipe, axes)
    keep_recipe(files, recipe)
    work = f"prepare-part-{part}-of-{parts}"
    if files.folder is None:
        logger.info("%s has no locks: see to it that one process at a time writes part %d of %d", files, part, parts)
        return _prepared(files, recipe, listed, found, part, parts, workers, axes, filter)
    try:
        only_run(files.folder, work)
    except ValueError as error:
        raise ValueError(f"--store {files}: another process writes part {part} of {parts}; wait for its end") from error
    try:
        return _prepared(files, recipe, listed, found, part, parts, workers, axes, filter)
    finally:
        release(files.folder, work)


def _recipe(spacing: Any, intensity: str, format: int) -> Recipe:
    """Return the recipe of a store by its options, which are checked."""
    try:
        edges = tuple(float(edge) for edge in to_spacing(spacing))
    except (ValueError, TypeError):
        raise ValueError(
            f'option --spacing {spacing!r} must be a list of three numbers from 0.01 to 50, e.g. "[1.5,1.5,1.5]"'
        ) from None
    if intensity not in INTENSITIES:
        raise ValueError(f"option --intensity {intensity!r} must be one of {', '.join(INTENSITIES)}")
    return Recipe(edges, intensity, format=format)  # type: ignore[arg-type]


def _all_of(source: Source) -> list[Found]:
    """Return what a source holds; a source without a volume is refused."""
    found = list(found_in(source))
    if not found:
        raise ValueError(f"source {str(source.path)!r} holds no volume: no file of {', '.join(ENDINGS)}, and no DICOM")
    return found


def _part_of(found: Found, parts: int) -> int:
    """Return which part a file belongs to, whatever else there is: a hash of its name says it."""
    return crc32(f"{found.source}\n{found.path}".encode()) % parts


def _check_filter(expression: str, found: Sequence[Found]) -> None:
    """Refuse a filter that names what no volume of these files can have."""
    names = Filter(expression).names
    if "duplicate" in names:
        raise ValueError(
            f"filter {expression!r}: duplicates are known when all parts are written: give it to the training"
        )
    known = FACTS | set(FINDINGS) | {key for one in found for key in one.metadata}
    for name in sorted(names - known):
        near = difflib.get_close_matches(name, known, n=2) or sorted(known)
        raise ValueError(
            f"filter {expression!r} names {name!r}, which no volume has; did you mean {' or '.join(near)}?"
        )


def _prepared(
    files: StoreFiles,
    recipe: Recipe,
    sources: Sequence[Source],
    found: Sequence[Found],
    part: int,
    parts: int,
    workers: int,
    axes: str | None,
    filter: str | None,
) -> str:
    """Prepare what is new or has changed of this part; arguments of `prepare`, checked. Return what was done."""
    index = Index(files, part, parts, [filter, axes])
    for source in sources:
        root = str(source.path if source.path.is_dir() else source.path.parent)
        if not source.named and index.roots.get(source.name, root) != root:
            raise ValueError(
                f"source {source.name!r} of this store lies in {index.roots[source.name]}, not in {root}: give the new"
                f" one another name, or the same if it has moved, as in {{'path': {str(source.path)!r}, 'name': ...}}"
            )
    for folder in sorted({path.parent for path in files.folder.glob("volumes/**/.part-*")} if files.folder else ()):
        remove_leftovers(folder)
    todo = []
    for one in found:
        try:
            known = index.has(one, one.signature())
        except OSError:  # gone since it was listed, which the work says
            known = False
        if not known:
            todo.append(Job(one, files, recipe, axes, filter))
    bar = tqdm(in_processes(todo, workers), desc="prepare", total=len(todo), disable=None if todo else True)
    try:
        for done in bar:
            if done.lines:
                index.append(done.lines)
    finally:
        files.flush()
    counts = index.close()
    if filter is not None and (more := index.unwanted(found, Filter(filter))):
        logger.warning(
            "%d volumes that were stored before do not meet filter %r, and stay; leave them out of a training by its"
            " own option --filter, or prepare another --store",
            more,
            filter,
        )
    return (
        f"part {part} of {parts} of {files}: {len(todo)} files or series done, {len(found) - len(todo)} known before;"
        f" {counts['stored']} volumes, {counts['odd']} of them with findings, {counts['refused']} refused:"
        f" {files}/tables"
    )


def _foreseen(found: Sequence[Found], recipe: Recipe, axes: str | None) -> str:
    """Return a table of what sources hold, by their headers."""
    memory = ScanMemory(recipe.spacing)
    counts: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0, 0])
    reasons = []
    for one in tqdm(found, desc="read headers", disable=None):
        scans, refused = volumes_of(one, axes)
        grids = [memory.kept(scan.header, 1, label=False) / 2 for scan in scans]  # two bytes a voxel
        for column, value in enumerate((len(scans), len(refused), sum(grids) / GIB)):
            counts[one.source][column] += value
        reasons += [f"refused: {reason.reason}" for reason in refused]
    rows = [f"{name}: {n:.0f} volumes, {bad:.0f} refused, {size:.2f} GiB" for name, (n, bad, size) in counts.items()]
    return "\n".join([*rows, first_lines(reasons), "sizes before cropping and compression; nothing was written"])


def _verified(files: StoreFiles) -> str:
    """Read back every volume of a store; return what was found.

    Raises:
        ValueError: that lists the volumes that are not as they were written.
    """
    read_recipe(files)
    lines: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in files.indices():
        for line in files.lines(path):
            if "refused" not in line:
                lines[line["id"]].append(line)
    problems = []
    for several in tqdm(lines.values(), desc="verify", disable=None):
        found = [_broken(files, line) for line in several]
        if all(found):  # of two lines for one volume, the older one describes a file that was replaced
            problems.append(found[-1])
    stray = [name for name in files.names() if name.removesuffix(".masks") not in lines]
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(lines)} volumes are broken; delete their files, and the command that prepared"
            f" them makes them again:\n{first_lines(problems)}"
        )
    more = f"; {len(stray)} files are in no index, such as {files.path(stray[0])}" if stray else ""
    return f"{len(lines)} volumes of {files} are as they were written{more}"


def _broken(files: StoreFiles, line: Mapping[str, Any]) -> str:
    """Return what is wrong with a volume and its masks, or ""."""
    name, masks = line["id"], line.get("masks")
    wrong = files.broken(name, line, line["shape"])
    return wrong or (files.broken(masks_of(name), masks, line["shape"]) if masks is not None else "")


def main() -> None:
    """Run the command; a refusal is one sentence."""
    run(prepare, "python -m mambamim_nets.prepare")


if __name__ == "__main__":
    main()
