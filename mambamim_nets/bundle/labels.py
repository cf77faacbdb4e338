"""What a task predicts, exclusive classes or overlapping regions, and what follows from it.

Glossary
    label map   (1, D, H, W), one value per voxel, as on disk
    channel     one output of the network: background and a channel per label (softmax), or one per region (sigmoid)
    structure   what is measured: each label, or each region, by name
"""

from collections.abc import Mapping, Sequence

import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn

__all__ = ["PartialLabelLoss", "RegionLoss", "Targets", "named_values"]

# MONAI's weights of overlapping windows lie in [1e-3, 1]; 64 windows (overlap 0.75) at weight 1 whose logits speak
# against background by 10,000 move the blend by 6.4e5, one window of background at weight 1e-3 by 1e6
CERTAIN = 1e9


def named_values(labels: Mapping[str, int]) -> dict[int, str]:
    """Return label value -> name of a table name -> label value, as configurations have it.

    Raises:
        ValueError: two names share a value.
    """
    values = {int(value): str(name) for name, value in labels.items()}
    if len(values) < len(labels):
        raise ValueError(f"labels {dict(labels)} must have different values")
    return values


class Targets:
    """The labels of a task, and its regions if it has any.

    Args:
        labels: name -> label value, without background. Without regions the values must be 1 .. n.
        regions: region name -> label values, in channel order; None: the labels are exclusive classes. Regions must be
            nested or disjoint, each with one label that no smaller region inside it has: that label is written where
            the region is the smallest that was found (BraTS: WT 2, TC 1, ET 4).

    Attributes:
        labels: label value -> name.
        out_channels: of the network.
        channels: their names.
        structures: name -> label values, what metrics and volumes are about.
        background: logits (out_channels) of a voxel that is certainly background. Their probabilities are exactly 0
            and 1, and they decide wherever they are blended with a network's.

    Raises:
        ValueError: on label values or regions that break these rules.
    """

    def __init__(self, labels: Mapping[str, int], regions: Mapping[str, Sequence[int]] | None = None) -> None:
        self.labels = named_values(labels)
        self.regions = {name: tuple(int(v) for v in values) for name, values in (regions or {}).items()}
        if not self.regions and sorted(self.labels) != list(range(1, len(self.labels) + 1)):
            raise ValueError(f"labels {sorted(self.labels)} must be numbered 1 .. n where there are no regions")
        self.painted = _painted(self.labels, self.regions)
        self.structures = self.regions or {name: (value,) for value, name in self.labels.items()}
        self.channels = [*self.regions] or ["background", *self.labels.values()]
        self.out_channels = len(self.channels)
        self.background = [-CERTAIN] * self.out_channels
        if not self.regions:
            self.background[0] = 0.0

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits, channel first, into probabilities of the channels."""
        return torch.sigmoid(logits) if self.regions else torch.softmax(logits, dim=0)

    def logits(self, probabilities: Tensor) -> Tensor:
        """Turn probabilities, of any layout, in place into logits that have them; 0 and 1 become very certain ones."""
        smallest = torch.finfo(probabilities.dtype).tiny
        if self.regions:
            return probabilities.logit_(eps=torch.finfo(probabilities.dtype).eps)
        return probabilities.clamp_(min=smallest).log_()

    def label_map(self, probabilities: Tensor) -> Tensor:
        """Turn probabilities or logits of exclusive classes, or probabilities of regions, into a label map, uint8."""
        if not self.regions:
            return probabilities.argmax(dim=0, keepdim=True).to(torch.uint8)
        values = torch.zeros_like(probabilities[:1], dtype=torch.uint8)
        for channel, value in self.painted:
            values[probabilities[channel : channel + 1] > 0.5] = value
        return values

    def masks(self, label_map: Tensor) -> Tensor:
        """Turn a label map (1, D, H, W) into masks of the structures, uint8 (S, D, H, W)."""
        return torch.cat([_among(label_map, values) for values in self.structures.values()]).to(torch.uint8)


def _painted(labels: Mapping[int, str], regions: Mapping[str, Sequence[int]]) -> list[tuple[int, int]]:
    """Return (channel, label value to write) from the largest region to the smallest."""
    order = sorted(enumerate(regions.items()), key=lambda item: -len(item[1][1]))
    painted = []
    for channel, (name, values) in order:
        unknown = set(values) - set(labels)
        inner = [set(other) for other in regions.values() if set(other) < set(values)]
        crossing = [other for other in regions.values() if set(other) & set(values) and not _nested(other, values)]
        own = set(values) - set().union(*inner)
        if unknown or crossing or len(own) != 1:
            raise ValueError(
                f"region {name!r} {sorted(values)} must consist of labels {sorted(labels)}, be nested in or apart from "
                f"the other regions, and have one label that no smaller region has; it has {sorted(own)}"
            )
        painted.append((channel, own.pop()))
    return painted


def _nested(first: Sequence[int], second: Sequence[int]) -> bool:
    return set(first) <= set(second) or set(second) <= set(first)


def _among(values: Tensor, wanted: Sequence[int]) -> Tensor:
    return torch.isin(values.round().long(), torch.as_tensor(list(wanted), device=values.device))


class PartialLabelLoss(DiceCELoss):
    """MONAI's DiceCELoss of exclusive classes, where some voxels have no label and take no part.

    Args:
        to_onehot_y: as in DiceCELoss.
        softmax: as in DiceCELoss.
        weight: as in DiceCELoss.
        lambda_dice: as in DiceCELoss.
        lambda_ce: as in DiceCELoss.
        ignored: label value of the voxels that take no part.
    """

    def __init__(
        self,
        to_onehot_y: bool = True,
        softmax: bool = True,
        weight: Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        ignored: int = 255,
    ) -> None:
        super().__init__(
            to_onehot_y=to_onehot_y, softmax=softmax, weight=weight, lambda_dice=lambda_dice, lambda_ce=lambda_ce
        )
        self.dice.ignore_index = self.cross_entropy.ignore_index = ignored

    def ce(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of logits (B, C, D, H, W) and label maps (B, 1, D, H, W), 0 without any label."""
        if (target == self.cross_entropy.ignore_index).all():  # the mean over no voxel is not a number
            return input.sum() * 0
        return super().ce(input, target)


class RegionLoss(nn.Module):
    """Binary cross-entropy + Dice of overlapping regions (MambaMIM section 4.2, BraTS).

    Args:
        regions: name -> label values of each region, in channel order.
    """

    def __init__(self, regions: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.regions = [tuple(values) for values in regions.values()]
        self.dice = DiceLoss(sigmoid=True)
        self.cross_entropy = nn.BCEWithLogitsLoss()

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Compare logits (B, R, D, H, W) with label maps (B, 1, D, H, W)."""
        masks = torch.cat([_among(label, values) for values in self.regions], dim=1).to(logits.dtype)
        return self.dice(logits, masks) + self.cross_entropy(logits, masks)
