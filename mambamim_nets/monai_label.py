"""`python -m mambamim_nets.monai_label --app apps/monaibundle`: lay out bundles for MONAI Label, which 3D Slicer uses.

The stock app ``monaibundle`` serves whatever bundle lies in its folder ``model``, and takes every one for a
segmentation whose network's channels are label values. This command writes copies there that are served as they are
meant, and refuses bundles that do not segment. Weights, networks and transforms are the bundle's own. A copy differs in

- metadata: ``channel_def`` of the network's output, from which MONAI Label takes the names of labels, holds the labels
  of the result. For regions, such as those of BraTS, channels are something else.
- inference: ``inferer``, the key that MONAI Label reads, is the whole of what the bundle runs, which leaves out windows
  of air; the path that MONAI Label adds to the image's keys is dropped, since MONAI's Spacingd takes it for meta data.
- training: ``train.json`` hands the server's list of labels to `train`, which runs the bundle's own, kept as
  ``bundle_train.json``, from the weights that are served. The app's way would leave out what the bundle asks of cases.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambamim_nets.bundle.checkpoint_files import BEST, save
from mambamim_nets.bundle.files import read_json, stem, write_text
from mambamim_nets.bundle.io.scan_formats import ENDINGS
from mambamim_nets.bundle.metadata import metadata_entry
from mambamim_nets.checkpoint import half_precision, read_state
from mambamim_nets.command_line import run
from mambamim_nets.segmentation import bundle_folder

__all__ = ["lay_out", "main", "served", "train"]

logger = logging.getLogger("mambamim_nets")

SEGMENTATION = ("btcv_seg", "amos_seg", "ctorg_seg", "kits23_seg", "brats_seg", "msd_seg")
FILES = ("metadata", "inference", "train")
# what MONAI Label sets in a bundle's train.json, and the one call that reads it
TRAIN = {
    "imports": ["$import mambamim_nets.monai_label as monai_label"],
    "bundle_root": ".",
    "device": "cpu",
    "train": {"trainer": {"max_epochs": 50}, "dataset": {"data": []}, "handlers": []},
    "validate": {"dataset": {"data": []}},
    "run": [
        "$monai_label.train(@bundle_root, @train#dataset#data, @validate#dataset#data,"
        " @train#trainer#max_epochs, @device)"
    ],
}
FROM_SERVED = {  # beside bundle_train.json: training goes on from the weights that are served
    "pretrained": "$@bundle_root + '/models/model.pt'",
    "initial_network": {
        "_target_": "mambamim_nets.bundle.trained_network",
        "network": "@network_def",
        "checkpoint": "@pretrained",
        "record": "@record",
    },
}


def lay_out(app: str, bundles: str | Sequence[str] = SEGMENTATION, overwrite: bool = False) -> list[Path]:
    """Write bundles into the folder ``model`` of MONAI Label's app ``monaibundle``.

    Args:
        app: folder of the app, as ``monailabel apps --download --name monaibundle`` makes it.
        bundles: folders of segmentation bundles, or their names, see `bundle_folder`; also separated by commas.
        overwrite: replace those that are there, with what was trained in them.

    Returns:
        Their folders.

    Raises:
        FileNotFoundError: the app is not there, or there is no such bundle.
        FileExistsError: a bundle was laid out before, and `overwrite` is false; nothing is written then.
        ValueError: a bundle does not segment, or has no weights; nothing is written then.
    """
    home = Path(str(app)).expanduser()
    if not (home / "main.py").is_file():
        raise FileNotFoundError(
            f"option --app {str(app)!r} must be a folder with main.py of MONAI Label's app; make it by monailabel apps"
            " --download --name monaibundle --output apps, and give apps/monaibundle"
        )
    names = bundles.split(",") if isinstance(bundles, str) else bundles
    todo = {home / "model" / folder.name: folder for folder in (bundle_folder(name) for name in names)}
    copies = {place: served(folder) for place, folder in todo.items()}
    for place in todo:
        if place.exists() and not overwrite:
            raise FileExistsError(f"{place} exists, perhaps with weights of its own; move it away, or give --overwrite")
    for place, configs in copies.items():
        _write(todo[place], place, configs)
        logger.info("%s", place)
    return list(todo)


def served(bundle: Path) -> dict[str, dict[str, Any]]:
    """Return the configurations of a bundle as MONAI Label needs them, by file name without ending.

    Raises:
        ValueError: the bundle does not segment, or has no weights.
    """
    metadata, inference, training = (read_json(bundle / "configs" / f"{name}.json") for name in FILES)
    try:
        labels = metadata_entry(bundle, "label_def")
    except ValueError:
        raise ValueError(
            f"bundle {bundle} does not segment: its metadata has no label_def, so MONAI Label would offer something"
            " else as labels; give segmentation bundles"
        ) from None
    if not (bundle / "models" / "model.pt").is_file():
        raise ValueError(f"bundle {bundle} must have models/model.pt, which MONAI Label serves; train it first")
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"] = labels
    return {
        "metadata": metadata,
        "inference": _inference(inference),
        "train": TRAIN,
        "bundle_train": training,
        "from_served": FROM_SERVED,
    }


def _inference(config: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    config["sliding_window"] = config["inferer"]
    config["autocast_inferer"]["inferer"] = "@sliding_window"
    config["inferer"] = config.pop("ensemble_inferer")
    config["evaluator"]["inferer"] = "$@inferer"
    config["preprocessing"]["transforms"].insert(0, {"_target_": "DeleteItemsd", "keys": "image_path"})
    # without that path MONAI Label cannot tell the format of results that nobody asks for; 3D Slicer asks for .nrrd
    config["displayable_configs"] = {"result_extension": ".nii.gz"}
    return config


def _write(bundle: Path, place: Path, configs: dict[str, dict[str, Any]]) -> None:
    """Write a copy beside its place, and move it there when it is complete."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=place.parent) as part:
        made = Path(part, place.name)
        for name, config in configs.items():
            write_text(made / "configs" / f"{name}.json", json.dumps(config, indent=4) + "\n")
        for name in ("LICENSE", "configs/logging.conf", "models/model.pt", "docs/README.md", "docs/data_license.txt"):
            if (bundle / name).is_file():
                (made / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(bundle / name, made / name)
        if place.exists():
            place.rename(Path(part, "replaced"))  # one name away from both copies whenever it is stopped
        made.rename(place)


def train(
    bundle_root: str,
    training: Sequence[Mapping[str, str]],
    validation: Sequence[Mapping[str, str]],
    max_epochs: int,
    device: object,
) -> Path:
    """Train a bundle that is served on labels that were submitted, and serve the weights of the best epoch.

    It is the bundle's own training with all its checks, in a process of its own, started from the weights that are
    served. Data and run are kept in ``runs/submitted_1`` and so on of the bundle; weights that are replaced stay beside
    the new ones as ``model_before_1.pt``, where 3D Slicer offers them too.

    Args:
        bundle_root: folder of the bundle in the app.
        training: items with "image" and "label", paths of the server.
        validation: likewise; if there are none, the best epoch is chosen on the cases that are trained on.
        max_epochs: of the run.
        device: to train on.

    Returns:
        The file of the weights.

    Raises:
        ValueError: there is no label to train on.
        RuntimeError: the training failed; its own words are in the log of the server.
    """
    if not training:
        raise ValueError("training needs at least one submitted label for each part; submit more, or lower val_split")
    bundle, number = Path(bundle_root).absolute(), 1
    while (folder := bundle / "runs" / f"submitted_{number}").exists():
        number += 1
    lists = {"training": _linked(training, folder), "validation": _linked(validation, folder)}
    write_text(folder / "dataset.json", json.dumps(lists, indent=4) + "\n")
    configs = [str(bundle / "configs" / f"{name}.json") for name in ("bundle_train", "from_served")]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs)]
    command += ["--dataset_dir", str(folder), "--output_dir", str(folder / "run"), "--max_epochs", str(max_epochs)]
    command += ["--fold", "official" if validation else "all", "--device", str(device)]
    code = subprocess.run(command, check=False).returncode
    if code:
        raise RuntimeError(f"training of {bundle.name} ended with exit status {code}; the log above says why")
    weights = bundle / "models" / "model.pt"
    shutil.copy2(weights, weights.with_name(f"model_before_{number}.pt"))
    save(weights, half_precision(read_state(folder / "run" / BEST)))
    logger.info("trained %s, the weights before it are model_before_%d.pt", weights, number)
    return weights


def _linked(items: Sequence[Mapping[str, str]], folder: Path) -> list[dict[str, str]]:
    """Link to the files of cases in a folder, and return their entries of a Decathlon list."""
    entries = []
    for item in items:
        entry = {"case": stem(item["image"], ENDINGS)}
        for key, place in (("image", "imagesTr"), ("label", "labelsTr")):
            link = folder / place / Path(item[key]).name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(item[key]).absolute())
            entry[key] = str(link.relative_to(folder))
        entries.append(entry)
    return entries


def main() -> None:
    """Run the command; a refusal is one sentence."""
    run(lay_out, "python -m mambamim_nets.monai_label")


if __name__ == "__main__":
    main()
