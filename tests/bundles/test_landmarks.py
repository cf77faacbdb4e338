"""fetal_landmarks: training, evaluation and new scans; the same from one process and two; orientation; bad scans."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import BUNDLES, finished, message_of, table
from monai.bundle import ConfigParser

from mambamim_nets import NNMambaSeg, phantom
from mambamim_nets.bundle.io.landmarks import read_markups, read_table
from mambamim_nets.bundle.transforms.landmarks import heatmaps

NAME = "fetal_landmarks"
POINTS = ["TCD_start", "TCD_end", "HDV_start", "HDV_end", "ADV_start", "ADV_end"]
CLI = ("--spacing", "[4,4,4]", "--roi_size", "[32,32,32]", "--sigma", "1.5", "--device", "$torch.device('cpu')")


def matrix(path, column="error_mm"):
    return {(row["case"], row["name"]): float(row[column]) for row in table(path)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "network.pt"
    torch.save(NNMambaSeg(1, 6, width=8).state_dict(), path)
    return path


@pytest.mark.slow
def test_the_copied_bundle_trains_evaluates_and_finds_points(bundle, command, data_of, tmp_path):
    alone, heads = bundle(NAME), data_of(NAME)
    options = ("--dataset_dir", str(heads), "--width", "8", *CLI)
    output = command("configs/train.json", *options, "--max_epochs", "1", cwd=alone)
    assert "landmark training" in output and "training from scratch" in output
    run = alone / "runs" / "Fetal_biometry_nnmamba_tiny_fold0"
    state = torch.load(run / "checkpoint_last.pt", weights_only=True)
    assert state["best_epoch"] == 1 and state["best_metric"] > 0
    configs = [alone / "configs/train.json", alone / "configs/evaluate.json"]
    output = command(configs, *options, cwd=tmp_path)
    assert f"tensors from {run / 'model_best.pt'}" in output
    errors = matrix(run / "eval" / "metrics.csv")
    assert len(errors) == 6 and np.mean(list(errors.values())) == pytest.approx(state["best_metric"], rel=0.05)
    for name in ("sdr.png", "sdr.csv", "lengths.csv", "summary.csv", "summary.md", "landmarks.csv"):
        assert (run / "eval" / name).stat().st_size > 50, name
    assert len(list((run / "eval").glob("*_overlay.png"))) == 1

    (tmp_path / "scans").mkdir()
    scan = sorted((heads / "imagesTs").iterdir())[0]
    (tmp_path / "scans" / "a.nii.gz").write_bytes(scan.read_bytes())
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(scan.read_bytes()[:-3000])
    options = ("--input", "scans", "--output_dir", "out", "--checkpoint", str(run / "model_best.pt"), "--width", "8")
    output = command(alone / "configs/inference.json", *options, *CLI, cwd=tmp_path, fails=True)
    assert "broken" in output and "1 of 2 scans failed" in output
    made = {path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."}
    of_the_run = {"biometry.csv", "report.html", "report.json"}
    assert made == {"a_landmarks.csv", "a_landmarks.mrk.json", "a_preview.png", *of_the_run}
    (row,) = table(tmp_path / "out" / "biometry.csv")
    columns = ["scan", "TCD (mm)", "HDV (mm)", "ADV (mm)", "confidence", "check", "warnings", "weights", "made from"]
    assert list(row) == columns and row["scan"] == "a"
    points = read_table(tmp_path / "out" / "a_landmarks.csv")["a"]
    assert list(points) == POINTS
    tcd = np.linalg.norm(points["TCD_start"] - points["TCD_end"])
    assert float(row["TCD (mm)"]) == pytest.approx(tcd, abs=0.01)
    for name, place in read_markups(tmp_path / "out" / "a_landmarks.mrk.json").items():
        np.testing.assert_allclose(place, points[name], atol=1e-3)


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(workflow, data_of, small, two_processes, weights, tmp_path):
    options = {"dataset_dir": str(data_of(NAME)), "checkpoint": str(weights), "part": "train", "pictures": 1}
    options |= {"output_dir": str(tmp_path / "run"), "amp": False}
    alone = workflow(NAME, ["train", "evaluate"], eval_dir=str(tmp_path / "one"), **options)
    finished(alone)
    configs = [str(BUNDLES / NAME / "configs" / f"{c}.json") for c in ("train", "evaluate", "multi_gpu_evaluate")]
    settings = {key: value for key, value in small[NAME].items() if key != "device"}
    run = {"config_file": configs, "eval_dir": str(tmp_path / "two"), **settings, **options}
    output = two_processes(run, cwd=tmp_path)
    assert output.count("landmark evaluation") == 1
    one, two = (matrix(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert len(one) == 4 * 6 and one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == pytest.approx(value, abs=1e-3), key
    assert len(list((tmp_path / "two").glob("*_overlay.png"))) == 1


def oblique(affine):
    turned = affine.copy()
    cos, sin = np.cos(0.35), np.sin(0.35)
    turned[:3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ affine[:3]
    return turned


def test_how_a_scan_is_stored_changes_no_point(workflow, tmp_path):
    """Axes in another order or turned over: the same points. A header that turns the head turns the points with it.

    By the shipped weights: maps of random ones have no summit that rounding could not move.
    """
    subject = phantom.make("fetal", 5, spacing=(1.6, 1.8, 2.0))
    image = nib.Nifti1Image(subject.image, subject.affine)
    for codes in ("RAS", "LPS", "PIR"):
        wanted = nib.orientations.axcodes2ornt(codes)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted)
        nib.save(image.as_reoriented(turn), tmp_path / f"{codes}.nii.gz")
    nib.save(nib.Nifti1Image(subject.image, oblique(subject.affine)), tmp_path / "turned.nii.gz")
    options = {"input": str(tmp_path), "output_dir": str(tmp_path / "out"), "amp": False, "previews": False}
    options["force"] = True  # voxels are coarser than those of training
    made = workflow(NAME, ["inference"], **options, spacing=[2.5] * 3, roi_size=[48] * 3, sigma=2.0, width=16)
    finished(made)
    found = {
        name: np.array(list(read_table(tmp_path / "out" / f"{name}_landmarks.csv")[name].values()))
        for name in ("RAS", "LPS", "PIR", "turned")
    }
    truth = np.array(list(phantom.landmarks("fetal", 5).values()))
    assert np.linalg.norm(found["RAS"] - truth, axis=1).mean() < 3
    np.testing.assert_allclose(found["LPS"], found["RAS"], atol=0.05)
    np.testing.assert_allclose(found["PIR"], found["RAS"], atol=0.05)
    turn = oblique(subject.affine) @ np.linalg.inv(subject.affine)
    np.testing.assert_allclose(found["turned"], nib.affines.apply_affine(turn, found["RAS"]), atol=0.5)


def test_points_survive_the_preprocessing_of_training(data_of, tmp_path):
    """Read, turned to RAS, resampled, cropped, padded, augmented: the decoded targets are the points of the file."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / NAME / "configs" / "train.json"))
    parser.update({"bundle_root": str(BUNDLES / NAME), "dataset_dir": str(data_of(NAME)), "spacing": [2.0, 2.0, 2.0]})
    parser.update({"output_dir": str(tmp_path), "roi_size": [64, 64, 64], "swaps": []})
    flips = [{"_target_": "RandFlipd", "keys": "image", "prob": 0.2, "spatial_axis": axis} for axis in (0, 1)]
    parser["augmentation"] = [*flips, {**parser["augmentation"][1], "prob": 1.0}, *parser["augmentation"][2:]]
    parser["train#augmentation#transforms"].pop()  # keep the affine to look at it
    (first, *_) = parser.get_parsed_content("cases")
    keys = ("train#preprocessing", "train#augmentation", "validate#postprocessing")
    read, augment, decode = (parser.get_parsed_content(key) for key in keys)
    augment.set_random_state(3)
    for _ in range(3):
        item = augment(read(dict(first)))
        item["pred"] = heatmaps(item["label"], item["image"].shape[1:], parser.get_parsed_content("sigma"), 50.0)
        assert item["image"].shape == (1, 64, 64, 64)
        assert float(decode(item)["error"].max()) < 0.2, "a tenth of a voxel"


@pytest.mark.slow
def test_a_cache_on_disk_trains_and_validates_as_one_in_memory_does(workflow, data_of, tmp_path):
    states = []
    for cache, configs in (("memory", ["train"]), ("disk", ["train", "disk_cache"])):
        options = {"dataset_dir": str(data_of(NAME)), "output_dir": str(tmp_path / cache)}
        made = workflow(NAME, configs, max_epochs=2, val_interval=1, **options)
        finished(made)
        states.append(torch.load(tmp_path / cache / "checkpoint_last.pt", weights_only=True))
    assert len(list((tmp_path / "disk" / "cache").glob("*.pt"))) == 5
    assert states[0]["best_metric"] == states[1]["best_metric"] > 0
    for key, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][key]), key


@pytest.mark.slow
def test_the_shipped_weights_find_the_points_of_a_new_phantom(command, tmp_path):
    """Synthetic, and made as the training data were: this shows that weights and chain belong together."""
    heads = phantom.write(tmp_path / "heads", "fetal", cases=1, seed=7)
    options = ("--input", str(heads / "imagesTr"), "--output_dir", str(tmp_path / "out"))
    output = command(BUNDLES / NAME / "configs/inference.json", *options, cwd=tmp_path)
    assert "synthetic" in output and "research" in output, "every run with these weights says what they are"
    found = read_table(tmp_path / "out" / "phantom_000_landmarks.csv")["phantom_000"]
    truth = read_table(heads / "landmarks.csv")["phantom_000"]
    errors = [np.linalg.norm(found[name] - truth[name]) for name in POINTS]
    assert np.mean(errors) < 3 and max(errors) < 6
    (row,) = table(tmp_path / "out" / "biometry.csv")
    assert float(row["confidence"]) > 0.3 and row["check"] == ""


def test_metadata_list_the_points_as_channels():
    metadata = json.loads((BUNDLES / NAME / "configs" / "metadata.json").read_text())
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert list(channels.values()) == POINTS


@pytest.mark.parametrize("change", ["frame", "missing"])
def test_bad_points_end_training_before_it_starts(workflow, data_of, tmp_path, change):
    folder = shutil.copytree(data_of(NAME), tmp_path / "data")
    file = folder / "landmarks.csv"
    text = file.read_text()
    file.write_text(text.replace(",RAS", "") if change == "frame" else text.replace("ADV_end", "TCD_end", 1))
    wanted = "the frame, which is missing, must be RAS or LPS" if change == "frame" else "point 'TCD_end' twice"
    options = {"dataset_dir": str(folder), "output_dir": str(tmp_path / "run"), "max_epochs": 1}
    message = message_of(workflow, NAME, **options)
    assert wanted in message
    assert str(file) in message
    assert not list((tmp_path / "run").glob("*.pt"))
