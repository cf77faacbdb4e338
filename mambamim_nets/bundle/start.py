"""How every run starts: it learns to end with one sentence, and its options are checked before any work."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from mambamim_nets.bundle import errors, stops
from mambamim_nets.bundle.config import callers
from mambamim_nets.bundle.options import check_options
from mambamim_nets.bundle.overrides import check_components, check_names, check_task, check_texts
from mambamim_nets.bundle.runtime import seed_everything

__all__ = ["check_folder", "start_run"]

FOLDERS = ("output_dir", "eval_dir")


def start_run(seed: int | None = None) -> None:
    """Check the running configuration and its options, and seed everything random; ``initialize`` does it first.

    MONAI hands neither to expressions, so both are found on the call stack: the running ConfigWorkflow has the
    configuration, and ``create_workflow`` of ``monai.bundle run`` holds the files and the options.

    Args:
        seed: of Python, NumPy and PyTorch; None: what is random stays so.

    Raises:
        ValueError: an option, a name or a value is refused; the sentence says which, and what to do.
        OSError: a folder for results cannot be made or written.
    """
    errors.install()
    workflow, files, given = None, [], {}
    for frame in callers():
        owner = frame.f_locals.get("self")
        if workflow is None and isinstance(owner, ConfigWorkflow):
            workflow = owner
        if frame.f_code.co_name == "create_workflow" and isinstance(frame.f_locals.get("_args"), Mapping):
            config_file = frame.f_locals.get("config_file")
            files = [config_file] if isinstance(config_file, str) else list(config_file or ())
            given = _options(frame.f_locals)
    if workflow is not None:
        values = _check(workflow.parser, files, given)
        seed = values.get("seed") if seed is not None else None
    if seed is not None:
        seed_everything(seed)


def _check(parser: ConfigParser, files: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Check a configuration, and install what the run does when it fails or is stopped; returns its options."""
    if files:
        check_names(parser, files, given)
    check_texts(parser, files, given)
    check_components(parser, given)
    values = check_options(parser, given)
    check_task(parser, values)
    for option in FOLDERS:
        if option in values:
            check_folder(values[option], option)
    errors.keep_tracebacks_in(values.get("output_dir"))
    stops.install(parser, values)
    return values


def _options(local: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``create_workflow``, with those that it drops because they are None."""
    own = set(inspect.signature(ConfigWorkflow).parameters)
    nulled = {key: None for key, value in local.get("kwargs", {}).items() if value is None}
    return {key: value for key, value in {**nulled, **local["_args"]}.items() if key not in own}


def check_folder(folder: str, option: str) -> None:
    """Make sure that a folder for results is there, or can be made, and can be written; nothing is left in it.

    Raises:
        OSError: that names the option and what is in the way.
    """
    try:
        there = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(
                f"option --{option} {folder!r} must be a folder, and {there} is a file; give another --{option}"
            )
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if error.strerror is None:  # our own
            raise
        raise OSError(
            f"option --{option} {folder!r} must be a folder that can be written: {error.strerror}; give another"
            f" --{option}"
        ) from error
