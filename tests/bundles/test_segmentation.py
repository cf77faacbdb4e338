"""A segmentation bundle trains, evaluates and segments, and what it writes is what its task says.

Of ctorg_seg and kits23_seg nothing runs here: the bodies of their configurations are those of btcv_seg, which
test_repository proves, exclusive classes and regions are those of btcv_seg and brats_seg, and test_kits23 has the rest.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import BUNDLES, finished, refused, table

from mambamim_nets.bundle.data.painted import PaintedCrops
from mambamim_nets.bundle.labels import Targets

pytestmark = pytest.mark.usefixtures("all_narrow")

REGIONS = {"TC": [1, 4], "WT": [1, 2, 4], "ET": [4]}
MODALITIES = ("flair", "t1ce", "t1", "t2")


class Done(NamedTuple):
    """A bundle that was trained, evaluated and used, and where its files are."""

    name: str
    data: Path
    run: Path
    results: Path
    targets: Targets
    validator: Any

    @property
    def weights(self) -> str:
        return str(self.run / "model_best.pt")


@pytest.fixture(scope="module")
def done(workflow, data_of, tmp_path_factory) -> Callable[[str], Done]:
    """Return a function that does everything with a bundle, once."""
    known: dict[str, Done] = {}

    def do(name: str) -> Done:
        if name not in known:
            folder, data = tmp_path_factory.mktemp(name), data_of(name)
            options = {"dataset_dir": str(data), "output_dir": str(folder / "run"), "pictures": 1}
            training = {"max_epochs": 2, "val_interval": 1, "learning_rate": 0.005}
            made = finished(workflow(name, ["train"], **training, **options))
            parts = [made.parser.get_parsed_content(key) for key in ("targets", "validate#evaluator")]
            finished(workflow(name, ["train", "evaluate"], **options))
            known[name] = Done(name, data, folder / "run", folder / "results", *parts)
            segment(workflow, name, data / "imagesTs", folder / "results", known[name].weights)
        return known[name]

    return do


def segment(workflow, name, source, folder, weights, **options):
    settings = {"input": str(source), "output_dir": str(folder), "checkpoint": str(weights), **options}
    finished(workflow(name, ["inference"], **settings))
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*_seg.nii.gz"))}


every_bundle = pytest.mark.parametrize(
    "name",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("btcv_seg", "amos_seg", "brats_seg")), "msd_seg"],
)


@every_bundle
def test_training_leaves_weights_state_and_a_log(done, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    it = done(name)
    state = torch.load(it.run / "checkpoint_last.pt", weights_only=True)
    best = torch.load(it.run / "model_best.pt", weights_only=True)
    assert state["epoch"] == 2 and best.keys() == state["model"].keys()
    log = EventAccumulator(str(it.run / "tensorboard"))
    log.Reload()
    assert "validation" in log.Tags()["images"]
    # the metric that chooses the best network is the one that is computed and logged
    metric = it.validator.state.key_metric_name
    assert metric == "val_mean_dice" and metric in it.validator.state.metrics
    assert {"train_loss", metric} <= set(log.Tags()["scalars"])
    values = [event.value for event in log.Scalars(metric)]
    assert len(values) == 2 and max(values) == pytest.approx(state["best_metric"], abs=1e-6)
    assert state["best_epoch"] == 1 + values.index(max(values))


@every_bundle
def test_evaluation_measures_every_structure_of_every_case(done, name):
    it = done(name)
    rows = table(it.run / "eval" / "metrics.csv")
    cases = sorted({row["case"] for row in rows})
    known = {path.name.removesuffix(".nii.gz") for path in (it.data / "labelsTr").iterdir()}
    assert cases and set(cases) <= known
    assert [(row["case"], row["name"]) for row in rows] == [(c, s) for c in cases for s in it.targets.structures]
    assert all(row["dice"] == "nan" or 0 <= float(row["dice"]) <= 1 for row in rows)
    summary = (it.run / "eval" / "summary.md").read_text()
    assert all(f"| {structure} |" in summary for structure in it.targets.structures)
    assert len(list((it.run / "eval").glob("*_overlay.png"))) == 1, "as many as --pictures says"


@every_bundle
def test_a_result_lies_on_its_scans_grid_and_holds_the_tasks_labels(done, name):
    it = done(name)
    scans = sorted((it.data / "imagesTs").iterdir())
    names = [scan.name.removesuffix(".nii.gz") for scan in scans]
    made = {path.name for path in it.results.iterdir() if path.name[0] != "."}
    assert made == {
        "volumes.csv",
        "report.json",
        "report.html",
        *(f"{n}_{end}" for n in names for end in ("seg.nii.gz", "preview.png")),
    }
    found = set()
    for scan, case in zip(map(nib.load, scans), names, strict=True):
        result = nib.load(it.results / f"{case}_seg.nii.gz")
        assert result.shape == scan.shape[:3] and result.get_data_dtype() == np.uint8
        np.testing.assert_allclose(result.affine, scan.affine, atol=1e-5)
        found |= set(np.unique(np.asarray(result.dataobj)).tolist())
    assert found <= {0, *it.targets.labels} and len(found) > 1


@every_bundle
def test_volumes_are_voxels_of_a_structure_times_their_size(done, name):
    it = done(name)
    rows = table(it.results / "volumes.csv")
    assert [row["scan"] for row in rows] == sorted(
        p.name.removesuffix(".nii.gz") for p in (it.data / "imagesTs").iterdir()
    )
    for row in rows:
        result = nib.load(it.results / f"{row['scan']}_seg.nii.gz")
        ml = np.prod(result.header.get_zooms()) / 1000
        label = np.asarray(result.dataobj)
        columns = [f"{structure} (ml)" for structure in it.targets.structures]
        intensities = [f"{structure} {what}" for structure in it.targets.structures for what in ("mean", "s.d.")]
        assert list(row) == ["scan", *columns, *intensities, "warnings", "weights", "made from"] and not row["weights"]
        for structure, values in it.targets.structures.items():
            volume = np.isin(label, values).sum() * ml
            assert float(row[f"{structure} (ml)"]) == pytest.approx(volume, rel=1e-5, abs=6e-4), structure


def test_a_folder_filled_in_two_runs_has_one_table(workflow, done, tmp_path):
    it = done("msd_seg")
    scans = sorted((it.data / "imagesTs").iterdir())
    for scan in reversed(scans):
        segment(workflow, "msd_seg", scan, tmp_path, it.weights, previews=False)
    assert (tmp_path / "volumes.csv").read_text() == (it.results / "volumes.csv").read_text()


# --- BraTS: four channels, regions ----------------------------------------------------------------


@pytest.fixture(scope="module")
def brats_scan(done) -> Path:
    return sorted((done("brats_seg").data / "imagesTs").iterdir())[0]


def split_channels(scan: Path, folder: Path, case: str) -> Path:
    image = nib.load(scan)
    folder.mkdir(parents=True, exist_ok=True)
    for channel, modality in enumerate(MODALITIES):
        part = nib.Nifti1Image(np.asarray(image.dataobj)[..., channel], image.affine)
        nib.save(part, folder / f"{case}_{modality}.nii.gz")
    return folder


@pytest.mark.slow
def test_four_files_give_the_label_map_of_one_with_four_channels(workflow, done, brats_scan, tmp_path):
    it = done("brats_seg")
    source = split_channels(brats_scan, tmp_path / "scans", "BraTS2021_00000")
    made = segment(workflow, "brats_seg", source, tmp_path / "out", it.weights)
    assert list(made) == ["BraTS2021_00000_seg.nii.gz"]
    reference = nib.load(it.results / brats_scan.name.replace(".nii.gz", "_seg.nii.gz"))
    assert np.array_equal(made["BraTS2021_00000_seg.nii.gz"], np.asarray(reference.dataobj))
    assert (tmp_path / "out" / "BraTS2021_00000_preview.png").is_file()


@pytest.mark.slow
def test_channel_order_says_how_channels_are_stored(workflow, done, brats_scan, tmp_path):
    it = done("brats_seg")
    image, stored = nib.load(brats_scan), ["t2", "t1", "flair", "t1ce"]
    array = np.asarray(image.dataobj)[..., [MODALITIES.index(name) for name in stored]]
    nib.save(nib.Nifti1Image(array, image.affine), tmp_path / "scan.nii.gz")
    reference = np.asarray(nib.load(it.results / brats_scan.name.replace(".nii.gz", "_seg.nii.gz")).dataobj)
    options = {"source": tmp_path / "scan.nii.gz", "weights": it.weights, "previews": False}
    told = segment(workflow, "brats_seg", folder=tmp_path / "told", channel_order=stored, **options)
    untold = segment(workflow, "brats_seg", folder=tmp_path / "untold", **options)
    assert np.array_equal(told["scan_seg.nii.gz"], reference)
    assert not np.array_equal(untold["scan_seg.nii.gz"], reference)


@pytest.mark.slow
def test_case_folders_are_evaluated_as_4d_files_are(workflow, done, tmp_path):
    it = done("brats_seg")
    names = {}
    for number, scan in enumerate(sorted((it.data / "imagesTr").iterdir())):
        names[scan.name.removesuffix(".nii.gz")] = case = f"BraTS2021_0000{number}"
        folder = split_channels(scan, tmp_path / "data" / case, case)
        shutil.copy(it.data / "labelsTr" / scan.name, folder / f"{case}_seg.nii.gz")
    measured = {}
    for kind, data, cases in (("4-D", it.data, [*names]), ("folders", tmp_path / "data", [*names.values()])):
        fold_file = tmp_path / f"{kind}.json"
        fold_file.write_text(json.dumps({"folds": [cases[:2], cases[2:]]}))
        options = {"dataset_dir": str(data), "output_dir": str(tmp_path / kind), "checkpoint": it.weights}
        finished(workflow("brats_seg", ["train", "evaluate"], fold_file=str(fold_file), pictures=1, **options))
        measured[kind] = table(tmp_path / kind / "eval" / "metrics.csv")
    assert [row["case"] for row in measured["folders"]] == [names[row["case"]] for row in measured["4-D"]]
    assert [{**row, "case": ""} for row in measured["folders"]] == [{**row, "case": ""} for row in measured["4-D"]]
    assert (tmp_path / "folders" / "eval" / "BraTS2021_00000_overlay.png").is_file()


@pytest.mark.slow
def test_another_value_of_the_enhancing_label(workflow, data_of, tmp_path):
    data = Path(shutil.copytree(data_of("brats_seg"), tmp_path / "data"))
    for path in (data / "labelsTr").iterdir():
        image = nib.load(path)
        label = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.where(label == 4, 3, label).astype(np.uint8), image.affine), path)
    options = {"dataset_dir": str(data), "output_dir": str(tmp_path / "run"), "max_epochs": 1, "val_interval": 1}
    with refused("values 3 must be among [0, 1, 2, 4]"):
        finished(workflow("brats_seg", **options))
    with refused("'enhancing tumour' is 4 there and 3 in this task"):
        finished(workflow("brats_seg", enhancing_label=3, **options))
    content = json.loads((data / "dataset.json").read_text())
    content["labels"]["3"] = content["labels"].pop("4")
    (data / "dataset.json").write_text(json.dumps(content))
    made = finished(workflow("brats_seg", enhancing_label=3, **options))
    targets = made.parser.get_parsed_content("targets")
    assert targets.regions == {name: tuple(3 if v == 4 else v for v in values) for name, values in REGIONS.items()}
    weights = tmp_path / "run" / "model_best.pt"
    options = {"enhancing_label": 3, "previews": False}
    found = segment(workflow, "brats_seg", data / "imagesTs", tmp_path / "out", weights, **options)
    values = set(np.unique(np.stack(list(found.values()))).tolist())
    assert values <= {0, 1, 2, 3}


# --- weights from painted crops -------------------------------------------------------------------


@pytest.mark.slow
def test_the_starter_recipe_trains_on_painted_crops_alone(workflow, data_of, tmp_path):
    data = data_of("btcv_seg")
    label = sorted((data / "labelsTr").iterdir())[0]
    options = {
        **{"anatomy": [{"path": str(label), "names": "btcv"}], "crops_per_epoch": 2, "max_epochs": 1},
        **{"val_interval": 1, "dataset_dir": str(data), "output_dir": str(tmp_path)},
    }
    made = finished(workflow("btcv_seg", ["train", "starter"], **options))
    assert isinstance(made.parser.get_parsed_content("train#dataset"), PaintedCrops)
    assert (tmp_path / "model_best.pt").is_file()


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_mistyped_option_is_refused(command, tmp_path):
    config = BUNDLES / "msd_seg/configs/train.json"
    output = command(config, "--max_epoch", "3", "--output_dir", str(tmp_path / "run"), cwd=tmp_path, fails=True)
    assert "option --max_epoch is unknown to" in output and "did you mean --max_epochs" in output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_broken_scan_does_not_stop_the_others(command, data, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, scan in zip("abc", sorted((data / "imagesTr").iterdir()), strict=False):
        shutil.copy(scan, folder / f"{name}.nii.gz")
    (folder / "b.nii.gz").write_bytes((folder / "b.nii.gz").read_bytes()[:-2000])
    options = ("--input", str(folder), "--output_dir", str(tmp_path / "out"), "--device", "$torch.device('cpu')")
    output = command(BUNDLES / "msd_seg/configs/inference.json", *options, cwd=tmp_path, fails=True)
    last = output[output.rindex("1 of 3 scans failed") :]
    assert "b: " in last and "cannot be read as NIfTI" in last and "Traceback" not in last
    assert sorted(path.name for path in (tmp_path / "out").glob("*_seg.nii.gz")) == ["a_seg.nii.gz", "c_seg.nii.gz"]
    assert [row["scan"] for row in table(tmp_path / "out" / "volumes.csv")] == ["a", "c"]
