"""The shipped weights on real scans: geometry, plausibility, and bfloat16 against float32; not accuracy."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import BUNDLES, table
from monai.bundle import ConfigParser

from mambamim_nets.bundle.inference.inferers import bfloat16_is_fast


def segment(command, source: Path, folder: Path, *options: str) -> None:
    options = ("--input", str(source), "--output_dir", str(folder), *options)
    output = command(BUNDLES / "btcv_seg/configs/inference.json", *options, cwd=folder.parent)
    assert "demonstration" in output, "every run with these weights says what they are"


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.mark.slow
def test_a_ct_whose_liver_is_where_the_liver_is(command, real_data, tmp_path):
    """Its label map was among the shapes that training deformed: this shows that the chain works."""
    folder = real_data("totalsegmentator/ct_abdomen_3mm")
    image = folder / "image.nii.gz"
    segment(command, image, tmp_path)
    result, scan = nib.load(tmp_path / "image_seg.nii.gz"), nib.load(image)
    assert result.shape == scan.shape and np.allclose(result.affine, scan.affine)
    reference = np.asarray(nib.load(folder / "label_btcv13.nii.gz").dataobj)
    assert dice(np.asarray(result.dataobj) == 6, reference == 6) > 0.7
    assert (tmp_path / "image_preview.png").stat().st_size > 10_000
    (row,) = table(tmp_path / "volumes.csv")
    assert 500 < float(row["liver (ml)"]) < 2500


@pytest.mark.slow
def test_dicom_gives_what_nifti_gives_in_world_space(command, real_data, tmp_path):
    """The readers may store the slices in opposite order, so voxels are compared where they lie."""
    from mambamim_nets.bundle.inference.scan_lists import scans
    from mambamim_nets.bundle.io.scan_formats import LoadScand

    folder = real_data("totalsegmentator/ct_dicom")
    series = folder / "series"
    (item,) = scans(str(series), str(tmp_path / "out"))
    loaded = LoadScand("image")(item)["image"]
    nib.save(nib.Nifti1Image(loaded[0].numpy(), loaded.affine.numpy()), tmp_path / "ct.nii.gz")
    few_windows = ("--overlap", "0.25", "--previews", "false")
    segment(command, series, tmp_path / "dicom", *few_windows)
    segment(command, tmp_path / "ct.nii.gz", tmp_path / "nifti", *few_windows)
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
    reference = nib.load(folder / "label_btcv13.nii.gz")
    there = nib.affines.apply_affine(np.linalg.inv(reference.affine) @ first.affine, liver).round().astype(int)
    truth = np.asarray(reference.dataobj) == 6
    assert 2 * truth[tuple(there.T)].sum() / (len(liver) + truth.sum()) > 0.8

    import pydicom

    written = pydicom.dcmread(tmp_path / "dicom" / "series_seg.dcm")
    assert written.Modality == "SEG" and written.FrameOfReferenceUID
    assert {s.SegmentLabel for s in written.SegmentSequence} >= {"liver", "spleen"}
    assert len(item["series"].files) == 20


# --- bfloat16 against float32 ---------------------------------------------------------------------


CASES = {
    "btcv_seg": "totalsegmentator/ct_abdomen_3mm",
    "amos_seg": "totalsegmentator/ct_abdomen_3mm",
    "msd_seg": "msd_hippocampus",
    "brats_seg": "brats_tcga/mini_2mm",
}


def first_case(folder: Path) -> tuple[Path, Path]:
    if (folder / "image.nii.gz").is_file():
        return folder / "image.nii.gz", folder / "label_btcv13.nii.gz"
    image = min((folder / "imagesTr").glob("*.nii.gz"))
    return image, folder / "labelsTr" / image.name


@pytest.mark.skipif(not bfloat16_is_fast("cpu"), reason="this CPU emulates bfloat16, which takes minutes for a window")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "msd_seg" else []) for name in CASES]
)
def test_bfloat16_delivers_what_float32_does(real_data, name):
    """Mean Dice over the structures that the reference has; BTCV and AMOS number the first nine organs alike."""
    image, label = first_case(real_data(CASES[name]))
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / name / "configs" / "inference.json"))
    parser.update({"bundle_root": str(BUNDLES / name), "device": "$torch.device('cpu')", "amp": False})
    if name == "brats_seg":
        parser["channel_order"] = ["t1", "t1ce", "t2", "flair"]  # of these files
    data = parser.get_parsed_content("preprocessing")({"image": str(image)})
    network, inferer, targets, restore = (
        parser.get_parsed_content(key) for key in ("network", "autocast_inferer", "targets", "postprocessing")
    )
    network.load_state_dict(torch.load(parser.get_parsed_content("checkpoint"), weights_only=True))
    truth, scores = np.asarray(nib.load(label).dataobj), []
    shared = [values for values in targets.structures.values() if name != "amos_seg" or max(values) <= 9]
    present = [values for values in shared if np.isin(truth, values).any()]
    for amp in (False, True):
        inferer.amp = amp
        with torch.no_grad():
            logits = inferer(data["image"][None], network.eval())[0]
        found = restore({**data, "pred": logits})["pred"][0].numpy()
        scores.append(np.mean([dice(np.isin(found, values), np.isin(truth, values)) for values in present]))
    assert min(scores) > 0.2 and abs(scores[0] - scores[1]) <= 0.002, scores
