"""What makes a training run the run it is, read from its configuration, so that it is resumed with the same.

Every option and every argument of every component belongs to it, as they are after overrides and files that come on
top: by their values where these are plain (numbers, texts, lists), by their text in the configuration otherwise.
Nothing has to be listed to be compared; what may change between two starts of one run is listed here, with the reason.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from monai.bundle import ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver
from monai.engines import Evaluator, Trainer

from mambamim_nets.bundle.config import callers
from mambamim_nets.bundle.files import some

__all__ = [
    "TRAINING_CASES",
    "Difference",
    "References",
    "Settings",
    "differences",
    "effective",
    "run_settings",
    "settings_of",
]

# How and where the same numbers are computed, up to rounding: a run may move to another machine, and amp and compile
# follow from the machine.
MACHINE = {"device", "amp", "compile", "activation_checkpointing", "num_workers", "cache_rate", "cache_dir"}
MACHINE |= {"copy_cache", "other_process", "cache_file", "store"}  # a store may move; its volumes are the cases
MACHINE |= {"accumulate", "iteration_update", "estimate", "estimation"}
MACHINE |= {"memory", "sw_batch_size", "bundle_root", "output_dir", "log_dir", "resume", "resume_with_changes"}
# When something is looked at, and when a run gives up: an epoch learns the same.
INTERVALS = {"val_interval", "picture_interval", "interval", "early_stopping"}
INTERVALS |= {"checkpoint_iterations", "checkpoints_kept", "mlflow_uri"}
INTERVALS |= {"probe", "probing", "probe_dir", "probe_labels", "probe_interval", "probe_crops"}
FREE = MACHINE | INTERVALS
# Compared elsewhere: the cases and the batch by ``effective``, networks by network_def and their weights; a record
# repeats options; the shipped weights are for inference; the rest says what is done in which order.
ELSEWHERE = {
    "cases",
    "training_cases",
    "validation_cases",
    "datalist",
    "data",
    "dataset_dir",
    "phantom",
    "fold_file",
    "sampler",
    "shuffle",
}
ELSEWHERE |= {"batch_size", "network", "shipped", "record", "writer", "checkpoints", "imports", "initialize", "run"}
ELSEWHERE |= {"finalize", "body", "_desc_", "_meta_"}
# Where prepared scans are kept.
CACHES = {"CacheDataset", "Dataset", "mambamim_nets.bundle.DiskCache"}
# Components that only show something, or spare memory.
SHOWING = {"Progress", "StatsHandler", "TensorBoardStatsHandler", "TensorBoardImageHandler", "MLFlowHandler"}
SHOWING |= {"ValidationPicture", "LandmarkPicture", "ReconstructionPictures", "ReuseMemory", "LinearProbe"}
BATCH, TRAINING_CASES, VALIDATION_CASES = "batch_size over all processes", "training cases", "validation cases"
MOST_NAMES = 2000  # of cases; of more, a checkpoint holds the number and a digest
LONGEST = 60


class Settings(NamedTuple):
    """Settings by name, such as ``network_def#size``, and the options that each is made of, directly or not."""

    values: dict[str, Any]
    made_of: dict[str, set[str]]


class Difference(NamedTuple):
    """A setting that a checkpoint and this run do not share, and its two values; None where it is not set."""

    name: str
    held: Any
    here: Any

    def between(self, one: str = "in the checkpoint", other: str = "here") -> str:
        """Return the difference in words."""
        if isinstance(self.held, list) and isinstance(self.here, list) and self.name.endswith("cases"):
            gone, new = ([name for name in a if name not in b] for a, b in ((self.held, self.here), self[:0:-1]))
            parts = [f"{some(names, 3)} only {where}" for names, where in ((gone, one), (new, other)) if names]
            return f"{self.name}: {', '.join(parts)}"
        return f"{self.name} is {_short(self.held)} {one} and {_short(self.here)} {other}"


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def run_settings() -> Settings:
    """Return the settings of the run whose configuration is being evaluated; where none is, no settings.

    The configuration is found on the call stack, as in ``bundle_root``. Nothing is evaluated here: a value is what the
    run itself made of an expression, so this is to be called when everything that the run needs has been made.
    """
    for frame in callers():
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow) and hasattr(owner, "parser"):
            return settings_of(owner.parser.get(), owner.parser.ref_resolver.resolved_content)
    return Settings({}, {})


def settings_of(config: Mapping[str, Any], made: Mapping[str, Any]) -> Settings:
    """Return the settings of a configuration.

    Args:
        config: after overrides.
        made: what its expressions and components became, by id.
    """
    values, made_of, references = {}, {}, References(config)
    for key, content in config.items():
        if key not in FREE | ELSEWHERE:
            for name, value, text in _leaves(key, content, made, _holds_component(content)):
                values[name] = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
                made_of[name] = references.of(text)
    for name, part in ((TRAINING_CASES, "train"), (VALIDATION_CASES, "validate")):
        with contextlib.suppress(KeyError, TypeError):  # a part that the configuration does not have
            made_of[name] = references.of(config[part]["dataset"]["data"])
    return Settings(values, made_of)


def _leaves(name: str, content: Any, made: Mapping[str, Any], component: bool) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, value and text of everything below a name in the configuration."""
    parts: Iterable[tuple[Any, Any]] | None = None
    key = ReferenceResolver.normalize_id(name)
    if isinstance(content, Mapping) and "_target_" in content and key in made and _is_plain(made[key]):
        yield name, json.loads(json.dumps(made[key])), content  # of a function, such as the folder of the data
        return
    if isinstance(content, Mapping):
        parts = content.items()
    elif isinstance(content, list) and any(map(_has_parts, content)):
        parts = enumerate(content)
    if parts is not None:
        kept = [(key, part) for key, part in parts if key not in FREE | ELSEWHERE and not _only_shows(part, made)]
        kept = [(key, part) for key, part in kept if not (key == "_target_" and part in CACHES)]
        for number, (key, part) in enumerate(kept):
            # a handler that only shows something does not move those after it
            yield from _leaves(f"{name}#{number if isinstance(content, list) else key}", part, made, component)
        return
    # such as a file in the output folder
    free = component and isinstance(content, str) and bool(_references(content) & FREE)
    value = content if free else _value(name, content, made)
    if isinstance(value, Mapping):
        yield from ((f"{name}#{key}", part, content) for key, part in _flat(value))
    else:
        yield name, value, content


def _has_parts(content: Any) -> bool:
    return isinstance(content, Mapping | list) or (isinstance(content, str) and content.startswith(("$", "@")))


def _only_shows(content: Any, made: Mapping[str, Any]) -> bool:
    """Return whether something, or what it refers to, is one of the components that only show."""
    if isinstance(content, str) and content.startswith("@"):
        return type(made.get(ReferenceResolver.normalize_id(content[1:]))).__name__ in SHOWING
    return isinstance(content, Mapping) and str(content.get("_target_", "")).rpartition(".")[2] in SHOWING


def _holds_component(content: Any) -> bool:
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    return (isinstance(content, Mapping) and "_target_" in content) or any(map(_holds_component, parts))


def _value(name: str, content: Any, made: Mapping[str, Any]) -> Any:
    """Return what a text of the configuration stands for, if that is plain, else the text."""
    if not isinstance(content, str) or not content.startswith(("$", "@")):
        return content
    key = ReferenceResolver.normalize_id(content[1:] if content.startswith("@") else name)
    return json.loads(json.dumps(made[key])) if key in made and _is_plain(made[key]) else content


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _flat(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, part in value.items():
        if isinstance(part, Mapping):
            yield from ((f"{key}#{below}", leaf) for below, leaf in _flat(part))
        else:
            yield key, part


def _references(content: Any) -> set[str]:
    """Return the names of the options that something in the configuration refers to."""
    if isinstance(content, str):
        if ReferenceResolver.ref not in content:
            return set()
        return {ReferenceResolver.split_id(name)[0] for name in ReferenceResolver.match_refs_pattern(content)}
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    return set().union(*map(_references, parts))


class References:
    """Which options of a configuration its parts are made of.

    Args:
        config: by key, as files and options give it.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.direct = {key: _references(content) for key, content in config.items()}

    def of(self, content: Any) -> set[str]:
        """Return the names of all options that something is made of, directly or not."""
        found: set[str] = set()
        new = _references(content)
        while new:
            found |= new
            new = set().union(*(self.direct.get(name, ()) for name in new)) - found
        return found


def effective(trainer: Trainer, evaluator: Evaluator | None, processes: int) -> dict[str, Any]:
    """Return the settings that a configuration alone does not give: the cases, and the batch over all processes."""
    loader: Any = trainer.data_loader
    found: dict[str, Any] = {}
    if getattr(loader, "batch_size", None) is not None:
        found[BATCH] = loader.batch_size * processes
    found[TRAINING_CASES] = _case_names(loader.dataset)
    if evaluator is not None:
        validation: Any = evaluator.data_loader
        found[VALIDATION_CASES] = _case_names(validation.dataset)
    return found


def _case_names(dataset: Any) -> list[str] | str:
    """Return the names of the cases of a data set, or of their images where they have none."""
    items = getattr(dataset, "data", None)
    names = [_case_name(item) for item in items] if isinstance(items, Sequence) else [""]
    if not all(names):
        return f"{len(dataset)} without names"
    if len(names) <= MOST_NAMES:
        return sorted(names)
    return f"{len(names)} of digest {hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()[:16]}"


def _case_name(item: Any) -> str:
    found = item.get("case", item.get("image")) if isinstance(item, Mapping) else None
    found = found[0] if isinstance(found, list | tuple) and found else found
    return found if isinstance(found, str) else ""


def differences(
    held: Mapping[str, Any], here: Mapping[str, Any], made_of: Mapping[str, set[str]] | None = None
) -> list[Difference]:
    """Return what differs; a checkpoint of an earlier version, which holds few settings, by what both hold.

    Args:
        held: settings of the checkpoint.
        here: settings of this run.
        made_of: see ``Settings``; a setting made of another one that differs is left out, since it only follows.
    """
    if TRAINING_CASES in held:
        names = [*here, *(name for name in held if name not in here)]
        found = [Difference(name, held.get(name), here.get(name)) for name in names]
        found = [item for item in found if item.held != item.here and str(item.held) != str(item.here)]
    else:
        known = {"data_root": held["data"], **held} if "data" in held else held
        found = [Difference(name, known[name], here[name]) for name in here if name in known]
        found = [item for item in found if str(item.held) != str(item.here)]
    differing = {item.name.partition("#")[0] for item in found}
    differing |= {"batch_size"} if any(item.name == BATCH for item in found) else set()
    causes = [item for item in found if not (made_of or {}).get(item.name, set()) & differing]
    return causes or found
