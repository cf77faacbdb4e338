"""nnMamba: a residual CNN with Mamba in parallel to its convolutions, for segmentation, landmarks and classification.

Paper: Gong et al., nnMamba, arXiv 2402.03526 (ISBI 2025): the MICCSS block, channel scaling of skips, and
channel-sequential learning. What the paper leaves open is as in the authors' network.

Glossary
    C            width, 32 as published; feature maps c1 .. c4 have C, 2C, 4C, 8C channels at strides 2, 4, 8, 16
    MICCSS       Mamba in convolution with channel-spatial siamese learning
    CSS          its four-way scan: y = 1/4 sum over F of F(m(F(t))), F in {none, channels, tokens, both} flipped,
                 with one Mamba m for all four
    MIC          the same with one plain scan, y = m(t); in the classifier's stem

Blocks 2 and 3 of a stage share one MICCSS, weights and batch statistics; its running statistics are therefore those of
both places together.

Deliberate deviations from the public code: the last ReLU of the segmentation network is a switch and off, so that
logits and heat maps may be negative; its batch norm stays, and with it every weight. Deep supervision is optional and
has the heads of the nnU-Net variant, not that variant's other Mamba layer.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambamim_nets.layers.mamba import MambaMixer
from mambamim_nets.masking import token_grid

__all__ = ["NNMambaClassifier", "NNMambaSeg"]

_REDUCTION = 16  # of the squeeze-excitation, W1: d -> d // 16


class MambaInConv(nn.Module):
    """MICCSS, or MIC: 1^3 convolution, Mamba along the voxels in raster order with a residual, 1^3 convolution.

        a = ReLU(BN(conv(x))),   z = CSS(tokens of a) + a,   out = ReLU(BN(conv(z)))

    Args:
        channels: channels in and out, and the token width.
        siamese: scan four ways (CSS) instead of once.
        d_state: states per channel.
    """

    def __init__(self, channels: int, siamese: bool = True, d_state: int = 16) -> None:
        super().__init__()
        self.siamese = siamese
        self.enter = nn.Sequential(nn.Conv3d(channels, channels, kernel_size=1, bias=False), nn.BatchNorm3d(channels))
        self.mixer = MambaMixer(channels, d_state=d_state, d_conv=4, expand=2, bidirectional=False)
        self.leave = nn.Sequential(nn.Conv3d(channels, channels, kernel_size=1, bias=False), nn.BatchNorm3d(channels))

    def scan(self, tokens: Tensor) -> Tensor:
        """Mix tokens (B, L, C) along L; same shape out. One way after another: a quarter of the memory in inference."""
        y = self.mixer(tokens)
        if self.siamese:
            for axes in ([2], [1], [1, 2]):
                y = y + self.mixer(tokens.flip(axes)).flip(axes)
            y = y / 4
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, C, D, H, W); same shape out."""
        a = F.relu(self.enter(x), inplace=True)
        y = self.scan(a.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(a.shape)
        return F.relu(self.leave(y + a), inplace=True)


class Residual(nn.Module):
    """ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut(x) + context), 3^3 convolutions without bias.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        stride: of the first convolution; the shortcut is a 1^3 convolution and a norm where the shape changes.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            convolution = nn.Conv3d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm3d(out_channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Transform (B, in, D, H, W); `context`, shaped like the result, joins the sum before the last ReLU."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y)) + self.shortcut(x)
        if context is not None:
            y = y + context
        return F.relu(y, inplace=True)


class Stage(nn.Module):
    """A strided residual block, then residual blocks of which each also adds MICCSS of its input: one for all of them.

    Args:
        in_channels: channels in.
        out_channels: channels out, at half the resolution.
        blocks: residual blocks, the strided one included.
        mamba: with MICCSS, or plain.
    """

    def __init__(self, in_channels: int, out_channels: int, blocks: int, mamba: bool = True) -> None:
        super().__init__()
        self.down = Residual(in_channels, out_channels, stride=2)
        self.miccss = MambaInConv(out_channels) if mamba else None
        self.blocks = nn.ModuleList(Residual(out_channels, out_channels) for _ in range(blocks - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, in, D, H, W): (B, out, ...), coarser where the stage goes down."""
        x = self.down(x)
        for block in self.blocks:
            x = block(x, self.miccss(x)) if self.miccss is not None else block(x)
        return x


class ChannelScale(nn.Module):
    """x * sigmoid(W2 ReLU(W1 mean(x))): squeeze-excitation of a skip connection.

    Args:
        channels: d; the hidden layer has d // 16, at least 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, max(1, channels // _REDUCTION))
        self.excite = nn.Linear(max(1, channels // _REDUCTION), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of (B, C, D, H, W); same shape out."""
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3, 4))))))
        return x * scale[:, :, None, None, None]


def _double_conv(in_channels: int, out_channels: int, stride: int = 1, last_relu: bool = True) -> nn.Sequential:
    """Make conv BN ReLU conv BN [ReLU], 3^3 with bias; the first convolution has the stride."""
    layers: list[nn.Module] = [
        nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1),
        nn.BatchNorm3d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm3d(out_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if last_relu else nn.Sequential(*layers)


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)


def _channels_last(x: Tensor) -> Tensor:
    """Copy to channels-last; contiguous() would not touch a single channel, which then counts as channels-first."""
    return x.clone(memory_format=torch.channels_last_3d)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} {value} must be at least 1")


def _check_image(x: Tensor, channels: int, training: bool) -> None:
    """Refuse an input with wrong axes or channels, or too small for batch normalisation in training."""
    if x.ndim != 5 or x.shape[1] != channels:
        raise ValueError(f"input {tuple(x.shape)} must be (B, {channels}, D, H, W): in_channels={channels}")
    deepest = [math.ceil(side / 16) for side in x.shape[2:]]
    if training and x.shape[0] * deepest[0] * deepest[1] * deepest[2] == 1:
        raise ValueError(
            f"input {tuple(x.shape)} is a single voxel at stride 16, and batch normalisation needs two to train; "
            "use a batch of 2 or a side of 32"
        )


class NNMambaSeg(nn.Module):
    """nnMamba for segmentation and landmarks: encoder with MICCSS, U-Net decoder with channel-scaled skips.

    15,959,598 parameters at 1 channel and 16 classes. Everything is channels-last, weights too: tokens are then a view
    of the feature map. torch.jit.script works; the scan of a scripted network goes token by token on a CPU.

    Args:
        in_channels: image channels.
        out_channels: classes with background (softmax), regions (sigmoid), or landmarks (heat maps).
        width: C, channels at stride 2; 32 is the published network.
        blocks: residual blocks of a stage.
        final_act: end in a ReLU as the public code does; then no logit is below 0.
        deep_supervision: in training mode return a list of logits at strides 1, 2, 4, 8, as MONAI's
            `DeepSupervisionLoss` takes it; adds a 1^3 convolution for each of the last three.

    Raises:
        ValueError: a number of channels or blocks is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 32,
        blocks: int = 3,
        final_act: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(in_channels=in_channels, out_channels=out_channels, width=width, blocks=blocks)
        self.in_channels, self.out_channels, self.deep_supervision = in_channels, out_channels, deep_supervision
        self.blocks = blocks
        self.stem = _double_conv(in_channels, width, stride=2)
        self.layer1 = Stage(width, 2 * width, blocks)
        self.layer2 = Stage(2 * width, 4 * width, blocks)
        self.layer3 = Stage(4 * width, 8 * width, blocks)
        self.scale1, self.scale2, self.scale3 = ChannelScale(width), ChannelScale(2 * width), ChannelScale(4 * width)
        self.conv5 = _double_conv(12 * width, 4 * width)
        self.conv6 = _double_conv(6 * width, 2 * width)
        self.conv7 = _double_conv(3 * width, width)
        self.conv8 = _double_conv(width, out_channels, last_relu=final_act)
        supervised = (width, 2 * width, 4 * width) if deep_supervision else ()
        self.heads = nn.ModuleList(nn.Conv3d(channels, out_channels, kernel_size=1) for channels in supervised)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def encode(self, x: Tensor) -> list[Tensor]:
        """Encode a volume: c1, c2, c3, c4 at strides 2, 4, 8, 16."""
        c1 = self.stem(_channels_last(x))
        c2 = self.layer1(c1)
        c3 = self.layer2(c2)
        return [c1, c2, c3, self.layer3(c3)]

    def decode(self, maps: list[Tensor]) -> list[Tensor]:
        """Decode c1 .. c4: logits at stride 1, and what the heads read at strides 2, 4, 8."""
        c1, c2, c3, c4 = maps
        d3 = self.conv5(torch.cat([_upsample(c4), self.scale3(c3)], dim=1))
        d2 = self.conv6(torch.cat([_upsample(d3), self.scale2(c2)], dim=1))
        d1 = self.conv7(torch.cat([_upsample(d2), self.scale1(c1)], dim=1))
        return [self.conv8(_upsample(d1)), d1, d2, d3]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Segment a volume.

        Args:
            x: (B, in_channels, D, H, W) float, sides multiples of 16.

        Returns:
            Logits (B, out_channels, D, H, W); with deep supervision and in training mode the list of them at strides
            1, 2, 4, 8, finest first (never from a scripted network).

        Raises:
            ValueError: on a wrong number of axes or channels, or a side that 16 does not divide.
        """
        if torch.jit.is_scripting():
            if x.ndim != 5 or any([side < 16 or side % 16 != 0 for side in x.shape[2:]]):
                raise ValueError(f"input {x.shape} must be (B, C_in, D, H, W) with sides that are multiples of 16")
            return self.decode(self.encode(x))[0]
        _check_image(x, self.in_channels, self.training)
        token_grid(x.shape[2:])  # refuses sides that 16 does not divide
        decoded = self.decode(self.encode(x))
        if not (self.deep_supervision and self.training):
            return decoded[0]
        return [decoded[0], *(head(y) for head, y in zip(self.heads, decoded[1:], strict=True))]


class NNMambaClassifier(nn.Module):
    """nnMamba for classification: MIC in the stem, three plain residual stages, an MLP on their pooled features.

    12,876,321 parameters at 1 channel, 1 output and the defaults; 36.9 GMACs at 112 x 136 x 112.

    Args:
        in_channels: image channels.
        out_channels: logits.
        seq_head: "mamba" is channel-sequential learning (arXiv v2): the pooled features of the three stages are 1, 2
            and 4 tokens of width 2C, channels interleaved, to which a Mamba adds. "none" (ISBI 2025): no such step.
        stem_scan: MIC with one "single" forward scan (public code), or four-way, "css4" (the figure of arXiv v2).
        width: C, channels at stride 2; 32 is the published network.
        blocks: residual blocks of a stage.
        dropout: in the MLP.
        mlp_width: hidden width of the MLP, Linear 14C -> mlp_width -> out_channels; None: C, as published.

    Raises:
        ValueError: on an unknown switch value, or a number of channels, blocks or features below 1.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        seq_head: Literal["none", "mamba"] = "none",
        stem_scan: Literal["single", "css4"] = "single",
        width: int = 32,
        blocks: int = 3,
        dropout: float = 0.5,
        mlp_width: int | None = None,
    ) -> None:
        super().__init__()
        hidden = width if mlp_width is None else mlp_width
        _check_sizes(in_channels=in_channels, out_channels=out_channels, width=width, blocks=blocks, mlp_width=hidden)
        if seq_head not in ("none", "mamba"):
            raise ValueError(f"seq_head {seq_head!r} must be 'none' or 'mamba'")
        if stem_scan not in ("single", "css4"):
            raise ValueError(f"stem_scan {stem_scan!r} must be 'single' or 'css4'")
        self.in_channels, self.out_channels, self.width = in_channels, out_channels, width
        self.blocks, self.seq_head, self.stem_scan, self.mlp_width = blocks, seq_head, stem_scan, hidden
        self.stem = _double_conv(in_channels, width, stride=2)
        self.mic = MambaInConv(width, siamese=stem_scan == "css4", d_state=8)
        self.layer1 = Stage(width, 2 * width, blocks, mamba=False)
        self.layer2 = Stage(2 * width, 4 * width, blocks, mamba=False)
        self.layer3 = Stage(4 * width, 8 * width, blocks, mamba=False)
        self.sequence = (
            MambaMixer(2 * width, d_state=8, d_conv=2, expand=2, bidirectional=False) if seq_head == "mamba" else None
        )
        self.mlp = nn.Sequential(
            nn.Linear(14 * width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, out_channels)
        )
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def encode(self, x: Tensor) -> list[Tensor]:
        """Encode a volume: c1, c2, c3, c4 at strides 2, 4, 8, 16; odd sides are rounded up."""
        c1 = self.stem(_channels_last(x))
        c1 = c1 + self.mic(c1)
        c2 = self.layer1(c1)
        c3 = self.layer2(c2)
        return [c1, c2, c3, self.layer3(c3)]

    def pool(self, maps: list[Tensor]) -> Tensor:
        """Average c2, c3, c4 over their voxels and join them: features (B, 14C) for the MLP.

        With the sequence head, token by token; the order of the features is then ours, which the MLP does not mind.
        """
        pooled = [y.mean(dim=(2, 3, 4)) for y in maps[1:]]
        if self.sequence is None:
            return torch.cat(pooled, dim=1)
        tokens = torch.cat([y.view(y.shape[0], 2 * self.width, -1) for y in pooled], dim=2).transpose(1, 2)
        return (tokens + self.sequence(F.relu(tokens))).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a volume.

        Args:
            x: (B, in_channels, D, H, W) float, sides at least 16, of any parity.

        Returns:
            Logits (B, out_channels).

        Raises:
            ValueError: on a wrong number of axes or channels, or a side below 16.
        """
        if not torch.jit.is_scripting():
            _check_image(x, self.in_channels, self.training)
            if min(x.shape[2:]) < 16:
                shape = tuple(x.shape[2:])
                raise ValueError(f"input spatial shape {shape} must be at least 16 on every axis; pad it")
        return self.mlp(self.pool(self.encode(x)))
