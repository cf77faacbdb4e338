"""`python -m mambamim_nets.plan --dataset_dir DIR --output bundles/NAME`: from a data set to a bundle."""

from __future__ import annotations

import inspect
import logging
import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from mambamim_nets.bundle.data.labelled import labelled_cases
from mambamim_nets.bundle.data.memory import GIB, free_memory
from mambamim_nets.bundle.data.splits import folds as make_folds
from mambamim_nets.bundle.data.splits import with_numbered_subjects
from mambamim_nets.bundle.files import atomic_write, some
from mambamim_nets.bundle.labels import Targets, named_values
from mambamim_nets.command_line import run
from mambamim_nets.plan.cautions import cautions_of, proposals
from mambamim_nets.plan.description import Description, channel_names, named_labels, read_description
from mambamim_nets.plan.fingerprint import CaseReading, channels_of, read_cases, read_headers, summarise
from mambamim_nets.plan.measure import Network, Step, known_steps, measured_steps
from mambamim_nets.plan.report import bundle_page, class_table, decision_lines, fingerprint_picture, fingerprint_table
from mambamim_nets.plan.rules import (
    Budget,
    Crops,
    Decision,
    choose_crops,
    decide,
    median_shape,
    presets,
    target_spacing,
)
from mambamim_nets.plan.writer import bundle_files, difference, refuse_edits, write_files

logger = logging.getLogger("mambamim_nets")

CACHE = "runs/plan/cases.jsonl"  # of the bundle: not packaged
PICTURE, ENCODER = "docs/fingerprint.png", "models/encoder.pt"
LARGEST_VALUE = 255  # of a label map, which training keeps as bytes
BASE_GIB = 12.0  # memory of a GPU from which `auto` takes the base network
CACHED = 0.5  # share of the free memory that preprocessed scans may take


class DataSet(NamedTuple):
    """A data set as it was read.

    Attributes:
        cases: as from `labelled_cases`.
        channels: names of the image channels.
        labels: name -> label value, without background.
        labels_from: where the names of the labels are from, in words.
        fingerprint: what the data set holds, see `summarise`.
        folds: names of the cases of each.
        folds_from: where the folds are from, in words.
        warnings: what was noticed while cases were read.
    """

    cases: list[dict[str, Any]]
    channels: list[str]
    labels: dict[str, int]
    labels_from: str
    fingerprint: dict[str, Any]
    folds: list[list[str]]
    folds_from: str
    warnings: list[str]


def read_data(
    folder: Path,
    description: Description,
    labels: Mapping[str, int] | None,
    subjects: Mapping[str, Any] | None,
    workers: int,
    cache_file: Path | None,
) -> DataSet:
    """Read a data set: its cases, what they hold, and its folds.

    Args:
        folder: of the data set.
        description: what the data set says of itself.
        labels: name -> label value, where they are given; None: those of the data set.
        subjects: which cases are of one person, as arguments of `with_numbered_subjects`; None: as their names say.
        workers: processes that read cases.
        cache_file: of what an earlier start has read; None: nothing is kept.

    Raises:
        FileNotFoundError, ValueError: it cannot be planned; the sentence says why, and names the cases.
    """
    cases = labelled_cases(folder, description.channels or None)
    if subjects:
        cases = with_numbered_subjects(cases, **subjects)
    numbered = {str(item.get("subject", item["case"])) for item in cases}
    if len(numbered) < 2:
        raise ValueError(
            f"--dataset_dir {folder} holds one subject ({some([item['case'] for item in cases])}), and"
            " at least 2 subjects are needed, one to train and one to validate; add cases"
        )
    known = dict(labels) if labels else dict(description.labels)
    headers = read_headers(cases)
    in_channels = channels_of(cases, headers)
    values = [0, *sorted(known.values())] if known else range(LARGEST_VALUE + 1)
    readings = read_cases(cases, headers, in_channels, values, workers, cache_file)
    names, source = (known, "--labels") if labels else _names(readings, cases, description)
    counts = summarise(cases, readings, [str(number) for number in range(in_channels)], names)["modality"]
    modality = "CT or MR" if counts["CT"] and counts["other"] else "CT" if counts["CT"] else "MR"
    channels = channel_names(cases[0]["image"], in_channels, description, modality)
    fingerprint = summarise(cases, readings, channels, names)
    fold_file = next((f for n in ("split.json", "splits_final.json") if (f := folder / n).is_file()), None)
    folds = make_folds(cases, fold_file=fold_file, n_folds=min(5, len(numbered)))
    folds_from = f"{fold_file.name} of the data set" if fold_file else "mambamim_nets.plan, by subject"
    warnings = [line for reading in readings for line in reading.warnings]
    return DataSet(cases, channels, names, source, fingerprint, folds, folds_from, warnings)


def _names(
    readings: Sequence[CaseReading], cases: Sequence[Mapping[str, Any]], description: Description
) -> tuple[dict[str, int], str]:
    """Return names of the label values that were found, and where the names are from."""
    found = sorted({int(value) for reading in readings for value in reading.statistics.get("classes", {})})
    if not found and not description.labels:
        raise ValueError("every label map is background alone; there is nothing to learn")
    return named_labels(found, [item["case"] for item in cases], description)


def chosen_regions(
    labels: Mapping[str, int], given: Mapping[str, Sequence[int]] | None, description: Description
) -> Decision:
    """Return the regions: those that are given, those of the data set, or one for each label with numbers of its own.

    Raises:
        ValueError: regions that cannot be learnt.
    """
    regions = dict(given) if given else dict(description.regions)
    if regions:
        Targets(labels, regions)  # refuses what cannot be written as a label map
        return Decision(regions, "given by --regions" if given else "as dataset.json defines them")
    values = sorted(labels.values())
    if values == list(range(1, len(values) + 1)):
        return Decision(None, "labels exclude each other")
    return Decision(
        {name: [value] for name, value in labels.items()},
        f"label values {values} are not 1 to {len(values)}, so each is a region of its own, all of them apart",
    )


def budget_of(size: str, memory_gib: float | None, hours: float | None, device: str) -> Budget:
    """Return what a training may use, by default what the device has.

    Args:
        size: of the network: tiny, base or auto.
        memory_gib: that a training step may take; None: what the device has.
        hours: of training for one fold; None: as many steps as usual.
        device: such as "cpu" or "cuda:0".

    Raises:
        ValueError: an option is out of range.
    """
    if size not in ("tiny", "base", "auto"):
        raise ValueError(f"option --size {size!r} must be one of tiny, base, auto")
    for name, value in (("memory_gib", memory_gib), ("hours", hours)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise ValueError(f"option --{name} {value!r} must be a number above 0, such as 24")
    host = free_memory() or 8 * GIB
    held = torch.cuda.get_device_properties(device).total_memory if device.startswith("cuda") else host
    most = int(memory_gib * GIB) if memory_gib else int(held)
    kind = "cuda" if device.startswith("cuda") else "cpu"
    large = kind == "cuda" and most >= BASE_GIB * GIB
    why = (
        f"{'a' if large else 'no'} GPU with {BASE_GIB:g} GiB for training here" if size == "auto" else "given by --size"
    )
    chosen: Literal["tiny", "base"] = "base" if size == "base" or (size == "auto" and large) else "tiny"
    return Budget(chosen, kind, most, hours, int(CACHED * host), why)


def plan(
    dataset_dir: str,
    output: str,
    size: str = "auto",
    memory_gib: float | None = None,
    hours: float | None = None,
    pretrained: str | None = None,
    regions: dict[str, list[int]] | None = None,
    labels: dict[str, int] | None = None,
    subjects: dict[str, Any] | None = None,
    workers: int | None = None,
    device: str | None = None,
    measure_again: bool = False,
    dry_run: bool = False,
    compare: bool = False,
) -> None:
    r"""Read a data set, decide how to train on it, and write a MONAI bundle that does so.

    The same command again goes on where it was stopped, and writes over nothing that was edited.

    Args:
        dataset_dir: folder of the data set: Decathlon, nnU-Net, BTCV, BraTS, KiTS23, CT-ORG, or imagesTr and labelsTr.
        output: folder of the bundle, such as bundles/flare22_seg.
        size: of the network: tiny, base, or auto, which is base on a GPU of at least 12 GiB.
        memory_gib: memory that a training step may take; by default what the device has.
        hours: of training for one fold; by default as many steps as usual for the size.
        pretrained: encoder to start from; it is copied into the bundle.
        regions: overlapping regions, such as "{'WT': [1, 2, 4], 'TC': [1, 4], 'ET': [4]}".
        labels: names and values, such as "{'liver': 1}", where the data set names none or other ones.
        subjects: which cases are of one person, such as "{'pattern': 'case_(\d+)', 'consecutive': 2}".
        workers: processes that read cases; by default one per core.
        device: that a step is measured on; by default the GPU if there is one.
        measure_again: measure training steps that an earlier plan in this folder has measured.
        dry_run: show the plan and write nothing.
        compare: show what planning again would change, and write nothing.
    """
    command = _command(locals())
    folder, target = _folders(dataset_dir, output)
    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    budget = budget_of(size, memory_gib, hours, device)
    description = read_description(folder)
    if labels:
        named_values(labels)
        description = description._replace(regions={})
    kept = None if (dry_run or compare) and not target.is_dir() else target / CACHE
    data = read_data(folder, description, labels, subjects, _workers(workers), kept)
    region = chosen_regions(data.labels, regions, description)
    spacing = target_spacing(data.fingerprint, budget)
    targets = Targets(data.labels, region.value)

    learnt = {name: list(values) for name, values in targets.regions.items()}
    network = Network(len(data.channels), targets.out_channels, budget.size, device, learnt)
    known = [] if measure_again else known_steps(target, network)
    crops = choose_crops(data.fingerprint, spacing.value, budget, _measuring(network, known))
    training_cases = len(data.cases) - max(len(fold) for fold in data.folds)
    decisions = decide(data.fingerprint, budget, crops, spacing, data.labels, region.value, max(1, training_cases))
    encoder = _encoder(pretrained, budget.size, len(data.channels), targets.out_channels, decisions)
    notes = [*data.warnings, *cautions_of(data.fingerprint, data.folds, data.channels)]
    notes += proposals(data.labels, region.value)
    task = re.sub(r"[^A-Za-z0-9]+", "_", target.name.removesuffix("_seg")).strip("_") or "task"
    reasons = {
        "channels": "as the data set names them" if description.channels else "by what the files are",
        "labels": f"names from {data.labels_from}",
        "regions": region.why,
        "subjects": "given by --subjects" if subjects else "",
        "folds": data.folds_from,
    }
    facts = {
        "dataset_dir": str(folder),
        "subjects": subjects,
        "licence": description.licence,
        "reference": description.reference,
        "name": description.name,
    }
    files = bundle_files(
        task, data.channels, data.labels, region.value, reasons, decisions, data.fingerprint, data.folds, facts
    )
    rows = presets(crops.steps, median_shape(data.fingerprint, spacing.value), budget.size)
    title = description.name or task
    files["docs/README.md"] = bundle_page(title, target.name, data.fingerprint, decisions, notes, rows, command)
    _show(data, decisions, notes)
    if compare:
        print(difference(target, _comparable(files)) or f"nothing would change in {target}")
    elif not dry_run:
        _write(target, files, data.fingerprint, encoder, _record(command, crops, rows, network, budget))
        print(f"\nwrote {target}; next: python -m monai.bundle run --config_file {output}/configs/train.json --fold 0")


# --- helpers --------------------------------------------------------------------------------------


def _command(given: Mapping[str, Any]) -> str:
    """Return the command that plans with these arguments of `plan`, a line for each that differs from its default."""
    lines = ["python -m mambamim_nets.plan"]
    for name, parameter in inspect.signature(plan).parameters.items():
        if given[name] != parameter.default and name not in ("compare", "dry_run"):  # which write nothing
            lines.append(shlex.join([f"--{name}", str(given[name])]))
    return " \\\n    ".join(lines)


def _folders(dataset_dir: str, output: str) -> tuple[Path, Path]:
    """Return the folders of data set and bundle, absolute; refuse those that a bundle cannot be planned from or in."""
    folder, target = Path(str(dataset_dir)).expanduser().resolve(), Path(str(output)).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"--dataset_dir {dataset_dir} does not exist; give the folder of the data set")
    for name, path in (("dataset_dir", folder), ("output", target)):
        if "#" in str(path):
            raise ValueError(f"--{name} {path} contains #, which MONAI's parser of configurations alters; rename it")
    if target.is_file():
        raise NotADirectoryError(f"--output {output} must be a folder, and it is a file; give another name")
    if target == folder or folder in target.parents:
        raise ValueError(f"--output {output} lies in the data set {folder}; give a folder outside of it")
    return folder, target


def _workers(workers: int | None) -> int:
    """Return the number of processes: the given one, or one for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise ValueError(f"option --workers {workers!r} must be a whole number of at least 1")
    return workers or cores


def _measuring(network: Network, known: Sequence[Step]) -> Callable[[Sequence[tuple[Sequence[int], int]]], list[Step]]:
    """Return a function that measures steps of a network, and takes those that are known where all of them are."""
    held = {(step.roi, step.crops): step for step in known}

    def measure(candidates: Sequence[tuple[Sequence[int], int]]) -> list[Step]:
        wanted = [((roi[0], roi[1], roi[2]), crops) for roi, crops in candidates]
        if all(candidate in held for candidate in wanted):
            return [held[candidate] for candidate in wanted]
        logger.info("measure a training step: %s", ", ".join(f"{crops} x {list(roi)}" for roi, crops in wanted))
        return measured_steps(candidates, network)

    return measure


def _encoder(
    path: str | None, size: Literal["tiny", "base"], in_channels: int, out_channels: int, decisions: dict[str, Decision]
) -> Path | None:
    """Check an encoder by loading it into the network, and decide to start from its copy in the bundle."""
    if path is None:
        return None
    from mambamim_nets import HyMambaSeg, load_encoder

    file = Path(str(path)).expanduser().resolve()
    report = load_encoder(HyMambaSeg(in_channels, out_channels, size=size), file, adapt_input=True)
    decisions["pretrained"] = Decision(f"$@bundle_root + '/{ENCODER}'", f"{report.tensors} tensors fit, strictly")
    decisions["adapt_input"] = Decision(bool(report.adapted), report.adapted or "the channels agree")
    return file


def _show(data: DataSet, decisions: Mapping[str, Decision], notes: Sequence[str]) -> None:
    """Print what the data set holds, the decisions and what to look at."""
    print(f"\n{fingerprint_table(data.fingerprint)}\n\n{class_table(data.fingerprint)}\n")
    for line in decision_lines(decisions):
        print(f"  {line}")
    for note in notes:
        print(f"look at: {note}")


def _record(
    command: str, crops: Crops, rows: Sequence[Mapping[str, Any]], network: Network, budget: Budget
) -> dict[str, Any]:
    """Return what the plan was made from, as `configs/plan.json` has it."""
    return {
        "command": command,
        "memory_gib": round(budget.bytes / GIB, 2),
        "network": network._asdict(),
        "measured": [step._asdict() for step in crops.steps],
        "presets_by_arithmetic": list(rows),
    }


def _comparable(files: Mapping[str, str]) -> dict[str, str]:
    """Return the files that a person compares: all but the fingerprint, which is long."""
    return {name: text for name, text in files.items() if name != "configs/fingerprint.json"}


def _write(
    target: Path, files: Mapping[str, str], fingerprint: Mapping[str, Any], encoder: Path | None, record: dict[str, Any]
) -> None:
    """Write the bundle: picture and encoder first, so that their digests are in the record."""
    refuse_edits(target, files)
    binary = {PICTURE: fingerprint_picture(fingerprint, target / PICTURE).read_bytes()}
    if encoder is not None and encoder != target / ENCODER:
        atomic_write(target / ENCODER, lambda part: shutil.copyfile(encoder, part))
        binary[ENCODER] = (target / ENCODER).read_bytes()
    write_files(target, files, binary, record)


def main() -> None:
    """Run the command; a refusal is one sentence."""
    run(plan, "python -m mambamim_nets.plan", (ValueError, OSError, RuntimeError))


if __name__ == "__main__":
    main()
