"""Networks."""

from mambamim_nets.nets.hymamba import HyMamba, HyMambaSeg
from mambamim_nets.nets.mambamim import MambaMIM, MIMOutput

__all__ = ["HyMamba", "HyMambaSeg", "MIMOutput", "MambaMIM"]
