"""Ignite handlers that MONAI does not have: full resume, per-epoch seeds, gradient clipping, progress, reports."""

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver, ProgressBar
from monai.data import MetaTensor
from monai.data.utils import set_rnd
from monai.engines import Evaluator, Trainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.transforms import LoadImage, Orientation
from torch import Tensor, nn

from mambamim_nets.bundle.data import case_name
from mambamim_nets.bundle.launch import epoch_seed, flag, seed_epoch
from mambamim_nets.bundle.pictures import figure_array, overlay, reconstruction, reconstruction_figure
from mambamim_nets.bundle.tables import MetricsTable, case_metrics
from mambamim_nets.checkpoint import read_state
from mambamim_nets.masking import expand_visible
from mambamim_nets.nets.mambamim import MambaMIM

__all__ = [
    "AutocastInferer",
    "CaseReport",
    "Checkpoints",
    "ClipGradients",
    "EpochSeed",
    "Progress",
    "ReconstructionPictures",
    "StopOnNan",
    "mim_batch",
    "mim_loss",
]

logger = logging.getLogger("mambamim_nets")
LAST, BEST, ENCODER = "checkpoint_last.pt", "model_best.pt", "encoder.pt"


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _bare(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


class AutocastInferer(Inferer):
    """Run another inferer under bfloat16 autocast on any device; outputs come back in float32.

    Args:
        inferer: what calls the network.
        amp: False leaves everything in float32.
    """

    def __init__(self, inferer: Inferer, amp: bool | str = False) -> None:
        super().__init__()
        self.inferer, self.amp = inferer, flag(amp, "amp")

    def __call__(self, inputs: Tensor, network: Callable, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp):
            out = self.inferer(inputs, network, *args, **kwargs)
        return out.float() if isinstance(out, Tensor) else out


class EpochSeed:
    """Seed everything random from (seed, epoch) at the start of each epoch: resuming repeats and skips nothing."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Trainer) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Trainer) -> None:
        seed = epoch_seed(self.seed, engine.state.epoch, _rank())
        seed_epoch(seed)
        loader: Any = engine.data_loader
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(engine.state.epoch)
        set_rnd(loader.dataset, seed)


class ClipGradients:
    """Clip the gradient norm of a network before every optimiser step."""

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        self.network, self.max_norm = network, max_norm

    def attach(self, engine: Trainer) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Trainer) -> None:
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


class StopOnNan:
    """Stop before the optimiser takes a step on a loss that is not finite."""

    def attach(self, engine: Trainer) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Trainer) -> None:
        loss = engine.state.output["loss"]
        if not torch.isfinite(loss).all():
            raise FloatingPointError(
                f"loss is {float(loss)} in epoch {engine.state.epoch}, iteration {engine.state.iteration}; "
                f"lower --learning_rate, or use --amp false; {LAST} holds the epoch before"
            )


class Progress:
    """Progress bar over the iterations of an engine, with the loss where there is one; on terminals only."""

    def __init__(self, description: str) -> None:
        self.description = description

    def attach(self, engine: Engine) -> None:
        if _rank() == 0 and sys.stderr.isatty():
            bar = ProgressBar(persist=False, desc=self.description)
            bar.attach(engine, output_transform=_loss_of)


def _loss_of(output: Any) -> dict[str, float]:
    first = output[0] if isinstance(output, list) and output else output
    loss = first.get("loss") if isinstance(first, Mapping) else None
    return {} if loss is None else {"loss": float(loss)}


class Checkpoints:
    """Save the whole state every epoch, the best network by validation, and resume.

    ``checkpoint_last.pt`` holds network, optimiser, schedule, trainer (epoch, iteration), the best metric so far and
    the run's identity; ``model_best.pt`` holds the bare weights of the best epoch; with ``encoder=True``,
    ``encoder.pt`` the bare encoder weights of the last epoch. Files are replaced whole or not at all.

    Args:
        trainer, evaluator, network, optimizer, lr_scheduler: the parts of the run; no evaluator in pre-training.
        folder: where files go.
        identity: plain values that make this run what it is; resuming with other values is refused.
        resume: "auto" continues what is in the folder, True demands it, False refuses a folder that holds a run.
        encoder: whether to write ``encoder.pt``.
    """

    def __init__(
        self,
        trainer: Trainer,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        folder: str,
        identity: dict[str, Any],
        evaluator: Evaluator | None = None,
        resume: bool | str = "auto",
        encoder: bool = False,
    ) -> None:
        resume = resume if resume == "auto" else flag(resume, "resume")
        self.trainer, self.evaluator, self.network = trainer, evaluator, network
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.folder, self.identity, self.resume, self.encoder = Path(folder), identity, resume, encoder
        self.folder.mkdir(parents=True, exist_ok=True)  # DiskSaver's own way fails if another process is faster
        self.saver = DiskSaver(str(folder), create_dir=False, require_empty=False)

    def start(self) -> bool:
        """Restore what is to be resumed, and attach to the engines.

        Returns:
            Whether there is anything left to train.

        Raises:
            FileNotFoundError: if resume is True and there is nothing to resume.
            ValueError: if the folder holds a run that must not be replaced, or one of another identity.
        """
        last = self.folder / LAST
        if last.is_file():
            if self.resume is False:
                raise ValueError(f"{self.folder} holds a run; --resume true continues it, or give another --output_dir")
            self._restore(last)
        elif any((self.folder / name).exists() for name in (BEST, ENCODER)):
            raise ValueError(f"{self.folder} holds weights that this run would replace; give another --output_dir")
        elif self.resume is True:
            raise FileNotFoundError(f"nothing to resume: {last} does not exist")
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._save_best)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._save_last)
        return self.trainer.state.epoch < self.trainer.state.max_epochs

    def _restore(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        held = state["identity"]
        differing = [f"{k}={held.get(k)!r} there, {v!r} here" for k, v in self.identity.items() if held.get(k) != v]
        if differing:
            raise ValueError(f"{path} belongs to another run ({'; '.join(differing)}); give another --output_dir")
        _bare(self.network).load_state_dict(read_state(path), strict=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        wanted = self.trainer.state.max_epochs
        self.trainer.load_state_dict({**state["trainer"], "max_epochs": max(wanted, state["epoch"])})
        self.trainer.state.max_epochs = max(wanted, state["epoch"])
        if self.evaluator is not None and state["best_epoch"] > 0:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_epoch"]
        done = "finished, nothing left to train" if state["epoch"] >= wanted else f"continuing up to epoch {wanted}"
        logger.info("resumed %s after epoch %d: %s", path, state["epoch"], done)

    def _save(self, state: dict[str, Any], name: str) -> None:
        if _rank() == 0:
            self.saver(state, name)

    def _save_last(self, trainer: Trainer) -> None:
        best = self.evaluator.state if self.evaluator is not None else None
        network = _bare(self.network)
        state = {
            "model": network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "trainer": dict(trainer.state_dict()),
            "epoch": trainer.state.epoch,
            "best_metric": float(best.best_metric) if best is not None else 0.0,
            "best_epoch": int(best.best_metric_epoch) if best is not None else 0,
            "identity": self.identity,
        }
        self._save(state, LAST)
        if self.encoder:
            self._save(cast(nn.Module, network.encoder).state_dict(), ENCODER)

    def _save_best(self, evaluator: Evaluator) -> None:
        if evaluator.state.best_metric_epoch == evaluator.state.epoch:
            self._save(_bare(self.network).state_dict(), BEST)


def mim_batch(
    batch: Mapping[str, Tensor], device: torch.device, non_blocking: bool, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Give the image as its own target: the ``prepare_batch`` of pre-training."""
    image = batch["image"].to(device, non_blocking=non_blocking, **kwargs)
    image = image.as_tensor() if hasattr(image, "as_tensor") else image
    return image, image


def mim_loss(output: Any, image: Tensor) -> Tensor:
    """Return the loss that ``MambaMIM`` computed: the ``loss_function`` of pre-training."""
    return output.loss


class ReconstructionPictures:
    """Rebuild one fixed, fixedly masked crop at intervals: a PNG (input | visible | rebuilt) and a TensorBoard image.

    Args:
        network: MambaMIM, possibly wrapped for distributed training.
        folder: where ``reconstruction.png`` goes.
        interval: epochs between pictures; the last epoch always has one.
        writer: a TensorBoard SummaryWriter, or None.
    """

    def __init__(self, network: nn.Module, folder: str, interval: int, writer: Any = None) -> None:
        self.network, self.folder, self.interval, self.writer = network, Path(folder), interval, writer
        self.image: Tensor | None = None

    def attach(self, engine: Trainer) -> None:
        if _rank() == 0:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._draw)

    def _keep(self, engine: Trainer) -> None:
        if self.image is None:
            self.image = engine.state.output["image"][:1].detach().clone()

    def _draw(self, engine: Trainer) -> None:
        epoch = engine.state.epoch
        if self.image is None or (epoch % self.interval and epoch != engine.state.max_epochs):
            return
        model = _bare(self.network)
        assert isinstance(model, MambaMIM)
        training = model.training
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            visible = model.draw_visible(self.image.cpu()).to(self.image.device)
            rebuilt = model.rebuild(self.image, model(self.image, visible))
        model.train(training)
        kept = expand_visible(visible, self.image.shape[2] // visible.shape[2])
        arrays = [array[0, 0].float().cpu().numpy() for array in (self.image, kept, rebuilt)]
        picture = (arrays[0], arrays[1] > 0, arrays[2])
        path = reconstruction(*picture, self.folder / "reconstruction.png", title=f"epoch {epoch}")
        logger.info("picture of a reconstruction: %s", path)
        if self.writer is not None:
            self.writer.add_image(
                "reconstruction", figure_array(reconstruction_figure(*picture)), epoch, dataformats="HWC"
            )


class CaseReport:
    """Collect metrics of every case on its own grid, write tables and overlay pictures; or pictures alone.

    Expects ``pred`` (1, D, H, W) label maps with the affine of the input, ``image`` with its file name, and ``label``
    if metrics are wanted; attached to an evaluator.

    Args:
        labels: names by label value.
        folder: where files go.
        metrics: whether labels are there to compare with.
        pictures: how many overlay pictures to draw at most, over all processes.
        tolerance_mm: of the surface Dice.
    """

    def __init__(
        self, labels: dict[int, str], folder: str, metrics: bool = True, pictures: int = 8, tolerance_mm: float = 1.0
    ) -> None:
        self.labels, self.folder, self.tolerance_mm, self.metrics = labels, Path(folder), tolerance_mm, metrics
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self.pictures = (pictures + processes - 1 - _rank()) // processes  # this process's share
        self.table = MetricsTable(labels, tolerance_mm)

    def attach(self, engine: Evaluator) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        if self.metrics:
            engine.add_event_handler(Events.COMPLETED, self._write)

    def _collect(self, engine: Evaluator) -> None:
        for item in engine.state.output:
            pred: Any = item["pred"]
            spacing = [float(s) for s in pred.pixdim]
            case = case_name(item["image"].meta["filename_or_obj"])
            prediction = pred[0].cpu().numpy().astype("uint8")
            reference = None
            if self.metrics:
                reference = item["label"][0].cpu().numpy().round().astype("uint8")
                self.table.add(case, case_metrics(prediction, reference, self.labels, spacing, self.tolerance_mm))
            if self.pictures > 0:
                self.pictures -= 1
                self._draw(case, item, prediction, reference, spacing)

    def _draw(self, case: str, item: Any, prediction: Any, reference: Any, spacing: list[float]) -> None:
        image = LoadImage(image_only=True, ensure_channel_first=True)(item["image"].meta["filename_or_obj"])[:1]
        to_ras = Orientation("RAS", labels=None)

        def upright(array: Any) -> Any:
            return to_ras(MetaTensor(torch.as_tensor(array)[None], affine=image.affine))[0].numpy()

        upright_image: Any = to_ras(image)
        path = overlay(
            upright_image[0].numpy(),
            upright(prediction),
            self.labels,
            self.folder / f"{case}_overlay.png",
            title=case,
            reference=None if reference is None else upright(reference),
            spacing=tuple(float(s) for s in upright_image.pixdim),
        )
        logger.info("picture: %s", path)

    def _write(self, engine: Evaluator) -> None:
        summary = self.table.write(self.folder)
        if _rank() == 0:
            logger.info("metrics of %s\n%s", self.folder, summary)
