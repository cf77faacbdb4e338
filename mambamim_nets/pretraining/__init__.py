"""Pre-training without labels: MambaMIM and the methods that it is compared with."""

from mambamim_nets.pretraining.base import MIMOutput
from mambamim_nets.pretraining.mae import MAE
from mambamim_nets.pretraining.mambamim import MambaMIM
from mambamim_nets.pretraining.models_genesis import ModelsGenesis
from mambamim_nets.pretraining.simmim import SimMIM
from mambamim_nets.pretraining.voco import VoCo

__all__ = ["MAE", "MIMOutput", "MambaMIM", "ModelsGenesis", "SimMIM", "VoCo"]
