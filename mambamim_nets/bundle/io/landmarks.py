"""Landmark files in and out: CSV tables and 3D Slicer's Markups (.mrk.json), each of which names its frame.

Points are RAS mm everywhere in this package: x grows to the patient's right, y to the front, z upwards. LPS, the frame
of ITK and DICOM and Slicer's default for files, has x and y of the other sign. A file that does not say which of the
two it is in is refused: guessing wrong mirrors the points, and nothing later would notice.

CSV: a header line; columns `name`, `x`, `y`, `z` in mm; `case`, or `image` (the file name of the scan),
where the file is of several scans; and `frame` (RAS or LPS) in every row, or a first line `# frame: RAS`. Other
columns are ignored. A point that cannot be seen has x, y and z empty. Errors read `file: value: rule: remedy`.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mambamim_nets.bundle.files import read_json, stem, write_csv, write_text
from mambamim_nets.bundle.names import case_name

__all__ = ["ordered_points", "read_markups", "read_table", "write_markups", "write_table"]

Frame = Literal["RAS", "LPS"]
Points = dict[str, np.ndarray]

SIGNS = {"RAS": np.array((1.0, 1.0, 1.0)), "LPS": np.array((-1.0, -1.0, 1.0))}
ABSENT = ("missing", "undefined", "preview")  # positionStatus of a point that was not placed
SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_FRAME_LINE = re.compile(r"^#\s*(?:frame|coordinatesystem)\s*[:=]\s*(?P<frame>\w+)", re.IGNORECASE)
_DOUBLE = "{0}: point {1!r} twice: a name may stand for one point only: remove one of them"


def read_table(path: str | os.PathLike[str]) -> dict[str, Points]:
    """Read a CSV table of points.

    Args:
        path: see the module.

    Returns:
        Case name ("" in a table without such a column) -> point name -> (3,) in RAS mm, NaN where left empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column or the frame is missing, a coordinate is no finite number, a point is there twice, or a
            case has a name that cannot name files.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file, and is missing; complete the data set or correct its list")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a CSV file in UTF-8: {error}; export it again") from error
    frames = [match["frame"] for line in lines if (match := _FRAME_LINE.match(line))]
    rows = csv.DictReader(line for line in lines if line.strip() and not line.startswith("#"))
    columns = [column.strip().lower() for column in rows.fieldnames or []]
    rows.fieldnames = columns
    absent = [column for column in ("name", "x", "y", "z") if column not in columns]
    if absent:
        raise ValueError(
            f"{path}: columns {columns} must have name, x, y, z, separated by commas; add {', '.join(absent)}"
        )
    table: dict[str, Points] = {}
    for row in rows:
        cells = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
        case = cells.get("case") or stem(cells.get("image", ""))
        if not case and {"case", "image"} & set(columns):
            raise ValueError(
                f"{path}: line {rows.line_num} of the table must name its case or image; fill the column in"
            )
        case = case_name(case, f"{path}: line {rows.line_num} of the table") if case else ""
        name = cells["name"]
        where = f"{path}: point {name!r}" + (f" of {case}" if case else "")
        points = table.setdefault(case, {})
        if name in points:
            raise ValueError(_DOUBLE.format(path, name) + (f" ({case})" if case else ""))
        frame = _frame(cells.get("frame") or (frames[0] if frames else ""), where)
        points[name] = _position([cells[axis] for axis in "xyz"], where) * SIGNS[frame]
    if not table:
        raise ValueError(f"{path} must hold points, and has no rows; export it again")
    return table


def write_table(
    path: str | os.PathLike[str],
    table: Mapping[str, Mapping[str, Sequence[float]]],
    frame: Frame = "RAS",
    confidence: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """Write a CSV table of points that `read_table` reads.

    Args:
        path: the file; replaced whole or not at all.
        table: case name -> point name -> (3,) in RAS mm; NaN leaves x, y, z empty.
        frame: in which the file holds them.
        confidence: case name -> point name -> number for a further column.
    """
    path = Path(path)
    extra = ["confidence"] if confidence is not None else []
    rows: list[list[str]] = [["case", "name", "x", "y", "z", "frame", *extra]]
    for case, points in table.items():
        for name, place in points.items():
            mm = np.asarray(place, dtype=float) * SIGNS[frame]
            cells = [f"{value:.4f}" if math.isfinite(value) else "" for value in mm]
            more = [f"{confidence[case][name]:.3f}"] if confidence is not None else []
            rows.append([case, name, *cells, frame, *more])
    return write_csv(path, rows)


def read_markups(path: str | os.PathLike[str]) -> Points:
    """Read the fiducial points of a Slicer Markups file; markups of other types (lines, planes) are left out.

    Args:
        path: .mrk.json.

    Returns:
        Label -> (3,) in RAS mm, NaN where Slicer says that the point was not placed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Markups file, holds no fiducials, names no frame or another unit than mm, a coordinate is
            no finite number, or a label is there twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file, and is missing; complete the data set or correct its list")
    content = read_json(path)
    markups = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(markups, list) or not all(isinstance(markup, dict) for markup in markups):
        raise ValueError(
            f"{path} must be a Slicer Markups file, and has no list 'markups'; save the points as .mrk.json"
        )
    lists = [markup for markup in markups if markup.get("type") == "Fiducial"]
    if not lists:
        kinds = sorted({str(markup.get("type")) for markup in markups})
        raise ValueError(f"{path}: markups of type {kinds} must be Fiducial; place the points as a point list")
    points: Points = {}
    for markup in lists:
        frame = _frame(str(markup.get("coordinateSystem", "")), f"{path}: coordinateSystem")
        unit = markup.get("coordinateUnits", "mm")
        if unit != "mm":
            raise ValueError(f"{path}: coordinateUnits {unit!r} must be mm; save the points in mm")
        for point in markup.get("controlPoints") or []:
            name = str(point.get("label", "")).strip()
            if name in points:
                raise ValueError(_DOUBLE.format(path, name))
            cells = [""] * 3 if point.get("positionStatus") in ABSENT else point.get("position")
            if not isinstance(cells, list) or len(cells) != 3:
                raise ValueError(f"{path}: point {name!r}: position {cells!r} must be three numbers: place it again")
            points[name] = _position(cells, f"{path}: point {name!r}") * SIGNS[frame]
    return points


def write_markups(
    path: str | os.PathLike[str],
    points: Mapping[str, Sequence[float]],
    frame: Frame = "LPS",
    descriptions: Mapping[str, str] | None = None,
) -> Path:
    """Write points as a Slicer Markups file of type Fiducial, schema 1.0.3.

    Args:
        path: the file, .mrk.json; replaced whole or not at all.
        points: label -> (3,) in RAS mm; NaN is written as a point that is missing, as Slicer does.
        frame: in which the file holds them; Slicer itself writes LPS.
        descriptions: label -> text that Slicer shows beside the point.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    turned = [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0]  # axes of RAS in LPS
    control: list[dict[str, Any]] = []
    for number, (name, place) in enumerate(points.items(), start=1):
        mm = np.asarray(place, dtype=float) * SIGNS[frame]
        placed = bool(np.isfinite(mm).all())
        control.append(
            {
                "id": str(number),
                "label": name,
                "description": (descriptions or {}).get(name, ""),
                "associatedNodeID": "",
                "position": [round(float(value), 4) for value in mm] if placed else "",
                "orientation": turned if frame == "LPS" else np.eye(3).ravel().tolist(),
                "selected": True,
                "locked": False,
                "visibility": True,
                "positionStatus": "defined" if placed else "missing",
            }
        )
    markup = {
        "type": "Fiducial",
        "coordinateSystem": frame,
        "coordinateUnits": "mm",
        "locked": False,
        "fixedNumberOfControlPoints": False,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(control),
        "controlPoints": control,
        "measurements": [],
        "display": {"visibility": True, "pointLabelsVisibility": True},
    }
    return write_text(path, json.dumps({"@schema": SCHEMA, "markups": [markup]}, indent=4) + "\n")


def ordered_points(
    points: Mapping[str, np.ndarray], names: Sequence[str], where: str, allow_missing: bool = False
) -> np.ndarray:
    """Bring points into the order of the network's outputs.

    Args:
        points: name -> (3,) in RAS mm.
        names: all that there may be, in order.
        where: the file, and the case in it, for messages.
        allow_missing: let points be absent.

    Returns:
        (N, 3) in RAS mm, NaN where a point is missing.

    Raises:
        ValueError: a name is unknown, or a point is missing and may not be.
    """
    for name in points:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "rename it, or remove it"
            raise ValueError(f"{where}: point {name!r} must be one of {', '.join(names)}; {hint}")
    nowhere = np.full(3, np.nan)
    found = np.stack([np.asarray(points.get(name, nowhere), dtype=float) for name in names])
    absent = [name for name, place in zip(names, found, strict=True) if np.isnan(place).any()]
    if absent and (not allow_missing or len(absent) == len(names)):
        remedy = "add at least one" if allow_missing else "place them, or use --allow_missing true to train without"
        raise ValueError(f"{where}: points {', '.join(absent)} are missing, and every point must be there; {remedy}")
    return found


def _frame(text: str, where: str) -> str:
    if text.upper() not in SIGNS:
        given = f"frame {text!r}" if text else "the frame, which is missing,"
        raise ValueError(
            f"{where}: {given} must be RAS or LPS; say which axes the coordinates follow (Slicer and ITK save LPS)"
        )
    return text.upper()


def _position(cells: Sequence[Any], where: str) -> np.ndarray:
    if all(cell == "" for cell in cells):
        return np.full(3, np.nan)
    try:
        place = np.array([float(cell) for cell in cells])
    except (TypeError, ValueError):
        place = np.full(3, np.nan)
    if not np.isfinite(place).all():
        raise ValueError(
            f"{where}: coordinates {', '.join(map(str, cells))} must be three finite numbers in mm; correct them, or"
            " leave all three empty if the point cannot be seen"
        )
    return place
