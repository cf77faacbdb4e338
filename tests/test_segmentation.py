"""The call from Python gives what inference.json gives, loads once, and leaves nothing behind."""

import json
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import BUNDLES, environment
from monai.data import MetaTensor

from mambamim_nets import phantom, segment
from mambamim_nets.segmentation import bundle_folder

CROPPED = (32, 48, 32)
FEW = {"overlap": 0.0}  # windows
OPTIONS = {"bundle": "msd_seg", "device": "cpu", "roi_size": [32, 32, 32], "previews": False, **FEW}


@pytest.fixture(scope="module")
def hippocampi(tmp_path_factory):
    """Three scans, cropped to what few windows cover."""
    folder = tmp_path_factory.mktemp("data")
    whole = phantom.write(folder / "hippocampus", "hippocampus", cases=5) / "imagesTr"
    (folder / "cropped").mkdir()
    for path in sorted(whole.iterdir())[:3]:
        image = nib.load(path)
        start = [(size - wanted) // 2 for size, wanted in zip(image.shape, CROPPED, strict=True)]
        crop = image.slicer[*(slice(first, first + size) for first, size in zip(start, CROPPED, strict=True))]
        nib.save(crop, folder / "cropped" / path.name)
    return sorted((folder / "cropped").iterdir())


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Give tests a temporary folder and a working directory of their own; nothing may be left in them."""
    folders = [tmp_path / "temporary", tmp_path / "here"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folders[0]))
    monkeypatch.chdir(folders[1])
    yield
    assert [path for folder in folders for path in folder.rglob("*")] == []


def voxels(result) -> np.ndarray:
    return np.asarray(result.labels.dataobj)


def same(first, second) -> None:
    np.testing.assert_array_equal(voxels(first), voxels(second))
    np.testing.assert_array_equal(first.labels.affine, second.labels.affine)
    assert first.volumes == second.volumes


# --- the same result ------------------------------------------------------------------------------


def test_a_call_gives_what_inference_json_gives(bundle_run, hippocampi, tmp_path):
    end = bundle_run("msd_seg", "inference", input=str(hippocampi[0]), output_dir=str(tmp_path / "out"), **FEW)
    assert end.status == 0, end.log
    result = segment(hippocampi[0], **{**OPTIONS, "previews": True})
    name = hippocampi[0].name.removesuffix(".nii.gz")
    written = nib.load(tmp_path / "out" / f"{name}_seg.nii.gz")
    np.testing.assert_array_equal(voxels(result), written.dataobj)
    assert result.labels.header == written.header and voxels(result).dtype == np.uint8 and voxels(result).any()
    image = nib.load(hippocampi[0])
    np.testing.assert_allclose(result.labels.affine, image.affine, atol=1e-5)
    for label, structure in enumerate(("anterior", "posterior"), start=1):
        ml = (voxels(result) == label).sum() * np.prod(image.header.get_zooms()) / 1000
        assert result.volumes[structure] == pytest.approx(ml, abs=6e-4)
    saved = result.save(tmp_path / "saved")
    made = {path.name for path in (tmp_path / "out").glob(f"{name}_*")}
    assert made == {f"{name}_preview.png", f"{name}_seg.nii.gz"} == set(result.files)
    assert {path.name for path in saved} == {*made, f"{name}_report.json"}
    assert all(path.read_bytes() == (tmp_path / "out" / path.name).read_bytes() for path in saved[:1])
    assert result.preview().size == result.preview().convert("L").size and "anterior" in repr(result)


def test_nothing_that_is_there_is_replaced_unasked(hippocampi, tmp_path):
    result = segment(hippocampi[0], **OPTIONS)
    path = result.save(tmp_path / "saved")[0]
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"_seg\.nii\.gz exists: give another folder, or overwrite=True"):
        result.save(tmp_path / "saved")
    assert path.read_bytes() == b"mine"
    result.save(tmp_path / "saved", overwrite=True)
    np.testing.assert_array_equal(nib.load(path).dataobj, voxels(result))
    with pytest.raises(ValueError, match=r"has no preview\.png: call segment\(\) with previews=True"):
        result.preview()


def test_images_in_memory_give_what_their_file_gives(hippocampi):
    """Also those whose values are scaled on disk, and in axes that are not RAS."""
    image = nib.load(hippocampi[0])
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("PIL"))
    array = np.asarray(image.dataobj, dtype=np.float32)
    tensor = MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(image.affine))
    first = segment(hippocampi[0], **OPTIONS)
    same(segment(image, **OPTIONS), first)
    same(segment(tensor, **OPTIONS), first)
    same(segment(tensor[None], **OPTIONS), first)
    lps = MetaTensor(tensor.as_tensor(), affine=torch.diag(torch.tensor([-1.0, -1, 1, 1])) @ tensor.affine.float())
    lps.meta["space"] = "LPS"
    same(segment(lps, **OPTIONS), first)
    back = segment(turned, **OPTIONS, probabilities=True)
    assert back.labels.shape == turned.shape and segment(image, **OPTIONS).name == "image"
    np.testing.assert_allclose(back.labels.affine, turned.affine, atol=1e-5)
    chances = back.probabilities.get_fdata()
    assert chances.shape == (*turned.shape, 3) and np.abs(chances.sum(-1) - 1).max() < 1e-4
    assert (chances.argmax(-1) == voxels(back)).mean() > 0.995, "keep_largest leaves out small parts"
    with pytest.raises(ValueError, match=r"has no probabilities\.nii\.gz: call segment\(\) with probabilities=True"):
        first.probabilities  # noqa: B018


@pytest.mark.slow
def test_a_dicom_folder(bundle_run, real_data, tmp_path):
    folder = real_data("totalsegmentator/ct_dicom") / "series"
    settings = {"device": "cpu", "overlap": 0.25, "spacing": [8.0, 8.0, 8.0], "roi_size": [32, 32, 32], "record": None}
    end = bundle_run("btcv_seg", "inference", input=str(folder), output_dir=str(tmp_path / "out"), **settings)
    assert end.status == 0, end.log
    result = segment(str(folder), "btcv_seg", **settings)
    written = nib.load(tmp_path / "out" / "series_seg.nii.gz")
    np.testing.assert_array_equal(voxels(result), written.dataobj)
    np.testing.assert_array_equal(result.labels.affine, written.affine)
    assert voxels(result).any() and sorted(result.files) == [
        "series_preview.png",
        "series_seg.dcm",
        "series_seg.nii.gz",
    ]


# --- loaded once ----------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """Count the networks that are built and the files of weights that are read, from a fresh start."""
    counts = {"networks": 0, "weights": 0}

    def count(name, function):
        def wrapper(*args, **options):
            counts[name] += 1
            return function(*args, **options)

        return wrapper

    import mambamim_nets.nets.hymamba as hymamba

    monkeypatch.setattr(hymamba.HyMambaSeg, "__init__", count("networks", hymamba.HyMambaSeg.__init__))
    monkeypatch.setattr(torch, "load", count("weights", torch.load))
    segment.forget()
    return counts


def test_the_network_is_built_and_its_weights_are_read_once(counted, hippocampi):
    first = segment(hippocampi[0], **OPTIONS)
    after, searched = dict(counted), list(sys.path)
    assert after["networks"] == 1 and after["weights"] >= 1
    second, third = segment(hippocampi[1], **OPTIONS), segment(hippocampi[0], **OPTIONS)
    assert counted == after
    same(first, third)
    assert voxels(second).shape != voxels(first).shape or (voxels(second) != voxels(first)).any()
    voxels(third)[:] = 0
    same(first, segment(hippocampi[0], **OPTIONS))
    assert counted == after and sys.path == searched
    segment(hippocampi[0], **{**OPTIONS, "overlap": 0.25})
    assert counted["networks"] == 2, "other options, another workflow"
    segment.forget()
    segment(hippocampi[0], **OPTIONS)
    assert counted["networks"] == 3


def test_weights_that_changed_are_read_again(counted, hippocampi, tmp_path):
    weights = shutil.copy(BUNDLES / "msd_seg" / "models" / "model.pt", tmp_path / "model.pt")
    first = segment(hippocampi[0], **OPTIONS, checkpoint=str(weights))
    content = torch.load(weights, weights_only=True)
    for value in (content.get("model", content)).values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value.zero_()
    torch.save(content, weights)
    second = segment(hippocampi[0], **OPTIONS, checkpoint=str(weights))
    assert counted["networks"] == 2 and (voxels(first) != voxels(second)).any()


def test_threads_get_their_own_results(hippocampi):
    alone = [segment(path, **OPTIONS) for path in hippocampi]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda path: segment(path, **OPTIONS), hippocampi))
    for one, other in zip(alone, together, strict=True):
        same(one, other)


# --- several --------------------------------------------------------------------------------------


def test_one_of_many_that_fails_does_not_stop_the_others(hippocampi, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    results = segment.many([hippocampi[0], broken, nib.load(hippocampi[1]), 3], **OPTIONS)
    found = [next(results), next(results)]
    assert [result.name for result in found] == [hippocampi[0].name.removesuffix(".nii.gz"), "image"]
    with pytest.raises(RuntimeError, match=r"2 of 4 scans failed:\n.*broken\.nii\.gz: 0 of 1 .*\nscan 4: .*is int"):
        next(results)
    same(found[1], segment(hippocampi[1], **OPTIONS))
    with pytest.raises(TypeError, match="scans must be a list of them; give a single one to segment"):
        segment.many(str(hippocampi[0]), **OPTIONS)
    with pytest.raises(FileNotFoundError, match="bundle 'nowhere'"):
        segment.many([], "nowhere")


# --- refusals -------------------------------------------------------------------------------------


def sentence(end) -> str:
    return end.last.partition(" (traceback: ")[0]


def test_errors_are_the_sentences_of_the_bundle(bundle_run, hippocampi, tmp_path):
    image = nib.load(hippocampi[0])
    array = np.asarray(image.dataobj, dtype=np.float32)
    array[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(array, image.affine), tmp_path / "hole.nii.gz")
    for source, options in (
        (tmp_path / "nothing.nii.gz", {}),
        (hippocampi[0], {"overlp": 0.5}),
        (hippocampi[0], {"overlap": 1.5}),
        (hippocampi[0], {"checkpoint": str(tmp_path / "gone.pt")}),
        (hippocampi[0], {"spacing": [2.0, 2.0, 2.0]}),
        (tmp_path / "hole.nii.gz", {}),
    ):
        end = bundle_run("msd_seg", "inference", input=str(source), output_dir=str(tmp_path / "out"), **options)
        for log in Path(tempfile.gettempdir()).glob("error_*.log"):  # of the bundle
            log.unlink()
        with pytest.raises((ValueError, OSError)) as error:
            segment(source, **{**OPTIONS, **options})
        assert end.status == 1 and str(error.value).splitlines()[-1] == sentence(end)
        assert "Failed to evaluate" not in str(error.value) and error.value.__suppress_context__


def test_a_scan_that_fails_on_the_way(bundle_run, hippocampi, monkeypatch, tmp_path):
    from mambamim_nets.bundle.transforms.labels import RestoreLabelsd

    def fail(*args):
        raise MemoryError("no more")

    segment(hippocampi[0], **OPTIONS)
    monkeypatch.setattr(RestoreLabelsd, "__call__", fail)
    end = bundle_run("msd_seg", "inference", input=str(hippocampi[0]), output_dir=str(tmp_path / "out"))
    with pytest.raises(RuntimeError, match=r"1 of 1 scans failed:\n.*: MemoryError: no more") as error:
        segment(hippocampi[0], **OPTIONS)
    assert end.status == 1 and str(error.value) in end.log
    monkeypatch.undo()
    segment(hippocampi[0], **OPTIONS)


def test_what_is_no_scan_and_no_bundle_is_refused(hippocampi, tmp_path, reliability):
    with pytest.raises(TypeError, match="must be a path, a nibabel image or a MetaTensor, is ndarray") as error:
        segment(np.zeros((4, 4, 4)), **OPTIONS)
    reliability("Inference", "segment() of an array", error.value)
    with pytest.raises(ValueError, match=r"scan of shape \(1, 1, 4, 4, 4\) must have the axes D, H and W, or C"):
        segment(MetaTensor(torch.zeros(1, 1, 4, 4, 4)), **OPTIONS)
    with pytest.raises(ValueError, match=r"holds 3 scans \(.*\): give one of them to segment\(\), or all of them"):
        segment(hippocampi[0].parent, **OPTIONS)
    with pytest.raises(ValueError, match=r"option output_dir is no option of segment\(\): .* \.save\(folder\)"):
        segment(hippocampi[0], **OPTIONS, output_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"brain_cls does not segment: give one whose inference\.json has targets"):
        segment(hippocampi[0], "brain_cls")
    with pytest.raises(FileNotFoundError, match=r"bundle 'nowhere' must be a folder .*bundles.nowhere.* download"):
        segment(hippocampi[0], "nowhere")


# --- where bundles are ----------------------------------------------------------------------------


def test_bundles_are_found_by_folder_and_by_name(monkeypatch, tmp_path):
    def bundle(folder):
        (folder / "configs").mkdir(parents=True)
        (folder / "configs" / "inference.json").write_text("{}")
        return folder

    assert bundle_folder("msd_seg") == BUNDLES / "msd_seg" == bundle_folder(str(BUNDLES / "msd_seg"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    downloaded = bundle(tmp_path / "hub" / "bundle" / "msd_seg")
    other = bundle(tmp_path / "hub" / "bundle" / "other_seg")
    assert bundle_folder("other_seg") == other and bundle_folder("msd_seg") == BUNDLES / "msd_seg"
    monkeypatch.chdir(tmp_path)
    assert bundle_folder("msd_seg") == BUNDLES / "msd_seg" != downloaded
    mine = bundle(tmp_path / "bundles" / "msd_seg")
    assert bundle_folder("msd_seg") == mine


@pytest.mark.slow
def test_a_copy_of_a_bundle_in_a_process_of_its_own(hippocampi, tmp_path):
    """It brings no progress of others: standard output is the caller's."""
    shutil.copytree(BUNDLES / "msd_seg", tmp_path / "copy", ignore=shutil.ignore_patterns("runs", "predictions"))
    code = "import json, sys; from mambamim_nets import segment; r = segment(sys.argv[1], sys.argv[2], 'cpu');"
    code += " print(json.dumps(r.volumes))"
    line = [sys.executable, "-c", code, str(hippocampi[0]), str(tmp_path / "copy")]
    run = subprocess.run(line, capture_output=True, text=True, check=True, env=environment())
    assert json.loads(run.stdout) == segment(hippocampi[0], "msd_seg", "cpu").volumes
