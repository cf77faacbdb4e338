"""The start of a run: names, folders and weights are checked before any work; and its stop, which says how to go on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import BUNDLES, environment
from monai.networks.nets import SegResNet
from small import SMALL

from mambamim_nets import HyMamba, HyMambaSeg, NNMambaSeg
from mambamim_nets.checkpoint import load_weights, stamped

NAMES = {
    # fault: (bundle, configurations, options, part of the sentence)
    "a misspelled option": ("msd_seg", "train", {"max_epoch": 3}, "option --max_epoch is unknown to"),
    "a misspelled argument of the network": (
        *("msd_seg", "train", {"network_def#sizee": "tiny"}),
        "option --network_def#sizee is no argument of mambamim_nets.HyMambaSeg; did you mean network_def#size?",
    ),
    "a misspelled argument of the loss": (
        *("btcv_seg", "train+starter", {"loss#lambda_cee": 2.0}),
        "option --loss#lambda_cee is no argument of mambamim_nets.bundle.PartialLabelLoss; did you mean loss#lambda_ce",
    ),
    "a misspelled argument of the optimiser": (
        *("msd_seg", "train", {"optimizer#lrr": 0.1}),
        "option --optimizer#lrr is no argument of torch.optim.AdamW; did you mean optimizer#lr?",
    ),
    "a misspelled argument deep inside": (
        *("msd_seg", "train", {"train#trainer#max_epochss": 3}),
        "option --train#trainer#max_epochss is no argument of SupervisedTrainer; did you mean train#trainer#max_",
    ),
    "a misspelled switch of MONAI": (
        *("msd_seg", "train", {"writer#_disable_": True}),
        "option --writer#_disable_ is no argument of torch.utils.tensorboard.SummaryWriter; did you mean",
    ),
    "a misspelled part of a table": (
        *("msd_seg", "train", {"train#dataloadr": {}}),
        "option --train#dataloadr is read by nothing; did you mean train#dataloader",
    ),
    "a misspelled augmentation": (
        *("btcv_seg", "train", {"augmentation#0#probb": 0.5}),
        "option --augmentation#0#probb is no argument of RandFlipd; did you mean augmentation#0#prob?",
    ),
    "a misspelled key of the synthetic data": (
        *("btcv_seg", "train", {"phantom#case": 3}),
        "option --phantom#case is read by nothing; did you mean phantom#cases?",
    ),
    "another network with a misspelled argument": (
        *("msd_seg", "train", {"network_def": {"_target_": "SegResNet", "init_filterss": 8}}),
        "network_def#init_filterss is no argument of SegResNet; did you mean network_def#init_filters?",
    ),
    "a network that does not exist": (
        *("msd_seg", "train", {"network_def": {"_target_": "SegResNett"}}),
        "network_def#_target_ 'SegResNett' is not a class or function that can be imported",
    ),
    "a reference to nothing": (
        *("msd_seg", "train", {"overlap": "@x"}),
        "option --overlap '@x' refers to 'x', which no configuration has",
    ),
    "a reference to nothing inside": (
        *("msd_seg", "train", {"optimizer#lr": "@learning_rat"}),
        "option --optimizer#lr '@learning_rat' refers to 'learning_rat', which no configuration has",
    ),
    "a path with a #": (
        *("msd_seg", "inference", {"input": "/data/a#b"}),
        "option --input '/data/a#b' must be without '#', which MONAI reads as a step into a configuration",
    ),
    "an option that another file switches off": (
        *("pretrain", "train+methods/mae", {"fill": "toki"}),
        "option --fill has no effect with",
    ),
}


@pytest.mark.parametrize("fault", NAMES)
def test_what_nothing_would_read_ends_the_run(bundle_run, reliability, tmp_path, fault):
    bundle, configs, options, sentence = NAMES[fault]
    outcome = bundle_run(bundle, configs.split("+"), **options)
    assert sentence in outcome.last
    assert not (tmp_path / "out").exists()
    reliability("Configuration", fault, outcome)


def test_a_misspelled_key_of_another_file_ends_the_run(bundle_run, reliability, bundle):
    folder = bundle("msd_seg")
    (folder / "configs" / "mine.json").write_text(json.dumps({"train#dataloadr": {}}))
    outcome = bundle_run(folder, ["train", "mine"])
    assert outcome.last.startswith(f"{folder}/configs/mine.json: train#dataloadr is read by nothing; did you mean")
    reliability("Configuration", "a misspelled key in a file of one's own", outcome)


@pytest.mark.parametrize("option", ["nothing#x", "train#traner#max_epochs"])
def test_a_path_into_nothing_ends_the_run_in_words_of_monai(bundle_run, option):
    """MONAI merges options before a configuration can say anything, so this one end is a traceback of its own."""
    outcome = bundle_run("msd_seg", "train", **{option: 1})
    assert outcome.status == 1
    assert "query key" in outcome.last


def test_new_keys_are_taken_where_something_reads_them(workflow, tmp_path):
    options = {"network_def#mamba_depth": 1, "train#key_metric#other": "$1", "optimizer#_desc_": "mine"}
    made = workflow("pretrain", dataset_dir="phantom", output_dir=str(tmp_path), **{"encoder_def#mamba_depth": 1})
    assert made.parser["encoder_def"]["mamba_depth"] == 1
    made = workflow("msd_seg", output_dir=str(tmp_path), **options)
    assert made.parser["train"]["key_metric"]["other"] == "$1"


# --- folders ---------------------------------------------------------------------------------------


def test_a_folder_of_results_that_cannot_be_is_refused_before_the_work(bundle_run, reliability, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for fault, configs, options in [
        ("a file in the place of the folder of results", "train", {"output_dir": str(file)}),
        ("a folder of results below a file", "inference", {"output_dir": str(file / "results")}),
        ("a file in the place of the folder of an evaluation", "train+evaluate", {"eval_dir": str(file)}),
    ]:
        weights = {"checkpoint": str(BUNDLES / "msd_seg/models/model.pt")} if configs != "train" else {}
        outcome = bundle_run("msd_seg", configs.split("+"), **weights, **options)
        assert f"must be a folder, and {file} is a file; give another --" in outcome.last
        reliability("Options", fault, outcome)
    assert file.read_text() == "mine"


def test_a_home_folder_is_found_in_every_path(bundle_run, data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "data").symlink_to(data)
    outcome = bundle_run("msd_seg", "train", output_dir="~/mine", dataset_dir="~/data", fold=99)
    assert outcome.last.startswith("fold 99 must be 0..4")  # so the data set was read
    assert f"{tmp_path}/user/mine" in outcome.log
    assert (tmp_path / "user" / "mine" / "data_check.json").is_file()
    assert not Path("~").exists()


# --- weights ---------------------------------------------------------------------------------------


def saved(path, network, record=None):
    torch.save(stamped(network.state_dict(), record), path)
    return path


def test_weights_of_pretraining_as_a_checkpoint_are_told_what_they_are(bundle_run, reliability, data, tmp_path):
    facts = {"encoder": "HyMamba", "size": "tiny", "scan": "raster", "method": "mambamim"}
    for fault, record, sentence in [
        ("an encoder of pre-training as the weights", facts, "weights {} are those of a pre-trained encoder ("),
        (
            "an encoder without a record as the weights",
            None,
            "weights {} do not fit HyMambaSeg: the file holds an encoder",
        ),
    ]:
        encoder = saved(tmp_path / "encoder.pt", HyMamba(1, size="tiny"), record)
        outcome = bundle_run("msd_seg", "inference", input=str(data / "imagesTs"), checkpoint=str(encoder))
        assert outcome.last.startswith(sentence.format(encoder))
        assert f"train with --pretrained {encoder}, and use the model_best.pt of that run" in outcome.last
        assert not list((tmp_path / "out").glob("*.nii.gz"))
        reliability("Weights", fault, outcome)


def test_weights_of_another_network_are_told_so(reliability, tmp_path):
    cases = {
        "weights of another network": (SegResNet(init_filters=8, in_channels=1, out_channels=3), "another network"),
        "weights of another network of ours": (NNMambaSeg(1, 3, width=8), "another network"),
        "weights for another number of channels": (HyMambaSeg(4, 3, size="tiny"), "number of image channels differs"),
        "weights for another number of classes": (HyMambaSeg(1, 14, size="tiny"), "number of classes differs"),
    }
    for number, (fault, (network, sentence)) in enumerate(cases.items()):
        path = saved(tmp_path / f"{number}.pt", network)
        with pytest.raises(ValueError, match=sentence) as caught:
            load_weights(HyMambaSeg(1, 3, size="tiny"), path)
        assert ("differs" in str(caught.value)) == ("differs" in sentence)
        reliability("Weights", fault, caught.value)


def test_a_record_may_be_null_as_documented(bundle_run, data, network_file, tmp_path):
    options = {"input": str(data / "imagesTs"), "checkpoint": str(network_file), "previews": False, "record": "null"}
    outcome = bundle_run("msd_seg", "inference", **options)
    assert outcome.status == 0, outcome.log[-2000:]
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == 2


# --- signals ---------------------------------------------------------------------------------------


def started(bundle, config, **options):
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(BUNDLES / bundle / "configs" / config)]
    line += [part for key, value in options.items() for part in (f"--{key}", str(value))]
    return subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def stopped(process, number, when, limit=120):
    """Send a signal once a file is there, and return the exit status and the lines."""
    end = time.monotonic() + limit
    while not when() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=limit)
    return process.returncode, output


@pytest.mark.slow
def test_a_training_that_is_stopped_says_how_to_go_on(data, tmp_path):
    out = tmp_path / "out"
    small = {key: value for key, value in SMALL["msd_seg"].items() if key != "device"}
    options = {"dataset_dir": data, "output_dir": out, "max_epochs": 500, "val_interval": 500, **small}
    process = started("msd_seg", "train.json", **options)
    status, output = stopped(process, signal.SIGTERM, (out / "checkpoint_last.pt").is_file)
    assert status == 143, output[-2000:]
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert last.startswith(
        f"SIGTERM stopped the training; {out}/checkpoint_last.pt holds it up to its last whole epoch"
    )
    held = torch.load(out / "checkpoint_last.pt", weights_only=True)
    assert held["epoch"] >= 1


@pytest.mark.slow
def test_an_inference_that_is_interrupted_says_how_to_go_on(data, network_file, tmp_path):
    out = tmp_path / "out"
    process = started(
        *("msd_seg", "inference.json"), input=data / "imagesTs", checkpoint=network_file, output_dir=out, overlap=0.95
    )
    status, output = stopped(process, signal.SIGINT, out.is_dir)
    assert status == 130, output[-2000:]
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert last == f"SIGINT stopped the run; the scans that are done are in {out}: run the same command again"
