"""Landmark files: two formats, two frames, and what is refused."""

import json

import jsonschema
import numpy as np
import pytest

from mambamim_nets.bundle.io.landmarks import ordered_points, read_markups, read_table, write_markups, write_table

NAMES = ["TCD_start", "TCD_end", "HDV_start"]
POINTS = {"TCD_start": (12.5, -40.25, 7.0), "TCD_end": (-18.75, -41.0, 6.5), "HDV_start": (0.125, -30.0, 20.0)}
CONTROL = {"id": "1", "label": "TCD_start", "position": [1, 2, 3], "positionStatus": "defined"}


def markups(path, **changes):
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": [CONTROL]}
    path.write_text(json.dumps({"markups": [markup | changes]}))
    return path


@pytest.mark.parametrize("frame", ["RAS", "LPS"])
def test_points_come_back_from_both_formats_whatever_the_frame(tmp_path, frame):
    table = {"case_a": POINTS, "case_b": {name: np.array(place) + 1 for name, place in POINTS.items()}}
    found = read_table(write_table(tmp_path / "points.csv", table, frame))
    assert found.keys() == table.keys()
    for case, points in table.items():
        for name, place in points.items():
            np.testing.assert_allclose(found[case][name], place, atol=1e-4)
    found = {"": read_markups(write_markups(tmp_path / "points.mrk.json", POINTS, frame))}
    assert list(found[""]) == list(POINTS)
    for name, place in POINTS.items():
        np.testing.assert_allclose(found[""][name], place, atol=1e-4)


def test_a_frame_changes_the_numbers_in_the_file_and_nothing_else(tmp_path):
    for frame, x, y in (("RAS", "12.5000", "-40.2500"), ("LPS", "-12.5000", "40.2500")):
        row = write_table(tmp_path / "points.csv", {"a": POINTS}, frame).read_text().splitlines()[1]
        assert row == f"a,TCD_start,{x},{y},7.0000,{frame}"
        content = json.loads(write_markups(tmp_path / "points.mrk.json", POINTS, frame).read_text())
        assert content["markups"][0]["controlPoints"][0]["position"] == [float(x), float(y), 7.0]


def test_markups_have_what_slicer_writes(tmp_path):
    content = json.loads(write_markups(tmp_path / "p.mrk.json", POINTS | {"HDV_start": (np.nan,) * 3}).read_text())
    assert content["@schema"].endswith("markups-schema-v1.0.3.json#")
    (markup,) = content["markups"]
    assert (markup["type"], markup["coordinateSystem"], markup["coordinateUnits"]) == ("Fiducial", "LPS", "mm")
    fields = "id label description associatedNodeID position orientation selected locked visibility positionStatus"
    for number, point in enumerate(markup["controlPoints"], start=1):
        assert list(point) == fields.split() and point["id"] == str(number)
        assert point["orientation"] == [-1, 0, 0, 0, -1, 0, 0, 0, 1]
    assert [p["positionStatus"] for p in markup["controlPoints"]] == ["defined", "defined", "missing"]
    assert np.isnan(read_markups(tmp_path / "p.mrk.json")["HDV_start"]).all()


def numbers(count: int) -> dict:
    return {"type": "array", "items": {"type": "number"}, "minItems": count, "maxItems": count}


# what markups-schema-v1.0.3.json of 3D Slicer (commit 15671043) asks of a list of points, in our words
TEXT, SWITCH = {"type": "string"}, {"type": "boolean"}
POINT = {"id": TEXT, "label": TEXT, "description": TEXT, "associatedNodeID": TEXT, "position": numbers(3)}
POINT |= {"orientation": numbers(9), "selected": SWITCH, "locked": SWITCH, "visibility": SWITCH}
POINT |= {"positionStatus": {"enum": ["undefined", "preview", "defined"]}}
LIST = {
    "type": {"enum": ["Fiducial", "Line", "Angle", "Curve", "ClosedCurve", "Plane", "ROI"]},
    "coordinateSystem": {"enum": ["LPS", "RAS"]},
    "coordinateUnits": {"enum": ["mm", "um"]},
    "locked": SWITCH,
    "fixedNumberOfControlPoints": SWITCH,
    "labelFormat": TEXT,
    "controlPoints": {"type": "array", "items": {"type": "object", "properties": POINT}},
    "display": {"type": "object", "properties": {"visibility": SWITCH, "pointLabelsVisibility": SWITCH}},
}
MARKUPS = {
    "type": "object",
    "required": ["@schema", "markups"],
    "properties": {
        "@schema": TEXT,
        "markups": {"type": "array", "items": {"type": "object", "required": ["type"], "properties": LIST}},
    },
}


def test_markups_follow_the_schema_of_slicer_but_for_points_that_are_missing(tmp_path):
    validator = jsonschema.Draft7Validator(MARKUPS)
    for frame in ("LPS", "RAS"):
        validator.validate(json.loads(write_markups(tmp_path / "p.mrk.json", POINTS, frame).read_text()))
    content = json.loads(write_markups(tmp_path / "p.mrk.json", POINTS | {"HDV_start": (np.nan,) * 3}).read_text())
    # Slicer itself writes "missing" (vtkMRMLMarkupsNode), which its schema does not name
    wrong = {"/".join(map(str, error.absolute_path)): error.instance for error in validator.iter_errors(content)}
    assert {place.removeprefix("markups/0/controlPoints/2/"): value for place, value in wrong.items()} == {
        "position": "",
        "positionStatus": "missing",
    }


def test_tables_of_other_programs(tmp_path):
    path = tmp_path / "points.csv"
    text = "\ufeff# frame: LPS\nimage,NAME,x,y,z,rater\nsub/scan_1.nii.gz,TCD_end,1,2,3,Ann\n\n"
    path.write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(read_table(path)["scan_1"]["TCD_end"], (-1, -2, 3))
    path.write_text("name,x,y,z,frame\nTCD_start,1,2,3,ras\nTCD_end,,,,ras\n")
    found = read_table(path)[""]
    np.testing.assert_array_equal(found["TCD_start"], (1, 2, 3))
    assert np.isnan(found["TCD_end"]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "case,name,x,y,z\na,TCD_end,1,2,3\n",
            r"'TCD_end' of a: the frame, which is missing, must be RAS or LPS; say which axes",
        ),
        ("case,name,x,y,z,frame\na,TCD_end,1,2,3,SPL\n", r"'TCD_end' of a: frame 'SPL' must be RAS or LPS"),
        ("case,name,x,y,z,frame\na,TCD_end,1,nan,3,RAS\n", r"'TCD_end' of a: coordinates 1, nan, 3 must be three fin"),
        ("case,name,x,y,z,frame\na,TCD_end,1,,3,RAS\n", r"coordinates 1, , 3 must be .* leave all three empty"),
        ("case,name,x,y,z,frame\na,TCD_end,1 mm,2,3,RAS\n", r"must be three finite numbers"),
        ("case;name;x;y;z;frame\na;TCD_end;1;2;3;RAS\n", r"must have name, x, y, z, separated by commas"),
        ("case,name,x,y,z,frame\n,TCD_end,1,2,3,RAS\n", r"must name its case or image"),
        ("case,name,x,y,z,frame\na,P,1,2,3,RAS\na,P,1,2,4,RAS\n", r"point 'P' twice: .* \(a\)"),
        ("case,name,x,y,z,frame\n", r"must hold points, and has no rows"),
    ],
    ids=["no frame", "frame", "nan", "half", "semicolon", "separator", "no case", "twice", "empty"],
)
def test_tables_that_are_refused(tmp_path, text, message):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coordinateSystem": ""}, "coordinateSystem: the frame, which is missing, must be RAS or LPS"),
        ({"coordinateUnits": "um"}, "coordinateUnits 'um' must be mm"),
        ({"type": "Line"}, r"markups of type \['Line'\] must be Fiducial"),
        ({"controlPoints": [CONTROL, CONTROL]}, "point 'TCD_start' twice"),
        ({"controlPoints": [CONTROL | {"position": [1, 2]}]}, r"position \[1, 2\] must be three numbers"),
        ({"controlPoints": [CONTROL | {"position": [1, 2, None]}]}, "coordinates 1, 2, None must be three finite"),
    ],
    ids=["frame", "unit", "type", "twice", "two", "none"],
)
def test_markups_that_are_refused(tmp_path, changes, message):
    path = markups(tmp_path / "points.mrk.json", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        read_markups(path)
    assert str(caught.value).startswith(str(path))
    path.write_text('{"points": []}')
    with pytest.raises(ValueError, match="must be a Slicer Markups file, and has no list 'markups'"):
        read_markups(path)
    with pytest.raises(FileNotFoundError, match=r"none\.mrk\.json must be a file, and is missing"):
        read_markups(tmp_path / "none.mrk.json")


def test_points_are_put_in_order_and_names_are_checked():
    points = {name: np.array(place) for name, place in reversed(POINTS.items())}
    np.testing.assert_array_equal(ordered_points(points, NAMES, "f"), list(POINTS.values()))
    with pytest.raises(ValueError, match=r"f: point 'TCD_strat' must be one of .*; did you mean 'TCD_start'\?"):
        ordered_points(points | {"TCD_strat": np.zeros(3)}, NAMES, "f")
    del points["TCD_end"]
    with pytest.raises(ValueError, match=r"f: points TCD_end are missing, .* use --allow_missing true"):
        ordered_points(points, NAMES, "f")
    assert np.isnan(ordered_points(points, NAMES, "f", allow_missing=True)).any(1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="add at least one"):
        ordered_points({}, NAMES, "f", allow_missing=True)
