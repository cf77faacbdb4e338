"""Pure functions under the networks: the Mamba recurrence, state-space token interpolation and scan orders."""

from mambamim_nets.ops.scan_order import scan_order
from mambamim_nets.ops.selective_scan import selective_scan
from mambamim_nets.ops.toki import toki

__all__ = ["scan_order", "selective_scan", "toki"]
