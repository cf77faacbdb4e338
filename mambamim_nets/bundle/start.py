"""How every run starts: it learns to end with one sentence, and its options are checked before any work."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from mambamim_nets.bundle import errors, stops
from mambamim_nets.bundle.config import callers
from mambamim_nets.bundle.options import check_options
from mambamim_nets.bundle.overrides import check_components, check_names, check_task, check_texts

__all__ = ["check_folder", "start_run"]

FOLDERS = ("output_dir", "eval_dir")


def start_run() -> None:
    """Check the running configuration and its options; the first thing that ``initialize`` does.

    MONAI hands neither to expressions, so both are found on the call stack: the running ConfigWorkflow has the
    configuration, and ``create_workflow`` of ``monai.bundle run`` holds the files and the options.

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
    if workflow is None:
        return
    parser = workflow.parser
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
