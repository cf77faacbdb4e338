"""What is written as DICOM holds all that the standard asks for, by the judgement of another program."""

import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
pytest.importorskip("itk")

from dicom_series import ORIENTATIONS, write_series

from mambamim_nets.bundle.io.dicom_seg import write_dicom_seg
from mambamim_nets.bundle.io.dicom_series import series_of
from mambamim_nets.bundle.io.rtstruct import write_rtstruct

DCIODVFY = shutil.which("dciodvfy")
WRITERS = {"Segmentation": write_dicom_seg, "RTStructureSet": write_rtstruct}

pytestmark = pytest.mark.skipif(DCIODVFY is None, reason="no dciodvfy: apt-get install dicom3tools")


def judged(path) -> tuple[list[str], int]:
    """Return the lines of dciodvfy about a file, and its exit status."""
    run = subprocess.run([DCIODVFY, str(path)], capture_output=True, text=True, timeout=60)
    return (run.stdout + run.stderr).splitlines(), run.returncode


@pytest.mark.parametrize("found", [True, False], ids=["found", "nothing found"])
@pytest.mark.parametrize("source", [*ORIENTATIONS, "real"])
@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_is_valid_dicom(tmp_path, real_data, kind, source, found):
    folder = tmp_path / "series"
    if source == "real":
        folder = real_data("totalsegmentator/ct_dicom/series")
    else:
        write_series(folder, source)
    (series,) = series_of(folder)[0]
    label = np.zeros(series.shape, "uint8")
    label[2:5, 2:4, 1:3] = found
    path = WRITERS[kind](label, series.affine, series, {1: "liver", 2: "spleen"}, tmp_path / "made.dcm", "organs")
    lines, status = judged(path)
    assert kind in lines, "taken for what it is"
    assert status == 0 and [line for line in lines if line.startswith("Error")] == []


def test_what_lacks_a_tag_is_not_valid(tmp_path):
    write_series(tmp_path / "series")
    lines, status = judged(next((tmp_path / "series").iterdir()))
    assert status == 1 and any(line.startswith("Error") and "PatientSex" in line for line in lines)
