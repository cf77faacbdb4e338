"""What is measured: the same weights and inputs behind the fast path and its baseline."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from baselines import (
    SKIP_STRIDES,
    dense_masked_cnn,
    dense_masked_mim,
    looped_toki,
    parallel_recurrence,
    reference_recurrence,
    scan,
    with_plain_norms,
)
from monai.networks.nets import UNETR, DynUNet, MedNeXtB, SwinUNETR
from torch import Tensor, nn

from mambamim_nets import HyMamba, HyMambaSeg, MambaMIM
from mambamim_nets.bundle.runtime import checkpoint_activations, reuse_memory
from mambamim_nets.masking import random_visible
from mambamim_nets.ops import selective_scan, toki

SIZE, SIDE, CLASSES = "base", 96, 14
Step = Callable[[], Any]


class Pretraining:
    """A pre-training model, its optimiser and a batch with 75 % hidden; both paths step the same weights."""

    def __init__(self, batch: int = 1, decoder_width: int | None = None, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.model = MambaMIM(HyMamba(size=SIZE), decoder_width=decoder_width).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.x = torch.rand(batch, 1, SIDE, SIDE, SIDE, device=device)
        self.visible = random_visible(batch, (SIDE // 16,) * 3, 0.75, torch.Generator().manual_seed(0)).to(device)
        self.compiled: nn.Module | None = None

    def loss(self, path: str) -> Tensor:
        if path == "dense-masked":
            return dense_masked_mim(self.model, self.x, self.visible)[0]
        if path == "compiled":
            self.compiled = self.compiled or torch.compile(self.model)
            return self.compiled(self.x, self.visible).loss
        return self.model(self.x, self.visible).loss

    def step(self, path: Literal["sparse", "dense-masked", "compiled"] = "sparse", amp: bool = False) -> None:
        """Run forward, backward and optimiser."""
        self.optimizer.zero_grad()
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=amp):
            loss = self.loss(path)
        loss.backward()
        self.optimizer.step()


def pretraining_step(
    path: Literal["sparse", "dense-masked"],
    amp: bool = False,
    batch: int = 1,
    decoder_width: int | None = None,
    reuse: bool = False,
    checkpointing: bool = False,
) -> Step:
    """Build a step; reuse and checkpointing are what the bundle's switches do about memory."""
    if reuse:
        reuse_memory()
    pretraining = Pretraining(batch, decoder_width)
    checkpoint_activations(pretraining.model, checkpointing)
    return functools.partial(pretraining.step, path, amp)


class CNNStage:
    """The CNN stage of the base encoder, forward and backward, 75 % hidden, batch 1."""

    def __init__(self, strides: tuple[int, ...] = SKIP_STRIDES) -> None:
        torch.manual_seed(0)
        self.encoder, self.strides = HyMamba(size=SIZE), strides
        self.encoder.mamba = nn.ModuleList()  # what is left of encode is the CNN stage
        self.x = torch.rand(1, 1, SIDE, SIDE, SIDE)
        self.visible = random_visible(1, (SIDE // 16,) * 3, 0.75, torch.Generator().manual_seed(0))
        self.gradients: dict[str, list[Tensor]] = {}

    def sparse(self) -> None:
        encoding = self.encoder.encode(self.x, self.visible, strides=self.strides)
        self._backward("sparse", [*encoding.skips.values(), encoding.tokens])

    def dense_masked(self) -> None:
        skips, deepest = dense_masked_cnn(self.encoder, self.x, self.visible, self.strides)
        self._backward("dense-masked", [*skips.values(), deepest])

    def _backward(self, path: str, maps: list[Tensor]) -> None:
        self.encoder.zero_grad()
        if path not in self.gradients:
            self.gradients[path] = [torch.randn_like(m) for m in maps]
        torch.autograd.backward(maps, self.gradients[path])


class Scan:
    """A selective scan with softplus, bias, skip and gate, forward and backward."""

    def __init__(self, batch: int, channels: int, length: int, states: int = 16) -> None:
        draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
        A = -torch.arange(1, states + 1, dtype=torch.float32).repeat(channels, 1)
        sequence, matrix = (batch, channels, length), (batch, states, length)
        inputs = [draw(sequence), draw(sequence), A, draw(matrix), draw(matrix), draw(channels), draw(sequence)]
        self.inputs = [tensor.requires_grad_() for tensor in (*inputs, draw(channels) - 4)]
        self.gradient = draw(sequence)

    def run(self, recurrence: Callable[..., Tensor] | None = None) -> None:
        if recurrence is None:
            out = selective_scan(*self.inputs, delta_softplus=True)
        else:
            out = scan(recurrence, *self.inputs)
        torch.autograd.grad(out, self.inputs, self.gradient)


def scan_step(path: Literal["native", "reference", "parallel"], batch: int, channels: int, length: int) -> Step:
    Scan(1, 1, 2).run()  # numba and its kernels are loaded before memory is counted, on either side
    recurrence = {"native": None, "reference": reference_recurrence, "parallel": parallel_recurrence}[path]
    return functools.partial(Scan(batch, channels, length).run, recurrence)


class TokenFill:
    """Token interpolation on a 6^3 grid with 54 visible tokens of width 384, forward and backward."""

    def __init__(self, batch: int, full: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.visible = random_visible(batch, (6, 6, 6), 0.75, generator).flatten(1)
        y = torch.randn(batch, 54, 384, generator=generator)
        a, b = (torch.full((384,), value) for value in (0.14, 0.86))
        a, b = (torch.diag(a), torch.diag(b)) if full else (a, b)
        self.inputs = [tensor.requires_grad_() for tensor in (y, a, b)]
        self.gradient = torch.randn(batch, 216, 384, generator=generator)

    def run(self, looped: bool = False) -> None:
        y, a, b = self.inputs
        out = (looped_toki if looped else toki)(y, self.visible, a, b)
        torch.autograd.grad(out, self.inputs, self.gradient)


def network(name: str) -> nn.Module:
    """Build a segmentation network for 96^3 windows, 1 channel and 14 classes, as its authors ran it on BTCV."""
    torch.manual_seed(0)
    match name:
        case "base" | "tiny":
            return HyMambaSeg(1, CLASSES, size=name)
        case "UNETR":
            return UNETR(1, CLASSES, img_size=SIDE, feature_size=16)
        case "SwinUNETR 48":
            return SwinUNETR(1, CLASSES, feature_size=48)
        case "MedNeXt-B":
            return MedNeXtB(spatial_dims=3, in_channels=1, out_channels=CLASSES, kernel_size=3)
        case "DynUNet":  # what nnU-Net plans for 96^3: five levels, down to 6^3
            strides = [1, 2, 2, 2, 2]
            return DynUNet(3, 1, CLASSES, [3] * 5, strides, strides[1:], filters=[32, 64, 128, 256, 320])
    raise ValueError(f"network {name!r} is unknown")


class Segmentation:
    """A segmentation network and a window of 96^3: inference, and a training step with cross-entropy."""

    def __init__(self, name: str, device: str = "cpu", plain_norms: bool = False) -> None:
        self.network = network(name).to(device)
        if plain_norms:
            self.network = with_plain_norms(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(1, 1, SIDE, SIDE, SIDE, generator=generator).to(device)
        self.label = torch.randint(CLASSES, (1, SIDE, SIDE, SIDE), generator=generator).to(device)

    def infer(self, amp: bool = False) -> Tensor:
        self.network.eval()
        with torch.inference_mode(), torch.autocast(self.x.device.type, torch.bfloat16, enabled=amp):
            return self.network(self.x)

    def train(self, amp: bool = False) -> None:
        self.network.train()
        self.optimizer.zero_grad()
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(self.network(self.x), self.label)
        loss.backward()
        self.optimizer.step()
