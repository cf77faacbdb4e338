"""Bundles of several tasks: a configuration for each, by which it is chosen; its name alone is refused."""

import json

import pytest
from helpers import BUNDLES
from monai.bundle import ConfigParser
from monai.transforms import RandAdjustContrastd, RandAffined, RandFlipd

from mambamim_nets.bundle.overrides import check_task
from mambamim_nets.bundle.transforms.normalisation import scaling_of

HIPPOCAMPUS = {
    "task": "Task04_Hippocampus",
    "channels": ["MRI"],
    "labels": {"anterior": 1, "posterior": 2},
    "intensity": {"intensity": "mr", "intensity_range": [0.5, 99.5]},
    "spacing": [1.0, 1.0, 1.0],
    "roi_size": [32, 48, 32],
    "crops_per_scan": 1,
    "batch_size": 4,
    "field_of_view": ["RandFieldOfViewd", "SpatialPadd"],
    "augmentation": {"flips": [], "affine": 0.7, "contrast": 0.2},
    "subjects": {"pattern": r"hippocampus_(\d+)", "consecutive": 2},
    "learning_rate": 0.001,
    "max_epochs": 45,
    "val_interval": 5,
    "phantom": {"kind": "hippocampus", "cases": 20},
    "shipped": "models/model.pt",
}
CT = {
    "channels": ["CT"],
    "intensity": {"intensity": "ct", "intensity_range": [-175, 250]},
    "spacing": [1.5, 1.5, 1.5],
    "roi_size": [96, 96, 96],
    "crops_per_scan": 4,
    "batch_size": 1,
    "field_of_view": [],
    "augmentation": {"flips": [0, 1, 2], "affine": None, "contrast": None},
    "subjects": None,
    "learning_rate": 0.0001,
    "shipped": None,
}
TASKS = {
    ("msd_seg", "Task04_Hippocampus"): HIPPOCAMPUS,
    ("msd_seg", "Task07_Pancreas"): {
        **CT,
        "task": "Task07_Pancreas",
        "labels": {"pancreas": 1, "tumour": 2},
        "max_epochs": 250,
        "val_interval": 10,
        "phantom": {"kind": "pancreas", "cases": 10},
    },
    ("msd_seg", "Task08_HepaticVessel"): {
        **CT,
        "task": "Task08_HepaticVessel",
        "labels": {"vessel": 1, "tumour": 2},
        "max_epochs": 250,
        "val_interval": 10,
        "phantom": {"kind": "hepatic_vessel", "cases": 10},
    },
    ("msd_seg", "Task09_Spleen"): {
        **CT,
        "task": "Task09_Spleen",
        "labels": {"spleen": 1},
        "max_epochs": 1000,
        "val_interval": 20,
        "phantom": {"kind": "spleen", "cases": 10},
    },
    ("msd_seg", "LeftAtrium"): {
        "task": "LeftAtrium",
        "channels": ["MRI"],
        "labels": {"left atrium": 1},
        "intensity": {"intensity": "mr", "intensity_range": [0.5, 99.5]},
        "spacing": [1.25, 1.25, 1.25],
        "roi_size": [96, 64, 48],
        "crops_per_scan": 1,
        "batch_size": 1,
        "field_of_view": ["SpatialPadd"],
        "augmentation": {"flips": [0], "affine": 0.7, "contrast": 0.2},
        "subjects": None,
        "learning_rate": 0.001,
        "max_epochs": 200,
        "val_interval": 20,
        "phantom": None,
        "shipped": None,
    },
    ("brain_cls", "nc_ad"): {
        "task": "nc_ad",
        "classes": ["NC", "AD"],
        "max_epochs": 100,
        "phantom": {"kind": "dementia", "cases": 80},
        "shipped": "models/model.pt",
    },
    ("brain_cls", "smci_pmci"): {
        "task": "smci_pmci",
        "classes": ["sMCI", "pMCI"],
        "max_epochs": 10,
        "phantom": {"kind": "dementia", "cases": 80},
        "shipped": None,
    },
}
DEFAULTS = [("msd_seg", "Task04_Hippocampus"), ("brain_cls", "nc_ad")]


def parsed(name: str, *configs: str, **options) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([BUNDLES / name / "configs" / f"{config}.json" for config in configs])
    parser.update({"bundle_root": str(BUNDLES / name), "device": "cpu", **options})
    return parser


def said(parser: ConfigParser, key: str):
    """Return the value of a key; of transforms what they do, in a few words."""
    value = parser.get_parsed_content(key)
    if key == "intensity":
        return scaling_of([value])
    if key == "field_of_view":
        return [type(part).__name__ for part in value]
    if key == "augmentation":
        prob = {type(part): part.prob for part in value}
        flips = [part.flipper.spatial_axis for part in value if isinstance(part, RandFlipd)]
        return {"flips": flips, "affine": prob.get(RandAffined), "contrast": prob.get(RandAdjustContrastd)}
    return value


def test_every_task_has_its_configuration_and_no_table_is_left():
    files = sorted((path.parents[2].name, path.stem) for path in BUNDLES.glob("*/configs/tasks/*.json"))
    assert files == sorted(TASKS) and not list(BUNDLES.glob("*/configs/tasks.json"))


@pytest.mark.parametrize("config", ["train", "inference"])
@pytest.mark.parametrize(("name", "task"), TASKS)
def test_a_task_is_what_its_configuration_says(name, task, config):
    wanted = TASKS[name, task]
    parser = parsed(name, config, f"tasks/{task}")
    for key, value in wanted.items():
        assert said(parser, key) == value, key
    assert set(wanted) == set(json.loads((BUNDLES / name / "configs" / "tasks" / f"{task}.json").read_text()))


@pytest.mark.parametrize("config", ["train", "inference"])
@pytest.mark.parametrize(("name", "task"), DEFAULTS)
def test_the_default_task_is_that_of_its_configuration(name, task, config):
    parser = parsed(name, config)
    for key, value in TASKS[name, task].items():
        if key in parser.config:
            assert said(parser, key) == value, key
    assert parser["task"] == task


def named(name: str, task: str) -> list[str]:
    entry = TASKS[name, task]
    return entry["classes"] if "classes" in entry else [*entry["labels"]]


@pytest.mark.parametrize(("name", "task"), [("msd_seg", "Task09_Spleen"), ("brain_cls", "smci_pmci")])
@pytest.mark.parametrize("configs", ["train", "inference"])
def test_a_name_alone_is_refused_with_the_configuration_to_give(bundle_run, name, task, configs, tmp_path):
    end = bundle_run(name, configs, task=task)
    key = "labels" if name == "msd_seg" else "classes"
    overlay = BUNDLES / name / "configs" / "tasks" / f"{task}.json"
    assert end.status != 0 and f"task {task!r} has the {key} {named(name, task)}, not" in end.last
    assert f"--config_file \"[..., '{overlay}']\"" in end.last
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.pt"))


def test_a_configuration_under_another_task_s_name_is_refused(bundle_run):
    end = bundle_run("msd_seg", ["train", "tasks/Task07_Pancreas"], task="Task08_HepaticVessel")
    assert end.status != 0
    assert "has the labels ['vessel', 'tumour'], not ['pancreas', 'tumour']" in end.last


def checked(name: str, **changes) -> None:
    (task,) = (task for bundle, task in DEFAULTS if bundle == name)
    values = dict(TASKS[name, task])
    check_task(parsed(name, "train"), {**values, "bundle_root": str(BUNDLES / name), **changes})


def test_tasks_of_one_s_own_need_a_name_of_their_own():
    checked("msd_seg")
    checked("msd_seg", task="Task10_Colon", channels=["CT"], labels={"tumour": 1})
    checked("brain_cls", task="nc_ftd", classes=["NC", "FTD"])
    with pytest.raises(ValueError, match=r"'nc_ad' has the classes \['NC', 'AD'\], not .*FTD.*needs another name"):
        checked("brain_cls", classes=["NC", "FTD"])
    with pytest.raises(ValueError, match=r"'Mine' is unknown, and this configuration is that of 'Task04_Hippocampus'"):
        checked("msd_seg", task="Mine")


@pytest.mark.parametrize("name", ["btcv_seg", "kits23_seg"])
def test_a_bundle_of_one_task_lets_it_be_named(name):
    check_task(parsed(name, "train"), {"bundle_root": str(BUNDLES / name), "task": "mine", "labels": {"liver": 1}})
