"""How networks are called: bfloat16, inference mode, mirroring, ensembles, finite results, and empty windows.

A sliding window over a scan meets windows that hold nothing but air or the black around a brain, which is exactly 0
once intensities are scaled. They tell a network nothing, so they get the logits of background instead, and a label map
is background in every voxel of such a window, also where others overlap it. Voxels outside of these windows are not
touched.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import torch
from monai.inferers import Inferer
from monai.networks import trt_compile
from monai.networks.trt_compiler import polygraphy_imported, trt_imported
from torch import Tensor, nn

from mambamim_nets.bundle.labels import Targets
from mambamim_nets.bundle.runtime import bare
from mambamim_nets.bundle.weights import weights_files
from mambamim_nets.checkpoint import read_state
from mambamim_nets.nets.hymamba import HyMamba
from mambamim_nets.nets.mamba_unetr import VisionMamba
from mambamim_nets.pretraining.voco import VoCo

__all__ = ["AutocastInferer", "EnsembleInferer", "bfloat16_is_fast", "tensorrt"]

logger = logging.getLogger("mambamim_nets")


def bfloat16_is_fast(device: torch.device | str) -> bool:
    """Return whether a device computes in bfloat16 itself: CUDA from capability 8.0, CPUs with AVX512-BF16 or AMX.

    Others emulate it, which is slower than float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    # torch has no public function for this; where these names are missing, the CPU is taken to lack the instructions
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def _miscomputed(inputs: Tensor, network: Callable) -> bool:
    """Return whether training on a batch (B, C, D, H, W) may meet a map that is 2 voxels deep, on the CPU.

    There oneDNN's bfloat16 weight gradients of 3^3 convolutions read memory that was never written (torch 2.13). Our
    hybrids convolve down to stride 8, from where on they have tokens; other networks down to 32.
    """
    if inputs.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    depth = min([inputs.shape[2], *(m.crop_shape(inputs)[0] for m in modules if isinstance(m, VoCo))])
    return depth == 16 or (depth in (32, 64) and not any(isinstance(m, HyMamba | VisionMamba) for m in modules))


class AutocastInferer(Inferer):
    """Run another inferer under bfloat16 autocast on any device; outputs come back in float32.

    Where gradients are off, the network runs in inference mode; what comes back are ordinary tensors, and every one of
    them is finite: NaN would become background in a label map, and nobody would notice. In training the loss is watched
    instead.

    Args:
        inferer: what calls the network.
        amp: False leaves everything in float32.
        mirror_axes: test-time mirroring: average the outputs over all combinations of flips of these spatial axes.
            Only for axes that training mirrored too; n axes cost 2^n times the time.
        air: logits (out_channels) of windows in which every voxel is 0, which the network then never sees, such as
            `Targets.background`; None: the network sees every window.
        report: log how many windows were computed and skipped, and how fast.

    Raises:
        ValueError: if an axis is not 0, 1 or 2.
        FloatingPointError: when called, if the network returns NaN or infinity where gradients are off.
    """

    def __init__(
        self,
        inferer: Inferer,
        amp: bool = False,
        mirror_axes: Sequence[int] = (),
        air: Sequence[float] | None = None,
        report: bool = False,
    ) -> None:
        super().__init__()
        if not set(mirror_axes) <= {0, 1, 2}:
            raise ValueError(f"mirror_axes {list(mirror_axes)} must be among 0, 1 and 2")
        axes = sorted({axis + 2 for axis in mirror_axes})
        self.inferer, self.amp, self.air, self.report = inferer, amp, air, report
        self.warned = False
        self.flips = [flip for n in range(len(axes) + 1) for flip in combinations(axes, n)]

    def __call__(self, inputs: Tensor, network: Callable, *args: Any, **kwargs: Any) -> Any:
        """Return the float32 logits (B, out_channels, D, H, W) of inputs (B, C, D, H, W)."""
        amp = self.amp and not _miscomputed(inputs, network)
        windows, started = _Windows(network, self.air, amp), time.perf_counter()
        if amp != self.amp and not self.warned:
            self.warned = True
            logger.warning(
                "crops of depth %d are trained in float32: their deepest maps are 2 voxels deep, where bfloat16 "
                "gradients are wrong on CPUs",
                inputs.shape[2],
            )
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=amp):
            out = self.inferer(inputs, windows, *args, **kwargs)
            if not isinstance(out, Tensor):
                return out
            for flip in self.flips[1:]:  # the first is no flip
                flipped = self.inferer(inputs.flip(flip), windows, *args, **kwargs)
                out = flipped.flip(flip).add_(out)  # a flip is a copy; the network's own outputs stay as they are
        if self.report:
            windows.log(time.perf_counter() - started)
        return out / len(self.flips) if len(self.flips) > 1 else out


class EnsembleInferer(Inferer):
    """Run another inferer with the weights of every member of an ensemble, and average the members' probabilities.

    The members are files of one network, such as the folds of a cross-validation. One network takes their weights in
    turn, once for each scan: that takes milliseconds, a scan takes seconds, and the device holds one network whatever
    the number of members. Of the probabilities only the running sum is kept, which is less than what bringing a result
    back takes, so the estimate of `ScanMemory` holds. MONAI's `EnsembleEvaluator` does something else: it holds every
    network on the device, and every member's result until the last.

    What comes back are logits whose probabilities are the mean of the members', so that everything behind takes them
    as it takes those of one network. A single file is left to the inferer: its result is what it was.

    Args:
        inferer: what calls the network; its results are logits (B, out_channels, D, H, W).
        targets: of the task, which says how logits become probabilities.
        checkpoint: files of the members; one file: the network has its weights already.
    """

    def __init__(self, inferer: Inferer, targets: Targets, checkpoint: str | Sequence[str]) -> None:
        super().__init__()
        self.inferer, self.targets, self.files = inferer, targets, weights_files(checkpoint)
        self._members: list[dict[str, Tensor]] = []

    def __call__(self, inputs: Tensor, network: Callable, *args: Any, **kwargs: Any) -> Any:
        """Return float32 logits (B, out_channels, D, H, W) of inputs (B, C, D, H, W)."""
        if len(self.files) < 2:
            return self.inferer(inputs, network, *args, **kwargs)
        self._members = self._members or [read_state(path) for path in self.files]  # on the CPU
        module = bare(cast(nn.Module, network))
        module = getattr(module, "_orig_mod", module)  # of torch.compile, which shares its parameters
        total: Tensor | None = None
        for weights in self._members:
            module.load_state_dict(weights, strict=True)
            logits = self.inferer(inputs, network, *args, **kwargs)
            for item in logits:  # in place: no second result of this size is held
                item.copy_(self.targets.probabilities(item))
            total = logits if total is None else total.add_(logits.to(total.device))
        assert total is not None
        return self.targets.logits(total.div_(len(self._members)))


class _Windows:
    """Stand for a network in an inferer: leave out windows of air, call it in inference mode, and count."""

    def __init__(self, network: Callable, air: Sequence[float] | None, amp: bool) -> None:
        self.network, self.air, self.amp = network, air, amp
        self.computed = self.skipped = 0

    def __call__(self, windows: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.air is None:
            return self._call(windows, *args, **kwargs)
        kept = (windows != 0).flatten(1).any(1)  # NaN is not air
        if kept.all():
            return self._call(windows, *args, **kwargs)
        logits = torch.tensor(self.air, dtype=torch.float32, device=windows.device).view(1, -1, 1, 1, 1)
        out = logits.expand(len(windows), -1, *windows.shape[2:]).clone()
        self.skipped += int((~kept).sum())
        if kept.any():
            out[kept] = self._call(windows[kept], *args, **kwargs)
        return out

    def _call(self, windows: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.computed += len(windows)
        if torch.is_grad_enabled():
            out = self.network(windows, *args, **kwargs)
            if isinstance(out, list):  # deep supervision
                return [one.float() for one in out]
            return out.float() if isinstance(out, Tensor) else out
        with torch.inference_mode():
            out = self.network(windows, *args, **kwargs)
        if not isinstance(out, Tensor):
            return out
        # a copy made outside is an ordinary tensor, which blending may write into
        out = out.to(torch.float32, copy=True)
        self._require_finite(out, windows)
        return out

    def _require_finite(self, out: Tensor, windows: Tensor) -> None:
        """Refuse NaN and infinity: one pass over the logits, whose extremes NaN goes through to.

        It takes 2.0 ms of a batch's 1.4 s, less than what the same batch differs from run to run: four windows of 48^3,
        14 classes, size tiny; tests/benchmarks/finite_check.py, one thread of a shared AMD EPYC, 26 November 2026.
        """
        lowest, highest = out.aminmax()
        if torch.isfinite(lowest) and torch.isfinite(highest):
            return
        count = int(out.numel() - torch.isfinite(out).sum())
        remedy = (
            "try --amp false" if self.amp else "try other weights, or --size and --intensity that they were made for"
        )
        low, high = (float(value) for value in windows.aminmax())
        raise FloatingPointError(
            f"{count} of {out.numel()} results of the network are NaN or infinite in"
            f" {'bfloat16' if self.amp else 'float32'}, from intensities {low:.4g} to {high:.4g}, and must be finite;"
            f" {remedy}"
        )

    def log(self, seconds: float) -> None:
        rate = self.computed / seconds
        logger.info("%d windows, %d of air skipped, %.2f windows/s", self.computed, self.skipped, rate)


def tensorrt(
    network: nn.Module,
    checkpoint: str | Sequence[str],
    roi_size: Sequence[int],
    device: torch.device | str,
    args: Mapping[str, Any],
) -> nn.Module:
    """Hand a network to MONAI's `trt_compile`, which builds a TensorRT engine on its first call and keeps it.

    The engine takes one window at a time, and lies beside the weights as `<checkpoint>.<window>.plan`; weights newer
    than it have it built anew.

    Args:
        network: as defined; its weights may be loaded later, before it is called.
        checkpoint: path of these weights.
        roi_size: of the windows.
        device: of the network.
        args: of MONAI's `TrtCompiler`.

    Raises:
        RuntimeError: without an NVIDIA GPU, tensorrt or polygraphy, where MONAI would warn and run without them.
        ValueError: the weights are an ensemble, whose members an engine cannot take in turn.
    """
    if len(files := weights_files(checkpoint)) != 1:
        raise ValueError(
            f"checkpoint: inference_trt.json takes one file of weights, not {len(files)}; give one, or leave"
            " inference_trt.json out"
        )
    missing = [name for name, found in (("tensorrt", trt_imported), ("polygraphy", polygraphy_imported)) if not found]
    if torch.device(device).type != "cuda" or missing:
        raise RuntimeError(
            f"inference_trt.json needs an NVIDIA GPU and the packages tensorrt and polygraphy; device is {device}, "
            f"missing: {', '.join(missing) or 'nothing'}; leave inference_trt.json out to run without TensorRT"
        )
    newest = int(Path(files[0]).stat().st_mtime)
    plan = f"{files[0]}.{'x'.join(map(str, roi_size))}"
    return trt_compile(network.to(device), plan, args={"timestamp": newest, **args})
