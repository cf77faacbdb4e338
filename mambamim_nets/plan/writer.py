"""Write a planned bundle: the task block with its reasons, the shared body, metadata, pages; and never over an edit.

What is written is recorded with a digest in `configs/plan.json`. A file whose content is another one by now was edited:
planning again refuses it, and `difference` shows what would change.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mambamim_nets
from mambamim_nets.bundle.files import read_json, some, write_text
from mambamim_nets.bundle.labels import Targets
from mambamim_nets.plan.names import segment_code
from mambamim_nets.plan.rules import Decision

__all__ = ["FILL_IN", "bundle_files", "difference", "refuse_edits", "template", "write_files"]

PLAN = "configs/plan.json"
BODY = re.compile(r'^ *"body" *:', re.MULTILINE)
FILL_IN = "FILL IN"  # what packaging refuses in docs/data_license.txt
# of each bundle; all others are copied
OWN = ("train.json", "inference.json", "metadata.json", "folds.json", "starter.json")
OF_BODY = ("size", "cache_rate", "pretrained", "adapt_input")  # keys that the body has, with a value of the plan
OF_TRAINING = ("crops_per_scan", "batch_size", "augmentation", "loss", "learning_rate", "max_epochs", "val_interval")
WIDTH = 100  # characters of a line of the task block
# names stand in metadata.json, from which both configurations read them
LABELS = {"_target_": "mambamim_nets.bundle.label_table", "bundle_root": "@bundle_root"}
REGIONS = {"_target_": "mambamim_nets.bundle.region_table", "bundle_root": "@bundle_root", "labels": "@labels"}
FORMATS = {"CT": ("hounsfield", "CT"), "MR": ("magnitude", "MR")}


def template() -> Path:
    """Return the folder that holds what all segmentation bundles share, `configs` and `LICENSE`.

    In an installed package it is a part of it; in a checkout it is the bundle from which the others are copied.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    package = Path(mambamim_nets.__file__).parent
    places = (package / "plan" / "template", package.parent / "bundles" / "btcv_seg")
    for place in places:
        if (place / "configs" / "train.json").is_file():
            return place
    raise FileNotFoundError(
        f"{places[0]} is missing, the configurations that a bundle is made from; install mambamim_nets again"
    )


# --- text -----------------------------------------------------------------------------------------


def bundle_files(
    task: str,
    channels: Sequence[str],
    labels: Mapping[str, int],
    regions: Mapping[str, Sequence[int]] | None,
    reasons: Mapping[str, str],
    decisions: Mapping[str, Decision],
    fingerprint: Mapping[str, Any],
    folds: Sequence[Sequence[str]],
    facts: Mapping[str, Any],
) -> dict[str, str]:
    """Return the text of every file of a planned bundle but its picture, its page and its record, by path.

    Args:
        task: name of the task.
        channels: names of the image channels.
        labels: name -> label value.
        regions: name -> label values, or None.
        reasons: of channels, labels, regions and subjects.
        decisions: as from `decide`, with those of the body.
        fingerprint: of the data set.
        folds: case names of each.
        facts: "dataset_dir", "subjects" (the rule, or None), "licence", "reference", "name".
    """
    source = template() / "configs"
    targets = Targets(labels, regions)
    head = {
        "task": Decision(task, ""),
        "channels": Decision(list(channels), reasons["channels"]),
        "labels": Decision(LABELS, reasons["labels"]),
        "regions": Decision(REGIONS if regions else None, reasons["regions"]),
        **{key: decisions[key] for key in ("intensity", "spacing", "roi_size", "keep_largest")},
    }
    training = {
        "field_of_view": Decision([], ""),
        **{key: decisions[key] for key in OF_TRAINING},
        "subjects": Decision(facts["subjects"], reasons["subjects"]),
        "phantom": Decision(None, ""),
        "dataset_dir": Decision(facts["dataset_dir"], ""),
    }
    of_body = {key: decisions[key] for key in OF_BODY if key in decisions}
    whys = {f"{key}_why": Decision(held.why, "") for key, held in of_body.items()}
    new = {
        "phantom": Decision(None, ""),
        "shipped": Decision("models/model.pt", ""),  # where promote.json puts them
        "dataset_dir": Decision("phantom", ""),
    }
    values = {key: held.value for key, held in of_body.items()}
    files = {
        "configs/train.json": task_block(head | training | whys) + _body(source / "train.json", values),
        "configs/inference.json": task_block(head | new) + _body(source / "inference.json", values),
        "configs/metadata.json": _json(_metadata(task, channels, targets, decisions, source, facts)),
        "configs/folds.json": _json({"source": reasons["folds"], "folds": {str(n): f for n, f in enumerate(folds)}}),
        "configs/fingerprint.json": _json(fingerprint),
        "docs/data_license.txt": _licence(facts),
        "LICENSE": (template() / "LICENSE").read_text(encoding="utf-8"),
    }
    for path in sorted(source.rglob("*.*")):
        if path.name not in OWN:
            files[f"configs/{path.relative_to(source).as_posix()}"] = path.read_text(encoding="utf-8")
    return files


def task_block(decisions: Mapping[str, Decision]) -> str:
    """Return the first part of train.json or inference.json, each decision with its reason in the line below."""
    lines = ['    "imports": ["$import torch", "$import mambamim_nets.bundle as mb"],']
    lines.append('    "bundle_root": "$mb.bundle_root()",')
    for key, held in decisions.items():
        lines.append(f"    {json.dumps(key)}: {_value(held.value, 1)},")
        if held.why:
            lines.append(f"    {json.dumps(key + '_why')}: {json.dumps(_plain(held.why), ensure_ascii=False)},")
    return "\n".join(["{", *lines, ""])


def _plain(text: str) -> str:
    """Return a reason as MONAI reads it, as nothing but text."""
    return text.replace("#", "no. ").lstrip("$@%")


def _body(path: Path, values: Mapping[str, Any]) -> str:
    """Return the shared body of a configuration with the plan's values for options that the body has."""
    text = path.read_text(encoding="utf-8")
    found = BODY.search(text)
    if found is None:
        raise ValueError(f"{path} must have a line with the key 'body'; install mambamim_nets again")
    body = text[found.start() :]
    for key, value in values.items():
        line = f'    "{key}": {json.dumps(value)},'
        found = re.search(rf'^    "{key}": [^\n]*,$', body, re.MULTILINE)
        if found is not None:  # training and inference have not all of them
            body = body[: found.start()] + line + body[found.end() :]
    return body


def _value(value: Any, depth: int) -> str:
    """Return JSON as the bundles have it: short tables and lists on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + 4 * depth <= WIDTH or not isinstance(value, Mapping | list) or not value:
        return flat
    indent, end = "    " * (depth + 1), "    " * depth
    if isinstance(value, Mapping):
        parts = [
            f"{json.dumps(str(key), ensure_ascii=False)}: {_value(item, depth + 1)}" for key, item in value.items()
        ]
        return "{\n" + ",\n".join(indent + part for part in parts) + f"\n{end}}}"
    return "[\n" + ",\n".join(indent + _value(item, depth + 1) for item in value) + f"\n{end}]"


def _json(content: Mapping[str, Any]) -> str:
    return "{\n" + ",\n".join(f"    {json.dumps(key)}: {_value(v, 1)}" for key, v in content.items()) + "\n}\n"


# --- metadata and licence -------------------------------------------------------------------------


def _metadata(
    task: str,
    channels: Sequence[str],
    targets: Targets,
    decisions: Mapping[str, Decision],
    source: Path,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    shared = read_json(source / "metadata.json")
    kind = decisions["intensity"].value["_target_"]
    data_format, modality = FORMATS["CT" if kind == "ScaleIntensityRanged" else "MR"]
    names = {0: "background", **targets.labels}
    codes = {name: code for name in targets.labels.values() if (code := segment_code(name)) is not None}
    regions = {name: [names[value] for value in values] for name, values in targets.regions.items()}
    side = ["16*n"] * 3
    sides = " x ".join(f"{edge:g}" for edge in decisions["spacing"].value)
    scaled = kind.rpartition(".")[2].startswith("Scale")
    return {
        "schema": shared["schema"],
        "version": "0.1.0",
        "changelog": {"0.1.0": "planned by mambamim_nets.plan"},
        **{key: _installed(package, shared[key]) for key, package in _FRAMEWORK.items()},
        "required_packages_version": {
            name: _installed(name, held) for name, held in shared["required_packages_version"].items()
        }
        | {"mambamim_nets": mambamim_nets.__version__},
        "supported_apps": {},
        "name": f"{facts['name'] or task} segmentation with HyMamba",
        "task": f"Segmentation of {', '.join(targets.structures)}"[:400],
        "description": f"HyMamba, size {decisions['size'].value}, planned from the data set; {sides} mm voxels",
        "authors": FILL_IN,
        "copyright": FILL_IN,
        "data_source": facts["name"] or task,
        "data_type": "nibabel",
        "image_classes": f"{', '.join(channels)}; RAS, {sides} mm; {decisions['intensity'].why}",
        "label_classes": ", ".join(f"{value} {name}" for value, name in sorted(names.items())),
        "pred_classes": f"logits of {', '.join(targets.channels)}",
        "eval_metrics": {"protocol": "not measured yet"},
        "intended_use": "Research on segmentation methods. Not a medical device; not for diagnosis or treatment.",
        "references": [*([facts["reference"]] if facts["reference"] else []), shared["references"][0]],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": data_format,
                    "modality": modality,
                    "num_channels": len(channels),
                    "spatial_shape": side,
                    "dtype": "float32",
                    "value_range": [0, 1] if scaled else [],
                    "is_patch_data": True,
                    "channel_def": {str(number): name for number, name in enumerate(channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": targets.out_channels,
                    "spatial_shape": side,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(number): name for number, name in enumerate(targets.channels)},
                }
            },
            "post_processed_outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": 1,
                    "spatial_shape": ["*", "*", "*"],
                    "dtype": "uint8",
                    "value_range": [0, max(names)],
                    "is_patch_data": False,
                    "channel_def": {"0": "label map"},
                    "label_def": {str(value): names[value] for value in sorted(names)},
                    **({"regions": regions} if regions else {}),
                    "segment_codes": codes,
                }
            },
        },
    }


_FRAMEWORK = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}


def _installed(package: str, otherwise: str) -> str:
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return otherwise


def _licence(facts: Mapping[str, Any]) -> str:
    stated = facts["licence"]
    said = f'dataset.json of the data set says: "{stated}". Check it.' if stated else "The data set states none."
    return (
        f"licence of the data that weights of this bundle were trained on: {FILL_IN}\n"
        f"source: {FILL_IN}\n\n"
        f"{said}\n"
        "The data is not part of this bundle. Packaging refuses this file until the lines above are filled in.\n"
    )


# --- files ----------------------------------------------------------------------------------------


def digest(content: bytes) -> str:
    """Return the digest by which an edit shows."""
    return hashlib.sha256(content).hexdigest()


def edited(output: Path, files: Mapping[str, str]) -> list[str]:
    """Return the files that planning would write over and that are not as planning wrote them."""
    record = output / PLAN
    written = read_json(record)["files"] if record.is_file() else {}
    return [
        name
        for name in sorted({*files, *written})
        if (output / name).is_file()
        and digest(held := (output / name).read_bytes()) != written.get(name)
        and held != files.get(name, "").encode()
    ]


def refuse_edits(output: Path, files: Mapping[str, str]) -> None:
    """Refuse to write over what a person has changed.

    Raises:
        ValueError: that names the files.
    """
    if changed := edited(output, files):
        raise ValueError(
            f"--output {output}: {some(changed)} would be written over, and is not as planning left it; see --compare,"
            " then move your edits to another bundle, or give another folder"
        )


def write_files(output: Path, files: Mapping[str, str], binary: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
    """Write a bundle, and what was written into `configs/plan.json`.

    Args:
        output: folder of the bundle.
        files: text by path.
        binary: pictures and weights that are there already, whose digests are recorded.
        record: what the plan was made from.

    Raises:
        ValueError: as `refuse_edits`; nothing is written then.
    """
    refuse_edits(output, files)
    for name, text in files.items():
        write_text(output / name, text)
    digests = {name: digest(text.encode()) for name, text in files.items()}
    digests |= {name: digest(content) for name, content in binary.items()}
    write_text(output / PLAN, _json({**record, "files": digests}))


def difference(output: Path, files: Mapping[str, str]) -> str:
    """Return what planning would change, as a unified diff; "" if nothing."""
    lines: list[str] = []
    for name, text in files.items():
        path = output / name
        held = path.read_text(encoding="utf-8") if path.is_file() else ""
        before, after = (part.splitlines(keepends=True) for part in (held, text))
        lines += difflib.unified_diff(before, after, str(path) if held else "/dev/null", f"planned/{name}")
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
