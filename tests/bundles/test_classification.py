"""The classification bundle trains, evaluates and decides; thresholds come from validation and travel with weights."""

import json
import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import BUNDLES, finished, message_of, table
from ignite.engine import Events
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from mambamim_nets import phantom
from mambamim_nets.bundle.metrics.classification import measures, youden

BUNDLE = BUNDLES / "brain_cls"
SMALL = ("--width", "4", "--spacing", "[5,5,5]", "--input_size", "[34,40,34]", "--device", "$torch.device('cpu')")


class Done(NamedTuple):
    """The bundle trained and evaluated on a coarse phantom, and used on its new scans."""

    data: Path
    run: Path
    results: Path

    @property
    def weights(self) -> str:
        return str(self.run / "model_best.pt")


@pytest.fixture(scope="module")
def done(workflow, tmp_path_factory) -> Done:
    folder = tmp_path_factory.mktemp("brain_cls")
    data = phantom.write(folder / "data", "dementia", cases=24, spacing=5)
    options = {"dataset_dir": str(data), "output_dir": str(folder / "run")}
    finished(workflow("brain_cls", ["train"], max_epochs=3, **options))
    finished(workflow("brain_cls", ["train", "evaluate"], resamples=200, **options))
    classify(workflow, data / "imagesTs", folder / "results", folder / "run" / "model_best.pt")
    return Done(data, folder / "run", folder / "results")


def classify(workflow, source, folder, weights, **options):
    settings = {"input": str(source), "output_dir": str(folder), "checkpoint": str(weights), **options}
    finished(workflow("brain_cls", ["inference"], **settings))
    return {row["scan"]: float(row["probability (AD)"]) for row in table(folder / "predictions.csv")}


def test_training_leaves_weights_threshold_and_a_log(done):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    state = torch.load(done.run / "checkpoint_last.pt", weights_only=True)
    held = json.loads((done.run / "model_best.json").read_text())
    log = EventAccumulator(str(done.run / "tensorboard"))
    log.Reload()
    values = [event.value for event in log.Scalars("val_auc")]
    assert len(values) == state["epoch"] == 3 and max(values) == pytest.approx(state["best_metric"], abs=1e-6)
    assert state["best_epoch"] == held["epoch"] == 3 - values[::-1].index(max(values)), "of equally good, the last"
    assert held["classes"] == ["NC", "AD"] and held["scans"] == 2


def test_evaluation_measures_the_test_part_at_the_stored_threshold(done):
    rows = table(done.run / "eval" / "predictions.csv")
    threshold = json.loads((done.run / "model_best.json").read_text())["threshold"]
    listed = {row["subject"]: row["diagnosis"] for row in table(done.data / "subjects.csv")}
    assert len(rows) == 3 and {row["diagnosis"] for row in rows} == {"NC", "AD"}
    for row in rows:
        assert row["diagnosis"] == listed[row["subject"]]
        assert row["prediction"] == ("AD" if float(row["probability"]) >= threshold else "NC")
    probability = np.array([float(row["probability"]) for row in rows])
    label = np.array([row["diagnosis"] == "AD" for row in rows]).astype(int)
    summary = {row["measure"]: row for row in table(done.run / "eval" / "summary.csv")}
    for name, (value,) in measures(probability, label, threshold).items():
        assert float(summary[name]["value"]) == pytest.approx(value, abs=1e-6), name
    assert "| AUC |" in (done.run / "eval" / "summary.md").read_text()
    assert (done.run / "eval" / "roc.png").stat().st_size > 1000


def test_the_threshold_is_that_of_the_validation_part_and_no_evaluation_changes_it(workflow, done, tmp_path):
    before = (done.run / "model_best.json").read_bytes()
    options = {"dataset_dir": str(done.data), "output_dir": str(done.run), "resamples": 10, "amp": False}
    finished(workflow("brain_cls", ["train", "evaluate"], part="val", eval_dir=str(tmp_path), **options))
    rows = table(tmp_path / "predictions.csv")
    probability = np.array([float(row["probability"]) for row in rows])
    label = np.array([row["diagnosis"] == "AD" for row in rows]).astype(int)
    assert youden(probability, label) == pytest.approx(json.loads(before)["threshold"], abs=2e-6)
    assert (done.run / "model_best.json").read_bytes() == before
    tested = {row["subject"] for row in table(done.run / "eval" / "predictions.csv")}
    assert not tested & {row["subject"] for row in rows}


def test_new_scans_get_a_row_and_a_picture(done):
    names = sorted(path.name.removesuffix(".nii.gz") for path in (done.data / "imagesTs").iterdir())
    assert sorted(path.name for path in done.results.glob("[!.]*")) == sorted(
        ["predictions.csv", "report.html", "report.json", *(f"{name}_saliency.png" for name in names)]
    )
    threshold = json.loads((done.run / "model_best.json").read_text())["threshold"]
    rows = table(done.results / "predictions.csv")
    assert [row["scan"] for row in rows] == names
    for row in rows:
        assert float(row["threshold"]) == pytest.approx(threshold, abs=1e-6)
        assert row["decision"] == ("AD" if float(row["probability (AD)"]) >= threshold else "NC")


def test_the_way_a_scan_is_stored_does_not_matter(workflow, done, tmp_path):
    scan = sorted((done.data / "imagesTs").iterdir())[0]
    image = nib.load(scan)
    turned = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt("PSL")))
    (tmp_path / "scans").mkdir()
    nib.save(turned, tmp_path / "scans" / "turned.nii.gz")
    shutil.copy(scan, tmp_path / "scans" / "plain.nii.gz")
    options = {"previews": False, "amp": False, "threshold": 0.5}
    found = classify(workflow, tmp_path / "scans", tmp_path / "out", done.weights, **options)
    assert found["turned"] == pytest.approx(found["plain"], abs=1e-5)
    made = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    assert made == {"predictions.csv", "report.html", "report.json"}, "no pictures"
    assert {row["threshold"] for row in table(tmp_path / "out" / "predictions.csv")} == {"0.500000"}


def test_one_bad_scan_is_named_and_does_not_stop_the_others(workflow, done, tmp_path):
    scans = Path(shutil.copytree(done.data / "imagesTs", tmp_path / "scans"))
    (scans / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(SystemExit) as caught:
        classify(workflow, scans, tmp_path / "out", done.weights, previews=False)
    assert "1 of 3 scans failed" in str(caught.value) and "broken: " in str(caught.value)
    assert len(table(tmp_path / "out" / "predictions.csv")) == 2


def test_an_interrupted_run_ends_bit_exactly_where_an_uninterrupted_one_does(workflow, done, tmp_path):
    options = {"dataset_dir": str(done.data), "output_dir": str(tmp_path), "max_epochs": 3}
    made = workflow("brain_cls", **options)

    def interrupt(engine):
        if engine.state.epoch == 2:
            raise KeyboardInterrupt

    made.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED, interrupt)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    made.finalize()
    finished(workflow("brain_cls", **options))
    for name in ("model_best.pt", "checkpoint_last.pt"):
        one, two = (torch.load(folder / name, weights_only=True) for folder in (done.run, tmp_path))
        one, two = (state.get("model", state) for state in (one, two))
        assert all(torch.equal(one[key], two[key]) for key in one), name
    assert (tmp_path / "model_best.json").read_bytes() == (done.run / "model_best.json").read_bytes()


def test_smci_pmci_starts_from_the_weights_of_nc_ad(workflow, done, tmp_path, caplog):
    options = {"dataset_dir": str(done.data), "output_dir": str(tmp_path / "run")}
    with caplog.at_level(logging.INFO, "mambamim_nets"):
        configs = ["train", "tasks/smci_pmci"]
        finished(workflow("brain_cls", configs, max_epochs=1, pretrained=done.weights, **options))
    tensors = len(torch.load(done.weights, weights_only=True))
    assert f"starting weights: the whole network, {tensors} tensors from {done.weights}" in caplog.text
    assert "left out, of no class of this task: 6 AD, 6 NC" in caplog.text
    assert json.loads((tmp_path / "run" / "model_best.json").read_text())["classes"] == ["sMCI", "pMCI"]
    refused = {
        "belong to something else: task is 'nc_ad' in the file": {"checkpoint": done.weights, "threshold": 0.5},
        r"is for the classes ['NC', 'AD'], the task has ['sMCI', 'pMCI']": {"checkpoint": done.weights},
        "ships no weights for this task; train first": {},
    }
    for message, given in refused.items():
        settings = {"input": str(done.data / "imagesTs"), "output_dir": str(tmp_path / "out")}
        assert message in message_of(workflow, "brain_cls", ["inference", "tasks/smci_pmci"], **settings, **given)
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(workflow, done, tmp_path):
    alone = shutil.copy(done.weights, tmp_path / "alone.pt")
    train, infer = {"dataset_dir": str(done.data)}, {"input": str(done.data / "imagesTs")}
    refused = [
        (["train"], {**train, "task": "ad_ftd"}, "task 'ad_ftd' is unknown, and this configuration is"),
        (["train"], {**train, "seq_head": "lstm"}, "option --seq_head 'lstm' must be one of none, mamba"),
        (
            ["train"],
            {**train, "pretrained": done.weights, "size": "base"},
            "mlp_width is 32 in the file and 4 in this run",
        ),
        (["train"], {**train, "fold": 7}, "fold 7 must be 0..4"),
        (["inference"], {**infer, "checkpoint": str(alone)}, "alone.json, the decision threshold of"),
        (
            ["inference"],
            {**infer, "checkpoint": str(alone), "threshold": 1.5},
            "option --threshold 1.5 must be a number from 0 to 1",
        ),
        (
            ["inference"],
            {**infer, "checkpoint": str(alone), "threshold": 0.5, "seq_head": "mamba"},
            "seq_head is 'none' in the file and 'mamba' in this run",
        ),
    ]
    for configs, options, message in refused:
        assert message in message_of(workflow, "brain_cls", configs, output_dir=str(tmp_path / "out"), **options)
    assert not list((tmp_path / "out").glob("*.pt")) and not (tmp_path / "out" / "predictions.csv").exists()


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one_does(done, two_processes, tmp_path):
    def configs(*names):
        return [str(BUNDLE / "configs" / f"{name}.json") for name in names]

    small = {"width": 4, "spacing": [5.0, 5.0, 5.0], "input_size": [34, 40, 34], "dataset_dir": str(done.data)}
    evaluate = {**small, "output_dir": str(done.run), "eval_dir": str(tmp_path / "eval"), "resamples": 200}
    runs = [
        {"config_file": configs("train", "multi_gpu_train"), **small, "max_epochs": 1, "output_dir": str(tmp_path)},
        {"config_file": configs("train", "evaluate", "multi_gpu_evaluate"), **evaluate},
    ]
    output = two_processes(*runs, cwd=tmp_path)
    assert output.count("classification evaluation") == 1, "every process announces the run"
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    assert state["epoch"] == 1 and not any(key.startswith("module.") for key in state["model"])
    assert json.loads((tmp_path / "model_best.json").read_text())["scans"] == 2, "of both processes"
    one, two = (table(folder / "predictions.csv") for folder in (done.run / "eval", tmp_path / "eval"))
    assert [row["subject"] for row in one] == [row["subject"] for row in two]
    for first, second in zip(one, two, strict=True):
        assert float(first["probability"]) == pytest.approx(float(second["probability"]), abs=2e-6)
        assert first["prediction"] == second["prediction"]
    assert (tmp_path / "eval" / "summary.csv").read_text() == (done.run / "eval" / "summary.csv").read_text()


@pytest.mark.slow
def test_the_bundle_alone_in_another_folder(bundle, command, done, tmp_path):
    root = bundle("brain_cls")
    options = ("--dataset_dir", str(done.data), "--max_epochs", "1", *SMALL)
    output = command("configs/train.json", *options, cwd=root)
    assert "classification training" in output and "training from scratch" in output
    run = root / "runs" / "nc_ad_tiny_fold0"
    assert {"checkpoint_last.pt", "model_best.pt", "model_best.json"} <= {path.name for path in run.iterdir()}
    scan = sorted((done.data / "imagesTs").iterdir())[0]
    options = ("--input", str(scan), "--output_dir", "out", "--checkpoint", str(run / "model_best.pt"), *SMALL)
    output = command(root / "configs/inference.json", *options, cwd=tmp_path)
    assert "1 of 1 scans done" in output and "architecture nnmamba_classifier, task nc_ad" in output
    assert len(list((tmp_path / "out").glob("[!.]*"))) == 4 and [path.name for path in tmp_path.iterdir()] == ["out"]
