"""The shipped abdominal weights on real CT, as NIfTI and as DICOM: geometry and plausibility, not accuracy."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

BUNDLES = Path(__file__).parents[2] / "bundles"
SHARED = Path(os.environ.get("MAMBAMIM_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
CT = SHARED / "totalsegmentator"

pytestmark = pytest.mark.skipif(not CT.is_dir(), reason="real CT is not there: set MAMBAMIM_DATA")


def segment(source: Path, folder: Path, *options: str) -> None:
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file"]
    line += [str(BUNDLES / "btcv_seg/configs/inference.json"), "--input", str(source), "--output_dir", str(folder)]
    done = subprocess.run([*line, *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "demonstration" in done.stdout, "every run with these weights says what they are"


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_a_ct_whose_liver_is_where_the_liver_is(tmp_path):
    """Its label map was among the shapes that training deformed: this shows that the chain works."""
    image = CT / "ct_abdomen_3mm" / "image.nii.gz"
    segment(image, tmp_path)
    result, scan = nib.load(tmp_path / "image_seg.nii.gz"), nib.load(image)
    assert result.shape == scan.shape and np.allclose(result.affine, scan.affine)
    reference = np.asarray(nib.load(CT / "ct_abdomen_3mm" / "label_btcv13.nii.gz").dataobj)
    assert dice(np.asarray(result.dataobj) == 6, reference == 6) > 0.7
    assert (tmp_path / "image_preview.png").stat().st_size > 10_000
    with (tmp_path / "volumes.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 500 < float(row["liver (ml)"]) < 2500


def test_dicom_gives_what_nifti_gives_in_world_space(tmp_path):
    """The readers may store the slices in opposite order, so voxels are compared where they lie."""
    from mambamim_nets.bundle import LoadScand, scans
    from mambamim_nets.bundle.dicom import series_files

    series = CT / "ct_dicom" / "series"
    (item,) = scans(str(series), str(tmp_path / "out"))
    loaded = LoadScand("image")(item)["image"]
    nib.save(nib.Nifti1Image(loaded[0].numpy(), loaded.affine.numpy()), tmp_path / "ct.nii.gz")
    segment(series, tmp_path / "dicom")
    segment(tmp_path / "ct.nii.gz", tmp_path / "nifti")
    first = nib.load(tmp_path / "dicom" / "series_seg.nii.gz")
    second = nib.load(tmp_path / "nifti" / "ct_seg.nii.gz")
    index = np.argwhere(np.asarray(first.dataobj) > 0)
    assert len(index) > 100_000
    there = nib.affines.apply_affine(np.linalg.inv(second.affine) @ first.affine, index)
    assert np.abs(there - there.round()).max() < 0.01
    moved = np.asarray(second.dataobj)[tuple(there.round().astype(int).T)]
    assert (moved == np.asarray(first.dataobj)[tuple(index.T)]).all()
    assert (np.asarray(second.dataobj) > 0).sum() == len(index)

    # whose reference came with the series as NIfTI, made by other software: a flipped geometry would miss it
    liver = np.argwhere(np.asarray(first.dataobj) == 6)
    reference = nib.load(CT / "ct_dicom" / "label_btcv13.nii.gz")
    there = nib.affines.apply_affine(np.linalg.inv(reference.affine) @ first.affine, liver).round().astype(int)
    truth = np.asarray(reference.dataobj) == 6
    assert 2 * truth[tuple(there.T)].sum() / (len(liver) + truth.sum()) > 0.8

    import pydicom

    written = pydicom.dcmread(tmp_path / "dicom" / "series_seg.dcm")
    assert written.Modality == "SEG" and written.FrameOfReferenceUID
    assert {s.SegmentLabel for s in written.SegmentSequence} >= {"liver", "spleen"}
    assert len(series_files(str(series), item["series"])) == 20
