"""Write docs/MODEL_CARD.md of every bundle from its metadata, for a hub such as Hugging Face.

A card says under which licence the weights are and why, what they were trained on, what was measured (nothing else is
in its model-index), and what they may not be used for. It is made of configs/metadata.json, where "model_card" has the
licence, the data and the hub's name of the task, and of the note beside the weights.

    python .ci/model_cards.py            write the cards
    python .ci/model_cards.py --check    change nothing; list the cards that are not current and exit with 1
"""

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

WIDTH = 120
METRICS = {"dice": "Dice", "hd95": "HD95 (mm)", "surface_dice": "surface Dice", "auc": "AUC", "accuracy": "accuracy"}
METRICS |= {"f1": "F1", "sensitivity": "sensitivity", "specificity": "specificity", "sdr": "detection rate"}
METRICS |= {"mean_radial_error": "mean radial error (mm)", "error": "error of length (mm)"}
PROTOCOL = "protocol"


def measured(metadata: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Return kind, name and value of every number that was measured, from keys such as dice_left_kidney."""
    found = []
    for key, value in metadata.get("eval_metrics", {}).items():
        if key == PROTOCOL:
            continue
        kinds = [kind for kind in METRICS if key == kind or key.startswith(f"{kind}_")]
        if not kinds:
            raise ValueError(f"eval_metrics {key!r} must begin with one of {', '.join(METRICS)}; or add its kind here")
        kind = max(kinds, key=len)
        what = re.sub(r"_mm$", "", key.removeprefix(kind)).strip("_").replace("_", " ")
        found.append((kind, f"{METRICS[kind]}, {what}" if what else METRICS[kind], float(value)))
    return found


def header(name: str, metadata: dict[str, Any]) -> list[str]:
    """Return the lines of the front matter; texts are quoted as in JSON, which YAML reads too."""
    card = metadata["model_card"]
    lines = ["---", f"license: {card['license']}"]
    lines += [f"{key}: {json.dumps(card[key])}" for key in ("license_name", "license_link") if key in card]
    lines += ["library_name: monai", f"pipeline_tag: {card['pipeline_tag']}"]
    lines += ["tags:", *(f"- {tag}" for tag in ("monai", "medical", "mamba", "research-only"))]
    lines += ["datasets:", *(f"- {data['id']}" for data in card["datasets"])]
    numbers = measured(metadata)
    if numbers:
        protocol = json.dumps(metadata["eval_metrics"][PROTOCOL], ensure_ascii=False)
        lines += ["model-index:", f"- name: {name}", "  results:", "  - task:", f"      type: {card['pipeline_tag']}"]
        lines += ["    dataset:", f"      type: {card['measured_on']}", f"      name: {protocol}", "    metrics:"]
        for kind, title, value in numbers:
            lines += [f"    - type: {kind}", f"      value: {value}", f"      name: {json.dumps(title)}"]
    return [*lines, "---"]


def card_of(bundle: Path) -> str:
    """Return the text of a bundle's card.

    Raises:
        ValueError: the metadata lack what a card must say.
    """
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    card, name = metadata.get("model_card", {}), bundle.name
    missing = [key for key in ("license", "license_reason", "pipeline_tag", "datasets") if not card.get(key)]
    if missing:
        raise ValueError(f"{bundle}/configs/metadata.json: model_card must have {', '.join(missing)}")
    note = (bundle / "models" / "model.txt").read_text(encoding="utf-8").strip()
    numbers = measured(metadata)
    called = card.get("license_name", card["license"])
    parts = [
        f"# {metadata['name']}",
        f"{metadata['task']}. {metadata['description']}.",
        f"**{note}**",
        "## Licence",
        f"Weights: {called}. {card['license_reason']} Code and configurations: Apache-2.0, see LICENSE. Sources and"
        " citations of the data: `docs/data_license.txt`.",
        "## Trained on",
        ["| data | licence | what of it |", "|---|---|---|"]
        + [f"| {data['name']} | {data['license']} | {data['use']} |" for data in card["datasets"]],
        "## Measured",
        *(
            [
                f"{metadata['eval_metrics'][PROTOCOL][0].upper()}{metadata['eval_metrics'][PROTOCOL][1:]}.",
                ["| | value |", "|---|---|", *(f"| {title} | {value:g} |" for _, title, value in numbers)],
            ]
            if numbers
            else ["Nothing that stands for the weights alone."]
        ),
        "## Limits",
        f"{metadata['intended_use']} Input: {metadata['image_classes']}. What is not measured above is not known.",
        "## Use",
        "With the package `mambamim_nets` installed from the project's repository, as its README says:",
        [
            "```",
            f"python -m monai.bundle run --config_file {name}/configs/inference.json --input scan.nii.gz"
            " --output_dir results",
            "```",
        ],
        "## Cite",
        [f"- {line}" for entry in metadata["references"] for line in [wrapped(entry, 2)]],
    ]
    body = ["\n".join(part) if isinstance(part, list) else part if part[0] == "#" else wrapped(part) for part in parts]
    return "\n".join(header(name, metadata)) + "\n\n" + "\n\n".join(body) + "\n"


def wrapped(text: str, indent: int = 0) -> str:
    """Return a text in lines of the width of the pages."""
    fill = textwrap.TextWrapper(WIDTH - indent, subsequent_indent=" " * indent, break_long_words=False)
    fill.break_on_hyphens = False
    return fill.fill(text)


def main() -> int:
    """Write, or with --check compare; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the model card of every bundle.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a card is not current")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="the repository")
    arguments = parser.parse_args()
    differing = []
    for bundle in sorted(path.parent for path in (arguments.root / "bundles").glob("*/configs")):
        path, text = bundle / "docs" / "MODEL_CARD.md", card_of(bundle)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            differing.append(path)
            print("differs:" if arguments.check else "written:", path.relative_to(arguments.root))
            if not arguments.check:
                path.write_text(text, encoding="utf-8", newline="\n")
    return 1 if arguments.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
