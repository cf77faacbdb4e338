"""Settings with which a bundle runs in seconds: small windows, coarse voxels, narrow networks, on the CPU."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from mambamim_nets.bundle.visualize import planes
from mambamim_nets.nets.hymamba import SIZES

DOTS = planes.DPI, planes.TENSORBOARD_DPI
EDGES = {"btcv_seg": 8.0, "amos_seg": 8.0, "brats_seg": 4.0, "ctorg_seg": 8.0, "kits23_seg": 8.0}
SMALL: dict[str, dict[str, Any]] = {
    "msd_seg": {"roi_size": [32, 32, 32], "batch_size": 4, "device": "$torch.device('cpu')"},
    **{
        name: {
            "spacing": [edge, edge, edge],
            "roi_size": [32, 32, 32],
            "crops_per_scan": 1,
            "batch_size": 2,
            "device": "$torch.device('cpu')",
        }
        for name, edge in EDGES.items()
    },
    "brain_cls": {
        "width": 4,
        "spacing": [5.0, 5.0, 5.0],
        "input_size": [34, 40, 34],
        "batch_size": 2,
        "device": "$torch.device('cpu')",
    },
    "pretrain": {
        "intensity": "mr",
        "spacing": [1.0, 1.0, 1.0],
        "roi_size": [32, 32, 32],
        "batch_size": 4,
        "decoder_width": 32,
        "device": "$torch.device('cpu')",
    },
    "fetal_landmarks": {
        "spacing": [4.0, 4.0, 4.0],
        "roi_size": [32, 32, 32],
        "sigma": 1.5,
        "width": 8,
        "device": "$torch.device('cpu')",
    },
}


@contextlib.contextmanager
def pictures(share: float) -> Iterator[None]:
    """Draw pictures with a share of their dots per inch: a quarter takes a fraction of the time."""
    files, shown = (round(dots * share) for dots in DOTS)
    with mock.patch.multiple(planes, DPI=files, TENSORBOARD_DPI=shown):
        yield


@contextlib.contextmanager
def narrow_networks() -> Iterator[None]:
    """Make HyMamba of size tiny a quarter as wide, for tests of all that is around it; not in other processes."""
    with mock.patch.dict(SIZES, tiny=SIZES["tiny"]._replace(stem=4, widths=(4, 8, 16, 32))):
        yield


@contextlib.contextmanager
def without_start_values() -> Iterator[None]:
    """Draw no random start for the weights of networks of which only the shapes count: tens of millions for a base."""
    fillers = [name for name in vars(torch.nn.init) if name.endswith("_") and not name.startswith("_")]
    with mock.patch.multiple(torch.nn.init, **dict.fromkeys(fillers, lambda tensor, *_, **__: tensor)):
        yield
