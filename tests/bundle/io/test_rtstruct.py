"""Contours of an RTSTRUCT, filled again, are the label map."""

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("itk")

import nibabel as nib  # noqa: E402
from dicom_series import ORIENTATIONS, another_frame, write_series  # noqa: E402
from matplotlib.path import Path as Polygon  # noqa: E402

from mambamim_nets.bundle.io.dicom_series import series_of  # noqa: E402
from mambamim_nets.bundle.io.rtstruct import slice_contours, write_rtstruct  # noqa: E402

MASKS = {
    "one voxel": ["....", ".#..", "...."],
    "to the border": ["###", "###"],
    "diagonal": ["#..", ".#.", "#.#"],
    "hole": ["#####", "#...#", "#.#.#", "#...#", "#####"],
    "two holes": ["#######", "#.##.##", "#######", "##.####", "#######"],
    "bridge": ["##.##", "#####", "##.##"],
}


def filled(corners: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the voxels whose centres are inside of a contour."""
    low, high = np.ceil(corners.min(axis=0)).astype(int), np.floor(corners.max(axis=0)).astype(int) + 1
    axes = [np.arange(first, end) for first, end in zip(low, high, strict=True)]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    out = np.zeros(shape, dtype=bool)
    inside = Polygon(np.concatenate([corners, corners[:1]])).contains_points(centres)
    out[low[0] : high[0], low[1] : high[1]] = inside.reshape(high - low)
    return out


@pytest.mark.parametrize("name", MASKS)
def test_a_contour_holds_the_voxels_of_its_mask(name):
    mask = np.array([[letter == "#" for letter in line] for line in MASKS[name]])
    contours = list(slice_contours(mask))
    found = np.zeros(mask.shape, dtype=int)
    for corners in contours:
        assert len(corners) >= 4 and np.abs(np.diff(corners, axis=0)).sum(axis=1).min() > 0
        found += filled(corners, mask.shape)
    np.testing.assert_array_equal(found, mask.astype(int))


def test_contours_of_anatomy_and_of_noise():
    rng = np.random.default_rng(0)
    for density in (0.1, 0.5, 0.9):
        mask = rng.random((23, 17)) < density
        found = sum(filled(corners, mask.shape).astype(int) for corners in slice_contours(mask))
        np.testing.assert_array_equal(found, mask.astype(int))
    assert list(slice_contours(np.zeros((3, 4), bool))) == []
    (square,) = slice_contours(np.ones((50, 40), bool))
    assert len(square) == 8, "straight lines have no points between"


def read_back(path, affine, shape) -> np.ndarray:
    """Fill the contours of a file on a grid (i, j, k), by their places in the world."""
    content = pydicom.dcmread(path)
    to_voxel = np.linalg.inv(affine) @ np.diag([-1, -1, 1, 1])
    out = np.zeros(shape, dtype="uint8")
    for region in content.ROIContourSequence:
        for contour in region.get("ContourSequence", []):
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints and contour.ContourGeometricType == "CLOSED_PLANAR"
            voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
            place = voxels[:, 2].round().astype(int)
            assert np.ptp(place) == 0 and np.abs(voxels[:, 2] - place).max() < 0.02, "in the plane of a slice"
            out[:, :, place[0]][filled(voxels[:, :2], shape[:2])] = region.ReferencedROINumber
    return out


def ball(shape) -> np.ndarray:
    """Return a shell of label 1 around a core of label 3, which fill much of a grid."""
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    return np.where(radius < 0.6, 3, np.where(radius < 1.1, 1, 0)).astype("uint8")


@pytest.mark.parametrize("kind", ORIENTATIONS)
def test_an_rtstruct_gives_the_label_map_back(tmp_path, kind):
    uid = write_series(tmp_path / "case", kind, slices=6)
    (series,) = series_of(tmp_path / "case")[0]
    label = ball(series.shape)
    turned = nib.Nifti1Image(label, series.affine).as_reoriented([[2, -1], [0, 1], [1, -1]])
    labels = {1: "liver", 2: "tumour " + "x" * 60, 3: "cyst"}
    path = write_rtstruct(
        np.asarray(turned.dataobj), turned.affine, series, labels, tmp_path / "rt.dcm", "organs " * 20, {3: (1, 2, 3)}
    )
    np.testing.assert_array_equal(read_back(path, series.affine, series.shape), label)

    content, source = pydicom.dcmread(path), pydicom.dcmread(series.files[0])
    assert content.Modality == "RTSTRUCT" and content.file_meta.TransferSyntaxUID.is_little_endian
    names = [region.ROIName for region in content.StructureSetROISequence]
    assert names[::2] == ["liver", "cyst"] and len(names[1]) == 64, "the absent one too"
    assert list(content.ROIContourSequence[2].ROIDisplayColor) == [1, 2, 3]
    assert (content.StudyInstanceUID, content.PatientID, content.PatientName) == (
        source.StudyInstanceUID,
        "phantom",
        "A^B",
    )
    assert content.SeriesDescription.endswith("(research use only)") and len(content.SeriesDescription) <= 64
    (frame,) = content.ReferencedFrameOfReferenceSequence
    (of_series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert of_series.SeriesInstanceUID == uid and frame.FrameOfReferenceUID == source.FrameOfReferenceUID
    instances = {pydicom.dcmread(file).SOPInstanceUID for file in series.files}
    assert {image.ReferencedSOPInstanceUID for image in of_series.ContourImageSequence} == instances
    contours = content.ROIContourSequence[0].ContourSequence
    assert {contour.ContourImageSequence[0].ReferencedSOPInstanceUID for contour in contours} <= instances


def test_nothing_found_is_an_rtstruct_too(tmp_path):
    write_series(tmp_path / "case")
    (series,) = series_of(tmp_path / "case")[0]
    empty = np.zeros(series.shape, "uint8")
    path = write_rtstruct(empty, series.affine, series, {1: "liver"}, tmp_path / "rt.dcm", "x")
    assert not read_back(path, series.affine, series.shape).any()


def test_another_grid_and_other_labels_are_refused(tmp_path):
    write_series(tmp_path / "case")
    write_series(tmp_path / "frames", change=another_frame)
    (series,), (other,) = (series_of(tmp_path / name)[0] for name in ("case", "frames"))
    label = np.ones(series.shape, "uint8")

    def write(label, affine, series):
        write_rtstruct(label, affine, series, {1: "liver"}, tmp_path / "rt.dcm", "x")

    with pytest.raises(ValueError, match="not on the grid of the series"):
        write(label, series.affine @ np.diag([1, 1, 2, 1]), series)
    with pytest.raises(ValueError, match=r"label values \[2\] must be 0 or among \[1\]"):
        write(label * 2, series.affine, series)
    with pytest.raises(ValueError, match="slices have 2 frames of reference, and must have one"):
        write(label, other.affine, other)
    assert not (tmp_path / "rt.dcm").exists()


@pytest.mark.slow
def test_an_rtstruct_of_a_real_series(real_data, tmp_path):
    folder = real_data("totalsegmentator/ct_dicom")
    image = nib.load(folder / "label_btcv13.nii.gz")
    label = np.asarray(image.dataobj).astype("uint8")
    (series,) = series_of(folder / "series")[0]
    labels = {value: str(value) for value in range(1, 14)}
    path = write_rtstruct(label, image.affine, series, labels, tmp_path / "rt.dcm", "x")
    there = read_back(path, series.affine, series.shape)
    place = np.argwhere(there >= 0)
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine) @ series.affine, place).round().astype(int)
    reference = label[tuple(voxels.T)].reshape(series.shape)
    present = set(np.unique(reference)) - {0}
    assert len(present) > 5
    for value in present:
        first, second = there == value, reference == value
        assert 2 * (first & second).sum() / (first.sum() + second.sum()) > 0.98, value
