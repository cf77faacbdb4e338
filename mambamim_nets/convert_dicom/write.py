"""Write cases, and the files that list them.

`conversion.jsonl` is the record: a first line with the labels in the order of their values, then a line for each case
once both of its files are written, by which a stopped conversion goes on. `dataset.json` lists the cases; until all are
done it lists none, so that what is half done is no data set.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mambamim_nets.bundle.files import atomic_write, read_json, some, write_text
from mambamim_nets.bundle.io.dicom_labels import labelled_voxels
from mambamim_nets.bundle.io.dicom_series import Series
from mambamim_nets.bundle.io.scan_formats import read_scan
from mambamim_nets.convert_dicom.read import Job, digest

__all__ = ["LARGEST_VALUE", "Record", "case_files", "signature_of", "write_case"]

RECORD, LISTING = "conversion.jsonl", "dataset.json"
DIGEST = "digest"  # of the rest of the list of cases, which tells whether it was edited
LARGEST_VALUE = 255  # of a label map, which training keeps as bytes
NOBODY = "nothing says who was scanned, so its study counts as a subject"
FEWEST_PLANES = 4  # from which a label without two neighbouring planes may not have been drawn on all


def case_files(output: Path, case: str) -> tuple[Path, Path]:
    """Return the paths of the image and the label map of a case."""
    return output / "imagesTr" / f"{case}.nii.gz", output / "labelsTr" / f"{case}.nii.gz"


def signature_of(root: Path, job: Job, table: Mapping[str, int]) -> str:
    """Return a hash of all that the files of a case depend on, but for a priority, which few cases need.

    Args:
        root: folder of the DICOM files.
        job: the case.
        table: label -> value.
    """
    states = [(os.path.relpath(label.file, root), os.stat(label.file)) for label in job.labels]
    files = [[name, state.st_size, state.st_mtime_ns] for name, state in states]
    values = {name: table[label] for name, label in job.names.items()}
    return digest([job.series.subject, job.series.state, files, values])


def write_case(
    root: Path, output: Path, job: Job, series: Series | None, table: Mapping[str, int], priority: Sequence[str]
) -> dict[str, Any]:
    """Write image and label map of a case, on the grid of its series.

    Args:
        root: folder of the DICOM files.
        output: of the data set.
        job: the case.
        series: the image; None if its files are not those that were listed.
        table: label -> value.
        priority: labels that may overlap; the first wins.

    Returns:
        What is recorded of it.

    Raises:
        ValueError: the files have changed since they were listed, a label does not lie on the grid, or labels overlap.
    """
    if series is None:
        raise ValueError(f"{root / job.series.folder}: files have changed since their headers were read; start again")
    label, decided, notes = _label_map(job, series, table, priority)
    image, mask = case_files(output, job.case)
    _save(_as_stored(read_scan("", series).numpy()[0]), series, image)
    _save(label, series, mask)
    counts = np.bincount(label.ravel(), minlength=LARGEST_VALUE + 1)
    held = {name: int(counts[table[name]]) for name in sorted(set(job.names.values()))}
    notes += [f"{name!r} is named and has no voxel: was it drawn?" for name, count in held.items() if not count]
    return {
        "case": job.case,
        "subject": job.series.subject,
        "modality": job.series.modality,
        "folder": job.series.folder,
        "series": series.uid,
        "labels": [os.path.relpath(one.file, root) for one in job.labels],
        "voxels": held,
        "priority": [name for name in priority if name in job.names.values()] if decided else [],
        "warnings": [*series.warnings, *notes, *([] if job.series.person else [NOBODY])],
    }


def _label_map(
    job: Job, series: Series, table: Mapping[str, int], priority: Sequence[str]
) -> tuple[np.ndarray, bool, list[str]]:
    """Return the label map (I, J, K) of a case, whether a priority decided in it, and what a person should look at."""
    decided, label = False, np.zeros(series.shape, np.uint8)
    last = len(priority)  # the rank of labels that must not overlap
    rank = np.full(LARGEST_VALUE + 1, last)
    rank[[table[name] for name in priority]] = range(last)
    names = {value: name for name, value in table.items()}
    overlaps: Counter[tuple[str, str]] = Counter()
    planes: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    for source in job.labels:
        wanted = [name for name in source.structures if name in job.names]
        for structure, voxels in labelled_voxels(source, series, wanted):
            value, at = table[job.names[structure]], tuple(voxels)
            under = label[at]
            other = (under != 0) & (under != value)
            for second, count in zip(*np.unique(under[other], return_counts=True), strict=True):
                if max(rank[value], rank[second]) == last:
                    overlaps[names[min(value, second)], names[max(value, second)]] += int(count)
            decided |= bool(other.any())
            label[at] = np.where(other & (rank[under] < rank[value]), under, value)
            planes[names[value]].append(np.where(np.ptp(voxels, axis=1) == 0, voxels[:, 0], -1))
    if overlaps:
        pairs = [f"{first!r} and {second!r} in {count} voxels" for (first, second), count in overlaps.most_common()]
        raise ValueError(
            f"{' and '.join(one.file for one in job.labels)}: overlap of {some(pairs, 5)}; a voxel has one label: give"
            " --priority with the names of both, the one that wins first, or leave one out by --labels"
        )
    return label, decided, [note for name, places in planes.items() if (note := _sparse(name, np.stack(places)))]


def _sparse(name: str, planes: np.ndarray) -> str:
    """Return that a label may not be drawn on all planes; "" where two of its planes are neighbours.

    Args:
        name: of the label.
        planes: (P, 3) index of each plane along the axis that it is perpendicular to, -1 along the others.
    """
    for along in planes.T:
        held = np.unique(along)
        if held[0] >= 0 and len(held) >= FEWEST_PLANES and all(high > low + 1 for low, high in pairwise(held)):
            return f"{name!r} is on {len(held)} planes, and no two are neighbours: was it drawn on every plane?"
    return ""


def _as_stored(scan: np.ndarray) -> np.ndarray:
    """Return voxels as int16 where that loses nothing."""
    limits = np.iinfo(np.int16)
    if limits.min <= scan.min() and scan.max() <= limits.max and np.array_equal(whole := scan.astype(np.int16), scan):
        return whole
    return scan


def _save(array: np.ndarray, series: Series, path: Path) -> None:
    image = nib.Nifti1Image(array, series.affine)
    image.set_qform(series.affine, code=1)
    image.set_sform(series.affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    atomic_write(path, lambda part: nib.save(image, part))


# --- the record and the list of cases -------------------------------------------------------------


class Record:
    """What a conversion has done so far, in its folder.

    Args:
        output: folder of the data set; empty, or of an earlier conversion.

    Attributes:
        labels: names in the order of their values.
        cases: name -> what was recorded of it, of those whose files are there.

    Raises:
        ValueError: the folder holds something else, or its record is damaged.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.labels: list[str] = []
        self.cases: dict[str, dict[str, Any]] = {}
        path = output / RECORD
        if not path.is_file():
            if output.is_dir() and (
                held := [path.name for path in output.iterdir() if not path.name.endswith(".lock")]
            ):
                raise ValueError(
                    f"--output {output} must be empty, or of an earlier conversion, and has {some(sorted(held), 3)};"
                    " give another folder"
                )
            return
        lines = [_parsed(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not lines or lines[0] is None or "order" not in lines[0]:
            raise ValueError(f"{path} is damaged: its first line must name the labels; give another --output")
        self.labels = lines[0]["order"]
        whole = [line for line in lines[1:] if line is not None]  # the last one may be cut
        self.cases = {
            line["case"]: line for line in whole if all(p.is_file() for p in case_files(output, line["case"]))
        }

    def require_unedited(self) -> None:
        """Check that the list of cases is as it was written.

        Raises:
            ValueError: it was edited, and would be replaced.
        """
        path = self.output / LISTING
        content = read_json(path) if path.is_file() else None
        if content is not None and not (isinstance(content, dict) and content.pop(DIGEST, "") == digest(content)):
            raise ValueError(
                f"{path} was edited since it was written, and would be replaced; give --overwrite true, or another"
                " --output"
            )

    def start(self, labels: Sequence[str]) -> None:
        """Write the record with these labels, and where there is no list of cases one without cases."""
        self.labels = list(labels)
        if not (self.output / LISTING).is_file():
            self._list([])
        self._write()

    def add(self, line: dict[str, Any]) -> None:
        """Record a case that is done."""
        self.cases[line["case"]] = line
        with (self.output / RECORD).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self) -> None:
        """List the cases."""
        self._list([self.cases[case] for case in sorted(self.cases)])
        self._write()

    def _write(self) -> None:
        lines = [{"order": self.labels}, *self.cases.values()]
        write_text(self.output / RECORD, "".join(json.dumps(line) + "\n" for line in lines))

    def _list(self, lines: Sequence[Mapping[str, Any]]) -> None:
        modalities = {line["modality"] for line in lines}
        names = {str(value): name for value, name in enumerate(self.labels, start=1)}
        content: dict[str, Any] = {"name": self.output.name, "labels": {"0": "background", **names}}
        if len(modalities) == 1 and all(modalities):
            content["modality"] = {"0": modalities.pop()}
        content["training"] = [
            {
                "case": line["case"],
                "subject": line["subject"],
                "image": f"imagesTr/{line['case']}.nii.gz",
                "label": f"labelsTr/{line['case']}.nii.gz",
            }
            for line in lines
        ]
        write_text(self.output / LISTING, json.dumps({**content, DIGEST: digest(content)}, indent=2) + "\n")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
