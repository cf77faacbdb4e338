"""What tests of several files need: paths, finished runs, tables, refusals, drawn images."""

import contextlib
import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from mambamim_nets.masking import random_visible

REPOSITORY = Path(__file__).resolve().parents[1]
BUNDLES = REPOSITORY / "bundles"


def existing(paths: Iterable[Path]) -> list[Path]:
    """Return paths, sorted; there must be some, since a loop over none passes whatever is wrong."""
    listed = sorted(paths)
    assert listed, "no file was found where there must be some"
    return listed


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process of its own: one thread, no warnings, and what is given."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **variables}


def finished(workflow: ConfigWorkflow) -> ConfigWorkflow:
    """Run a workflow to its end and return it."""
    workflow.run()
    workflow.finalize()
    return workflow


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def touch(path: Path) -> Path:
    """Make an empty file, with the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write values as JSON, with the folders that the file lies in."""
    touch(path).write_text(json.dumps(content))
    return path


def saved(path: Path, content: Any) -> Path:
    """Save what `torch.save` takes; return the path."""
    torch.save(content, path)
    return path


def option(arguments: Sequence[str], name: str) -> str | None:
    """Return the value of an option of a command line; None where it is not given."""
    return arguments[arguments.index(f"--{name}") + 1] if f"--{name}" in arguments else None


def causes(error: BaseException | None) -> Iterator[str]:
    """Yield the text of an error and of what caused it, the last one first."""
    while error is not None:
        yield str(error)
        error = error.__cause__


@contextlib.contextmanager
def refused(*words: str) -> Iterator[pytest.ExceptionInfo]:
    """Expect an error that says each of the words, itself or in what caused it; gives what was caught."""
    with pytest.raises(Exception) as caught:  # noqa: PT011, MONAI wraps the errors of configurations in its own
        yield caught
    text = " | ".join(causes(caught.value))
    assert words and all(part in text for part in words), text


def message_of(workflow: Callable[..., ConfigWorkflow], *args: Any, **options: Any) -> str:
    """Return the whole text of the error with which a workflow ends, while it is made or while it runs."""
    with pytest.raises(Exception) as caught:  # noqa: PT011, the caller compares the text
        workflow(*args, **options).run()
    return " | ".join(causes(caught.value))


def count(module: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw voxels from the normal distribution."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(
    grid: tuple[int, int, int], samples: int = 4, ratio: float = 0.5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images of two channels and ``grid`` patches of 16^3, and which of their patches are visible."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 2, *(16 * side for side in grid), generator=generator)
    return images, random_visible(samples, grid, ratio, generator)


def assert_order_does_not_matter(
    network: torch.nn.Module, plain: torch.nn.Module, layers: Iterable[Any], x: torch.Tensor, visible: torch.Tensor
) -> None:
    """Check that a network rebuilds as one of another scan order does, once its Mamba layers no longer mix tokens."""
    for layer in layers:
        torch.nn.init.zeros_(layer.mixer.out_proj.weight)
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        found, expected = network(x, visible).reconstruction, plain(x, visible).reconstruction
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
