"""What surrounds the anatomy changes nothing: padded scans give the result of the bare ones, on their own grids."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import BUNDLES, finished, table
from small import narrow_networks

from mambamim_nets.checkpoint import read_record

PAD = ((21, 3), (8, 17), (5, 20))


def padded(image: nib.Nifti1Image, value: float = 0.0) -> nib.Nifti1Image:
    """Return an image with a border of one value, where it was in the world."""
    voxels = np.asarray(image.dataobj)
    widths = [*PAD, *[(0, 0)] * (voxels.ndim - 3)]
    affine = image.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [low for low, _ in PAD]
    return nib.Nifti1Image(np.pad(voxels, widths, constant_values=value), affine)


def results(bundle_run, bundle: str, image: nib.Nifti1Image, folder: Path, **options) -> tuple[np.ndarray, np.ndarray]:
    """Segment a scan and its padded copy with the shipped weights; return both label maps, the second one cropped."""
    (folder / "in").mkdir(parents=True)
    nib.save(image, folder / "in" / "bare.nii.gz")
    nib.save(padded(image), folder / "in" / "padded.nii.gz")
    shipped = {"spacing": read_record(BUNDLES / bundle / "models/model.pt").get("spacing"), **options}
    shipped = {key: value for key, value in shipped.items() if value is not None}
    end = bundle_run(
        bundle, "inference", input=str(folder / "in"), output_dir=str(folder / "out"), previews=False, **shipped
    )
    assert end.status == 0, end.log[-3000:]
    bare, wide = (np.asarray(nib.load(folder / "out" / f"{name}_seg.nii.gz").dataobj) for name in ("bare", "padded"))
    assert wide.shape == tuple(side + sum(width) for side, width in zip(bare.shape, PAD, strict=True))
    inside = tuple(slice(low, side - high) for side, (low, high) in zip(wide.shape, PAD, strict=True))
    assert np.count_nonzero(wide) == np.count_nonzero(wide[inside]), "nothing is found in the border"
    return bare, wide[inside]


@pytest.mark.slow
def test_a_padded_crop_gives_the_result_of_the_bare_one(bundle_run, data, tmp_path):
    scan = nib.load(min((data / "imagesTs").iterdir()))
    bare, wide = results(bundle_run, "msd_seg", scan, tmp_path)
    assert np.array_equal(bare, wide) and bare.any()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["Brats18_TCIA01_201_1", "Brats18_TCIA02_370_1"])
def test_a_brain_in_its_frame_gives_the_result_of_the_bare_brain(bundle_run, real_data, tmp_path, case):
    """Two glioma cases that the weights have not seen: in a frame of zeros they found 400 ml of tumour in the black."""
    folder = real_data("brats_tcga/mini_2mm")
    scan, truth = (nib.load(folder / kind / f"{case}.nii.gz") for kind in ("imagesTr", "labelsTr"))
    order = ["t1", "t1ce", "t2", "flair"]
    bare, wide = results(bundle_run, "brats_seg", scan, tmp_path, channel_order=order, roi_size=[64, 64, 64])
    assert np.array_equal(bare, wide)
    tumour, true = wide > 0, np.asarray(truth.dataobj) > 0
    assert 2 * (tumour & true).sum() / (tumour.sum() + true.sum()) > 0.8


# --- scans that the weights do not know -----------------------------------------------------------


@pytest.fixture(scope="module")
def trained(workflow, data, tmp_path_factory):
    """Weights of one epoch on hippocampus phantoms, whose record says what they saw."""
    folder = tmp_path_factory.mktemp("trained")
    with narrow_networks():
        finished(workflow("msd_seg", dataset_dir=str(data), output_dir=str(folder), max_epochs=1))
    return folder / "model_best.pt"


@pytest.mark.slow
def test_weights_say_what_they_saw(trained, data):
    record = read_record(trained)
    assert record["mirrored"] == [] and set(record["seen"]["volumes_ml"]) == {"anterior", "posterior"}
    low, high = record["seen"]["field_of_view_mm"]
    sides = np.array([nib.load(path).shape for path in (data / "imagesTr").iterdir()])
    assert (sides.min(0) * 0.6 < low).all() and (low < sides.max(0)).all(), "training cuts faces off"
    assert (sides.max(0) < high).all() and (high <= sides.max(0) + np.array([32, 48, 32])).all(), "and adds borders"
    assert record["seen"]["spacing_mm"] == [1.0, 1.0]


def head(path: Path) -> Path:
    """Write a volume of the size of a small head, bright in the middle."""
    d, h, w = (np.linspace(-1, 1, side, dtype=np.float32) ** 2 for side in (130, 160, 140))
    voxels = 800 * np.exp(-2 * (d[:, None, None] + h[:, None] + w)) + 30
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


@pytest.mark.usefixtures("narrow")
def test_a_whole_head_is_refused_where_crops_were_learnt(bundle_run, trained, tmp_path):
    options = {"input": str(head(tmp_path / "head.nii.gz")), "checkpoint": str(trained), "previews": False}
    end = bundle_run("msd_seg", "inference", **options)
    assert end.status == 1 and "in training" in end.last and "--force true" in end.last
    assert not list((tmp_path / "out").glob("*_seg.nii.gz"))


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_a_head_that_is_forced_is_marked(bundle_run, trained, tmp_path):
    options = {"input": str(head(tmp_path / "head.nii.gz")), "checkpoint": str(trained), "overlap": 0.0}
    end = bundle_run("msd_seg", "inference", force=True, **options)
    assert end.status == 0, end.log[-3000:]
    (row,) = table(tmp_path / "out" / "volumes.csv")
    assert row["warnings"].startswith("FORCED, these weights do not know such a scan: ")
    assert (tmp_path / "out" / "head_preview.png").is_file()


@pytest.mark.usefixtures("narrow")
def test_mirroring_is_refused_where_training_did_not_mirror(bundle_run, trained, data, tmp_path):
    end = bundle_run("msd_seg", "inference", input=str(data / "imagesTs"), checkpoint=str(trained), mirror_axes=[0])
    assert end.status == 1 and "mirror_axes [0] must be among those that were mirrored" in end.last


def test_results_say_that_weights_are_a_demonstration(bundle_run, data, tmp_path):
    end = bundle_run("msd_seg", "inference", input=str(data / "imagesTs"), previews=False)
    assert end.status == 0, end.log[-3000:]
    note = " ".join((BUNDLES / "msd_seg" / "models" / "model.txt").read_text().split())
    with (tmp_path / "out" / "volumes.csv").open(newline="") as file:
        assert {row["weights"] for row in csv.DictReader(file)} == {note}
