"""New scans are found in every layout, checked, loaded, and fail alone."""

import logging
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.transforms import AsDiscreted, Compose, Invertd, Lambdad, Orientationd, SaveImaged, Spacingd

from mambamim_nets.bundle.inference.scan_lists import scans
from mambamim_nets.bundle.inference.scan_loader import ScanLoader, finish
from mambamim_nets.bundle.io.scan_formats import LoadScand

BRATS = ("FLAIR", "T1w", "t1gd", "T2w")
AFFINE = np.array([[0, -1.5, 0, 10], [0.8, 0, 0, -20], [0, 0, 1.1, 5], [0, 0, 0, 1]])
SHAPE = (6, 7, 8)


def volume(path, value=0.0, shape=SHAPE, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(3).random(shape, dtype="float32") + value
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def names(items):
    return [item["name"] for item in items]


def load(item):
    return LoadScand("image")(item)["image"]


# --- one channel ----------------------------------------------------------------------------------


def test_a_folder_and_a_file(tmp_path):
    volume(tmp_path / "b.1.nii.gz"), volume(tmp_path / "a.nii"), volume(tmp_path / "below" / "c.nii")
    (tmp_path / ".hidden.nii").touch()
    (tmp_path / "notes.txt").touch()
    items = scans(str(tmp_path), str(tmp_path / "out"))
    assert items == [
        {"image": str(tmp_path / "a.nii"), "name": "a", "series": None},
        {"image": str(tmp_path / "b.1.nii.gz"), "name": "b.1", "series": None},
    ]
    assert scans(str(tmp_path / "b.1.nii.gz"), str(tmp_path / "out")) == items[1:]
    assert scans(str(tmp_path / "*.1.nii.gz"), str(tmp_path / "out")) == items[1:]
    assert load(items[1]).meta["filename_or_obj"] == str(tmp_path / "b.1.nii.gz")


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mgz"])
def test_other_formats_are_read_as_nifti_is(tmp_path, ending):
    reference = load(scans(str(volume(tmp_path / "scan.nii.gz")), str(tmp_path))[0])
    if ending == ".mgz":
        image = nib.load(tmp_path / "scan.nii.gz")
        nib.save(nib.MGHImage(np.asarray(image.dataobj), image.affine), tmp_path / "scan.mgz")
    else:
        itk = pytest.importorskip("itk")
        itk.imwrite(itk.imread(str(tmp_path / "scan.nii.gz")), str(tmp_path / f"scan{ending}"))
    (item,) = scans(str(tmp_path / f"scan{ending}"), str(tmp_path))
    assert item["name"] == "scan"
    scan = load(item)
    torch.testing.assert_close(scan.as_tensor(), reference.as_tensor())
    torch.testing.assert_close(scan.affine, reference.affine, rtol=0, atol=1e-4)
    assert Path(scan.meta["filename_or_obj"]).name == "scan.nii.gz", "results are NIfTI"


def test_one_broken_file_does_not_stop_the_rest(tmp_path, caplog):
    data = tmp_path / "data"
    for name in ("cut", "good"):
        volume(data / f"{name}.nii.gz")
    (data / "cut.nii.gz").write_bytes((data / "cut.nii.gz").read_bytes()[:500])
    volume(data / "channels.nii.gz", shape=(*SHAPE, 2))
    nib.save(nib.Nifti1Image(np.ones(SHAPE, "float32"), AFFINE), data / "empty.nii.gz")
    nib.save(nib.Nifti1Image(np.full(SHAPE, np.nan, "float32"), AFFINE), data / "nan.nii.gz")
    (data / "text.nrrd").write_text("no volume")
    with caplog.at_level(logging.INFO):
        items = scans(str(data), str(tmp_path))
    errors = {item["name"]: item["error"] for item in items if "error" in item}
    assert names(items) == ["channels", "cut", "empty", "good", "nan", "text"]
    assert set(errors) == set(names(items)) - {"good"}
    assert "must be 3-D" in errors["channels"] and "is empty" in errors["empty"] and "NaN" in errors["nan"]
    assert "5 of 6 scans cannot be segmented" in caplog.text and "1 scan(s) from" in caplog.text
    with pytest.raises(ValueError, match=r"(?s)0 of 1 scans .*can be segmented.*cut.nii.gz cannot be read"):
        scans(str(data / "cut.nii.gz"), str(tmp_path))


def test_what_is_refused(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no scan: no file of \.nii\.gz"):
        scans(str(data), str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist and matches no file"):
        scans(str(tmp_path / "nowhere"), str(tmp_path))
    (data / "notes.txt").write_text("text")
    with pytest.raises(FileNotFoundError, match="is no scan"):
        scans(str(data / "notes.txt"), str(tmp_path))
    volume(data / "a.nii"), volume(data / "a.nii.gz")
    with pytest.raises(ValueError, match=r"several files or series named \['a'\]; their results would have the same"):
        scans(str(data), str(tmp_path))
    (data / "a.nii").unlink()
    volume(data / "a_seg.nii.gz")
    with pytest.raises(ValueError, match=r"results of a in .* would replace other inputs; give another --output_dir"):
        scans(str(data), str(data))
    assert names(scans(str(data), str(data), postfix="_new")) == ["a", "a_seg"]


def passed_over(caplog, folder, output_dir, channels=("image",)):
    caplog.clear()
    with caplog.at_level(logging.WARNING, "mambamim_nets"):
        found = names(scans(str(folder), str(output_dir), channels))
    lines = [record.getMessage() for record in caplog.records]
    assert all(line.startswith("not among the scans") for line in lines)
    return found, lines[0] if lines else ""


def test_what_looks_like_a_scan_and_is_not_taken_is_named(tmp_path, caplog):
    folder = tmp_path / "scans"
    volume(folder / "a.nii.gz"), volume(folder / "mask.nii.gz").rename(folder / "MASK_SEG.NII.GZ")
    (folder / "notes.txt").touch()
    volume(folder / "results" / "a_probabilities.nii.gz")
    assert passed_over(caplog, folder, folder / "results") == (["a"], ""), "results and label maps are no scans"
    volume(folder / "b.nii.gz").rename(folder / "B.NII.GZ")
    volume(folder / "below" / "c.nii.gz")
    found, warning = passed_over(caplog, folder, folder / "results")
    assert found == ["a"] and f"{folder}/B.NII.GZ, {folder}/below/c.nii.gz; single volumes are read" in warning
    assert "results" not in warning and "notes" not in warning and "MASK" not in warning


def test_series_that_lie_deeper_than_others_are_named(tmp_path, caplog):
    pytest.importorskip("pydicom")
    from dicom_series import write_series

    write_series(tmp_path / "in" / "one")
    assert passed_over(caplog, tmp_path / "in", tmp_path / "out") == (["one"], "")
    write_series(tmp_path / "in" / "two" / "study" / "series")
    found, warning = passed_over(caplog, tmp_path / "in", tmp_path / "out")
    assert found == ["one"] and str(tmp_path / "in" / "two" / "study" / "series" / "s3_") in warning


def test_channels_that_are_not_used_are_no_scans(tmp_path, caplog):
    for case in ("one", "two"):
        for channel in ("flair", "t1", "t2", "seg"):
            volume(tmp_path / "in" / case / f"{case}_{channel}.nii.gz")
    found = passed_over(caplog, tmp_path / "in", tmp_path / "out", ("flair", "t1"))
    assert found == (["one", "two"], "")


def test_a_volume_beside_a_series_is_not_taken_in_its_place(bundle_run, reliability, tmp_path):
    pytest.importorskip("pydicom")
    from dicom_series import write_series

    write_series(tmp_path / "case", slices=6)
    volume(tmp_path / "case" / "label.nii.gz")
    end = bundle_run("msd_seg", "inference", input=str(tmp_path / "case"))
    assert "label.nii.gz, and a DICOM series" in end.last and not (tmp_path / "out" / "label_seg.nii.gz").exists()
    reliability("Inference", "a folder that holds a volume and a DICOM series", end, hide=r"(?<=s3_)\d")


# --- several channels -----------------------------------------------------------------------------

NAMINGS = {
    "BraTS2021_00000": ["_flair", "_t1", "_t1ce", "_t2"],
    "BraTS-GLI-00000-000": ["-t2f", "-t1n", "-t1c", "-t2w"],
    "case_7": ["_0000", "_0001", "_0002", "_0003"],
}


def brats(folder, case, leave_out=(), ending=".nii.gz"):
    for value, suffix in enumerate(NAMINGS[case]):
        if suffix not in leave_out:
            volume(folder / f"{case}{suffix}{ending}", value * 10)
    label = f"{case}{'-' if '-' in case else '_'}seg{ending}"
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, "uint8"), AFFINE), folder / label)
    return [str(folder / f"{case}{suffix}{ending}") for suffix in NAMINGS[case]]


@pytest.mark.parametrize("case", NAMINGS)
def test_sets_of_four_modalities(tmp_path, case, caplog):
    files = brats(tmp_path / "all" / case, case)
    expected = [{"image": files, "name": case, "series": None}]
    folder = tmp_path / "all" / case
    with caplog.at_level(logging.INFO):
        for path in (folder, folder.parent, files[2], folder / f"{case}*.nii.gz"):
            assert scans(str(path), str(tmp_path), BRATS) == expected, path
    assert f"segmentations by their names: {folder / case}" in caplog.text
    scan = load(expected[0])
    assert scan.shape == (4, *SHAPE) and scan.meta["filename_or_obj"] == str(folder / f"{case}.nii.gz")
    assert scan.amin((1, 2, 3)).div(10).floor().tolist() == [0, 1, 2, 3], "in the order of the task's channels"
    with pytest.raises(ValueError, match="would replace other inputs"):  # the expert's label map
        scans(str(folder), str(folder), BRATS, "-seg" if "-" in case else "_seg")


def test_the_tasks_order_of_channels_counts(tmp_path):
    files = brats(tmp_path, "BraTS2021_00000")
    (item,) = scans(str(tmp_path), str(tmp_path / "out"), ("t2w", "t1c"))
    assert item["image"] == [files[3], files[2]]


def test_an_incomplete_set_is_a_failure_and_not_the_end(tmp_path):
    brats(tmp_path, "BraTS2021_00000", leave_out=["_t1ce"])
    brats(tmp_path, "BraTS-GLI-00000-000")
    shutil.copy(tmp_path / "BraTS-GLI-00000-000-t1c.nii.gz", tmp_path / "Twins_t1c.nii.gz")
    shutil.copy(tmp_path / "BraTS-GLI-00000-000-t1c.nii.gz", tmp_path / "BraTS-GLI-00000-000-t1c.nii")
    volume(tmp_path / "four.nii.gz", shape=(*SHAPE, 4))
    errors = {item["name"]: item.get("error") for item in scans(str(tmp_path), str(tmp_path / "out"), BRATS)}
    assert errors["four"] is None
    assert "no file for ['t1ce'], only for ['flair', 't1', 't2']" in errors["BraTS2021_00000"]
    assert "several files for ['t1ce']" in errors["BraTS-GLI-00000-000"]
    assert "no file for ['flair', 't1', 't2']" in errors["Twins"]


def test_one_file_with_its_channels_on_the_last_axis(tmp_path):
    volume(tmp_path / "case_0001.nii.gz", shape=(*SHAPE, 4))  # a number, not a channel
    volume(tmp_path / "case_0002.nii.gz", shape=(*SHAPE, 3))
    first, second = scans(str(tmp_path), str(tmp_path / "out"), BRATS)
    assert load(first).shape == (4, *SHAPE)
    assert "3 channels, but in_channels is 4" in second["error"]
    assert scans(first["image"], str(tmp_path / "out"), BRATS) == [first]


def test_too_many_numbered_channels_and_unequal_grids(tmp_path):
    brats(tmp_path / "a", "case_7")
    with pytest.raises(ValueError, match=r"files \['0002', '0003'\] too many for the channels"):
        scans(str(tmp_path / "a"), str(tmp_path), ("T2", "ADC"))
    files = [volume(tmp_path / "b" / f"x_{n:04d}.nii.gz", affine=AFFINE + n * np.eye(4)) for n in range(2)]
    with pytest.raises(ValueError, match="affines must agree"):
        scans(str(tmp_path / "b"), str(tmp_path), ("T2", "ADC"))
    with pytest.raises(ValueError, match="channels must have one grid"):
        load({"image": [str(file) for file in files], "name": "x"})


# --- going on -------------------------------------------------------------------------------------


def evaluate(items, folder):
    """Segment what is above 0.5, with the bundles' chain; return the loader and what the evaluator saw."""
    preprocessing = Compose(
        [LoadScand("image"), Orientationd("image", "RAS", labels=None), Spacingd("image", (1.0, 1.0, 1.0))]
    )
    postprocessing = Compose(
        [
            Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", threshold=0.5),
            Lambdad("pred", lambda pred: pred[:1]),
            SaveImaged(
                "pred",
                output_dir=str(folder),
                output_postfix="seg",
                output_dtype="uint8",
                separate_folder=False,
                resample=False,
                print_log=False,
            ),
        ]
    )
    loader = ScanLoader(Dataset(items, preprocessing))
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        loader,
        torch.nn.Identity(),
        inferer=SimpleInferer(),
        postprocessing=postprocessing,
    )
    seen = []

    def collect(engine):
        for item, out in zip(engine.state.batch, engine.state.output, strict=True):
            assert "pred" in out
            seen.append((item["name"], out["image"].meta["filename_or_obj"]))

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, collect)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluator.run()
    return loader, seen


@pytest.mark.parametrize("bad", ["", "a", "b", "c", "ac", "abc"])
def test_an_evaluator_goes_on_whichever_scans_fail(tmp_path, bad, caplog):
    for name in "abc":
        volume(tmp_path / "data" / f"{name}.nii.gz")
    items = scans(str(tmp_path / "data"), str(tmp_path))
    for name in bad:  # after the check: only loading can find it
        (tmp_path / "data" / f"{name}.nii.gz").write_bytes(b"no longer a volume")
    items.append({"image": "listed.nii.gz", "name": "listed", "series": None, "error": "was broken from the start"})
    loader, seen = evaluate(items, tmp_path / "out")
    good = [name for name in "abc" if name not in bad]
    assert seen == [(name, str(tmp_path / "data" / f"{name}.nii.gz")) for name in good]
    assert sorted(p.name for p in tmp_path.glob("out/*")) == [f"{name}_seg.nii.gz" for name in good]
    assert list(loader.failures) == [*bad, "listed"]
    for name in good:
        result = nib.load(tmp_path / "out" / f"{name}_seg.nii.gz")
        np.testing.assert_allclose(result.affine, AFFINE, atol=1e-5)
        assert result.shape == SHAPE and np.asarray(result.dataobj).any()
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as exit_:
        finish(loader)
    assert f"{3 - len(bad)} of 4 scans done" in caplog.text
    assert "listed: was broken from the start" in str(exit_.value)
    assert all(f"\n{name}: " in str(exit_.value) for name in bad)


def test_finish_is_silent_when_all_is_well(tmp_path):
    brats(tmp_path / "data", "BraTS2021_00000")
    loader, seen = evaluate(scans(str(tmp_path / "data"), str(tmp_path), BRATS), tmp_path / "out")
    finish(loader)
    assert [name for name, *_ in seen] == ["BraTS2021_00000"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["BraTS2021_00000_seg.nii.gz"]


def test_a_scan_loader_has_no_length():
    assert not hasattr(ScanLoader(Dataset([])), "__len__")
