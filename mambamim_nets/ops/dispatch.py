"""Which implementation of an operator may run here: what is recorded, what is installed, what torch.compile may see."""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch


def recording() -> bool:
    """Whether torch.jit.trace or torch.export (also under ONNX) records a graph, which must hold tensor operations."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


@functools.cache
def importable(package: str) -> bool:
    """Whether a package is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None


@functools.cache
def triton_works() -> bool:
    """Whether Triton is installed and finds the C compiler with which it builds its launchers on first use."""
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return importable("triton") and any(shutil.which(name) is not None for name in compilers if name)


def opaque(function: Callable[..., Any], *args: Any) -> Any:
    """Call a kernel that torch.compile must not look into: the graph breaks here and the kernel runs as it is."""
    if not torch.compiler.is_compiling():
        return function(*args)
    from mambamim_nets.ops.uncompiled import call

    return call(function, *args)
