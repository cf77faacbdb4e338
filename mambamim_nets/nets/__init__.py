"""Networks."""

from mambamim_nets.nets.hymamba import HyMamba, HyMambaFeatures, HyMambaSeg
from mambamim_nets.nets.mae import MAE
from mambamim_nets.nets.mamba_unetr import MambaUNETR, VisionMamba
from mambamim_nets.nets.mambamim import MambaMIM
from mambamim_nets.nets.masked import MIMOutput
from mambamim_nets.nets.mm_unet import MMUNet
from mambamim_nets.nets.models_genesis import ModelsGenesis
from mambamim_nets.nets.nnmamba import NNMambaClassifier, NNMambaSeg
from mambamim_nets.nets.simmim import SimMIM
from mambamim_nets.nets.voco import VoCo

__all__ = [
    "MAE",
    "HyMamba",
    "HyMambaFeatures",
    "HyMambaSeg",
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
]
