"""The options of all bundles: the type, the range or the choices of each, checked once when a run starts.

An option is a key at the top of a configuration whose value is a number, a switch, a name, a path or a list of them.
`OPTIONS` has one entry for each, whatever the bundle. `check_options` evaluates those that a configuration has, refuses
a value in one sentence that names the option, and writes back what it converts: "true" becomes True, "null" None, and
"~" in a path the user's folder, so that whatever reads the option later sees the value that was checked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from monai.bundle import ConfigExpression, ConfigParser, ReferenceResolver

from mambamim_nets.bundle.errors import first_line
from mambamim_nets.bundle.io.headers import checked_axes
from mambamim_nets.bundle.option_kinds import (
    DetailError,
    Option,
    choice,
    file,
    mapping,
    name,
    names,
    number,
    path,
    positive,
    switch,
    to_axes,
    to_channel_order,
    to_count,
    to_data_folder,
    to_device,
    to_ends,
    to_files,
    to_fold,
    to_folder,
    to_intensity,
    to_label,
    to_pairs,
    to_parts,
    to_path,
    to_paths,
    to_resume,
    to_sides,
    to_sources,
    to_spacing,
    to_store,
    to_switch,
    to_text,
    to_tracking,
    to_volume,
    whole,
)
from mambamim_nets.ops.orders import ScanKind

logger = logging.getLogger("mambamim_nets")

__all__ = ["OPTIONS", "Option", "check_options", "rounded_up"]

LABELS = "a table {'name': 1, ...} of values from 1 to 255, since label maps are kept as bytes"

# The order matters only for expressions: an option that others need comes before them.
OPTIONS: dict[str, Option] = {
    # what and where
    "bundle_root": Option("folder of the bundle", "an existing folder", to_folder),
    "task": name("what is learnt"),
    "size": choice("size of the network", "tiny", "base"),
    "method": name("method of pre-training"),
    "body": Option("a comment", "a text", str),
    "device": Option("what the run computes on", "a device of this machine, e.g. cpu", to_device),
    "dataset_dir": Option(
        "the data set",
        "the folder of a data set as downloaded, or 'phantom' for synthetic data",
        to_data_folder,
        null=True,  # with a store; elsewhere dataset_folder refuses it
    ),
    "data_root": Option("the data set", "an existing folder", to_folder, late=True),
    "sources": Option(
        "images of pre-training",
        "a path, or a list of paths or of {'path': ..., 'weight': ...}",
        to_sources,
        null=True,
        late=True,
    ),
    "store": Option(
        "the prepared store",
        "the folder or URL that python -m mambamim_nets.prepare --store wrote",
        to_store,
        null=True,
    ),
    "filter": Option(
        "which volumes of the store are taken",
        "a comparison such as \"modality == 'CT' and not duplicate\"",
        to_text,
        null=True,
    ),
    "source_weights": mapping(
        "how often each source of the store is drawn", "a table {'name of the source': 2.0, ...}", null=True
    ),
    "held_out": number("share of the subjects that is never trained on", "from 0 to below 1", 0.05, 0.0, below=1.0),
    "input": path("the scans: a file, a folder, or a pattern", null=True),
    "source": Option("the scans: a file, a folder, or a pattern", "a path", to_path, late=True),
    "assume_axes": Option(
        "where the axes of files point that do not say so",
        "three letters, one each of R or L, A or P, S or I, e.g. 'RAS'",
        checked_axes,
        null=True,
    ),
    "shipped": Option("the bundle's own weights", "a path, or a list of paths of an ensemble", to_paths, null=True),
    "pretrained": file("weights to start from", null=True),
    "fold_file": file("JSON of folds", null=True),
    # images
    "channels": names("channels of the image, in the network's order"),
    "in_channels": whole("channels of the image", 1, 1),
    "channel_order": Option(
        "order of the channels in the files",
        "a list of channels in the order of the files",
        to_channel_order,
        null=True,
        late=True,
    ),
    "field_of_view": Option(
        "random fields of view of training images", "a list of transforms {'_target_': ...}, or []", list, late=True
    ),
    "resampled": names("keys of a case that are brought to the grid of the network"),
    "interpolation": names("how each of these is interpolated"),
    "out_channels": Option("channels of the network's result", "a whole number of at least 1", to_count, late=True),
    "intensity": Option(
        "how intensities are scaled",
        "one of ct, mr, ct_or_mr and zscore in pre-training, a transform {'_target_': ...} in other bundles",
        to_intensity,
    ),
    "spacing": Option(
        "edges of a voxel in mm", """a list of three numbers from 0.01 to 50, e.g. "[1.5,1.5,1.5]\"""", to_spacing
    ),
    "side_multiple": whole("what every side of roi_size must be a multiple of", 1, 16),
    "roi_size": Option(
        "size of a crop or window, in voxels", """a list of three whole numbers, e.g. "[96,96,96]\"""", to_sides
    ),
    "input_size": Option(
        "size of the image, in voxels", """a list of three whole numbers, e.g. "[112,136,112]\"""", to_sides
    ),
    "mirror_axes": Option(
        "axes along which predictions are mirrored and averaged",
        'a list of different axes from 0 to 2, e.g. "[0]"',
        to_axes,
    ),
    # what is learnt
    "labels": mapping("name and value of each structure", LABELS, item=to_label),
    "regions": mapping("name and labels of each region", "a table {'name': [1, 2], ...}", null=True),
    "classes": names("the negative and the positive class"),
    "diagnoses": names("diagnoses that the table of subjects may hold"),
    "lengths": mapping(
        "name and end points of each length", "a table {'name': ['from', 'to'], ...} of different points", item=to_ends
    ),
    "points": names("landmarks, in the network's order"),
    "swaps": Option(
        "points that change places in a mirrored image", """a list of pairs, e.g. "[['left','right']]\"""", to_pairs
    ),
    "allow_missing": switch("whether a case may lack points"),
    "enhancing_label": whole("value of enhancing tumour in the label maps", 1, 4, 255),
    "sigma": positive("width of a landmark's peak, in voxels", 2.0),
    "peak": positive("height of a landmark's peak", 50.0),
    "min_confidence": number("confidence below which a landmark is marked as unsure", "from 0 to 1", 0.3, 0.0, 1.0),
    "threshold": number("probability from which a scan is positive", "from 0 to 1", 0.5, 0.0, 1.0, null=True),
    "keep_largest": Option(
        "structures of which only the largest part is kept",
        """true, false, "together", or a list of names, e.g. "['liver']\"""",
        to_parts,
    ),
    "min_volume_ml": mapping(
        "smallest volume, in ml, of a part of a structure",
        "a table {'name': 0.5, ...} of volumes above 0",
        item=to_volume,
        null=True,
    ),
    "subjects": mapping("which cases are of one person", "a table {'pattern': '...', 'consecutive': 2}", null=True),
    "phantom": mapping("the synthetic data", "a table {'kind': 'abdomen', 'cases': 10}", null=True),
    "record": mapping("what the weights must say of themselves", "a table", null=True, late=True),
    # network and pre-training
    "scan": choice("order of the tokens", *get_args(ScanKind)),
    "width": whole("channels of the first level", 1, 16),
    "mlp_width": whole("hidden width of the classifier's MLP", 1, 32),
    "seq_head": choice("the classifier's head", "none", "mamba"),
    "stem_scan": choice("the classifier's stem", "single", "css4"),
    "dropout": number("share of features that is dropped", "from 0 to below 1", 0.5, 0.0, below=1.0),
    "mask_ratio": number("share of hidden blocks", "above 0 and below 1", 0.75, above=0.0, below=1.0, null=True),
    "fill": choice("what fills hidden places", "toki", "learnable", null=True),
    "masking": choice("how the levels are masked", "bottom_up", "independent", null=True),
    "skip": switch("skip connections of the decoder", null=True),
    "target": choice("what is reconstructed", "patch_norm", "raw", null=True),
    "decoder_width": whole("channels of the decoder", 1, 128, null=True),
    # training
    "batch_size": whole("scans or crops in a step", 1, 2),
    "crops_per_volume": whole("crops that follow on each other of one volume of the store", 1, 1),
    "crops_per_scan": whole("crops of a scan in each step", 1, 4),
    "crops_per_epoch": whole("painted crops of an epoch", 1, 300),
    "random_style": number("share of crops of a random style", "from 0 to 1", 0.3, 0.0, 1.0),
    "background_weight": number("weight of the background in the loss", "of at least 0", 0.25, 0.0),
    "learning_rate": positive("highest learning rate", 0.0001),
    "weight_decay": number("weight decay of the optimiser", "of at least 0", 0.00001, 0.0),
    "max_epochs": whole("epochs of training", 1, 100),
    "epoch_iterations": whole("steps of an epoch", 1, 250),
    "val_iterations": whole("steps of a validation", 1, 8),
    "accumulate": whole("parts in which a step is taken, one after another", 1, 1),
    "estimate": switch("whether to measure some steps and say what the whole run takes, instead of training"),
    "checkpoint_iterations": whole("steps between checkpoints within an epoch; 0: at its end and at a stop", 0, 0),
    "checkpoints_kept": whole("checkpoints that are kept", 1, 1),
    "warmup_epochs": whole("epochs in which the learning rate rises", 0, 5),
    "val_interval": whole("epochs between validations", 1, 5),
    "probe_dir": Option("labelled scans of the probe", "the folder of a data set as downloaded", to_folder),
    "probe_labels": mapping("name and value of each structure of the probe", LABELS, item=to_label),
    "probe_interval": whole("epochs between probes", 1, 1),
    "probe_crops": whole("crops of each scan of the probe", 1, 2),
    "mlflow_uri": Option(
        "where MLflow keeps the curves of the run",
        "a URI such as sqlite:///mlflow.db or http://server:5000",
        to_tracking,
        null=True,
    ),
    "picture_interval": whole("epochs between pictures", 1, 10),
    "max_grad_norm": positive("norm to which gradients are clipped", 5.0),
    "ema": number("decay of the averaged weights, 0 without", "from 0 to below 1", 0.999, 0.0, below=1.0),
    "early_stopping": whole("epochs without a better validation that end training; 0 never ends it", 0, 100),
    "seed": whole("seed of everything random", 0, 0, 2**32 - 1),
    "train_cases": whole("training cases to keep, 0 keeps all", 0, 10, null=True),
    "val_share": number("share of subjects for validation", "above 0 and below 1", 0.2, above=0.0, below=1.0),
    "hold_out_fold": whole("fold whose images pre-training must not see", 0, 0, null=True),
    "pretrained_part": choice("which part of pretrained weights is taken", "encoder", "network"),
    "adapt_input": switch("whether the first layer is adapted to other channels"),
    "resume": Option("whether a run in the same folder goes on", "auto, true or false", to_resume),
    "resume_with_changes": switch("whether a run goes on with other settings than its checkpoint has"),
    # computing
    "amp": switch("whether to compute in bfloat16 where it is safe"),
    "compile": switch("whether to use torch.compile"),
    "activation_checkpointing": switch("whether to recompute activations, to save memory"),
    "cache_dir": path("folder of prepared scans"),
    "other_process": Option(
        "whether this process is not the first of several, and so keeps still", "true or false", to_switch, late=True
    ),
    "cache_rate": number("share of the scans that is kept in memory", "from 0 to 1", 1.0, 0.0, 1.0),
    "num_workers": whole("processes that load data", 0, 2),
    "sw_batch_size": whole("windows at a time", 1, 4),
    "overlap": number("overlap of neighbouring windows", "from 0 to below 1", 0.5, 0.0, below=1.0),
    "skip_air": switch("whether windows of air are left out"),
    "max_gib": positive("memory for class probabilities, in GiB", 2.0),
    # results
    "part": choice("part whose cases are evaluated", "train", "val", "test"),
    "force": switch("whether scans that the weights do not know are segmented all the same"),
    "overwrite": switch("whether finished scans are done again"),
    "pictures": whole("cases with a picture", 0, 8),
    "predictions": switch("whether evaluation keeps the predicted label maps"),
    "previews": switch("whether each scan gets a picture"),
    "rtstruct": switch("whether a DICOM series gets an RTSTRUCT too"),
    "probabilities": switch("whether the probabilities of each scan are written too"),
    "radiomics": switch("whether each scan gets the radiomics of its structures"),
    "tolerance_mm": positive("tolerance of the surface Dice, in mm", 1.0),
    "resamples": whole("draws of the bootstrap", 1, 2000),
    # last, because their defaults may need the data set
    "fold": Option(
        "fold of the cross-validation", "a whole number from 0, or 'all', or 'official'", to_fold, late=True
    ),
    "output_dir": path("where results go"),
    "eval_dir": path("where results of the evaluation go"),
    "checkpoint": Option(
        "the weights, e.g. model_best.pt of a training run; of several files, probabilities are averaged",
        "an existing file, or a list of them",
        to_files,
        late=True,
    ),
}


def rounded_up(sides: Sequence[int], multiple: int) -> list[int]:
    """Return the smallest lengths of at least ``sides`` that are multiples of ``multiple``."""
    return [multiple * math.ceil(side / multiple) for side in sides]


def _deferred(raw: Any, option: str) -> bool:
    """Return whether a value of a configuration is to be evaluated, or holds what is."""
    return ConfigExpression.is_expression(raw) or bool(ReferenceResolver.find_refs_in_config(raw, option))


def check_options(parser: ConfigParser, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check every option that a configuration has, and write back what is converted.

    Args:
        parser: of the merged configuration. If something is written, it is parsed again, which forgets what was
            evaluated.
        given: the options of the command line; None in it means null.

    Returns:
        The values, by name, of all but those that are left to be evaluated when they are needed.

    Raises:
        ValueError: an option breaks its rule, or roi_size is no multiple of what the network needs.
    """
    content: dict[str, Any] = parser.get()
    values: dict[str, Any] = {}
    changed: dict[str, Any] = {}
    literal_first = sorted(OPTIONS, key=lambda option: _deferred(content.get(option), option))  # else as listed
    for option in literal_first:
        if option not in content:
            continue
        entry, held = OPTIONS[option], content[option]
        nulled = option in given and given[option] is None
        if _deferred(held, option) and not nulled:
            if entry.late and option not in given:
                continue
            held = _evaluated(parser, option, held if option in given else None)
        value = None if nulled else held
        values[option] = _converted(option, entry, value)
        if type(values[option]) is not type(held) or values[option] != held:
            changed[option] = values[option]
    _check_intensity(values, content)
    changed.update(_rounded_sides(values, given))
    values.update(changed)
    for option, value in changed.items():
        parser[option] = f"$torch.device({str(value)!r})" if isinstance(value, torch.device) else value
    if changed:
        parser.parse()
    return values


def _evaluated(parser: ConfigParser, option: str, given: Any) -> Any:
    try:
        return parser.get_parsed_content(option)
    except Exception as error:
        if given is None:
            raise
        raise ValueError(f"option --{option} {given!r} cannot be evaluated: {first_line(error)}") from error


def _converted(option: str, entry: Option, value: Any) -> Any:
    if entry.null and (value is None or (isinstance(value, str) and value.lower() in ("null", "none"))):
        return None
    try:
        return entry.convert(value)
    except (ValueError, TypeError, KeyError) as error:
        shown = str(value) if isinstance(value, torch.device) else repr(value)
        because = f"; {error}" if isinstance(error, DetailError) else ""
        null = ", or null" if entry.null else ""
        raise ValueError(f"option --{option} {shown} must be {entry.rule}{null}{because} ({entry.about})") from error


def _check_intensity(values: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Refuse a name of an intensity scaling where the configuration has no table of them."""
    held = values.get("intensity")
    if isinstance(held, str) and held not in content.get("intensities", {}):
        raise ValueError(
            f"option --intensity {held!r} must be a transform in this configuration, e.g. --intensity"
            " \"{'_target_': 'ScaleIntensityRanged', 'keys': 'image', 'a_min': -175, 'a_max': 250, 'b_min': 0,"
            " 'b_max': 1, 'clip': true}\""
        )


def _rounded_sides(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return roi_size with every side a multiple of what the network needs: a task's own is rounded up.

    Raises:
        ValueError: the command line gives one that is none.
    """
    multiple, sides = values.get("side_multiple"), values.get("roi_size")
    if multiple is None or sides is None or list(sides) == (valid := rounded_up(sides, multiple)):
        return {}
    if "roi_size" in given:
        raise ValueError(f"roi_size {list(sides)} must be divisible by {multiple} on every axis; try {valid}")
    logger.info("roi_size %s: %s, since this network needs multiples of %d", list(sides), valid, multiple)
    return {"roi_size": valid}
