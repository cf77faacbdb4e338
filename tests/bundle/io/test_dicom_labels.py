"""Label objects come back on the grid of their series: ours, those that highdicom writes, and contours of strangers."""

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
pytest.importorskip("itk")

from dicom_series import ORIENTATIONS, highdicom_seg, write_series, write_volume  # noqa: E402
from pydicom import dcmread  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402

from mambamim_nets.bundle.io.dicom_files import frame_geometry  # noqa: E402
from mambamim_nets.bundle.io.dicom_labels import labelled_voxels, read_label_object  # noqa: E402
from mambamim_nets.bundle.io.dicom_seg import write_dicom_seg  # noqa: E402
from mambamim_nets.bundle.io.dicom_series import series_of  # noqa: E402
from mambamim_nets.bundle.io.rtstruct import write_rtstruct  # noqa: E402

NAMES = {1: "liver", 3: "left kidney"}
SHAPE = (9, 8, 7)


def drawn(path, series, names=NAMES) -> np.ndarray:
    """Return the label map of a label object; no voxel may have two labels."""
    label = np.zeros(series.shape, "uint8")
    values = {name: value for value, name in names.items()}
    for name, voxels in labelled_voxels(read_label_object(path), series, list(values)):
        assert voxels.shape[0] == 3 and len(np.unique(voxels, axis=1).T) == voxels.shape[1]
        assert (label[tuple(voxels)] == 0).all()
        label[tuple(voxels)] = values[name]
    return label


def blobs(shape, seed=0) -> np.ndarray:
    """Return a label map without symmetry, with slices that hold nothing."""
    label = np.random.default_rng(seed).choice([0, 0, 1, 3], shape).astype("uint8")
    label[:, :, [0, 3]] = 0
    return label


@pytest.fixture
def series(tmp_path):
    """A series of 9 columns, 8 rows and 7 slices."""
    return write_volume(tmp_path / "ct", np.random.default_rng(1).integers(-1000, 1000, SHAPE))


@pytest.mark.parametrize("write", [write_dicom_seg, write_rtstruct], ids=["SEG", "RTSTRUCT"])
@pytest.mark.parametrize("kind", ORIENTATIONS)
def test_what_we_write_comes_back_to_the_voxel(tmp_path, kind, write):
    uid = write_series(tmp_path / "case", kind, slices=6)
    (series,) = series_of(tmp_path / "case")[0]
    label = blobs(series.shape)
    path = write(label, series.affine, series, NAMES, tmp_path / "label.dcm", "x")
    np.testing.assert_array_equal(drawn(path, series), label)
    found = read_label_object(path)
    assert found.series == (uid,) and found.frames == (series.slices[0].frame_of_reference,)
    assert found.structures == {"liver": (1,), "left kidney": (2,)} and found.left_out == ()
    assert found.kind == ("SEG" if write is write_dicom_seg else "RTSTRUCT")


def turned(label: np.ndarray, affine: np.ndarray, axes, flips) -> tuple[np.ndarray, np.ndarray]:
    """Return segment numbers with the axes of another stack, and its affine."""
    numbers = np.searchsorted([0, 1, 3], label).astype("uint8").transpose(axes)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        turn[old, new] = -1 if flip else 1
        turn[old, 3] += label.shape[old] - 1 if flip else 0
    return np.flip(numbers, [axis for axis, flip in enumerate(flips) if flip]).copy(), affine @ turn


@pytest.mark.parametrize("segmentation_type", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize(
    ("axes", "flips"),
    [((2, 1, 0), (0, 0, 0)), ((0, 1, 2), (0, 1, 0)), ((1, 0, 2), (1, 0, 1)), ((2, 0, 1), (1, 1, 0))],
    ids=["axial", "sagittal", "coronal", "axial, transposed"],
)
def test_frames_of_another_orientation_are_placed_by_their_positions(tmp_path, series, axes, flips, segmentation_type):
    label = blobs(SHAPE)
    array, affine = turned(label, series.affine, axes, flips)
    path = highdicom_seg(tmp_path / "seg.dcm", array, series, affine, NAMES.values(), segmentation_type)
    np.testing.assert_array_equal(drawn(path, series), label)


@pytest.mark.parametrize("slices", [[4], [1, 3, 5], [0, 2, 5, 6]], ids=["one", "even gaps", "uneven gaps"])
def test_sparse_frames_of_a_part_of_the_grid(tmp_path, series, slices):
    label = np.zeros(SHAPE, "uint8")
    label[2:5, 3:6, slices] = 1
    label[6, 3:6, slices[-1]] = 3
    part = series.affine.copy()
    part[:3, 3] = (series.affine @ [2, 3, 0, 1])[:3]
    array, affine = turned(label[2:8, 3:7], part, (2, 1, 0), (0, 0, 0))
    path = highdicom_seg(tmp_path / "seg.dcm", array, series, affine, NAMES.values())
    content = dcmread(path)
    assert (content.Rows, content.Columns) == (4, 6) and int(content.NumberOfFrames) == len(slices) + 1
    np.testing.assert_array_equal(drawn(path, series), label)


def test_segments_of_one_name_are_one_structure_and_others_are_left_alone(tmp_path, series):
    label = blobs(SHAPE)
    array, affine = turned(label, series.affine, (2, 1, 0), (0, 0, 0))
    both = highdicom_seg(tmp_path / "both.dcm", array, series, affine, ["lesion", "lesion"])
    assert read_label_object(both).structures == {"lesion": (1, 2)}
    np.testing.assert_array_equal(drawn(both, series, {1: "lesion"}), label > 0)
    path = write_dicom_seg(label, series.affine, series, NAMES, tmp_path / "seg.dcm", "x")
    np.testing.assert_array_equal(drawn(path, series, {1: "liver"}), label == 1)


def test_fractions_are_refused_and_all_or_nothing_is_read(tmp_path, series, reliability):
    label = np.zeros(SHAPE, "uint8")
    label[2:5, 3:6, 2:4] = 1
    array, affine = turned(label, series.affine, (2, 1, 0), (0, 0, 0))
    options = {"fractional_type": "PROBABILITY", "max_fractional_value": 200}
    whole = highdicom_seg(
        tmp_path / "whole.dcm", array.astype(float), series, affine, ["liver"], "FRACTIONAL", **options
    )
    np.testing.assert_array_equal(drawn(whole, series), label)
    half = highdicom_seg(tmp_path / "half.dcm", array / 2, series, affine, ["liver"], "FRACTIONAL", **options)
    with pytest.raises(ValueError, match="100 of 200, and must be there or not") as end:
        drawn(half, series)
    reliability("DICOM", "a DICOM-SEG of fractions as a label", end.value)


def test_other_grids_are_refused(tmp_path, series, reliability):
    array, affine = turned(blobs(SHAPE), series.affine, (2, 1, 0), (0, 0, 0))
    for name, change in (
        ("between voxels", [0.4, 0, 0]),
        ("between slices", [0, 0, 1.0]),
    ):
        moved = affine.copy()
        moved[:3, 3] += change
        path = highdicom_seg(tmp_path / f"{name}.dcm", array, series, moved, NAMES.values())
        with pytest.raises(ValueError, match="is not on the grid of its series"):
            drawn(path, series)
    path = highdicom_seg(tmp_path / "coarse.dcm", array, series, affine @ np.diag([1, 2, 2, 1]), NAMES.values())
    with pytest.raises(ValueError, match="a pixel is 2 voxels long") as end:
        drawn(path, series)
    reliability("DICOM", "a DICOM-SEG on another grid than its series", end.value)
    path = highdicom_seg(tmp_path / "thick.dcm", array[:3], series, affine @ np.diag([2, 1, 1, 1]), NAMES.values())
    with pytest.raises(ValueError, match="its frames are 2 slices apart"):
        drawn(path, series)
    below = affine.copy()
    below[2, 3] -= 5.0
    path = highdicom_seg(tmp_path / "below.dcm", array, series, below, NAMES.values())
    with pytest.raises(ValueError, match="has voxels outside of the series") as end:
        drawn(path, series)
    reliability("DICOM", "a DICOM-SEG that reaches beyond its series", end.value)


def test_a_cut_segmentation_is_refused(tmp_path, series, reliability):
    path = write_dicom_seg(blobs(SHAPE), series.affine, series, NAMES, tmp_path / "seg.dcm", "x")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"seg\.dcm: frame \d+ cannot be decoded") as end:
        drawn(path, series)
    reliability("DICOM", "a DICOM-SEG that was cut", end.value, hide=r"(?<=\().*(?=\))")


# --- contours -------------------------------------------------------------------------------------


def square(low: float, high: float, place: float) -> np.ndarray:
    """Return the corners (i, j, k) of a square."""
    return np.array([[low, low, place], [high, low, place], [high, high, place], [low, high, place]])


def contoured(path, series, contours, kind="CLOSED_PLANAR"):
    """Write an RTSTRUCT of the liver with these contours (i, j, k) in the place of ours."""
    write_rtstruct(np.zeros(series.shape, "uint8"), series.affine, series, NAMES, path, "x")
    content = dcmread(path)
    made = []
    for corners in contours:
        contour = pydicom.Dataset()
        contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(corners)
        world = (np.column_stack([corners, np.ones(len(corners))]) @ series.affine.T)[:, :3] * [-1, -1, 1]
        contour.ContourData = [f"{value:.4f}" for value in world.ravel()]
        made.append(contour)
    content.ROIContourSequence[0].ContourSequence = made
    content.save_as(path)
    return path


def test_a_contour_in_a_contour_is_a_hole_and_the_same_twice_is_one(tmp_path, series):
    outer, hole, island = square(0.5, 7.5, 2), square(1.5, 6.5, 2), square(2.5, 4.5, 2)
    wanted = np.zeros(SHAPE, "uint8")
    wanted[1:8, 1:8, 2], wanted[2:7, 2:7, 2], wanted[3:5, 3:5, 2] = 1, 0, 1
    for kind in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
        path = contoured(tmp_path / "rt.dcm", series, [island, outer, hole, outer], kind)
        np.testing.assert_array_equal(drawn(path, series), wanted)


def test_contours_are_cut_at_the_edge_and_may_be_rounded(tmp_path, series):
    wanted = np.zeros(SHAPE, "uint8")
    wanted[:4, :4, 6] = 1
    for off in (-0.2, 0.2):
        path = contoured(tmp_path / "rt.dcm", series, [square(-20, 3.5, 6 + off), square(40, 50, 6)])
        np.testing.assert_array_equal(drawn(path, series), wanted)


def test_points_and_open_lines_are_left_out(tmp_path, series):
    path = contoured(tmp_path / "rt.dcm", series, [square(1, 4, 2)], "OPEN_PLANAR")
    found = read_label_object(path)
    assert found.left_out == ("liver",) and list(found.structures) == ["left kidney"]


def test_contours_off_the_slices_are_refused(tmp_path, series, reliability):
    with pytest.raises(ValueError, match=r"lies 0\.5 of a gap off the plane of slice 3") as end:
        drawn(contoured(tmp_path / "rt.dcm", series, [square(1, 4, 2.5)]), series)
    reliability("DICOM", "a contour between the slices", end.value)
    sagittal = square(1, 4, 2)[:, ::-1]
    with pytest.raises(ValueError, match="must lie in the planes of the slices"):
        drawn(contoured(tmp_path / "rt.dcm", series, [sagittal]), series)
    with pytest.raises(ValueError, match="lies outside of the 7 slices") as end:
        drawn(contoured(tmp_path / "rt.dcm", series, [square(1, 4, 8)]), series)
    reliability("DICOM", "a contour above the series", end.value)


def test_an_rtstruct_that_was_cut_is_refused(tmp_path, series, reliability):
    path = write_rtstruct(blobs(SHAPE), series.affine, series, NAMES, tmp_path / "rt.dcm", "x")
    content = dcmread(path)
    del content.RTROIObservationsSequence
    content.save_as(path)
    with pytest.raises(ValueError, match="it ends before RTROIObservationsSequence") as end:
        read_label_object(path)
    reliability("DICOM", "an RTSTRUCT that was cut", end.value)


def test_contours_without_their_points_are_refused(tmp_path, series):
    path = contoured(tmp_path / "rt.dcm", series, [square(1, 4, 2)])
    content = dcmread(path)
    content.ROIContourSequence[0].ContourSequence[0].ContourData = ["1", "2", "3", "4"]
    content.save_as(path)
    with pytest.raises(ValueError, match="a contour of 'liver' cannot be read"):
        drawn(path, series)


def test_other_files_are_refused(tmp_path, series):
    with pytest.raises(ValueError, match="Modality 'CT' must be one of SEG, RTSTRUCT"):
        read_label_object(series.files[0])
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(ValueError, match=r"text\.dcm: its header cannot be read"):
        read_label_object(tmp_path / "text.dcm")


def test_a_segmentation_of_another_program_is_read(tmp_path):
    """A liver by dcmqi that pydicom brings, cut to one frame, put on a series in whose second slice it lies."""
    path = get_testdata_file("liver_1frame.dcm", download=False)
    assert path is not None, "pydicom no longer brings this file; name another one"
    content = dcmread(path)
    content.NumberOfFrames, content.PerFrameFunctionalGroupsSequence = 1, content.PerFrameFunctionalGroupsSequence[:1]
    content.save_as(path := tmp_path / "seg.dcm")
    found = read_label_object(path)
    (origin,), (orientation,), (spacing,) = (np.array(part, dtype=float) for part in frame_geometry(content))
    normal = np.cross(orientation[:3], orientation[3:])

    def around(index, dataset) -> None:
        (dataset.SeriesInstanceUID,), (dataset.FrameOfReferenceUID,) = found.series, found.frames
        dataset.ImagePositionPatient = [f"{value:.8g}" for value in origin + (index - 1) * gap * normal]
        dataset.ImageOrientationPatient, dataset.PixelSpacing = orientation.tolist(), spacing.tolist()

    measures = content.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    gap = float(measures.get("SpacingBetweenSlices") or measures.SliceThickness)
    series = write_volume(tmp_path / "ct", np.zeros((content.Columns, content.Rows, 3), np.int16), change=around)
    label = drawn(path, series, {1: "Liver"})
    frame = content.pixel_array.reshape(content.Rows, content.Columns)
    assert frame.any() and not label[:, :, [0, 2]].any()
    np.testing.assert_array_equal(label[:, :, 1], frame.T)
