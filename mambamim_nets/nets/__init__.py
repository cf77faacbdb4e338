"""Networks."""

from mambamim_nets.nets.hymamba import HyMamba, HyMambaFeatures, HyMambaSeg
from mambamim_nets.nets.mambamim import MambaMIM, MIMOutput

__all__ = ["HyMamba", "HyMambaFeatures", "HyMambaSeg", "MIMOutput", "MambaMIM"]
