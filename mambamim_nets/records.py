"""What a network is, read from the network itself: the part of a weights file's record that no option can get wrong.

Our networks keep what distinguishes them as attributes under the names of their constructors' parameters
(`SETTINGS`), some of them in their encoder. MONAI's do not: their class and the width of their first convolution
stand for them.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from mambamim_nets.nets.protocols import Encoder

__all__ = ["ARCHITECTURES", "SETTINGS", "architecture", "network_record", "summary"]

ARCHITECTURES = {
    "HyMambaSeg": "hymamba",
    "MambaUNETR": "vanilla_mamba",
    "MMUNet": "mm_unet",
    "NNMambaSeg": "nnmamba",
    "NNMambaClassifier": "nnmamba_classifier",
    "DynUNet": "dynunet",
    "MedNeXt": "mednext",
    "SegResNet": "segresnet",
    "SwinUNETR": "swin_unetr",
    "UNETR": "unetr",
}
"""Class -> its name in records, folders of runs and, as a file, in configs/networks; other classes go by their own."""

SETTINGS = (
    *("size", "scan", "scan_seed", "bidirectional"),  # HyMamba, VisionMamba and what is built on them
    *("mamba_depth", "conv_depth"),  # the same; the second HyMamba alone
    *("resolutions", "block", "placement", "scans", "share_directions"),  # MMUNet
    *("blocks", "seq_head", "stem_scan", "mlp_width"),  # nnMamba
)
"""Parameters of our networks' constructors that change what the weights mean."""

# first widths of the networks that have no size of their own, as the bundles choose them for tiny and for base
_WIDTHS = {
    "NNMambaSeg": (16, 32),
    "NNMambaClassifier": (16, 32),
    "DynUNet": (16, 32),
    "MedNeXt": (16, 32),
    "SegResNet": (8, 32),
    "SwinUNETR": (12, 48),
    "UNETR": (192, 768),
}


def architecture(network: nn.Module | str) -> str:
    """Return the name of a network's architecture, from the network or from the dotted name of its class."""
    name = network.rpartition(".")[2] if isinstance(network, str) else type(network).__name__
    return ARCHITECTURES.get(name, name)


def network_record(network: nn.Module) -> dict[str, Any]:
    """Return what a network is: `architecture`, or `encoder` where it is one, size, channels and settings."""
    encoder = getattr(network, "encoder", None)
    parts = [network, encoder] if isinstance(encoder, nn.Module) else [network]
    first = next((module for module in network.modules() if isinstance(module, nn.Conv3d)), None)
    record: dict[str, Any] = {"architecture": architecture(network)}
    if isinstance(network, Encoder):
        record = {"encoder": network.kind}
    settings = {name: getattr(part, name) for name in SETTINGS for part in reversed(parts) if hasattr(part, name)}
    width = None if "size" in settings or first is None else first.out_channels
    sizes = dict(zip(_WIDTHS.get(type(network).__name__, ()), ("tiny", "base"), strict=False))
    if width in sizes:
        record["size"] = sizes[width]
    record |= settings
    if record.get("scan") != "shuffle":
        record.pop("scan_seed", None)
    if width is not None:
        record["width"] = width
    if first is not None:
        record["in_channels"] = getattr(parts[-1], "in_channels", first.in_channels)
    if hasattr(network, "out_channels"):
        record["out_channels"] = network.out_channels
    return record


def summary(record: Mapping[str, Any]) -> str:
    """Return the facts of a record that a person looks for first; "" of an empty one."""
    named = ("architecture", "encoder", "method", "size", "task")
    return ", ".join(f"{key} {record[key]}" for key in named if key in record)
