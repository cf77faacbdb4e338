"""Options: every one has a type, a range or choices, and a value that breaks them ends the run before any work."""

import json
import math

import pytest
import torch
from helpers import BUNDLES, existing
from monai.bundle import ConfigParser

from mambamim_nets.bundle.options import OPTIONS, check_options, rounded_up

SEGMENTATION = [folder.name for folder in existing(BUNDLES.glob("*_seg"))]
NO_CONFIG = {"metadata.json", "folds.json"}
# what configurations compute, build or run
NOT_AN_OPTION = {
    *("anatomy", "augmentation", "cases", "datalist", "filters", "finalize", "handlers", "imports"),
    *("initial_network", "initialize", "loss", "loss_function", "network", "run"),
}


def configurations():
    return existing(file for file in BUNDLES.glob("*/configs/**/*.json") if file.name not in NO_CONFIG)


def top_level():
    """Yield file, key and value of every key at the top of a configuration."""
    for file in configurations():
        for key, value in json.loads(file.read_text()).items():
            if "#" not in key:
                yield file, key, value


def test_every_scalar_at_the_top_of_a_configuration_has_an_entry():
    for file, key, value in top_level():
        if not isinstance(value, dict) and key not in NOT_AN_OPTION:
            assert key in OPTIONS, f"{file}: {key} {value!r} has no entry in OPTIONS"


def test_no_entry_is_unused():
    assert not {*OPTIONS, *NOT_AN_OPTION} - {key for _, key, _ in top_level()}


NUMBERS = [name for name, entry in OPTIONS.items() if " number" in entry.rule and "list" not in entry.rule]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "many", [1], {"a": 1}], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_may_be_anything_else(name, value):
    with pytest.raises((ValueError, TypeError)):
        OPTIONS[name].convert(value)


@pytest.mark.parametrize("name", [name for name, entry in OPTIONS.items() if entry.rule == "true or false"])
def test_a_switch_is_true_or_false(name):
    assert OPTIONS[name].convert("true") is True
    assert OPTIONS[name].convert("False") is False
    for value in (1, 0, "yes", "", [True]):
        with pytest.raises(ValueError):  # noqa: PT011, it has no words: the rule is stated by the caller
            OPTIONS[name].convert(value)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_rule_says_what_to_give(name):
    entry = OPTIONS[name]
    assert entry.about and entry.rule
    if ", e.g. " in entry.rule:
        example = entry.rule.split(", e.g. ")[1].split(", or")[0].strip("\"'")
        example = example if example in ("BTCV", "cpu", "RAS") else json.loads(example.replace("'", '"'))
        entry.convert(example)


CASES = {
    # fault: (bundle, configurations, options, part of the sentence)
    "overlap that is no number": ("msd_seg", "train", {"overlap": "abc"}, "--overlap 'abc' must be a number from 0 to"),
    "overlap of 1": ("msd_seg", "inference", {"overlap": 1.0}, "--overlap 1.0 must be a number from 0 to below 1"),
    "overlap that is not finite": ("btcv_seg", "train", {"overlap": math.nan}, "--overlap nan must be"),
    "a batch of 0": ("msd_seg", "train", {"batch_size": 0}, "--batch_size 0 must be a whole number of at least 1"),
    "half a scan in a batch": ("pretrain", "train", {"batch_size": 1.5}, "--batch_size 1.5 must be a whole number"),
    "fewer than no workers": ("msd_seg", "train", {"num_workers": -1}, "--num_workers -1 must be a whole number"),
    "a negative learning rate": (
        "msd_seg",
        "train",
        {"learning_rate": -1},
        "--learning_rate -1 must be a number above",
    ),
    "an infinite learning rate": ("pretrain", "train", {"learning_rate": math.inf}, "--learning_rate inf must be"),
    "a negative weight decay": ("brain_cls", "train", {"weight_decay": -0.1}, "--weight_decay -0.1 must be a number"),
    "validation every 0 epochs": ("msd_seg", "train", {"val_interval": 0}, "--val_interval 0 must be a whole number"),
    "a device that is not there": (
        "msd_seg",
        "inference",
        {"device": "cuda:7"},
        "--device 'cuda:7' must be a device of",
    ),
    "a device that is none": ("msd_seg", "train", {"device": "gpu"}, "--device 'gpu' must be a device of this machine"),
    "a device without memory": ("msd_seg", "train", {"device": "meta"}, "--device 'meta' must be a device of this"),
    "no crops of a scan": ("btcv_seg", "train", {"crops_per_scan": 0}, "--crops_per_scan 0 must be a whole number"),
    "pictures every 0 epochs": ("pretrain", "train", {"picture_interval": 0}, "--picture_interval 0 must be a whole"),
    "fewer than no pictures": ("msd_seg", "train+evaluate", {"pictures": -1}, "--pictures -1 must be a whole number"),
    "no epochs": ("msd_seg", "train", {"max_epochs": 0}, "--max_epochs 0 must be a whole number of at least 1"),
    "fewer than no epochs": ("pretrain", "train", {"max_epochs": -3}, "--max_epochs -3 must be a whole number"),
    "half an epoch": ("fetal_landmarks", "train", {"max_epochs": 1.5}, "--max_epochs 1.5 must be a whole number"),
    "a switch for a number of epochs": ("msd_seg", "train", {"max_epochs": True}, "--max_epochs True must be a whole"),
    "gradients clipped below 0": (
        "msd_seg",
        "train",
        {"max_grad_norm": -1},
        "--max_grad_norm -1 must be a number above",
    ),
    "gradients clipped to 0": ("msd_seg", "train", {"max_grad_norm": 0}, "--max_grad_norm 0 must be a number above 0"),
    "half a fold": ("msd_seg", "train", {"fold": 1.5}, "--fold 1.5 must be a whole number from 0, or 'all'"),
    "a fold of an unknown name": (
        "msd_seg",
        "train",
        {"fold": "first"},
        "--fold 'first' must be a whole number from 0",
    ),
    "a negative warm-up": ("msd_seg", "train", {"warmup_epochs": -5}, "--warmup_epochs -5 must be a whole number"),
    "early stopping below 0": ("msd_seg", "train", {"early_stopping": -2}, "--early_stopping -2 must be a whole"),
    "a cache rate above 1": ("msd_seg", "train", {"cache_rate": 5}, "--cache_rate 5 must be a number from 0 to 1"),
    "less than no memory": ("msd_seg", "inference", {"max_gib": -1}, "--max_gib -1 must be a number above 0"),
    "no windows at a time": ("msd_seg", "inference", {"sw_batch_size": 0}, "--sw_batch_size 0 must be a whole number"),
    "an axis that is not there": ("msd_seg", "inference", {"mirror_axes": [3]}, "--mirror_axes [3] must be a list of"),
    "an axis without a list": ("msd_seg", "inference", {"mirror_axes": 0}, "--mirror_axes 0 must be a list of"),
    "a negative seed": ("msd_seg", "train", {"seed": -1}, "--seed -1 must be a whole number from 0 to 4294967295"),
    "an unknown size": ("msd_seg", "train", {"size": "huge"}, "--size 'huge' must be one of tiny, base"),
    "an unknown order of tokens": ("msd_seg", "train", {"scan": "spiral"}, "--scan 'spiral' must be one of raster"),
    "an unknown intensity": ("pretrain", "train", {"intensity": "pet"}, "--intensity 'pet' must be one of ct, mr"),
    "the name of an intensity where a transform is wanted": (
        "btcv_seg",
        "train",
        {"intensity": "mr"},
        "--intensity 'mr' must be a transform in this configuration",
    ),
    "voxels without an edge": (
        "btcv_seg",
        "train",
        {"spacing": [1, 1, 0]},
        "--spacing [1, 1, 0] must be a list of three",
    ),
    "voxels of two axes": ("btcv_seg", "inference", {"spacing": [1, 1]}, "--spacing [1, 1] must be a list of three"),
    "one number for three edges": ("pretrain", "train", {"spacing": 2}, "--spacing 2 must be a list of three numbers"),
    "a size of two axes": ("msd_seg", "train", {"roi_size": [48, 48]}, "--roi_size [48, 48] must be a list of three"),
    "a size that the network cannot take": (
        *("msd_seg", "train", {"roi_size": [50, 60, 70]}),
        "roi_size [50, 60, 70] must be divisible by 16 on every axis; try [64, 64, 80]",
    ),
    "a window that the network cannot take": (
        *("msd_seg", "inference", {"roi_size": [32, 40, 32]}),
        "roi_size [32, 40, 32] must be divisible by 16 on every axis; try [32, 48, 32]",
    ),
    "a window that this network cannot take": (
        *("msd_seg", "train+networks/swin_unetr", {"roi_size": [48, 48, 48]}),
        "roi_size [48, 48, 48] must be divisible by 32 on every axis; try [64, 64, 64]",
    ),
    "a size that pre-training cannot take": (
        *("pretrain", "train", {"roi_size": [50, 60, 70]}),
        "roi_size [50, 60, 70] must be divisible by 16 on every axis; try [64, 64, 80]",
    ),
    "a size that landmarks cannot take": (
        *("fetal_landmarks", "train", {"roi_size": [50, 48, 48]}),
        "roi_size [50, 48, 48] must be divisible by 16 on every axis; try [64, 48, 48]",
    ),
    "an image of two axes": ("brain_cls", "train", {"input_size": [34, 40]}, "--input_size [34, 40] must be a list"),
    "a switch that is neither on nor off": (
        "msd_seg",
        "train",
        {"amp": "maybe"},
        "--amp 'maybe' must be true or false",
    ),
    "a number for a switch": ("msd_seg", "inference", {"previews": 2}, "--previews 2 must be true or false"),
    "an unknown way to resume": ("msd_seg", "train", {"resume": "perhaps"}, "--resume 'perhaps' must be auto, true or"),
    "an unknown part": ("msd_seg", "train+evaluate", {"part": "rest"}, "--part 'rest' must be one of train, val, test"),
    "a threshold above 1": (
        "brain_cls",
        "train+evaluate",
        {"threshold": 2},
        "--threshold 2 must be a number from 0 to 1",
    ),
    "no draws": ("brain_cls", "train+evaluate", {"resamples": 0}, "--resamples 0 must be a whole number of at least 1"),
    "all subjects for validation": (
        "brain_cls",
        "train",
        {"val_share": 1.0},
        "--val_share 1.0 must be a number above 0",
    ),
    "a share of dropped features of 1": (
        "brain_cls",
        "train",
        {"dropout": 1.0},
        "--dropout 1.0 must be a number from 0",
    ),
    "a peak without a width": ("fetal_landmarks", "train", {"sigma": 0}, "--sigma 0 must be a number above 0"),
    "every block hidden": ("pretrain", "train", {"mask_ratio": 1.0}, "--mask_ratio 1.0 must be a number above 0 and"),
    "an unknown filling": (
        "pretrain",
        "train",
        {"fill": "zeros"},
        "--fill 'zeros' must be one of toki, learnable, or null",
    ),
    "an unknown target": ("pretrain", "train", {"target": "hog"}, "--target 'hog' must be one of patch_norm, raw"),
    "a name with a folder in it": ("btcv_seg", "train", {"task": "../BTCV"}, "--task '../BTCV' must be a name without"),
    "a channel named twice": (
        "brats_seg",
        "inference",
        {"channels": ["t1", "t1"]},
        "--channels ['t1', 't1'] must be a",
    ),
    "a label value that a byte does not hold": (
        "msd_seg",
        "train",
        {"labels": {"left": 1002}, "regions": {"left": [1002]}},
        "--labels {'left': 1002} must be a table {'name': 1, ...} of values from 1 to 255",
    ),
    "regions that are no table": ("msd_seg", "train", {"regions": 3}, "--regions 3 must be a table"),
    "a number for the folder of results": ("msd_seg", "train", {"output_dir": 5}, "--output_dir 5 must be a path"),
    "no folder of results": ("msd_seg", "train", {"output_dir": ""}, "--output_dir '' must be a path"),
    "a number for the data set": (
        "msd_seg",
        "train",
        {"dataset_dir": 7},
        "--dataset_dir 7 must be the folder of a data",
    ),
    "a number for the scans": ("msd_seg", "inference", {"input": 7}, "--input 7 must be a path, or null"),
    "a number for the sources": (
        "pretrain",
        "train",
        {"sources": [7]},
        "--sources [7] must be a path, or a list of paths",
    ),
    "a data set that is not there": ("msd_seg", "train", {"dataset_dir": "/nowhere"}, "'/nowhere' must be the folder"),
    "starting weights that are not there": (
        "msd_seg",
        "train",
        {"pretrained": "/no/x.pt"},
        "there is none of that name",
    ),
    "weights that are not there": ("msd_seg", "inference", {"checkpoint": "/no/x.pt"}, "there is none of that name"),
    "a file of folds that is not there": ("msd_seg", "train", {"fold_file": "/no/folds.json"}, "there is none of that"),
    "an expression that fails": (
        "msd_seg",
        "train",
        {"overlap": "$1/0"},
        "--overlap '$1/0' cannot be evaluated: division",
    ),
    "an option that must not be null": ("msd_seg", "train", {"size": None}, "--size None must be one of tiny, base"),
}


@pytest.mark.parametrize("fault", CASES)
def test_an_option_that_breaks_its_rule_ends_the_run_before_any_work(bundle_run, reliability, tmp_path, fault):
    bundle, configs, options, sentence = CASES[fault]
    if "evaluate" in configs:
        options = {"checkpoint": str(weights(tmp_path)), **options}
    outcome = bundle_run(bundle, configs.split("+"), **options)
    assert sentence in outcome.last
    assert not (tmp_path / "out").exists()
    reliability("Options", fault, outcome, hide=r"this machine has [\w:, ]+")


def weights(folder):
    """A file where weights belong; options are checked before it is read."""
    file = folder / "weights.pt"
    file.touch()
    return file


def parser_of(bundle, *configs, **options):
    folder = BUNDLES / bundle / "configs"
    parser = ConfigParser()
    parser.read_config([str(folder / f"{config}.json") for config in configs])
    parser.update({"bundle_root": str(folder.parent), "device": "cpu", **options})
    parser.parse()
    return parser


def test_what_is_converted_is_what_the_run_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    parser = parser_of(
        *("msd_seg", "train"), amp="true", max_epochs=3.0, output_dir="~/out", dataset_dir="~/data", fold_file="null"
    )
    assert parser.get_parsed_content("amp") == "true"
    values = check_options(parser, {"cache_rate": 1.0})
    for name, value in {"amp": True, "max_epochs": 3, "output_dir": f"{tmp_path}/out", "fold_file": None}.items():
        assert values[name] == parser.get_parsed_content(name) == parser[name] == value
    assert parser.get_parsed_content("data_root") == f"{tmp_path}/data"
    assert parser.get_parsed_content("writer#log_dir") == f"{tmp_path}/out/tensorboard"
    assert parser.get_parsed_content("device") == torch.device("cpu")
    assert type(parser["max_epochs"]) is int
    json.dumps(parser.get())  # still a configuration that can be written


def test_none_on_the_command_line_means_null_and_a_record_may_be_null(tmp_path):
    parser = parser_of("msd_seg", "inference", checkpoint=str(weights(tmp_path)), output_dir=str(tmp_path))
    assert parser.get_parsed_content("record")["size"] == "tiny"
    check_options(parser, {"record": None})
    assert parser.get_parsed_content("record") is None
    parser = parser_of("msd_seg", "inference", checkpoint=str(weights(tmp_path)), record="null")
    check_options(parser, {"record": "null"})
    assert parser.get_parsed_content("record") is None


TASKS = [file.stem for file in existing((BUNDLES / "msd_seg/configs/tasks").glob("*.json"))]
NETWORKS = [file.stem for file in existing((BUNDLES / "btcv_seg/configs/networks").glob("*.json"))]


@pytest.mark.parametrize("size", ["tiny", "base"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_windows_of_every_bundle_fit_every_network(network, size):
    for bundle, *task in [
        *((name,) for name in SEGMENTATION if name != "msd_seg"),
        *(("msd_seg", f"tasks/{task}") for task in TASKS),
    ]:
        parser = parser_of(bundle, "train", *task, f"networks/{network}", size=size)
        check_options(parser, {})
        sides, multiple = parser.get_parsed_content("roi_size"), parser.get_parsed_content("side_multiple")
        assert sides == rounded_up(sides, multiple)
        assert max(sides) <= 128


def test_the_next_valid_size():
    assert rounded_up([1, 16, 17], 16) == [16, 16, 32]
    assert rounded_up([32, 48, 32], 32) == [32, 64, 32]
