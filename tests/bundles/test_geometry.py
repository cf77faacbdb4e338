"""Inference on any orientation: a result lies on its input's own grid."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import finished

from mambamim_nets import phantom

OBLIQUE = "oblique"


def oblique(affine):
    """Turn the world by 20 degrees about the third axis, then by 10 about the first."""
    z, x = np.deg2rad(20), np.deg2rad(10)
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    turned = affine.copy()
    turned[:3] = about_x @ about_z @ affine[:3]
    return turned


def reoriented(image, axcodes):
    wanted = nib.orientations.axcodes2ornt(axcodes)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """One anisotropic scan, stored in four ways."""
    folder = tmp_path_factory.mktemp("scans")
    subject = phantom.make("hippocampus", 5, spacing=(0.8, 1.1, 1.7))
    ras = reoriented(nib.Nifti1Image(subject.image, subject.affine), "RAS")
    for axcodes in ("RAS", "LPS", "PIR"):
        nib.save(reoriented(ras, axcodes), folder / f"scan_{axcodes}.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(ras.dataobj), oblique(ras.affine)), folder / f"scan_{OBLIQUE}.nii.gz")
    return folder


def segment(workflow, network_file, source, folder, **options):
    options |= {"input": str(source), "output_dir": str(folder), "checkpoint": str(network_file)}
    made = workflow("msd_seg", ["inference"], **options)
    finished(made)
    return {path.name: path for path in Path(folder).glob("*.nii*")}


@pytest.fixture(scope="module")
def results(workflow, scans, network_file, tmp_path_factory):
    return segment(workflow, network_file, scans, tmp_path_factory.mktemp("results"))


@pytest.mark.slow
def test_every_scan_of_a_folder_has_a_result_and_a_picture_of_its_name(scans, results):
    assert sorted(results) == sorted(p.name.replace(".nii.gz", "_seg.nii.gz") for p in scans.iterdir())
    pictures = next(iter(results.values())).parent.glob("*_preview.png")
    assert sorted(p.name for p in pictures) == sorted(
        p.name.replace(".nii.gz", "_preview.png") for p in scans.iterdir()
    )


@pytest.mark.parametrize("kind", ["RAS", "LPS", "PIR", OBLIQUE])
def test_a_result_has_its_inputs_grid(scans, results, kind):
    scan, result = nib.load(scans / f"scan_{kind}.nii.gz"), nib.load(results[f"scan_{kind}_seg.nii.gz"])
    assert result.shape == scan.shape
    np.testing.assert_allclose(result.affine, scan.affine, atol=1e-5)
    assert nib.aff2axcodes(result.affine) == nib.aff2axcodes(scan.affine)
    assert result.get_data_dtype() == np.uint8
    values = np.unique(np.asarray(result.dataobj))
    assert len(values) > 1 and set(values.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("kind", ["LPS", "PIR", OBLIQUE])
def test_how_a_scan_is_stored_does_not_change_the_anatomy_found(results, kind):
    reference = np.asarray(nib.load(results["scan_RAS_seg.nii.gz"]).dataobj)
    other = nib.load(results[f"scan_{kind}_seg.nii.gz"])
    upright = np.asarray((other if kind == OBLIQUE else reoriented(other, "RAS")).dataobj)
    # a voxel may flip where resampling in another order of axes rounds differently
    assert (upright == reference).mean() > 0.999


def test_one_file_gives_the_result_it_gives_in_a_folder(workflow, scans, network_file, results, tmp_path):
    alone = segment(workflow, network_file, scans / "scan_PIR.nii.gz", tmp_path, previews=False)
    assert list(alone) == ["scan_PIR_seg.nii.gz"]
    again, before = nib.load(alone["scan_PIR_seg.nii.gz"]), nib.load(results["scan_PIR_seg.nii.gz"])
    assert np.array_equal(np.asarray(again.dataobj), np.asarray(before.dataobj))
