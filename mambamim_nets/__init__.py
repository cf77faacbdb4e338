"""Mamba-based 3-D medical image networks, masked pre-training with state-space token interpolation, their operators.

`mambamim_nets.bundle` holds what the MONAI bundles' configurations name and `mambamim_nets.phantom` the embedded
synthetic data; neither is imported here.
"""

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
]

__version__ = "0.1.0"
