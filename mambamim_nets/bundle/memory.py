"""What training may do about memory: keep what is freed, and keep less for the backward pass."""

import ctypes
import logging
import sys

from monai.networks.blocks import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from mambamim_nets.bundle.launch import flag
from mambamim_nets.layers.conv import MedNeXtBlock, ResidualBlock
from mambamim_nets.layers.mamba import MambaLayer
from mambamim_nets.nets.mambamim import DecoderStage
from mambamim_nets.nets.mm_unet import MetaBlock

__all__ = ["checkpoint_activations", "reuse_memory"]

logger = logging.getLogger("mambamim_nets")
BLOCKS = (  # without batch norm, whose statistics would be updated twice
    MedNeXtBlock,
    ResidualBlock,
    MambaLayer,
    DecoderStage,
    MetaBlock,
    UnetrBasicBlock,
    UnetrPrUpBlock,
    UnetrUpBlock,
)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of the GNU C library


def reuse_memory() -> None:
    """Let the GNU C library keep freed memory for the next step; elsewhere do nothing.

    By default it maps every large tensor anew and unmaps it when it is freed, and the kernel zeroes its pages each
    time: half a million page faults in one pre-training step of size base. What the process has had once, it keeps
    until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def checkpoint_activations(network: nn.Module, enabled: bool | str = False) -> nn.Module:
    """Make the blocks of a network keep only their inputs for the backward pass and compute the rest again there.

    Args:
        network: changed in place; the keys of its state dict and its gradients stay the same.
        enabled: False leaves it as it is.

    Returns:
        The network.
    """
    if flag(enabled, "activation_checkpointing"):
        apply_activation_checkpointing(network, check_fn=lambda module: isinstance(module, BLOCKS))
        logger.info("activation checkpointing: less memory, more time")
    return network
