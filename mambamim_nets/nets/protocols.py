"""What pre-training and loading ask of an encoder, and what it returns: a new encoder needs no change elsewhere."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = ["Encoder", "Encoding"]


class Encoding(NamedTuple):
    """What decoders read.

    Attributes:
        skips: maps by stride, (B, C, D / stride, ...), or their visible blocks (N, C, b, b, b) if there was a mask.
        tokens: (B, K, C) in scan order.
        order: the scan order of the grid, (T,) int64.
        inverse: its inverse.
    """

    skips: dict[int, Tensor]
    tokens: Tensor
    order: Tensor
    inverse: Tensor


@runtime_checkable
class Encoder(Protocol):
    """A module that reads volumes as tokens of 16^3 voxels, all of them or the visible ones: HyMamba, VisionMamba.

    nnMamba and MM-UNet have none: every voxel goes through their first layers, so they cannot leave hidden ones out.

    Attributes:
        kind: its name in records of weights, also of a subclass with the same weights.
        in_channels: image channels C_in.
        size: "base" or "tiny".
        widths: channels of its maps from fine to coarse; the last are those of the tokens. One entry: no skip maps.
        token_shape: shape of what `encode_filled` puts in the place of something hidden.
    """

    kind: str
    in_channels: int
    size: Literal["base", "tiny"]
    widths: tuple[int, ...]
    token_shape: tuple[int, ...]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield its weights, as every module does."""

    def encode(
        self,
        x: Tensor,
        visible: Tensor | None = None,
        token_visible: Tensor | None = None,
        strides: tuple[int, ...] = (),
    ) -> Encoding:
        """Encode a volume, or the visible part of it.

        Args:
            x: (B, C_in, D, H, W) float, sides multiples of 16.
            visible: (B, 1, d, h, w) bool, what is seen; None: everything.
            token_visible: likewise for the tokens alone, where there is a CNN stage in front; None: the same.
            strides: at which strides skip maps are wanted.

        Raises:
            ValueError: on a shape, a mask or strides that do not fit.
        """

    def encode_filled(self, x: Tensor, visible: Tensor, token: Tensor) -> Encoding:
        """Encode a volume with `token`, of `token_shape`, in its hidden blocks: all tokens, no skips."""

    def with_decoder(self, out_channels: int) -> nn.Module:
        """Return the segmentation network of this encoder, which holds it as `encoder`."""
