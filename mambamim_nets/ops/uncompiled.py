"""Hiding kernels from torch.compile; imported under it alone, since the decorator loads torch._dynamo: seconds."""

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable
def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function as it is; the graph breaks here."""
    return function(*args)
