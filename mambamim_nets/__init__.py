"""Mamba-based 3-D medical image networks, masked pre-training with state-space token interpolation, their operators.

`mambamim_nets.bundle` holds what the MONAI bundles' configurations name and `mambamim_nets.phantom` the embedded
synthetic data; neither is imported here. `segment`, which runs a bundle, is imported on its first use.
"""

from typing import TYPE_CHECKING, Any

from mambamim_nets import masking, ops
from mambamim_nets.checkpoint import LoadReport, load_encoder, load_weights
from mambamim_nets.nets import (
    HyMamba,
    HyMambaFeatures,
    HyMambaSeg,
    MambaUNETR,
    MMUNet,
    NNMambaClassifier,
    NNMambaSeg,
    VisionMamba,
)
from mambamim_nets.pretraining import MAE, MambaMIM, MIMOutput, ModelsGenesis, SimMIM, VoCo

if TYPE_CHECKING:
    from mambamim_nets.segmentation import segment

__all__ = [
    "MAE",
    "HyMamba",
    "HyMambaFeatures",
    "HyMambaSeg",
    "LoadReport",
    "MIMOutput",
    "MMUNet",
    "MambaMIM",
    "MambaUNETR",
    "ModelsGenesis",
    "NNMambaClassifier",
    "NNMambaSeg",
    "SimMIM",
    "VisionMamba",
    "VoCo",
    "load_encoder",
    "load_weights",
    "masking",
    "ops",
    "segment",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `segment` on its first use: it brings MONAI's bundle module with it."""
    if name == "segment":
        from mambamim_nets.segmentation import segment

        return segment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
