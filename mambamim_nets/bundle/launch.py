"""What a configuration needs before it can run: the bundle's folder, the task, the data, devices, starting weights."""

import hashlib
import inspect
import json
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monai.data import set_track_meta
from monai.utils import set_determinism
from torch import nn

from mambamim_nets import phantom
from mambamim_nets.bundle.weights import other_pretraining
from mambamim_nets.checkpoint import load_encoder, load_weights
from mambamim_nets.records import network_record

__all__ = [
    "announce",
    "bare",
    "bundle_root",
    "callers",
    "dataset_folder",
    "default_device",
    "flag",
    "init_distributed",
    "interactive",
    "launch_device",
    "process_rank",
    "seed_everything",
    "shipped_weights",
    "start_network",
    "task_spec",
    "trained_network",
]

logger = logging.getLogger("mambamim_nets")
# MONAI tries an optional GPU decoder of DICOM whenever it makes a reader, and warns each time
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")


def bundle_root() -> str:
    """Return the absolute folder of the bundle whose configuration is being evaluated, whatever the working directory.

    MONAI hands no such value to expressions, so it is found on the call stack: the running ConfigWorkflow knows its
    configuration's folder, and the verbs without a workflow (verify_net_in_out, ckpt_export) hold the file's path as
    ``config_file_``. Without either, it is the working directory.
    """
    for frame in callers():
        owner, file = frame.f_locals.get("self"), frame.f_locals.get("config_file_")
        folder = None
        if isinstance(owner, ConfigWorkflow) and hasattr(owner, "config_root_path"):
            folder = Path(owner.config_root_path)
        elif frame.f_globals.get("__name__") == "monai.bundle.scripts" and file:
            folder = Path(file if isinstance(file, str) else file[0]).parent
        if folder is not None:
            folder = folder.resolve()
            return str(folder.parent if folder.name == "configs" else folder)
    return str(Path.cwd())


def callers() -> Iterator[FrameType]:
    """Yield the frames of the call stack, innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def task_spec(bundle_root: str, task: str) -> dict[str, Any]:
    """Return the entry of a task in the bundle's table, ``configs/tasks.json``.

    Raises:
        ValueError: if the table has no such task.
    """
    table = json.loads(Path(bundle_root, "configs", "tasks.json").read_text())
    if task not in table:
        raise ValueError(f"task {task!r} is unknown; --task must be one of {sorted(table)}")
    return table[task]


def dataset_folder(dataset_dir: str, bundle_root: str, kind: str, cases: int) -> str:
    """Return the folder of the data set; for the literal "phantom", generate the embedded one once and reuse it.

    Args:
        dataset_dir: a folder, or "phantom".
        bundle_root: where the phantom is written, under ``phantom/<kind>_<cases>``.
        kind: which phantom.
        cases: how many labelled phantom cases.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    if dataset_dir == "phantom":
        return str(phantom.write(Path(bundle_root, "phantom", f"{kind}_{cases}"), kind, cases=cases))
    folder = Path(dataset_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"dataset_dir {dataset_dir} does not exist; give the folder of the data set as downloaded, or 'phantom' "
            "for synthetic data"
        )
    return str(folder.resolve())


def process_rank() -> int:
    """Return the rank of this process, 0 where there is only one."""
    group = torch.distributed
    return group.get_rank() if group.is_available() and group.is_initialized() else 0


def bare(network: nn.Module) -> nn.Module:
    """Return a network without its wrapper for distributed training."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def default_device() -> torch.device:
    """Return the first CUDA device, else the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


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
    if torch.distributed.get_rank() > 0:
        logging.getLogger().setLevel(logging.WARNING)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch, and let cuDNN use deterministic algorithms only."""
    set_determinism(seed)
    set_track_meta(True)


def start_network(
    network: nn.Module,
    pretrained: str | None,
    adapt_input: bool = False,
    record: Mapping[str, Any] | None = None,
    roi_size: Sequence[int] | None = None,
) -> nn.Module:
    """Return a network ready for training; the log says how it starts.

    From scratch, or from ``pretrained``: its encoder, or where a network has no part of that name all its weights.
    Where these were trained at another spacing, intensity or crop, a warning says so.

    Args:
        network, pretrained, adapt_input: as in ``load_encoder``.
        record: what the run's own weights will be.
        roi_size: the run's crops, in voxels.
    """
    if not pretrained:
        logger.info("starting weights: none, training from scratch")
        return network
    if hasattr(network, "encoder"):
        report = load_encoder(network, pretrained, adapt_input)
        logger.info("starting weights: encoder, %s", report)
    else:
        report = load_weights(network, pretrained, network_record(network), _networks())
        logger.info("starting weights: %s", report)
    if differing := other_pretraining(report.record, record or {}, roi_size):
        logger.warning("%s was trained at other values than this run: %s", pretrained, differing)
    return network


def _networks() -> set[str]:
    """Return the names of the networks that the bundle being run has files for."""
    return {path.stem for path in Path(bundle_root(), "configs", "networks").glob("*.json")}


def trained_network(network: nn.Module, checkpoint: str, record: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a network with all its weights from ``checkpoint``, in evaluation mode; never with random ones.

    Args:
        network, checkpoint, record: as in ``load_weights``.

    Raises:
        FileNotFoundError, ValueError: as ``load_weights``.
    """
    report = load_weights(network, checkpoint, record, _networks())
    logger.info("weights: %s", report)
    if record and not report.record:
        logger.warning("%s does not say what its weights are: task and spacing are taken on trust", checkpoint)
    note = Path(checkpoint).with_suffix(".txt")
    if note.is_file():
        logger.warning(note.read_text().strip())
    return network.eval()


def shipped_weights(bundle_root: str, weights: str | None) -> str:
    """Return the path of the weights that the bundle ships for a task.

    Raises:
        ValueError: if it ships none for this task.
    """
    if not weights:
        raise ValueError(
            "this bundle ships no weights for this task; train first, then give --checkpoint path/to/model_best.pt"
        )
    return str(Path(bundle_root, weights))


def flag(value: bool | str, name: str = "switch") -> bool:
    """Return a switch as a bool: the command line hands ``--amp true`` over as a string.

    Raises:
        ValueError: if it is neither true nor false.
    """
    text = str(value).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{name} {value!r} must be true or false")
    return text == "true"


def announce(title: str, **facts: Any) -> None:
    """Log what a run is about to do, one fact per line."""
    width = max(map(len, facts), default=0)
    lines = [f"  {name:<{width}}  {_short(value)}" for name, value in facts.items()]
    logger.info("\n".join([title, *lines]))


def _short(value: Any) -> str:
    if isinstance(value, nn.Module):
        return f"{type(value).__name__}, {sum(p.numel() for p in value.parameters()) / 1e6:.2f} M parameters"
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str) and len(value) > 20:
        return f"{len(value)} items"
    return str(value)


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Derive the seed of an epoch, so that a resumed run draws what an uninterrupted one does."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{rank}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def seed_epoch(seed: int) -> None:
    """Seed Python, NumPy and PyTorch's default generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
