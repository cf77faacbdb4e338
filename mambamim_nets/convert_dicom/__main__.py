"""`python -m mambamim_nets.convert_dicom --dataset_dir DICOM --output DATA`: labelled DICOM to a data set to train on.

The folder holds image series and, anywhere in it, DICOM-SEG or RTSTRUCT objects that refer to them. Each series that
has labels becomes a case: an image and a label map in NIfTI on the grid of the series, nothing resampled, listed in a
Decathlon `dataset.json` that names labels and subjects. From there on it is a data set like any other.

It is a step of its own, and nothing that planning or training does on the side: slices are decoded and contours filled
once, not by every process of every run; what is wrong with a label is known before; a person can look at the result;
and where patients' images are written is a person's choice.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mambamim_nets.bundle.files import first_lines, only_run, release, remove_leftovers, some, write_text
from mambamim_nets.bundle.io.dicom_labels import LABEL_KINDS
from mambamim_nets.command_line import run
from mambamim_nets.convert_dicom.read import Job, found_in, jobs_of, with_series
from mambamim_nets.convert_dicom.write import LARGEST_VALUE, Record, signature_of, write_case

__all__ = ["convert", "main"]

REPORT = "conversion.md"
WORK = "conversion"
BACKGROUND = ("background", "bg", "ignore", "unlabelled", "unlabeled")  # what a dataset.json means by these is no label
SHOWN = 5  # lines of each kind on the screen; the report has all


def convert(
    dataset_dir: str,
    output: str,
    labels: Any = None,
    priority: Any = None,
    kind: str | None = None,
    subject: str = "PatientID",
    skip_refused: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> str:
    """Convert image series with DICOM-SEG or RTSTRUCT labels into a data set of NIfTI files.

    The same command again goes on where it was stopped, and does what is new.

    Args:
        dataset_dir: folder of the DICOM files, searched below; a series lies in one folder, its labels anywhere.
        output: folder of the data set that is made, outside of the first.
        labels: structures to take, such as "['liver','spleen']", or new names, such as "{'liver': ['Liver','LIVER']}",
            in the order of their label values; by default all, in the order of the alphabet.
        priority: labels that may overlap, such as "['tumour','liver']": a voxel of several becomes the first of them.
            By default overlaps are refused.
        kind: SEG or RTSTRUCT, where the folder holds both and one is to be taken.
        subject: DICOM attribute that says who was scanned, such as StudyInstanceUID where all patients have one
            PatientID; it is kept as a hash.
        skip_refused: convert the other series where labels of some are refused.
        overwrite: make cases anew that were made from other files or with other options, and replace a dataset.json
            that was edited.
        dry_run: read headers only, say what there is, and write nothing.

    Returns:
        What was done, in a few lines.

    Raises:
        ValueError, OSError: an option or a label is refused; all labels that are wrong are listed.
    """
    root, target = _folders(dataset_dir, output)
    wanted, first = _wanted(labels), _names("priority", priority)
    if kind not in (None, *LABEL_KINDS):
        raise ValueError(f"option --kind {kind!r} must be one of {', '.join(LABEL_KINDS)}, or left out")
    Record(target)  # refuses a folder of something else before an hour of reading
    folder = found_in(root, kind, str(subject))
    _check_wanted(wanted, {name for label in folder.labels for name in label.structures})
    jobs, problems, left_out = jobs_of(folder, wanted)
    if problems and not skip_refused:
        raise ValueError(_refusal(problems, "nothing was written"))
    if not jobs:
        raise ValueError(
            f"--dataset_dir {root}: no image series with labels among {len(folder.series)} series and"
            f" {len(folder.labels)} label objects, {len(problems)} of them refused; each case needs a series, and a"
            f" DICOM-SEG or RTSTRUCT that refers to it\n{first_lines([*problems, *left_out])}"
        )
    record = Record(target)
    given = list(wanted.values()) or sorted({label for job in jobs for label in job.names.values()})
    names = list(dict.fromkeys([*record.labels, *given]))
    _check_names(names, first)
    if dry_run:
        return "\n".join(
            [
                *_table(names, [set(job.names.values()) for job in jobs]),
                *_notes(problems, left_out, SHOWN),
                "nothing was written",
            ]
        )
    try:
        only_run(target, WORK)
    except ValueError as error:
        raise ValueError(f"--output {target}: another process converts into it; wait for its end") from error
    try:
        return _converted(root, record, jobs, names, first, (problems, left_out), skip_refused, overwrite)
    finally:
        release(target, WORK)


def _converted(
    root: Path,
    record: Record,
    jobs: Sequence[Job],
    names: Sequence[str],
    priority: Sequence[str],
    found: tuple[list[str], list[str]],
    skip_refused: bool,
    overwrite: bool,
) -> str:
    """Convert what is new; arguments of `convert`, checked, and problems and what is left out. Return what was done."""
    problems, left_out = found
    target, table = record.output, {name: value for value, name in enumerate(names, start=1)}
    signatures = {job.case: signature_of(root, job, table) for job in jobs}
    todo = [job for job in jobs if not _is_done(job, record.cases.get(job.case), signatures[job.case], priority)]
    if not overwrite:
        if changed := [job.case for job in todo if job.case in record.cases]:
            raise ValueError(
                f"--output {target}: cases were made from other files or with other options, {some(changed, SHOWN)};"
                " give --overwrite true to make them anew, or another --output"
            )
        record.require_unedited()
    for folder in ("imagesTr", "labelsTr", "."):
        remove_leftovers(target / folder)
    record.start(names)
    refused = []
    for job, series in tqdm(with_series(root, todo), desc="convert", total=len(todo), disable=None):
        try:
            line = write_case(root, target, job, series, table, priority)
            record.add({**line, "signature": signatures[job.case]})
        except (ValueError, OSError) as error:
            refused.append(str(error))
            record.cases.pop(job.case, None)  # made by an earlier start, of other files or with other options
    problems = [*problems, *refused]
    if problems and not skip_refused:
        raise ValueError(_refusal(problems, "the other cases are converted, and not listed yet"))
    if not record.cases:
        raise ValueError(_refusal(problems, "no case is left"))
    record.finish()
    warnings = [f"{case}: {text}" for case, line in sorted(record.cases.items()) for text in line["warnings"]]
    if len(jobs) > 1 and len(persons := {job.series.person for job in jobs}) == 1 and all(persons):
        warnings.insert(
            0, f"all {len(jobs)} cases are of one person; if that is not true, give --subject StudyInstanceUID"
        )
    here = {job.case for job in jobs}
    gone = [f"{case}: its series is not in {root} any more" for case in sorted(record.cases) if case not in here]
    warnings += gone if not problems else []
    held = [{name for name, count in line["voxels"].items() if count} for line in record.cases.values()]
    table_lines = _table(names, held)
    report = ["# Conversion", *table_lines, *_notes(problems, left_out), *[f"- look at {line}" for line in warnings]]
    write_text(target / REPORT, "\n".join(report) + "\n")
    return "\n".join(
        [
            *table_lines,
            *_notes(problems, left_out, SHOWN),
            *([first_lines([f"look at {line}" for line in warnings], SHOWN)] if warnings else []),
            f"{len(todo) - len(refused)} cases converted, {len(record.cases)} in all; details in {target / REPORT}",
            f"next: python -m mambamim_nets.plan --dataset_dir {target} --output bundles/NAME",
        ]
    )


def _is_done(job: Job, line: Mapping[str, Any] | None, signature: str, priority: Sequence[str]) -> bool:
    """Return whether a case was made of the same, by its line of the record."""
    if line is None or line["signature"] != signature:
        return False
    return not line["priority"] or line["priority"] == [name for name in priority if name in job.names.values()]


# --- options --------------------------------------------------------------------------------------


def _folders(dataset_dir: str, output: str) -> tuple[Path, Path]:
    """Return both folders, absolute; refuse those that cannot be read or written."""
    root, target = (Path(str(path)).expanduser().resolve() for path in (dataset_dir, output))
    if not root.is_dir():
        raise FileNotFoundError(f"--dataset_dir {dataset_dir} does not exist; give the folder of the DICOM files")
    if target.is_file():
        raise NotADirectoryError(f"--output {output} must be a folder, and it is a file; give another name")
    if target == root or root in target.parents:
        raise ValueError(f"--output {output} lies in the data set {root}; give a folder outside of it")
    if "#" in str(target):
        raise ValueError(f"--output {output} contains #, which MONAI's parser of configurations alters; rename it")
    return root, target


def _names(option: str, value: Any) -> list[str]:
    """Return the names of an option: a list, or a text with commas."""
    given = value.split(",") if isinstance(value, str) else value or []
    if not isinstance(given, Sequence) or not all(isinstance(one, str) and one.strip() for one in given):
        raise ValueError(f"option --{option} {value!r} must be a list of names, such as \"['liver','spleen']\"")
    return list(dict.fromkeys(" ".join(one.split()) for one in given))


def _wanted(labels: Any) -> dict[str, str]:
    """Return structure -> label; {} for all structures under their own names."""
    if not isinstance(labels, Mapping):
        return {name: name for name in _names("labels", labels)}
    pairs = [
        (name, " ".join(str(label).split()))
        for label, said in labels.items()
        for name in _names("labels", [said] if isinstance(said, str) else said)
    ]
    if twice := sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1):
        raise ValueError(f"option --labels gives {some(twice)} to several labels; give each structure to one")
    return dict(pairs)


def _check_wanted(wanted: Mapping[str, str], held: set[str]) -> None:
    """Refuse names that no label object has."""
    for name in wanted:
        if held and name not in held:
            near = difflib.get_close_matches(name, held, n=3, cutoff=0.4) or sorted(held)
            raise ValueError(f"option --labels: no structure is called {name!r}; there are {some(near)}")


def _check_names(names: Sequence[str], priority: Sequence[str]) -> None:
    """Refuse names of labels that cannot be written, and a priority of others."""
    if unknown := [name for name in priority if name not in names]:
        raise ValueError(f"option --priority names {some(unknown)}, and must name labels, which are {some(names)}")
    if odd := [name for name in names if name.casefold() in BACKGROUND]:
        raise ValueError(
            f"a structure is called {odd[0]!r}, which is no label; leave it out, or rename it, by --labels"
        )
    if len(names) > LARGEST_VALUE:
        raise ValueError(f"{len(names)} labels must be at most {LARGEST_VALUE}; choose some by --labels")


# --- what is said ---------------------------------------------------------------------------------


def _table(names: Sequence[str], cases: Sequence[set[str]]) -> list[str]:
    """Return in how many cases each label is, by the labels of each case; which are in some only, and alike names."""
    counts = Counter(name for held in cases for name in held)
    lines = [f"- {value} {name}: {counts[name]} of {len(cases)} cases" for value, name in enumerate(names, start=1)]
    if partial := [name for name in names if counts[name] < len(cases)]:
        lines.append(f"not in all cases: {some(partial)}; where it is missing it counts as absent, which must be true")
    forms = defaultdict(list)
    for name in names:
        forms["".join(letter for letter in name.casefold() if letter.isalnum())].append(name)
    if alike := [" and ".join(map(repr, group)) for group in forms.values() if len(group) > 1]:
        lines.append(f"nearly the same names: {some(alike)}; if they are one structure, give it one name by --labels")
    return lines


def _notes(problems: Sequence[str], left_out: Sequence[str], most: int | None = None) -> list[str]:
    """Return what was refused and what was left out."""
    both = (("refused", problems), ("left out", left_out))
    return [
        f"{len(lines)} {title}:\n{first_lines([f'- {line}' for line in lines], most or len(lines))}"
        for title, lines in both
        if lines
    ]


def _refusal(problems: Sequence[str], state: str) -> str:
    end = f"({state}; --skip_refused true leaves refused ones out)"
    return f"{first_lines(problems)} {end}" if len(problems) == 1 else f"refused {end}:\n{first_lines(problems)}"


def main() -> None:
    """Run the command; a refusal is one sentence."""
    run(convert, "python -m mambamim_nets.convert_dicom", (ValueError, OSError, ImportError))


if __name__ == "__main__":
    main()
