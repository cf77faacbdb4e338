"""DICOM-SEG lies on the slices of its series."""

import nibabel as nib
import numpy as np
import pytest
from helpers import BUNDLES

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("itk")
pytest.importorskip("highdicom")

from dicom_series import COSINE, ORIENTATIONS, SINE, another_frame, rebuilt, write_series  # noqa: E402
from monai.data import Dataset as MonaiDataset  # noqa: E402
from monai.data import decollate_batch  # noqa: E402
from monai.transforms import Compose, Invertd, Orientationd, SaveImage, Spacingd  # noqa: E402

from mambamim_nets.bundle.inference.scan_lists import scans  # noqa: E402
from mambamim_nets.bundle.inference.scan_loader import ScanLoader  # noqa: E402
from mambamim_nets.bundle.io.dicom_seg import segment_codes, write_dicom_seg  # noqa: E402
from mambamim_nets.bundle.io.dicom_series import series_of  # noqa: E402
from mambamim_nets.bundle.io.scan_formats import LoadScand  # noqa: E402

METADATA = BUNDLES / "btcv_seg/configs/metadata.json"

SEG = "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR"])
@pytest.mark.parametrize("kind", ORIENTATIONS)
def test_a_dicom_seg_gives_the_label_map_back(tmp_path, kind, axcodes):
    uid = write_series(tmp_path / "case", kind)
    (series,) = series_of(tmp_path / "case")[0]
    affine, shape, files = series.affine, series.shape, series.files
    image = nib.Nifti1Image(np.random.default_rng(2).integers(0, 3, shape, dtype="uint8"), affine)
    wanted = nib.orientations.axcodes2ornt(axcodes)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), wanted))
    label = np.asarray(image.dataobj)
    labels = {1: "left kidney", 2: "tumour", 3: "spleen"}
    codes = segment_codes(METADATA, ["left kidney", "spleen"])
    path = write_dicom_seg(label, image.affine, series, labels, tmp_path / "new" / "seg.dcm", "organs " * 20, codes)
    np.testing.assert_array_equal(rebuilt(path, label.shape, image.affine), label)

    seg, source = pydicom.dcmread(path), pydicom.dcmread(files[0])
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == list(labels.values()), "the absent one too"
    types = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in seg.SegmentSequence]
    assert [code.CodeMeaning for code in types] == ["Kidney", "Tissue", "Spleen"], "tissue where no code is known"
    categories = [segment.SegmentedPropertyCategoryCodeSequence[0] for segment in seg.SegmentSequence]
    assert [code.CodeMeaning for code in categories] == ["Anatomical Structure"] * 3
    assert {segment.SegmentAlgorithmType for segment in seg.SegmentSequence} == {"AUTOMATIC"}
    assert seg.SegmentationType == "BINARY" and seg.SOPClassUID == SEG
    assert seg.SeriesDescription.endswith("(research use only)") and len(seg.SeriesDescription) <= 64
    assert (seg.StudyInstanceUID, seg.PatientID) == (source.StudyInstanceUID, "phantom")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    referenced = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {pydicom.dcmread(file).SOPInstanceUID for file in files}
    assert [p.name for p in path.parent.iterdir()] == ["seg.dcm"]


@pytest.mark.parametrize("kind", ORIENTATIONS)
def test_what_was_found_after_preprocessing_lies_on_the_series(tmp_path, kind):
    write_series(tmp_path / "case", kind, slices=9)
    preprocessing = Compose([LoadScand("image"), Orientationd("image", "RAS"), Spacingd("image", (1.0, 1.0, 1.0))])
    (batch,) = ScanLoader(MonaiDataset(scans(str(tmp_path / "case"), str(tmp_path)), preprocessing))
    item = decollate_batch({"image": batch["image"], "pred": (batch["image"] > 0).float()})[0]
    pred = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=True)(item)["pred"]
    SaveImage(tmp_path, resample=False, separate_folder=False, print_log=False)(pred)
    saved = nib.load(tmp_path / "case_trans.nii.gz")
    label, affine = np.asarray(pred[0]).astype("uint8"), np.asarray(pred.affine)
    np.testing.assert_allclose(saved.affine, affine, atol=1e-4)
    (series,) = series_of(tmp_path / "case")[0]
    path = write_dicom_seg(label, affine, series, {1: "liver"}, tmp_path / "seg.dcm", "x")
    assert label.any()
    np.testing.assert_array_equal(rebuilt(path, label.shape, affine), label)


def test_nothing_found_is_a_dicom_seg_too(tmp_path):
    write_series(tmp_path / "case")
    (series,) = series_of(tmp_path / "case")[0]
    path = write_dicom_seg(
        np.zeros(series.shape, "uint8"), series.affine, series, {1: "liver"}, tmp_path / "seg.dcm", "x"
    )
    assert not pydicom.dcmread(path).pixel_array.any()


def test_another_grid_is_refused(tmp_path):
    write_series(tmp_path / "case")
    (series,) = series_of(tmp_path / "case")[0]
    affine, label = series.affine, np.ones(series.shape, dtype="uint8")

    def write(label, affine):
        write_dicom_seg(label, affine, series, {1: "liver"}, tmp_path / "seg.dcm", "x")

    shifted, turned = affine.copy(), affine.copy()
    shifted[0, 3] += 0.3
    turned[:3, :3] = turned[:3, :3] @ [[COSINE, -SINE, 0], [SINE, COSINE, 0], [0, 0, 1]]
    for wrong in (shifted, turned, affine @ np.diag([1, 1, 2, 1])):
        with pytest.raises(ValueError, match=r"not on the grid of the series .*; invert the transforms"):
            write(label, wrong)
    with pytest.raises(ValueError, match="not on the grid of the series"):
        write(label[:, :, 1:], affine)
    with pytest.raises(ValueError, match=r"label values \[2\] must be 0 or among \[1\]"):
        write(label * 2, affine)
    assert not (tmp_path / "seg.dcm").exists()


def test_a_dicom_seg_of_a_real_series(real_data, tmp_path):
    """Its label map is stored with another direction of rows than the series."""
    folder = real_data("totalsegmentator/ct_dicom")
    image = nib.load(folder / "label_btcv13.nii.gz")
    label = np.asarray(image.dataobj).astype("uint8")
    (item,) = scans(str(folder / "series"), str(tmp_path))
    labels = {value: f"organ {value}" for value in range(1, 14)}
    path = write_dicom_seg(label, image.affine, item["series"], labels, tmp_path / "seg.dcm", "organs")
    np.testing.assert_array_equal(rebuilt(path, label.shape, image.affine), label)
    assert pydicom.dcmread(path).ReferencedSeriesSequence[0].SeriesInstanceUID == item["series"].uid


def test_a_run_writes_an_rtstruct_when_asked(bundle_run, tmp_path):
    write_series(tmp_path / "all" / "good")
    write_series(tmp_path / "all" / "bad", change=another_frame)
    options = {"output_dir": str(tmp_path / "out"), "previews": False, "record": None, "rtstruct": True}
    end = bundle_run("btcv_seg", "inference", input=str(tmp_path / "all"), **options)
    why = "slices have 2 frames of reference"
    assert end.status == 1 and "no DICOM-SEG" in end.last and "; no RTSTRUCT, the series' headers do not" in end.last
    assert why in end.last and "bad: " in end.last and "good: " not in end.last
    made = {path.name for path in (tmp_path / "out").glob("*.dcm")}
    assert made == {"good_seg.dcm", "good_rtstruct.dcm"}
    assert pydicom.dcmread(tmp_path / "out" / "good_rtstruct.dcm").SeriesDescription.startswith("demonstration weights")
    image = np.random.default_rng(0).normal(0, 100, (8, 8, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([8, 8, 8, 1])), tmp_path / "file.nii.gz")
    options |= {"output_dir": str(tmp_path / "other"), "force": True}
    end = bundle_run("btcv_seg", "inference", input=str(tmp_path / "file.nii.gz"), **options)
    assert "no RTSTRUCT of file: it refers to slices, and these are no DICOM series" in end.log
