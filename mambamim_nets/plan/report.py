"""Show a plan: the table on the screen and in the bundle's page, and one picture of the fingerprint."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mambamim_nets.bundle.visualize.planes import COLOURS, MUTED, TEXT, dark_figure, save_figure
from mambamim_nets.plan.rules import Decision

__all__ = ["bundle_page", "class_table", "decision_lines", "fingerprint_picture", "fingerprint_table"]

SHOWN = (
    "intensity", "spacing", "roi_size", "crops_per_scan", "batch_size", "keep_largest", "augmentation", "loss",
    "learning_rate", "max_epochs", "val_interval", "size", "cache_rate", "pretrained",
)  # fmt: skip
MOST_BARS = 60  # classes in the picture


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _range(spread: Mapping[str, Sequence[float]]) -> list[str]:
    """Return median and limits, the three axes of each with an x between."""
    return [" x ".join(f"{v:.4g}" for v in spread[name]) for name in ("median", "lowest", "highest")]


def fingerprint_table(fingerprint: Mapping[str, Any]) -> str:
    """Return what the data set holds as a table of Markdown."""
    rows = [_row("", "median", "lowest", "highest"), _row("---", "---", "---", "---")]
    for name, key in (("spacing (mm)", "spacing_mm"), ("voxels", "shape"), ("voxels, cropped", "cropped_shape")):
        rows.append(_row(name, *_range(fingerprint[key])))
    rows.append(_row("cropped (mm)", *_range(fingerprint["cropped_mm"])))
    for name, held in fingerprint["channels"].items():
        inside = held["foreground"]
        values = (inside[f"percentile_{q}"] for q in ("50", "0.5", "99.5"))
        rows.append(_row(f"{name}, in labels, 50 / 0.5 / 99.5 %", *(f"{value:.5g}" for value in values)))
    return "\n".join(rows)


def class_table(fingerprint: Mapping[str, Any]) -> str:
    """Return the classes as a table of Markdown."""
    rows = [_row("value", "class", "cases", "median ml", "lowest", "highest", "parts"), _row(*["---"] * 7)]
    for name, held in fingerprint["classes"].items():
        volumes = [f"{held[key]:.4g}" if held["cases"] else "-" for key in ("median_ml", "lowest_ml", "highest_ml")]
        rows.append(_row(held["value"], name, held["cases"], *volumes, f"{held.get('median_parts', 0):g}"))
    return "\n".join(rows)


def decision_lines(decisions: Mapping[str, Decision]) -> list[str]:
    """Return one line for each decision: its value, in short, and why."""
    return [f"{key} {short(decisions[key].value)}: {decisions[key].why}" for key in SHOWN if key in decisions]


def short(value: Any) -> str:
    """Return a value of the task block on one short line."""
    if isinstance(value, Mapping):
        numbers = [f"{held:g}" for held in value.values() if isinstance(held, int | float) and held is not True]
        return " ".join([str(value["_target_"]).rpartition(".")[2], *numbers[:2]])
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return ", ".join(f"{part['_target_']} {part.get('spatial_axis', '')}".strip() for part in value)
    return str(value)


def bundle_page(
    title: str,
    bundle: str,
    fingerprint: Mapping[str, Any],
    decisions: Mapping[str, Decision],
    notes: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    command: str,
) -> str:
    """Return the text of the bundle's docs/README.md.

    Args:
        title: of the data set.
        bundle: name of its folder.
        fingerprint: of the data set.
        decisions: as from `decide`.
        notes: cautions and proposals.
        rows: presets of GPUs.
        command: that planned it.
    """
    counts = fingerprint["modality"]
    held = f"{fingerprint['cases']} cases of {fingerprint['subjects']} subjects"
    held = f"{held}; {counts['CT']} in HU, {counts['other']} not."
    train = f"python -m monai.bundle run --config_file bundles/{bundle}/configs/train.json"
    both = f"'bundles/{bundle}/configs/train.json','bundles/{bundle}/configs/evaluate.json'"
    other_gpus = []
    if rows:
        table = [_row("GPU (GiB)", "roi_size", "crops in a step", "estimate (GiB)"), _row(*["---"] * 4)]
        table += [_row(row["gib"], row["roi_size"], row["crops"], row["estimate_gib"]) for row in rows]
        arithmetic = _wrapped(
            "By arithmetic on the steps measured here, in proportion to voxels; none of these was run, and bfloat16 on"
            " a GPU takes less. Give `--roi_size` and `--crops_per_scan` or `--batch_size`."
        )
        other_gpus = ["## Other GPUs", arithmetic, "\n".join(table)]
    parts = [
        f"# {title} with HyMamba",
        "## Overview",
        _wrapped(
            f"Segmentation of {len(fingerprint['classes'])} classes with HyMamba and a UNETR decoder, planned from the"
            " data set. No weights are part of this bundle yet. Research use only; not a medical device."
        ),
        "## Data",
        _wrapped(f"{held} Its licence belongs into data_license.txt."),
        fingerprint_table(fingerprint),
        "![what the data set holds](fingerprint.png)",
        class_table(fingerprint),
        *(["## To look at", "\n".join(_wrapped(f"- {note}", "  ") for note in notes)] if notes else []),
        "## Training configuration",
        "\n".join(_wrapped(f"- {line}", "  ") for line in decision_lines(decisions)),
        "## Performance",
        "Not measured yet.",
        "## MONAI Bundle Commands",
        "From the folder that holds `bundles`:",
        f'```\n{train} --fold 0\npython -m monai.bundle run --config_file "[{both}]" --fold 0\n'
        f"python -m monai.bundle run --config_file \"[{both},'bundles/{bundle}/configs/promote.json']\" --fold 0\n"
        f"python -m monai.bundle run --config_file bundles/{bundle}/configs/inference.json --input scan.nii.gz"
        " --output_dir results\n```",
        "The third puts the weights into `models/model.pt`, which the last takes; other weights: `--checkpoint`.",
        *other_gpus,
        "Planned by",
        f"```\n{command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str, later: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=later, break_long_words=False, break_on_hyphens=False)


# --- picture --------------------------------------------------------------------------------------


def fingerprint_picture(fingerprint: Mapping[str, Any], path: Path) -> Path:
    """Draw spacings, shapes, intensities and classes of a data set, and write the picture."""
    classes = list(fingerprint["classes"].items())[:MOST_BARS]
    figure = dark_figure(12, max(5.5, 2.5 + 0.16 * len(classes)), layout="tight")
    grids = figure.subplots(2, 2)
    per_case = fingerprint["per_case"].values()
    for axis, key, title in ((grids[0][0], "spacing", "spacing (mm)"), (grids[1][0], "cropped", "voxels, cropped")):
        values = np.array([held[key] for held in per_case], float)
        for number, name in enumerate(("right", "anterior", "superior")):
            axis.plot(
                np.sort(values[:, number]), np.linspace(0, 1, len(values)), "o-", ms=3, label=name, c=COLOURS[number]
            )
        _dressed(axis, title, "share of cases")
        axis.legend(labelcolor=TEXT, facecolor="none", edgecolor=MUTED, fontsize=8)
    names = [name for name, _ in classes]
    counts = [held["cases"] for _, held in classes]
    grids[0][1].barh(names, counts, color=COLOURS[1])
    _dressed(grids[0][1], f"cases with the class, of {fingerprint['cases']}", "")
    for place, (_, held) in enumerate(classes):
        if held["cases"]:
            grids[1][1].plot([held["lowest_ml"], held["highest_ml"]], [place, place], color=COLOURS[2])
            grids[1][1].plot(held["median_ml"], place, "o", color=COLOURS[0], ms=4)
    grids[1][1].set_yticks(range(len(names)), names)
    grids[1][1].set_ylim(-0.5, len(names) - 0.5)
    grids[1][1].set_xscale("log")
    _dressed(grids[1][1], "volume (ml): lowest, median, highest", "")
    for axis in (grids[0][1], grids[1][1]):
        axis.invert_yaxis()
        axis.tick_params(axis="y", labelsize=6 if len(names) > 15 else 8)
    return save_figure(figure, path)


def _dressed(axis: Any, x: str, y: str) -> None:
    """Give axes their labels and the colours of the figure."""
    axis.set_facecolor("none")
    axis.set_xlabel(x, color=TEXT)
    axis.set_ylabel(y, color=TEXT)
    axis.tick_params(which="both", colors=MUTED, labelcolor=MUTED)
    for side in axis.spines.values():
        side.set_color(MUTED)
