"""What a process works on: its device and rank, its seeds, and how training may take less memory or reuse it."""

import atexit
import ctypes
import gc
import hashlib
import logging
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import set_track_meta
from monai.networks.blocks import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.utils import set_determinism
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from mambamim_nets.layers.conv import MedNeXtBlock, ResidualBlock
from mambamim_nets.layers.mamba import MambaLayer
from mambamim_nets.nets.mm_unet import MetaBlock
from mambamim_nets.pretraining.mambamim import DecoderStage

__all__ = [
    "bare",
    "checkpoint_activations",
    "init_distributed",
    "interactive",
    "launch_device",
    "peak_memory",
    "process_rank",
    "reuse_memory",
    "seed_everything",
]

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


def process_rank() -> int:
    """Return the rank of this process, 0 where there is only one."""
    group = torch.distributed
    return group.get_rank() if group.is_available() and group.is_initialized() else 0


def bare(network: nn.Module) -> nn.Module:
    """Return a network without its wrapper for distributed training."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def interactive() -> bool:
    """Return whether progress bars have a terminal to be drawn on."""
    return process_rank() == 0 and sys.stderr.isatty()


def launch_device() -> torch.device:
    """Return the device of this process under torchrun: its own GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def init_distributed() -> None:
    """Join the process group that torchrun set up, nccl on GPUs, gloo on CPUs; below warnings, only rank 0 logs.

    Networks and engines refer to one another in circles, and hold the group after its end. It must go while Python is
    whole: threads of gloo that are left when it is torn down now and then abort the process, and the run with it. And
    it must go by Python's own hand, which lets others run meanwhile: a thread that it waits for may need Python, too.

    Raises:
        RuntimeError: if the process was not started by torchrun.
    """
    if "LOCAL_RANK" not in os.environ:
        raise RuntimeError(
            "a multi_gpu configuration must be started by torchrun, e.g. "
            "torchrun --nproc_per_node=2 -m monai.bundle run ..."
        )
    if not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(launch_device())
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(_let_go, [torch.distributed.group.WORLD])
    if torch.distributed.get_rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)


def _let_go(last: list[Any]) -> None:
    """Free what holds an object in circles, then the object, whose last holder is this list."""
    gc.collect()
    last.clear()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch, and let cuDNN use deterministic algorithms only."""
    set_determinism(seed)
    set_track_meta(True)


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Derive the seed of an epoch, so that a resumed run draws what an uninterrupted one does."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{rank}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def seed_epoch(seed: int) -> None:
    """Seed Python, NumPy and PyTorch's default generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


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


def checkpoint_activations(network: nn.Module, enabled: bool = False) -> nn.Module:
    """Make the blocks of a network keep only their inputs for the backward pass and compute the rest again there.

    Args:
        network: changed in place; the keys of its state dict and its gradients stay the same.
        enabled: False leaves it as it is.

    Returns:
        The network.
    """
    if enabled:
        apply_activation_checkpointing(network, check_fn=lambda module: isinstance(module, BLOCKS))
        logger.info("activation checkpointing: less memory, more time")
    return network


def peak_memory() -> int | None:
    """Return the largest resident set that this process has had, in bytes; None where the system does not say.

    Linux's own number is asked for: that of getrusage starts with the size of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in lines:
            return 1024 * int(lines["VmHWM"].split()[0])
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
