"""The order of a scan's channels."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.transforms import MapTransform

from mambamim_nets.bundle.io.modalities import channel_of

__all__ = ["SelectChannelsd", "stored_order"]


class SelectChannelsd(MapTransform):
    """Bring the channels of an image (C, D, H, W) into the network's order.

    Args:
        keys: dictionary keys.
        order: for each channel of the network its position in the file.
    """

    def __init__(self, keys: Sequence[str], order: Sequence[int]) -> None:
        super().__init__(keys)
        self.order = list(order)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the dictionary with the channels of its images in order."""
        out = dict(data)
        for key in self.keys:
            if self.order != list(range(len(data[key]))):
                out[key] = data[key][self.order]
        return out


def stored_order(channels: Sequence[str], stored: Sequence[str] | None) -> list[int] | None:
    """Return for each channel of the task its position among those stored in the files; None for None, as they are.

    Raises:
        ValueError: if the two are not the same channels.
    """
    if stored is None:
        return None
    names = [channel_of(name) for name in stored]
    wanted = [channel_of(name) for name in channels]
    if sorted(names) != sorted(wanted):
        raise ValueError(f"channel_order {list(stored)} must hold each of the task's channels {list(channels)} once")
    return [names.index(name) for name in wanted]
