"""Names of options and of what lies inside a configuration: whatever nothing would read is refused.

MONAI takes any option, and adds what no configuration knows, so a misspelled one would change nothing in silence.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow, ReferenceResolver

from mambamim_nets.bundle.config import flag

__all__ = ["check_components", "check_names", "check_task", "check_texts"]

TRACKING = ("tracking_uri", "experiment_name", "run_name", "save_execute_config")  # options of MONAI's --tracking
_SPECIAL = sorted(ConfigComponent.non_arg_keys)  # _target_, _disabled_, ...
_OF_TASK = ("labels", "classes", "channels")  # what tells one task of a bundle from another
_KEYS = {"phantom": {"kind", "cases"}}  # of tables that are passed on as a whole


def _parts(key: str) -> list[str]:
    return ReferenceResolver.split_id(key.lstrip("+~"))


def check_names(parser: ConfigParser, files: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuse names of options, and of settings of later files, that nothing in the configuration reads.

    Likewise options that a later file has no use for: it sets to null what an earlier one sets.

    Args:
        parser: of the merged configuration, options included.
        files: the configuration, in the order in which they were merged.
        given: the options of the command line.

    Raises:
        ValueError: that names the option and the nearest valid ones, or the file.
    """
    contents = {file: ConfigParser.load_config_file(file) for file in files}
    valid = {_parts(key)[0] for content in contents.values() for key in content}
    unused = {
        key: file
        for number, file in enumerate(files)
        for key, value in contents[file].items()
        if value is None and any(key in contents[earlier] for earlier in files[:number])
    }
    allowed = valid | set(inspect.signature(ConfigWorkflow).parameters) | set(TRACKING)
    for key in given:
        option = _parts(key)[0]
        if option not in allowed:
            near = difflib.get_close_matches(option, valid, n=3, cutoff=0.5)
            hint = f"did you mean --{' or --'.join(near)}?" if near else f"valid are {', '.join(sorted(valid))}"
            raise ValueError(f"option --{option} is unknown to {', '.join(files)}; {hint}")
        if option in unused:
            raise ValueError(f"option --{option} has no effect with {unused[option]}; leave it out")
    before = ConfigParser(ConfigParser.load_config_files(list(files)))
    for key in given:
        _check_nested(parser, before, key, f"option --{key}")
    for number, file in enumerate(files[1:], 1):
        earlier = ConfigParser(ConfigParser.load_config_files(list(files[:number])))
        for key in contents[file]:
            _check_nested(parser, earlier, key, f"{file}: {key}")


def _check_nested(parser: ConfigParser, before: ConfigParser, key: str, what: str) -> None:
    """Refuse a key inside a table that had no such key and is read by its keys only."""
    parts = _parts(key)
    parent, leaf = "::".join(parts[:-1]), parts[-1]
    table = parser.get(parent) if parent else None
    if not isinstance(table, Mapping) or ConfigComponent.is_instantiable(table):  # see check_components
        return
    held = before.get(parent)
    known = set(held) if isinstance(held, Mapping) else set()
    if parent in _KEYS:
        known = _KEYS[parent]
    elif any(_reads(reference, parent, leaf) for reference in _references(parser.config)):
        return
    if leaf not in known:
        raise ValueError(f"{what} is read by nothing; {_nearest(leaf, known, parent)}")


def _references(config: Any) -> Iterator[str]:
    for text in _texts(config):
        yield from ReferenceResolver.match_refs_pattern(text[1])


def _reads(reference: str, parent: str, leaf: str) -> bool:
    """Return whether a reference is to a table as a whole, or to one of its keys."""
    return reference == f"{parent}::{leaf}" or parent == reference or parent.startswith(f"{reference}::")


def _nearest(key: str, known: set[str], parent: str) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join('#'.join((*_parts(parent), name)) for name in near)}?"
    return f"valid are {', '.join(sorted(known))}"


def check_components(parser: ConfigParser, given: Mapping[str, Any]) -> None:
    """Refuse arguments that the class or function of a ``_target_`` does not take.

    A switch that arrives as text, as ``--network_def#bidirectional false`` does, is written back as True or False: the
    text "false" would count as true.

    Args:
        parser: of the merged configuration. If something is written, it is parsed again.
        given: the options of the command line, for the message.

    Raises:
        ValueError: that names the key and the nearest arguments, a ``_target_`` that does not exist, or a switch that
            is neither true nor false.
    """
    options = {"::".join(_parts(key)): key for key in given}
    switches: dict[str, bool] = {}
    for where, table in _components(parser.config):
        target = table["_target_"]
        if not isinstance(target, str) or target[:1] in "$@%":
            continue
        try:
            found = locate(str(ConfigComponent(table, where, parser.locator).resolve_module_name()))
        except ErrorDuringImport:  # of a name such as ../.., or of a module that is broken
            found = None
        place = where.replace("::", "#")
        if found is None:
            raise ValueError(
                f"{place}#_target_ {target!r} is not a class or function that can be imported; correct its name, or"
                " install its package"
            )
        try:
            arguments = inspect.signature(found).parameters.values()  # type: ignore[arg-type]
        except (TypeError, ValueError):  # of some built-in functions nobody knows
            continue
        if any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
            continue
        known = {argument.name for argument in arguments}
        for key in table:
            if key not in known and key not in _SPECIAL:
                option = options.get(f"{where}::{key}")
                what = f"option --{option}" if option else f"{place}#{key}"
                near = _nearest(key, {*known, *_SPECIAL} if key.startswith("_") else known, where)
                raise ValueError(f"{what} is no argument of {target}; {near}")
        for argument in arguments:
            value = table.get(argument.name)
            if argument.annotation in (bool, "bool") and isinstance(value, str) and value[:1] not in ("$", "@", "%"):
                option = options.get(f"{where}::{argument.name}")
                switches[f"{where}::{argument.name}"] = flag(value, f"option --{option}" if option else place)
    for key, value in switches.items():
        parser[key] = value
    if switches:
        parser.parse()


def _components(config: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(config, Mapping | list):
        for _, inner, value in ReferenceResolver.iter_subconfigs(where, config):
            if inner != ConfigParser.meta_key:
                yield from _components(value, inner)
    if where and ConfigComponent.is_instantiable(config):
        yield where, config


def _texts(config: Any, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(config, str):
        yield where, config
    elif isinstance(config, Mapping | list):
        for _, inner, value in ReferenceResolver.iter_subconfigs(where, config):
            if inner != ConfigParser.meta_key:
                yield from _texts(value, inner)


def check_texts(parser: ConfigParser, files: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuse texts that MONAI would change, and references of options to what is not there.

    Args:
        parser: as in ``check_names``.
        files: as in ``check_names``.
        given: as in ``check_names``.

    Raises:
        ValueError: that names the option, or the file and its key.
    """
    contents = {file: ConfigParser.load_config_file(file) for file in files}
    for source, content in (*contents.items(), ("", given)):
        for key, value in content.items():
            for _, text in _texts(value, key):
                what = f"{source}: {key}" if source else f"option --{key}"
                if "#" in text and text[:1] not in ("$", "@", "%"):
                    raise ValueError(
                        f"{what} {text!r} must be without '#', which MONAI reads as a step into a configuration; rename"
                        " it, or link to it under another name"
                    )
    for key, value in given.items():
        for _, text in _texts(value, key):
            for reference in ReferenceResolver.match_refs_pattern(text):
                if not reference.startswith("::") and reference not in parser:
                    raise ValueError(
                        f"option --{key} {text!r} refers to {reference!r}, which no configuration has; give a value, or"
                        " the name of a key after '@'"
                    )


def check_task(parser: ConfigParser, values: Mapping[str, Any]) -> None:
    """Refuse a task's name that is not that of its labels: ``--task`` alone would change nothing but the record.

    A bundle of several tasks has a configuration for each, ``configs/tasks/<task>.json``.

    Args:
        parser: of the merged configuration, options included.
        values: the checked options.

    Raises:
        ValueError: that names the configuration to give.
    """
    task = values.get("task")
    folder = Path(values.get("bundle_root", ""), "configs", "tasks")
    overlays = {path.stem: path for path in sorted(folder.glob("*.json"))}
    if task is None or not overlays:
        return
    here = {key: values[key] for key in _OF_TASK if key in values}
    if task in overlays:
        said = _of_task(overlays[task], parser)
        differing = [key for key, value in said.items() if value != here.get(key)]
        if differing:
            key = differing[0]
            raise ValueError(
                f"task {task!r} has the {key} {_listed(said[key])}, not {_listed(here.get(key))}; choose it by "
                f"its configuration: --config_file \"[..., '{overlays[task]}']\", right after train.json or "
                "inference.json; a task of your own needs another name"
            )
        return
    for name, path in overlays.items():
        if all(here.get(key) == value for key, value in _of_task(path, parser).items()):
            raise ValueError(
                f"task {task!r} is unknown, and this configuration is that of {name!r}; choose one of"
                f" {sorted(overlays)} by its configuration, e.g."
                f" --config_file \"[..., '{overlays[name]}']\", or write one like it"
            )


def _of_task(path: Path, parser: ConfigParser) -> dict[str, Any]:
    """Return what a task's configuration says of its channels, labels or classes, evaluated."""
    content = ConfigParser.load_config_file(path)
    around = {key: parser[key] for key in ("imports", "bundle_root") if key in parser}
    alone = ConfigParser({key: content[key] for key in _OF_TASK if key in content} | around)
    return {key: alone.get_parsed_content(key) for key in _OF_TASK if key in content}


def _listed(value: Any) -> list[Any]:
    return list(value or [])
