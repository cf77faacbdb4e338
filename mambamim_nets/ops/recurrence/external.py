"""Selective scan on CUDA by mamba_ssm's own kernel, where that package is installed."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor


@functools.cache
def mamba_ssm_scan() -> Callable[..., Any] | None:
    """Import mamba_ssm's selective_scan_fn, once; None when it is not installed or does not load here."""
    try:
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except (ImportError, OSError):
        return None


def on_mamba_ssm(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """Call mamba_ssm's CUDA kernel with the dtypes it wants.

    Arguments and results as in `selective_scan`, but the last state has no gradient.
    """
    kernel = mamba_ssm_scan()
    assert kernel is not None
    delta, B, C = (tensor.to(u.dtype) for tensor in (delta, B, C))
    z = None if z is None else z.to(u.dtype)
    D, delta_bias = (None if tensor is None else tensor.float() for tensor in (D, delta_bias))
    return kernel(u, delta, A.float(), B, C, D, z, delta_bias, delta_softplus, return_last_state)
