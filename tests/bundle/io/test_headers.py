"""Headers that readers would repair without a word: each is refused, or named."""

import gzip
import json
import shutil
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mambamim_nets import phantom
from mambamim_nets.bundle.inference.scan_lists import scans
from mambamim_nets.bundle.io.headers import Header, axes_affine, checked_axes
from mambamim_nets.bundle.io.scan_formats import LoadScand, read_header

SHAPE = (20, 24, 18)
AFFINE = np.diag([-1.0, -1.0, 1.5, 1.0])
# where NIfTI-1 has its fields
DIM, DATATYPE, PIXDIM, SLOPE, UNITS, QFORM, SFORM, SROW, EXTENSION = 40, 70, 76, 112, 123, 252, 254, 280, 348


def voxels(shape=SHAPE, dtype="float32"):
    return (np.random.default_rng(0).random(shape) * 100).astype(dtype)


def nifti(path: Path, affine=AFFINE, array=None) -> Path:
    image = nib.Nifti1Image(voxels() if array is None else array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, path)
    return path


def patched(path: Path, *fields) -> Path:
    """Write a NIfTI file and put values into its header: (offset, format, values ...)."""
    content = bytearray(nifti(path).read_bytes())
    for offset, form, *values in fields:
        struct.pack_into(f"<{form}", content, offset, *values)
    path.write_bytes(content)
    return path


def spaced(path: Path, edge: float) -> Path:
    return nifti(path, np.diag([edge, 1.0, 1.0, 1.0]))


def cut(path: Path) -> Path:
    nifti(path)
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def flipped_bit(path: Path) -> Path:
    """Change one bit of what is compressed to itself: only the checksum can show it."""
    path = path.with_suffix(".nii.gz")
    plain = nifti(path.with_name("plain.nii"))
    content = bytearray(gzip.compress(plain.read_bytes(), compresslevel=0))
    plain.unlink()
    content[9000] ^= 4
    path.write_bytes(content)
    return path


def text(path: Path) -> Path:
    path.write_text("This is not a volume.")
    return path


TURNED = (-1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.5, 0.0)
DOUBLED = (-2.0, 0.0, 0.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0)
REFUSED = {
    "an image without sform and qform": lambda p: patched(p, (QFORM, "2h", 0, 0)),
    "a spacing of 0 in the header": lambda p: patched(p, (PIXDIM + 4, "f", 0.0)),
    "a negative spacing in the header": lambda p: patched(p, (PIXDIM + 8, "f", -1.0)),
    "a spacing of NaN in the header": lambda p: patched(p, (PIXDIM + 12, "f", np.nan)),
    "a spacing of 100 mm": lambda p: spaced(p, 100.0),
    "a spacing of 1 micrometre": lambda p: spaced(p, 0.001),
    "spacing in metres": lambda p: patched(p, (UNITS, "B", 1)),
    "spacing in micrometres": lambda p: patched(p, (UNITS, "B", 3 + 8)),
    "sform and pixdim that contradict each other": lambda p: patched(p, (QFORM, "h", 0), (SROW, "12f", *DOUBLED)),
    "an sform that is singular": lambda p: patched(p, (QFORM, "h", 0), (SROW, "12f", *([0.0] * 12))),
    "an sform with NaN": lambda p: patched(p, (SROW, "f", np.nan)),
    "an intensity scale of NaN in the header": lambda p: patched(p, (SLOPE, "f", np.nan)),
    "an infinite intensity offset in the header": lambda p: patched(p, (SLOPE + 4, "f", np.inf)),
    "dimensions that are too small for the file": lambda p: patched(p, (DIM + 6, "h", SHAPE[2] - 5)),
    "dimensions that are too large for the file": lambda p: patched(p, (DIM + 6, "h", 30000)),
    "a dimension of 0": lambda p: patched(p, (DIM + 4, "h", 0)),
    "a negative dimension": lambda p: patched(p, (DIM + 4, "h", -24)),
    "a data type that does not exist": lambda p: patched(p, (DATATYPE, "h", 9999)),
    "header extensions that are no extensions": lambda p: patched(
        p, (DIM - 40 + 108, "f", 1000.0), (EXTENSION, "B", 1)
    ),
    "a file that is cut short": cut,
    "a compressed file with a wrong bit": flipped_bit,
    "a text file named .nii": text,
    "values beyond float32": lambda p: nifti(p, array=voxels(dtype="float64") * 1e39),
    "complex voxels": lambda p: nifti(p, array=voxels(dtype="complex64")),
    "colours in the place of grey values": lambda p: nifti(
        p, array=np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    ),
    "an image with NaN": lambda p: nifti(p, array=np.where(voxels() > 99, np.float32(np.nan), voxels())),
    "an image with infinity": lambda p: nifti(p, array=np.where(voxels() > 99, np.float32(np.inf), voxels())),
    "an image of one single value": lambda p: nifti(p, array=np.ones(SHAPE, "int16")),
    "an image with a time axis": lambda p: nifti(p, array=voxels((*SHAPE, 2))),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_scan_that_is_refused(fault, bundle_run, reliability, tmp_path):
    file = REFUSED[fault](tmp_path / "scan.nii")
    end = bundle_run("msd_seg", "inference", input=str(file))
    assert f"scan: {file}" in end.last, end.last
    assert not list((tmp_path / "out").glob("*")), "nothing that looks like a result"
    reliability("Images", fault, end)


def test_intact_bytes_of_the_damaged_files_are_accepted(tmp_path):
    """What is refused above is refused for its damage, not for how the files of these tests are made."""
    nifti(tmp_path / "a.nii")
    patched(tmp_path / "b.nii", (SLOPE, "2f", 0.0, 0.0))  # by the standard: as stored
    patched(tmp_path / "c.nii", (UNITS, "B", 2))
    nifti(tmp_path / "d.nii.gz")
    assert not any("error" in item or "warnings" in item for item in scans(str(tmp_path), str(tmp_path / "out")))


# --- axes -----------------------------------------------------------------------------------------


def test_axes_are_assumed_and_the_log_says_so(bundle_run, reliability, tmp_path):
    file = REFUSED["an image without sform and qform"](tmp_path / "scan.nii")
    end = bundle_run("msd_seg", "inference", input=str(file), assume_axes="lps", previews=False, force=True)
    assert nib.aff2axcodes(nib.load(tmp_path / "out" / "scan_seg.nii.gz").affine) == ("L", "P", "S")
    words = "no orientation in the header: axes taken as LPS, spacing 1 x 1 x 1.5 mm"
    reliability("Images", "an image without sform and qform, with --assume_axes LPS", end, warning=words)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SLA"])
def test_assumed_axes_give_the_scan_as_with_its_header(tmp_path, axes):
    spacing = (1.0, 2.0, 1.5)
    affine = axes_affine(axes, Header(SHAPE, spacing))
    np.testing.assert_allclose(affine @ [*(np.array(SHAPE) - 1) / 2, 1], [0, 0, 0, 1], atol=1e-9)
    image = nib.Nifti1Image(voxels(), affine)
    nib.save(image, tmp_path / "with.nii")
    image.set_qform(None, 0)
    image.set_sform(None, 0)
    image.header.set_zooms(spacing)
    nib.save(image, tmp_path / "without.nii")
    content = bytearray((tmp_path / "without.nii").read_bytes())
    struct.pack_into("<2h", content, QFORM, 0, 0)
    (tmp_path / "without.nii").write_bytes(content)
    first, second = scans(str(tmp_path), str(tmp_path / "out"), assume_axes=axes)
    assert "warnings" not in first and "axes" not in first, "a header is believed"
    assert second["warnings"] and second["axes"] == axes
    with_header, without = (LoadScand("image")(item)["image"] for item in (first, second))
    assert np.array_equal(with_header.numpy(), without.numpy())
    np.testing.assert_allclose(with_header.affine, without.affine)
    np.testing.assert_allclose(with_header.meta["original_affine"], without.meta["original_affine"])


@pytest.mark.parametrize("axes", ["RAX", "RL", "RLS", "RASI", "", "PSP"])
def test_axes_that_do_not_exist(axes):
    with pytest.raises(ValueError, match=r"must be three letters, one each of R or L, A or P, S or I"):
        checked_axes(axes)


def test_axes_that_do_not_exist_in_a_run(bundle_run, reliability, tmp_path):
    end = bundle_run("msd_seg", "inference", input=str(nifti(tmp_path / "scan.nii")), assume_axes="RAL")
    reliability("Options", "assume_axes that name an axis twice", end)


def test_sform_and_qform_that_contradict_each_other(bundle_run, reliability, tmp_path):
    file = patched(tmp_path / "scan.nii", (SROW, "12f", *TURNED))
    end = bundle_run("msd_seg", "inference", input=str(file), previews=False, force=True)
    words = "sform and qform put corners"
    reliability("Images", "sform and qform that contradict each other", end, warning=words)


# --- other formats --------------------------------------------------------------------------------


def mgz(path: Path, good: int = 1, spacing=(1.0, 1.0, 1.5)) -> Path:
    nib.save(nib.MGHImage(voxels(), AFFINE), path)
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(">h3f", content, 28, good, *spacing)
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def nrrd(path: Path, *lines: str) -> Path:
    head = ["NRRD0004", "type: float", "dimension: 3", f"sizes: {' '.join(map(str, SHAPE))}"]
    head += ["endian: little", "encoding: raw", *lines, "", ""]
    path.write_bytes("\n".join(head).encode() + voxels().tobytes(order="F"))
    return path


def mha(path: Path, *lines: str) -> Path:
    head = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False", *lines]
    head += [f"DimSize = {' '.join(map(str, SHAPE))}", "ElementType = MET_FLOAT", "ElementDataFile = LOCAL", ""]
    path.write_bytes("\n".join(head).encode() + voxels().tobytes(order="F"))
    return path


SPACE = "space: left-posterior-superior"
OTHERS = {
    "an .mgz file that does not say where its axes point": lambda f: mgz(f / "scan.mgz", good=0),
    "an .mgz file with a spacing of 0": lambda f: mgz(f / "scan.mgz", spacing=(1.0, 0.0, 1.0)),
    "an .nrrd file without space directions": lambda f: nrrd(f / "scan.nrrd", "spacings: 1 1 1.5"),
    "an .nrrd file without any spacing": lambda f: nrrd(f / "scan.nrrd"),
    "an .nrrd file with a direction of length 0": lambda f: nrrd(
        f / "scan.nrrd", SPACE, "space directions: (1,0,0) (0,0,0) (0,0,1.5)"
    ),
    "an .mha file without spacing": lambda f: mha(f / "scan.mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1"),
    "an .mha file without a direction": lambda f: mha(f / "scan.mha", "ElementSpacing = 1 1 1.5"),
    "an .mha file with a negative spacing": lambda f: mha(
        f / "scan.mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementSpacing = 1 -1 1.5"
    ),
}


@pytest.mark.parametrize("fault", OTHERS)
def test_a_scan_of_another_format_that_is_refused(fault, bundle_run, reliability, tmp_path):
    file = OTHERS[fault](tmp_path)
    if file.suffix in (".nrrd", ".mha"):
        pytest.importorskip("itk")
    end = bundle_run("msd_seg", "inference", input=str(file))
    assert f"scan: {file}" in end.last, end.last
    reliability("Images", fault, end)


@pytest.mark.parametrize(
    "make",
    [
        lambda f: mgz(f / "scan.mgz"),
        lambda f: nrrd(f / "scan.nrrd", SPACE, "space directions: (1,0,0) (0,1,0) (0,0,1.5)", "space origin: (0,0,0)"),
        lambda f: mha(f / "scan.mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "ElementSpacing = 1 1 1.5"),
    ],
    ids=["mgz", "nrrd", "mha"],
)
def test_other_formats_with_a_geometry_are_accepted(make, tmp_path):
    file = make(tmp_path)
    if file.suffix != ".mgz":
        pytest.importorskip("itk")
    header = read_header(file)
    assert header.oriented and not header.problems
    np.testing.assert_allclose(header.spacing, (1, 1, 1.5))
    (item,) = scans(str(file), str(tmp_path / "out"))
    assert "error" not in item and "warnings" not in item


@pytest.mark.parametrize("fault", [fault for fault in OTHERS if "point" in fault or "direction" in fault.split()[-1]])
def test_axes_are_assumed_of_other_formats(fault, tmp_path):
    file = OTHERS[fault](tmp_path)
    if file.suffix != ".mgz":
        pytest.importorskip("itk")
    (item,) = scans(str(file), str(tmp_path / "out"), assume_axes="PIR")
    scan = LoadScand("image")(item)["image"]
    assert nib.aff2axcodes(scan.affine.numpy()) == ("P", "I", "R")
    assert len(item["warnings"]) == 1 and "axes taken as PIR" in item["warnings"][0]


# --- training and pre-training --------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_of(tmp_path_factory):
    """Return a function that gives five small labelled phantoms of a bundle."""
    folder = tmp_path_factory.mktemp("data")
    kinds = {"msd_seg": ("hippocampus", 1.0), "pretrain": ("hippocampus", 1.0), "fetal_landmarks": ("fetal", 4.0)}

    def write(bundle: str) -> Path:
        kind, edge = kinds[bundle]
        return phantom.write(folder / kind, kind, cases=5, spacing=(edge, edge, edge))

    return write


@pytest.fixture
def damaged(data_of, tmp_path):
    """Return a function that copies a bundle's data and patches the headers of its first case; and gives the folder."""

    def make(bundle: str, *fields, keys=("image", "label")) -> Path:
        folder = Path(shutil.copytree(data_of(bundle), tmp_path / "own"))
        case = json.loads((folder / "dataset.json").read_text())["training"][0]
        for key in keys:
            file = folder / case[key]
            content = bytearray(gzip.decompress(file.read_bytes()))
            for offset, form, *values in fields:
                struct.pack_into(f"<{form}", content, offset, *values)
            file.write_bytes(gzip.compress(bytes(content)))
        return folder

    return make


NO_FORM = (QFORM, "2h", 0, 0)


@pytest.mark.usefixtures("narrow")
@pytest.mark.slow
def test_a_labelled_case_without_orientation_is_listed(damaged, bundle_run, reliability):
    end = bundle_run("msd_seg", dataset_dir=str(damaged("msd_seg", NO_FORM)), max_epochs=1)
    words = "no orientation in the header: axes taken as LAS"
    reliability("Data sets", "a case whose image and label have no sform and no qform", end, warning=words)


@pytest.mark.parametrize(
    ("fault", "keys", "field"),
    [
        ("a label map without sform and qform beside an image with them", ["label"], NO_FORM),
        ("a case with a spacing of 0 in the header", ["image"], (PIXDIM + 4, "f", 0.0)),
        ("a label map with a negative spacing in the header", ["label"], (PIXDIM + 4, "f", -1.0)),
        ("a case with spacing in micrometres", ["image"], (UNITS, "B", 3)),
    ],
)
def test_headers_that_end_training_before_it_starts(fault, keys, field, damaged, bundle_run, reliability, tmp_path):
    end = bundle_run("msd_seg", dataset_dir=str(damaged("msd_seg", field, keys=keys)), max_epochs=1)
    assert not list(tmp_path.rglob("*.pt"))
    reliability("Data sets", fault, end, hide=r"corners [\d.e+]+")


def test_landmarks_need_an_orientation(damaged, bundle_run, reliability):
    folder = damaged("fetal_landmarks", NO_FORM, keys=["image"])
    end = bundle_run("fetal_landmarks", dataset_dir=str(folder), max_epochs=1)
    reliability("Data sets", "an image with landmarks and without sform and qform", end)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("fault", "field", "words"),
    [
        ("an image without sform and qform", NO_FORM, "no sform, qform or direction in the header"),
        pytest.param(
            *("an image with a spacing of 0", (PIXDIM + 4, "f", 0.0), "must be above 0 on every axis"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("an image with a negative spacing", (PIXDIM + 4, "f", -1.0), "must be above 0 on every axis"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("an image of 100 mm", (PIXDIM + 4, "f", 100.0), "must lie between 0.01 and 50 mm"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("an image with spacing in metres", (UNITS, "B", 1), "must be in mm"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_headers_that_are_left_out_of_pretraining(fault, field, words, damaged, bundle_run, reliability, tmp_path):
    end = bundle_run("pretrain", sources=[str(damaged("pretrain", field, keys=["image"]))], max_epochs=1)
    assert "1 of 7 images left out" in end.log and (tmp_path / "out" / "encoder.pt").is_file()
    reliability("Pre-training", fault, end, warning=words)


def test_pretraining_without_one_image_that_can_be_used(damaged, bundle_run, reliability):
    folder = damaged("pretrain", (PIXDIM + 4, "f", 0.0), keys=["image"])
    case = json.loads((folder / "dataset.json").read_text())["training"][0]
    end = bundle_run("pretrain", sources=[str(folder / case["image"])], max_epochs=1)
    reliability("Pre-training", "not one image that can be used", end)
