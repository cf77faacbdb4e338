"""NRRD and MetaImage headers as they stand in the file, and voxels and slices that ITK decodes."""

import numpy as np
import pytest

from mambamim_nets.bundle.io.itk_files import itk_pixels, itk_voxels, mha_header, nrrd_header


def written(path, *lines):
    path.write_bytes("\n".join([*lines, "", ""]).encode() + b"\x00: voxels, not text")
    return str(path)


def test_nrrd_has_its_spacing_in_the_directions_or_by_itself(tmp_path):
    sizes, space = "sizes: 4 5 6", "space: left-posterior-superior"
    header = nrrd_header(written(tmp_path / "a.nrrd", sizes, space, "space directions: (0,2,0) (3,4,0) (0,0,1.5)"))
    assert (header.shape, header.spacing, header.oriented) == ((4, 5, 6), (2.0, 5.0, 1.5), True)
    header = nrrd_header(written(tmp_path / "b.nrrd", sizes, "spacings: 1 2 3"))
    assert (header.spacing, header.oriented) == ((1.0, 2.0, 3.0), False)
    header = nrrd_header(written(tmp_path / "c.nrrd", sizes, "space directions: (1,0,0) (0,1,0) (0,0,1)"))
    assert not header.oriented, "directions in no space"
    (problem,) = nrrd_header(written(tmp_path / "d.nrrd", sizes)).problems
    assert "no spacing in the header (space directions)" in problem


def test_metaimage_has_spacing_and_direction_under_several_names(tmp_path):
    size, end = "DimSize = 4 5 6", "ElementDataFile = LOCAL"
    for spacing in ("ElementSpacing", "ElementSize"):
        for direction in ("TransformMatrix", "Orientation", "Rotation"):
            lines = [size, f"{spacing} = 1 2 3", f"{direction} = 1 0 0 0 1 0 0 0 1", end]
            header = mha_header(written(tmp_path / "a.mha", *lines))
            assert (header.shape, header.spacing, header.oriented) == ((4, 5, 6), (1.0, 2.0, 3.0), True)
    assert not mha_header(written(tmp_path / "b.mha", size, "ElementSpacing = 1 2 3", end)).oriented
    late = mha_header(written(tmp_path / "c.mha", size, end, "ElementSpacing = 1 2 3"))
    assert "no spacing in the header (ElementSpacing)" in late.problems[0], "what follows are voxels"


def test_voxels_come_with_the_affine_in_ras(tmp_path):
    pytest.importorskip("itk")
    voxels = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    head = ["NRRD0004", "type: short", "dimension: 3", "sizes: 4 5 6", "endian: little", "encoding: raw"]
    head += ["space: left-posterior-superior", "space directions: (1,0,0) (0,2,0) (0,0,3)", "space origin: (10,20,30)"]
    (tmp_path / "a.nrrd").write_bytes("\n".join([*head, "", ""]).encode() + voxels.tobytes(order="F"))
    found, meta = itk_voxels(str(tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(found, voxels)
    np.testing.assert_allclose(meta["affine"], [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])


def test_slices_are_decoded_in_the_order_that_is_given(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("itk")
    from dicom_series import SHAPE, write_series

    write_series(tmp_path)
    files = sorted(str(path) for path in tmp_path.iterdir())
    for order in (files, files[::-1], files[:1]):
        pixels = itk_pixels(order)
        assert pixels.shape == (SHAPE[1], SHAPE[0], len(order)) and pixels.dtype == np.float32
        expected = [2.0 * pydicom.dcmread(file).pixel_array.T - 1000 for file in order]
        np.testing.assert_array_equal(pixels, np.stack(expected, -1))


def test_a_slice_that_cannot_be_decoded_is_named(tmp_path):
    pytest.importorskip("pydicom")
    pytest.importorskip("itk")
    from dicom_series import write_series

    write_series(tmp_path)
    files = sorted(str(path) for path in tmp_path.iterdir())
    (tmp_path / "no.dcm").write_text("no DICOM")
    with pytest.raises(ValueError, match=r"no\.dcm: its pixel data cannot be decoded: copy or export"):
        itk_pixels([*files, str(tmp_path / "no.dcm")])
