"""Pure functions under the networks: the Mamba recurrence, state-space token interpolation and scan orders."""

from mambamim_nets.ops.interpolation import toki
from mambamim_nets.ops.orders import scan_order
from mambamim_nets.ops.recurrence import selective_scan

__all__ = ["scan_order", "selective_scan", "toki"]
