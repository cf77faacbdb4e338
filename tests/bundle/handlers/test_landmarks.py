"""Points of new scans: files in both conventions, lengths, points that are unsure; cases are in test_evaluation.py."""

import csv
import json

import numpy as np
import torch
from monai.data import Dataset, MetaTensor

from mambamim_nets.bundle.handlers.landmarks import LandmarkScanReport
from mambamim_nets.bundle.inference.scan_loader import ScanLoader
from mambamim_nets.bundle.io.landmarks import read_table

NAMES, LENGTHS = ["a", "b"], {"AB": ["a", "b"]}
FOUND = {"points": torch.tensor([[1.0, 2, 3], [4, 6, 3]]), "confidence": torch.tensor([0.9, 0.2])}


def report(folder, **options):
    loader = ScanLoader(Dataset([{"image": "case.nii", "name": "case", "series": None}]))
    loader.loaded = MetaTensor(torch.rand(1, 8, 9, 10))
    return LandmarkScanReport(loader, NAMES, LENGTHS, str(folder), **options)


def test_points_are_written_in_ras_and_for_slicer_in_lps(tmp_path, caplog):
    made = report(tmp_path)
    with caplog.at_level("WARNING", "mambamim_nets"):
        made.done("case", FOUND)
    assert "case: look at b: confidence below 0.3" in caplog.text
    np.testing.assert_allclose(read_table(tmp_path / "case_landmarks.csv")["case"]["b"], (4, 6, 3))
    markups = json.loads((tmp_path / "case_landmarks.mrk.json").read_text())["markups"][0]
    assert markups["coordinateSystem"] == "LPS" and markups["controlPoints"][1]["position"] == [-4, -6, 3]
    with (tmp_path / "biometry.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["AB (mm)"], row["confidence"], row["check"]) == ("5.00", "0.200", "b")
    assert all((tmp_path / name).is_file() for name in made.files("case")) and len(made.files("case")) == 3


def test_a_point_without_confidence_is_unsure_and_pictures_are_optional(tmp_path):
    made = report(tmp_path, pictures=False, min_confidence=0.1)
    values = made.write("case", {**FOUND, "confidence": torch.tensor([torch.nan, 0.2])})
    assert values[-1] == "a", "NaN is below every bound"
    assert {path.name for path in tmp_path.iterdir()} == set(made.files("case"))
