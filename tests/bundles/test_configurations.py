"""What every configuration promises a user of MONAI's zoo: preprocessing written once, parts with names, overrides."""

import json
import re

import pytest
import torch
from helpers import BUNDLES, existing, finished
from monai.bundle import ConfigParser
from monai.handlers import StatsHandler
from monai.losses import DiceFocalLoss
from monai.transforms import Compose, CropForegroundd, Orientationd, Spacingd, SpatialPadd

from mambamim_nets import phantom
from mambamim_nets.bundle.data.disk_cache import described
from mambamim_nets.bundle.handlers.checkpoints import Average
from mambamim_nets.checkpoint import half_precision, read_state

pytestmark = pytest.mark.usefixtures("all_narrow")

CONFIGURATIONS = existing(path for path in BUNDLES.glob("*/configs/**/*.json") if path.name != "metadata.json")
TRAINED = [path.parents[1].name for path in existing(BUNDLES.glob("*/configs/train.json"))]
VALIDATED = [name for name in TRAINED if name != "pretrain"]
SEGMENTATION = [name for name in VALIDATED if name.endswith("_seg")]
PIXDIM = "train#preprocessing#transforms#{}#pixdim"
BY_POSITION = re.compile(r"(?:#|::)\d+(?![\w.])")


@pytest.fixture(scope="module")
def brain_data(tmp_path_factory):
    """Brains of a dementia phantom, coarse."""
    return phantom.write(tmp_path_factory.mktemp("dementia") / "data", "dementia", cases=24, spacing=5)


def strings(value):
    """Yield every key and every string of a configuration."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def read(name: str, *configs: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([BUNDLES / name / "configs" / f"{config}.json" for config in configs])
    return parser


def at(parser: ConfigParser) -> int:
    """Return where Spacingd stands in the deterministic list of training."""
    targets = [item.get("_target_") for item in parser["train#preprocessing#transforms"] if isinstance(item, dict)]
    return targets.index("Spacingd")


def spacing_of(transform):
    (found,) = (part for part in transform.flatten().transforms if isinstance(part, Spacingd))
    return [float(side) for side in found.spacing_transform.pixdim]


def test_nothing_is_found_by_its_position_in_a_list():
    found = {
        str(path.relative_to(BUNDLES)): [
            text for text in strings(json.loads(path.read_text())) if BY_POSITION.search(text)
        ]
        for path in CONFIGURATIONS
    }
    assert found
    assert {path: texts for path, texts in found.items() if texts} == {}


def test_no_page_and_no_module_names_a_handler_by_its_position():
    pattern = re.compile(r"handlers(?:#|::)\d")
    folders = ["docs", "mambamim_nets", *(f"bundles/{name}/docs" for name in TRAINED)]
    for folder in folders:
        assert any((BUNDLES.parent / folder).rglob("*.md" if folder.endswith("docs") else "*.py")), folder
    pages = [
        path for folder in folders for path in (BUNDLES.parent / folder).rglob("*.*") if path.suffix in (".md", ".py")
    ]
    assert [str(path) for path in pages if pattern.search(path.read_text())] == []


@pytest.mark.parametrize("evaluated", [False, True], ids=["validation", "evaluation"])
@pytest.mark.parametrize("name", VALIDATED)
def test_another_spacing_of_the_preprocessing_reaches_training_and_what_is_validated(
    workflow, data_of, brain_data, name, evaluated, tmp_path
):
    data = brain_data if name == "brain_cls" else data_of(name)
    key = PIXDIM.format(at(read(name, "train")))
    wanted = [3.0, 3.5, 4.5]
    configs = ["train", "evaluate"] if evaluated else ["train"]
    (tmp_path / "model_best.pt").touch()  # what is evaluated must be there
    made = workflow(name, configs, dataset_dir=str(data), output_dir=str(tmp_path), **{key: wanted, "cache_rate": 0.0})
    dataset = made.parser.get_parsed_content("validate#dataset" if evaluated else "train#dataset")
    assert spacing_of(dataset.transform) == wanted
    assert spacing_of(made.parser.get_parsed_content("validate#preprocessing")) == wanted
    assert spacing_of(made.parser.get_parsed_content("validate#dataset").transform) == wanted


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_adds_to_the_shared_preprocessing_what_only_training_does(workflow, data_of, name, tmp_path):
    options = {"dataset_dir": str(data_of(name)), "output_dir": str(tmp_path), "cache_rate": 0.0}
    (tmp_path / "model_best.pt").touch()  # what is evaluated must be there
    made = workflow(name, **options)
    shared = made.parser.get_parsed_content("train#preprocessing").flatten().transforms
    training = made.parser.get_parsed_content("train#dataset").transform.transforms
    validation = made.parser.get_parsed_content("validate#preprocessing").flatten().transforms
    assert list(training[: len(shared)]) == list(shared)
    assert described(list(validation)) == described(list(shared))
    assert [type(part) for part in training[len(shared) : len(shared) + 2]] == [CropForegroundd, SpatialPadd]
    assert not [part for part in validation[len(shared) :] if isinstance(part, CropForegroundd | SpatialPadd)]
    evaluation = workflow(name, ["train", "evaluate"], **options).parser.get_parsed_content("validate#preprocessing")
    resampled = [part.keys for part in evaluation.flatten().transforms if isinstance(part, Orientationd | Spacingd)]
    assert resampled == [("image",), ("image",)], "labels are compared on the grid they were drawn on"


def test_what_is_cached_ends_where_chance_begins(workflow, data, tmp_path):
    made = workflow("msd_seg", dataset_dir=str(data), output_dir=str(tmp_path))
    cached = made.parser.get_parsed_content("train#dataset")._cache[0]
    assert not hasattr(cached["image"], "meta") and all(side >= 32 for side in cached["image"].shape[1:])
    assert cached["label"].dtype == torch.uint8, "the last of the deterministic transforms is among what is cached"


def in_front(workflow, name, configs, **options):
    """Return an initialised workflow in which a user's own handler comes first in every list of handlers."""
    made = workflow(name, configs, start=False, **options)
    for key in ("train#handlers", "validate#handlers"):
        if key in made.parser:
            made.parser[key].insert(0, {"_target_": "StatsHandler", "name": "in front", "iteration_log": False})
    made.initialize()
    return made


@pytest.mark.parametrize("name", TRAINED)
def test_a_handler_in_front_of_the_others_changes_none_of_them(workflow, data_of, brain_data, name, tmp_path):
    data = brain_data if name == "brain_cls" else data_of(name)
    options = {"dataset_dir": str(data), "output_dir": str(tmp_path), "cache_rate": 0.0}
    made = in_front(workflow, name, ["train"], **options, **({} if name == "pretrain" else {"ema": 0.5}))
    checkpoints = made.parser.get_parsed_content("checkpoints")
    assert made.parser.get_parsed_content("train#handlers")[0].name == "in front"
    if name != "pretrain":
        average = made.parser.get_parsed_content("average")
        assert isinstance(average, Average) and average.network is not made.parser.get_parsed_content("network")
        assert made.parser.get_parsed_content("validate#evaluator").network is average.network
        assert checkpoints.average is average.network
    made.finalize()


@pytest.mark.slow
def test_weights_are_promoted_whatever_handler_comes_first(workflow, data, tmp_path):
    options = {"dataset_dir": str(data), "output_dir": str(tmp_path), "ema": 0.5}
    trained = in_front(workflow, "msd_seg", ["train"], **options, max_epochs=1, val_interval=1)
    finished(trained)
    shipped = tmp_path / "shipped.pt"
    configs = ["train", "evaluate", "promote"]
    in_front(workflow, "msd_seg", configs, **options, shipped=str(shipped), pictures=0).run()
    held, best = torch.load(shipped, weights_only=True), half_precision(read_state(tmp_path / "model_best.pt"))
    assert held.keys() == best.keys() and any(value.dtype == torch.float16 for value in held.values())
    assert all(torch.equal(held[key], best[key]) for key in best)
    assert "mean Dice" in shipped.with_suffix(".txt").read_text()


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("optimizer#lr", 0.125, lambda parsed: parsed("optimizer").defaults["lr"]),
        (
            "loss",
            "$torch.nn.L1Loss()",
            lambda parsed: type(parsed("loss")).__name__ == "L1Loss" and "$torch.nn.L1Loss()",
        ),
        ("loss#lambda_ce", 0.25, lambda parsed: parsed("loss").lambda_ce),
        ("validate#inferer#overlap", 0.25, lambda parsed: parsed("validate#evaluator").inferer.inferer.overlap),
        ("overlap", 0.25, lambda parsed: parsed("validate#evaluator").inferer.inferer.overlap),
        ("train#handlers#0#seed", 5, lambda parsed: parsed("train#handlers")[0].seed),
        (
            "train#preprocessing#transforms#3#pixdim",
            [2.0, 2.0, 2.5],
            lambda parsed: spacing_of(parsed("validate#preprocessing")),
        ),
        ("intensity#upper", 95.0, lambda parsed: parsed("record")["intensity_range"][1]),
        ("augmentation#1#prob", 0.75, lambda parsed: parsed("train#augmentation").transforms[2].transforms[1].prob),
        ("train#dataloader#num_workers", 1, lambda parsed: parsed("train#dataloader").num_workers),
        ("train#trainer#max_epochs", 7, lambda parsed: parsed("train#trainer").state.max_epochs),
        ("network_def#size", "base", lambda parsed: {64: "base"}[parsed("network_def").encoder.widen[0].out_channels]),
    ],
    ids=lambda value: value if isinstance(value, str) and "#" in value else "",
)
def test_an_override_that_a_bundle_of_the_zoo_takes(workflow, data, key, value, found, tmp_path):
    options = {"dataset_dir": str(data), "output_dir": str(tmp_path), "cache_rate": 0.0, key: value}
    assert found(workflow("msd_seg", **options).parser.get_parsed_content) == value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        (
            "optimizer",
            {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.01, "momentum": 0.9},
            torch.optim.SGD,
        ),
        (
            "lr_scheduler",
            {"_target_": "torch.optim.lr_scheduler.StepLR", "optimizer": "@optimizer", "step_size": 1, "gamma": 0.5},
            torch.optim.lr_scheduler.StepLR,
        ),
        ("loss", {"_target_": "DiceFocalLoss", "to_onehot_y": True, "softmax": True}, DiceFocalLoss),
        (
            "train#handlers",
            [{"_target_": "StatsHandler", "iteration_log": False}],
            StatsHandler,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_part_that_is_replaced_as_a_whole_trains(workflow, data, key, value, found, tmp_path):
    options = {"dataset_dir": str(data), "output_dir": str(tmp_path), "max_epochs": 1, "val_interval": 1, key: value}
    made = finished(workflow("msd_seg", **options))
    part = made.parser.get_parsed_content(key)
    assert isinstance(part[0] if isinstance(part, list) else part, found)
    assert (tmp_path / "checkpoint_last.pt").is_file()


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in ("brain_cls",)])
def test_the_overlap_of_windows_is_that_of_the_inferer(name):
    parser = read(name, "inference")
    parser.update({"inferer#overlap": 0.625, "bundle_root": str(BUNDLES / name), "device": "cpu"})
    assert parser.get_parsed_content("inferer").overlap == 0.625
    assert parser["autocast_inferer#inferer"] == "@inferer"


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_configuration_is_read_without_our_source(name):
    """Components by name in place of expressions: at most 25 of these, of which at most 6 call functions of ours."""
    text = (BUNDLES / name / "configs" / "train.json").read_text()
    assert 0 < text.count('"$') <= 25
    assert 0 < len(re.findall(r"\bmb\.\w+", text)) <= 6


@pytest.mark.parametrize("name", SEGMENTATION)
def test_augmentation_moves_image_and_label_together(name):
    parser = read(name, "train")
    transform = Compose(parser.get_parsed_content("augmentation"))
    for part in transform.transforms:
        part.prob = float("label" in part.keys)
    transform.set_random_state(seed=1)
    label = torch.zeros(1, 32, 32, 32)
    label[:, 6:18, 10:24, 4:14] = 1
    for _ in range(3):
        out = transform({"image": label.clone(), "label": label.clone()})
        assert set(out["label"].unique().tolist()) <= {0.0, 1.0}
        assert ((out["image"] > 0.5) == (out["label"] > 0.5)).float().mean() > 0.99
        assert not torch.equal(out["label"], label)
