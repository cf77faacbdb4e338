"""Label maps of cases and of new scans: what is measured, what is written, and what is refused before it is read."""

import csv
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import Dataset, MetaTensor
from monai.transforms import NormalizeIntensityd, ScaleIntensityRanged

from mambamim_nets.bundle.handlers.segmentation import CaseReport, ScanReport, preview_window
from mambamim_nets.bundle.inference.scan_loader import ScanLoader
from mambamim_nets.bundle.labels import Targets

TARGETS = Targets({"liver": 1, "spleen": 2})
AFFINE = torch.diag(torch.tensor([-2.0, 2.0, 5.0, 1.0], dtype=torch.double))


def label(*boxes):
    """Return a label map (1, 8, 9, 10) with a box of 2 x 2 x 5 voxels for each value."""
    values = torch.zeros(1, 8, 9, 10, dtype=torch.uint8)
    for number, value in enumerate(boxes):
        values[:, 3 * number : 3 * number + 2, :2, :5] = value
    return MetaTensor(values, affine=AFFINE)


@pytest.fixture
def scan(tmp_path):
    image = nib.Nifti1Image(np.arange(720, dtype=np.float32).reshape(8, 9, 10), AFFINE.numpy())
    nib.save(image, tmp_path / "case.nii.gz")
    return str(tmp_path / "case.nii.gz")


def report(scan, folder, **options):
    loader = ScanLoader(Dataset([{"image": scan, "name": "case", "series": None}]))
    values = torch.as_tensor(np.asarray(nib.load(scan).dataobj))[None]
    loader.loaded = MetaTensor(values, affine=AFFINE)
    return ScanReport(loader, TARGETS, str(folder), pictures=False, **options)


def test_pictures_of_ct_have_the_window_of_its_scaling():
    assert preview_window(ScaleIntensityRanged("image", -175, 250, 0, 1, clip=True)) == (-175, 250)
    assert preview_window(NormalizeIntensityd("image")) is None


def test_a_case_is_measured_in_mm_and_its_prediction_is_kept(tmp_path):
    made = CaseReport(TARGETS, str(tmp_path), tolerance_mm=1.0, predictions=True)
    found = made.row({"case": "a"}, {"pred": label(1), "label": label(1, 2)})
    assert found["liver"]["dice"] == 1 and found["spleen"]["dice"] == 0
    kept = nib.load(tmp_path / "a_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(kept.dataobj), label(1)[0])
    np.testing.assert_allclose(kept.affine, AFFINE)


def test_a_row_has_volumes_and_the_intensities_of_the_scan_itself(tmp_path, scan):
    report(scan, tmp_path / "out").done("case", {"pred": label(1)})
    with (tmp_path / "out" / "volumes.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["liver (ml)"], row["spleen (ml)"]) == ("0.400", "0.000"), "20 voxels of 20 mm3"
    inside = np.asarray(nib.load(scan).dataobj)[:2, :2, :5]
    assert float(row["liver mean"]) == pytest.approx(inside.mean(), rel=1e-4)
    assert float(row["liver s.d."]) == pytest.approx(inside.std(), rel=0.1) and row["spleen mean"] == ""
    written = nib.load(tmp_path / "out" / "case_seg.nii.gz")
    assert written.get_sform(coded=True)[1] == written.get_qform(coded=True)[1] == 1
    assert written.get_data_dtype() == np.uint8 and written.header.get_xyzt_units()[0] == "mm"


def test_a_scan_in_which_nothing_was_found_says_so(tmp_path, scan):
    for name, found in (("empty", label()), ("full", label(1))):
        report(scan, tmp_path / name).done("case", {"pred": found})
        with (tmp_path / name / "volumes.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert row["warnings"].startswith("nothing was found: look at") == (name == "empty")


def test_probabilities_are_written_in_fine_steps_with_their_channels_last(tmp_path, scan):
    made = report(scan, tmp_path / "out", probabilities=True)
    probabilities = torch.rand(3, 8, 9, 10, generator=torch.Generator().manual_seed(0))
    made.done("case", {"pred": label(1), "probabilities": probabilities})
    found = np.moveaxis(nib.load(tmp_path / "out" / "case_probabilities.nii.gz").get_fdata(), -1, 0)
    np.testing.assert_allclose(found, probabilities, atol=1 / 65535)
    assert set(made.files("case")) == {"case_seg.nii.gz", "case_probabilities.nii.gz"}


def test_radiomics_are_a_table_of_each_scan_and_what_has_none_is_warned_of(tmp_path, scan, monkeypatch):
    asked = {}

    def table(image, label, spacing, structures):
        asked.update(shape=image.shape, spacing=spacing, structures=list(structures))
        return [["structure", "mean"], ["liver", "1"]], {"spleen": "one voxel"}

    monkeypatch.setattr("mambamim_nets.bundle.handlers.segmentation.radiomics_table", table)
    monkeypatch.setattr("mambamim_nets.bundle.handlers.segmentation.require_radiomics", lambda: None)
    made = report(scan, tmp_path / "out", radiomics=True)
    made.done("case", {"pred": label(1)})
    assert (tmp_path / "out" / "case_radiomics.csv").read_text().split() == ["structure,mean", "liver,1"]
    assert "case_radiomics.csv" in made.files("case") and "no radiomics of spleen: one voxel" in made.warnings("case")
    assert asked["shape"] == (8, 9, 10) and "liver" in asked["structures"]
    assert asked["spacing"] == [2.0, 2.0, 5.0]


def test_radiomics_without_the_package_are_refused_before_any_work(tmp_path, scan, monkeypatch):
    monkeypatch.setitem(sys.modules, "radiomics", None)
    with pytest.raises(ImportError, match="--radiomics true needs pyradiomics"):
        report(scan, tmp_path / "out", radiomics=True)


def test_what_cannot_be_kept_is_said_before_any_scan_is_read(tmp_path, scan, caplog):
    made = report(scan, tmp_path / "out", probabilities=True, rtstruct=True, max_gib=1e-6)
    with caplog.at_level("WARNING", "mambamim_nets"):
        made.check()
    assert "probabilities of 3 channels on 8 x 9 x 10 voxels take" in made.items["case"]["error"]
    assert "raise it, crop the scan, or leave --probabilities out" in made.items["case"]["error"]
    assert "no RTSTRUCT of case: it refers to slices" in caplog.text
