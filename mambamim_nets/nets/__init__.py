"""Networks that segment, classify and find points."""

from mambamim_nets.nets.hymamba import HyMamba, HyMambaFeatures, HyMambaSeg
from mambamim_nets.nets.mamba_unetr import MambaUNETR, VisionMamba
from mambamim_nets.nets.mm_unet import MMUNet
from mambamim_nets.nets.nnmamba import NNMambaClassifier, NNMambaSeg
from mambamim_nets.nets.protocols import Encoder, Encoding

__all__ = [
    "Encoder",
    "Encoding",
    "HyMamba",
    "HyMambaFeatures",
    "HyMambaSeg",
    "MMUNet",
    "MambaUNETR",
    "NNMambaClassifier",
    "NNMambaSeg",
    "VisionMamba",
]
