"""Every network of configs/networks: chosen by one file, trained, evaluated and used; its weights say what they are."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import BUNDLES, existing, finished, refused
from monai.bundle import ConfigParser
from monai.losses import DeepSupervisionLoss
from small import without_start_values

from mambamim_nets import HyMamba
from mambamim_nets.checkpoint import load_other_labels, read_state, record_of, stamped
from mambamim_nets.records import architecture, network_record

CONFIGS = BUNDLES / "msd_seg" / "configs"
NETWORKS = [path.stem for path in existing((CONFIGS / "networks").glob("*.json"))]
# millions, 1 channel, 14 classes; MM-UNet (ours where the paper is silent) at five resolutions
PARAMETERS = {
    **{"dynunet": 31.19, "mednext": 5.55, "mm_unet": 18.25, "nnmamba": 15.96},
    **{"segresnet": 18.80, "swin_unetr": 62.19, "unetr": 92.80, "vanilla_mamba": 84.00},
}

every_network = pytest.mark.parametrize("network", NETWORKS)


def parts(network: str) -> list[str]:
    return [] if network == "hymamba" else [f"networks/{network}"]


def window(network: str) -> dict:
    """Return crops that leave Swin UNETR, whose stride is 32, more than one position."""
    return {"roi_size": [32, 64 if network == "swin_unetr" else 48, 32], "batch_size": 2}


@pytest.fixture(scope="module")
def weights(workflow, data, tmp_path_factory):
    """Return a function that trains a network for an epoch, once, and gives its best weights."""
    known: dict[str, Path] = {}

    def train(network: str) -> Path:
        if network not in known:
            folder = tmp_path_factory.mktemp(network)
            options = {"dataset_dir": str(data), "output_dir": str(folder), "max_epochs": 1, "val_interval": 1}
            options["train_cases"] = 2
            finished(workflow("msd_seg", ["train", *parts(network)], **options, **window(network)))
            known[network] = folder / "model_best.pt"
        return known[network]

    return train


def test_there_is_a_file_for_each_network_and_it_is_called_as_records_call_it():
    assert set(NETWORKS) == set(PARAMETERS)
    for name in NETWORKS:
        assert (
            architecture(json.loads((CONFIGS / "networks" / f"{name}.json").read_text())["network_def"]["_target_"])
            == name
        )


@pytest.mark.parametrize("size", ["tiny", "base"])
@pytest.mark.parametrize("network", ["hymamba", *NETWORKS])
def test_the_size_that_is_recorded_is_read_from_the_network(network, size):
    files = [CONFIGS / "train.json", *(CONFIGS / f"{part}.json" for part in parts(network))]
    parser = ConfigParser()
    parser.read_config(files)
    options = {"size": size, "bundle_root": str(CONFIGS.parent), "labels": {"a": 1, "b": 2}, "channels": ["T1", "T2"]}
    parser.update(
        {**options, "roi_size": [32, 32, 32], "train#preprocessing": {"_target_": "Compose", "transforms": []}}
    )
    with without_start_values():
        record = parser.get_parsed_content("record")
    assert (record["architecture"], record["size"], record["in_channels"]) == (network, size, 2)
    assert record.get("out_channels", 3) == 3 and "spacing" not in record
    with without_start_values():
        made = parser.get_parsed_content("network_def")
    if network in ("hymamba", "vanilla_mamba"):
        assert record["scan"] == "raster" and "scan_seed" not in record
        parser["network_def#scan"] = "shuffle"
        parser.parse()
        assert parser.get_parsed_content("record")["scan_seed"] == 0
    assert network_record(made)["size"] == size


@every_network
def test_base_is_the_published_network(network):
    parser = ConfigParser()
    parser.read_config([CONFIGS / "train.json", CONFIGS / "networks" / f"{network}.json"])
    labels = {f"structure {value}": value for value in range(1, 14)}
    parser.update({"size": "base", "bundle_root": str(CONFIGS.parent), "labels": labels, "roi_size": [96, 96, 96]})
    with without_start_values():
        made = parser.get_parsed_content("network_def")
    millions = sum(parameter.numel() for parameter in made.parameters()) / 1e6
    assert round(millions, 2) == PARAMETERS[network]


@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=[] if name == "mm_unet" else [pytest.mark.slow]) for name in NETWORKS]
)
def test_it_trains_evaluates_and_segments(workflow, data, weights, network, tmp_path):
    path = weights(network)
    record = record_of(read_state(path))
    assert (record["architecture"], record["size"], record["task"]) == (network, "tiny", "Task04_Hippocampus")
    assert record["spacing"] == [1.0, 1.0, 1.0] and record["in_channels"] == 1
    evaluation = {"dataset_dir": str(data), "output_dir": str(path.parent), "pictures": 0}
    finished(workflow("msd_seg", ["train", *parts(network), "evaluate"], **evaluation, **window(network)))
    assert (path.parent / "eval" / "summary.md").is_file()
    options = {
        "input": str(data / "imagesTs"),
        "checkpoint": str(path),
        "previews": False,
        "roi_size": window(network)["roi_size"],
    }
    finished(workflow("msd_seg", ["inference", *parts(network)], output_dir=str(tmp_path), **options))
    for scan in (data / "imagesTs").iterdir():
        result = nib.load(tmp_path / scan.name.replace(".nii.gz", "_seg.nii.gz"))
        assert result.shape == nib.load(scan).shape
        assert set(np.unique(np.asarray(result.dataobj))) <= {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("network", ["dynunet", "mm_unet"])
def test_the_loss_of_a_configuration_teaches_one_crop_by_heart(workflow, data, network, tmp_path):
    """With deep supervision and without; that our networks learn is tested with them, and MONAI tests its own."""
    options = {"dataset_dir": str(data), "output_dir": str(tmp_path), "crops_per_scan": 1, **window(network)}
    made = workflow("msd_seg", ["train", *parts(network)], **options)
    model, loss, targets, dataset = (
        made.parser.get_parsed_content(key) for key in ("network", "loss_function", "targets", "train#dataset")
    )
    assert isinstance(loss, DeepSupervisionLoss) == (network == "mm_unet")
    crop = dataset[0][0]
    image, label = crop["image"][None], crop["label"][None]
    truth = targets.masks(label[0])
    assert truth.flatten(1).any(1).all(), "both structures must be there"
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    dice = 0.0
    for step in range(1, 151):
        optimizer.zero_grad()
        loss(model.train()(image), label).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 15 == 0:
            with torch.no_grad():
                found = targets.masks(targets.label_map(model.eval()(image)[0]))
            dice = float((2 * (found & truth).flatten(1).sum(1) / (found + truth).flatten(1).sum(1)).min())
            if dice > 0.9:
                break
    assert dice > 0.9


def test_weights_of_another_network_are_refused_with_the_file_to_choose(workflow, data, weights, tmp_path):
    path = weights("segresnet")
    options = {"input": str(data / "imagesTs"), "checkpoint": str(path), "output_dir": str(tmp_path)}
    with refused(
        "architecture is 'segresnet' in the file and 'hymamba' in this run", "configs/networks/segresnet.json"
    ):
        finished(workflow("msd_seg", ["inference"], **options))
    with refused("--size tiny"), without_start_values():
        finished(workflow("msd_seg", ["inference", "networks/segresnet"], size="base", **options))


def test_resuming_with_another_network_is_refused(workflow, data, weights):
    options = {"dataset_dir": str(data), "output_dir": str(weights("segresnet").parent), "max_epochs": 2}
    with refused("network_def#_target_ is SegResNet in the checkpoint and UNETR here"):
        finished(workflow("msd_seg", ["train", "networks/unetr"], **options, **window("unetr")))


def test_a_network_without_an_encoder_of_ours_starts_from_whole_weights_only(workflow, data, weights, tmp_path):
    options = {"dataset_dir": str(data), "output_dir": str(tmp_path / "run"), **window("segresnet")}
    made = workflow("msd_seg", ["train", "networks/segresnet"], pretrained=str(weights("segresnet")), **options)
    start = torch.load(weights("segresnet"), weights_only=True)
    found = made.parser.get_parsed_content("initial_network").state_dict()
    assert all(torch.equal(found[key], value) for key, value in start.items())
    torch.save(HyMamba(size="tiny").state_dict(), tmp_path / "encoder.pt")
    with refused("holds a HyMamba, which this network has no place for"):
        workflow("msd_seg", ["train", "networks/segresnet"], pretrained=str(tmp_path / "encoder.pt"), **options).run()


@pytest.mark.parametrize("network", ["hymamba", *NETWORKS])
def test_weights_for_other_labels_keep_their_outputs_by_name_or_are_refused(network, tmp_path):
    def made(*labels):
        parser = ConfigParser()
        parser.read_config([CONFIGS / "train.json", *(CONFIGS / f"{part}.json" for part in parts(network))])
        numbered = {label: value for value, label in enumerate(labels, start=1)}
        parser.update({"bundle_root": str(CONFIGS.parent), "labels": numbered, **window(network)})
        return parser.get_parsed_content("network_def").eval(), {"labels": labels}

    (theirs, record), (ours, wanted) = made("a", "b"), made("b", "a")
    torch.save(stamped(theirs.state_dict(), record), tmp_path / "a.pt")
    if network in ("dynunet", "mednext", "mm_unet", "nnmamba", "segresnet"):
        with pytest.raises(ValueError, match=r"no single last layer 'out'.*leave --pretrained_part out"):
            load_other_labels(ours, tmp_path / "a.pt", wanted)
        return
    load_other_labels(ours, tmp_path / "a.pt", wanted)
    x = torch.rand(1, 1, *window(network)["roi_size"])
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[:, [0, 2, 1]], theirs(x))
