"""Checkpoints of a run: its whole state after epochs or steps, what is exported from it, resuming, averaged weights."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from ignite.engine import Events
from ignite.handlers import EMAHandler
from ignite.metrics import Metric
from monai.engines import Evaluator, Trainer
from torch import Tensor, nn

from mambamim_nets.bundle.checkpoint_files import (
    BEST,
    ENCODER,
    LAST,
    holds,
    keep_copy,
    load_state,
    read_checkpoint,
    save,
)
from mambamim_nets.bundle.files import only_run, release, remove_leftovers, some, write_text
from mambamim_nets.bundle.handlers.epoch_log import TrainingCurves
from mambamim_nets.bundle.handlers.event_files import drop_rows_after
from mambamim_nets.bundle.handlers.identity import (
    TRAINING_CASES,
    Difference,
    Settings,
    differences,
    effective,
    run_settings,
)
from mambamim_nets.bundle.handlers.stop_signals import StopSignals
from mambamim_nets.bundle.handlers.training_ranges import TrainingRanges
from mambamim_nets.bundle.runtime import bare, process_rank
from mambamim_nets.checkpoint import non_finite, record_of, stamped

__all__ = ["Average", "Checkpoints"]

logger = logging.getLogger("mambamim_nets")
MOST_DIFFERENCES = 6
EPOCH_ROW = "epoch"  # its rows in TensorBoard's files say where in them each checkpoint was written


class Average:
    """Exponential moving average of a network's weights, by ignite's EMAHandler; what is validated and kept as best.

    Args:
        network: the network in training.
        decay: share of the average that each iteration keeps, such as 0.999; 0 switches averaging off.

    Attributes:
        network: the averaged network, or with decay 0 the network in training itself.

    Raises:
        ValueError: if the decay is not in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float = 0.0) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema {decay} must be in [0, 1); 0 switches averaging off, 0.999 is usual")
        self.handler = EMAHandler(network, momentum=1 - decay) if decay else None
        self.network = self.handler.ema_model if self.handler else network

    def attach(self, engine: Trainer) -> None:
        """Update the average after every iteration of an engine, if it is switched on."""
        if self.handler:
            self.handler.attach(engine, event=Events.ITERATION_COMPLETED)


class Checkpoints:
    """Save the whole state every epoch, and between steps if wanted, export weights from it, and resume.

    ``checkpoint_last.pt`` holds network, optimiser, schedule, trainer (epoch, iteration), the best metric so far and
    the run's identity. Exports follow from it: ``model_best.pt``, the bare weights of the best epoch; with
    ``encoder=True`` ``encoder.pt``, the bare encoder weights of the last epoch; and the texts that evaluator handlers
    left in ``state.best_files`` in a better epoch. They are written right after the checkpoint, and before anything
    else is trained, so what a kill between the two kept from being written is in the checkpoint, and resuming, also a
    finished run, writes it. Files are replaced whole or not at all. The last epoch is validated whatever the interval.

    With ``every``, checkpoints are also written within an epoch: after so many steps, and when SIGTERM or SIGUSR1
    comes. Then the running step is finished, its state saved and the program ended, in all processes at the same step.
    A resumed run goes on with the next step; see ``EpochSeed``.

    Of several processes, rank 0 alone reads and writes. It decides what is resumed and gives the others the state, so
    that they need not share a disk. After each epoch, `progress.csv` and `progress.png` show what it came to.

    A run is resumed with the settings it had (``mambamim_nets.bundle.handlers.identity``). With others it goes on if
    ``resume_with_changes`` is true: the optimiser takes its new numbers, the schedule its new shape at the same epoch,
    and the checkpoint lists what changed after which epoch under "changes".

    Args:
        trainer, evaluator, network, optimizer, lr_scheduler: the parts of the run; no evaluator in pre-training.
        folder: where files go; one run at a time, see ``only_run``.
        identity: settings that make this run what it is, or a function that returns them when the run starts, such as
            those of the running configuration; the cases and the batch over all processes are added.
        resume: "auto" continues what is in the folder, True demands it, False refuses a folder that holds a run.
        encoder: whether to write ``encoder.pt``.
        average: averaged weights of the network, if there are any; ``start`` attaches it to the trainer.
        early_stopping: stop after this many epochs without a better validation; 0: never.
        record: what the weights are, written into every file of weights; see ``mambamim_nets.checkpoint.stamped``.
        resume_with_changes: whether to go on with settings that the checkpoint does not have.
        writer: a TensorBoard SummaryWriter: what it had written after the checkpoint is dropped, since it is repeated.
            It is closed when the run ends.
        ranges: what training sees, for the record; None: the weights do not say.
        every: steps of a run between its checkpoints within an epoch; 0: only where a signal stops it; None: a signal
            ends the run at once, and only whole epochs are saved. Anything but None needs a sampler with `set_step`.
        kept: how many checkpoints are kept, the last one among them; see ``keep_copy``.
        metrics: of the trainer, by name: what they have summed up of an epoch is saved within it. On another number of
            processes they begin anew in the rest of the epoch.
    """

    def __init__(
        self,
        trainer: Trainer,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        folder: str,
        identity: Mapping[str, Any] | Callable[[], Settings] = run_settings,
        evaluator: Evaluator | None = None,
        resume: bool | Literal["auto"] = "auto",
        encoder: bool = False,
        average: Average | None = None,
        early_stopping: int = 0,
        record: dict[str, Any] | None = None,
        resume_with_changes: bool = False,
        writer: Any = None,
        ranges: TrainingRanges | None = None,
        every: int | None = None,
        kept: int = 1,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        self.trainer, self.evaluator, self.network = trainer, evaluator, network
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.folder, self.identity, self.resume, self.encoder = Path(folder), identity, resume, encoder
        self.averaging = average
        self.average = average.network if average is not None and average.handler else None
        self.early_stopping, self.record, self.writer, self.ranges = early_stopping, record, writer, ranges
        self.with_changes, self.every, self.kept, self.metrics = resume_with_changes, every, kept, dict(metrics or {})
        self.signals: StopSignals | None = None
        self.settings, self.changes = Settings({}, {}), cast(list[dict[str, Any]], [])
        self.curves = TrainingCurves(folder)

    def start(self) -> bool:
        """Restore what is to be resumed, and attach to the engines.

        Returns:
            Whether there is anything left to train.

        Raises:
            FileNotFoundError: if resume is True and there is nothing to resume.
            ValueError: if the folder holds a run that must not be replaced, is of other settings, cannot be read, or
                is at work; or if the processes of this run do not have the same settings.
        """
        given = self.identity() if callable(self.identity) else Settings(dict(self.identity), {})
        found = effective(self.trainer, self.evaluator, _processes())
        self.settings = Settings({**given.values, **found}, given.made_of)
        state, changed = _by_rank_0(self._decide)
        self._agree()
        if state is not None:
            self._restore(state, changed)
        if process_rank() == 0:
            if self.ranges is not None and self.record is not None:
                self.record = {**self.record, **self.ranges.record()}
            self.trainer.add_event_handler(Events.COMPLETED, self._close)
            self.curves.start(self.trainer.state.epoch)
        if self.averaging is not None:
            self.averaging.attach(self.trainer)
        if self.every is not None:
            self.signals = StopSignals(self.trainer)
            self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
            self.trainer.add_event_handler(Events.COMPLETED, self.signals.give_back)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._save_epoch)
        left = self.trainer.state.epoch < self.trainer.state.max_epochs and not self._stalled()
        if not left and self.signals is not None:
            self.signals.give_back()
        if not left and process_rank() == 0:
            release(self.folder)
        return left

    def _close(self) -> None:
        release(self.folder)
        if self.writer is not None:
            self.writer.close()

    def _decide(self) -> tuple[dict[str, Any] | None, list[Difference]]:
        """Return the state to go on from, if any, and what changed since; in rank 0 only."""
        only_run(self.folder)
        remove_leftovers(self.folder)
        last = self.folder / LAST
        if last.exists():
            if self.resume is False:
                raise ValueError(f"{self.folder} holds a run; --resume true continues it, or give another --output_dir")
            state = read_checkpoint(last, BEST if self.evaluator is not None else ENCODER)
            return state, self._changed(state, last)
        if any((self.folder / name).exists() for name in (BEST, ENCODER)):
            raise ValueError(f"{self.folder} holds weights that this run would replace; give another --output_dir")
        if self.resume is True:
            raise FileNotFoundError(f"nothing to resume: {last} does not exist; --resume auto starts a new run")
        return None, []

    def _changed(self, state: dict[str, Any], path: Path) -> list[Difference]:
        """Return how the settings differ from those of a checkpoint, if that was asked for."""
        held = dict(state["identity"])
        early = TRAINING_CASES not in held
        if early:
            # as versions did that kept few settings: what the schedule was made for, and what the weights say
            held.setdefault("max_epochs", state["trainer"]["max_epochs"])
        found = differences(held, self.settings.values, self.settings.made_of)
        if early:
            stamp, record = record_of(state["model"]), self.record or {}
            names = {item.name for item in found}
            found += differences({k: v for k, v in stamp.items() if k not in names}, record)
            logger.warning("%s is of an earlier version, which kept few settings: the others are taken on trust", path)
        if found and not self.with_changes:
            listed = some([item.between() for item in found], MOST_DIFFERENCES, ";")
            raise ValueError(
                f"{path} belongs to a run with other settings: {listed}. Give the same again, or "
                "another --output_dir, or --resume_with_changes true to go on with the new ones"
            )
        for item in found:
            logger.warning("resuming with a change: %s", item.between())
        return found

    def _agree(self) -> None:
        """Raise ValueError in every process if one of them has settings that rank 0 does not have.

        The folder of the data may differ between machines; the cases in it may not.
        """
        if _processes() == 1:
            return
        first = [self.settings.values]
        dist.broadcast_object_list(first, src=0)
        found = differences(first[0], self.settings.values, self.settings.made_of)
        words = [item.between("in process 0", "in this one") for item in found if item.name != "data_root"]
        every: list[list[str]] = [[] for _ in range(_processes())]
        dist.all_gather_object(every, words)
        for rank, other in enumerate(every):
            if other:
                parts = "; ".join(other[:MOST_DIFFERENCES])
                raise ValueError(
                    f"process {rank} differs from process 0: {parts}; start every process with the same options, files "
                    "and data"
                )

    def _stalled(self) -> bool:
        """Return whether early stopping ends the run; it depends on saved values only, so resuming changes nothing."""
        if self.evaluator is None or not self.early_stopping:
            return False
        best = self.evaluator.state.best_metric_epoch
        without = self.evaluator.state.epoch - best  # at the last validation: between two, nothing can get better
        if best <= 0 or without < self.early_stopping:
            return False
        logger.info("early stopping: no better validation since epoch %d, %d epochs ago", best, without)
        return True

    # --- resuming ---------------------------------------------------------------------------------

    def _restore(self, state: dict[str, Any], changed: list[Difference]) -> None:
        path, epoch, before = self.folder / LAST, state["epoch"], state["trainer"]["epoch_length"]
        self.changes = list(state.get("changes", []))
        if changed:
            named = {item.name: [item.held, item.here] for item in changed}
            self.changes.append({"epoch": epoch, "changes": named})
        load_state(bare(self.network), state["model"], path)
        if self.average is not None:
            load_state(self.average, state.get("average", state["model"]), path)
        length = self.trainer.state.epoch_length
        shape = before != length
        saved = state["trainer"].get("iteration", epoch * before)
        step, whole = round(saved * length / before), saved % before == 0
        self._restore_steps(state, bool(changed) or shape, {item.name for item in changed})
        wanted = self.trainer.state.max_epochs
        most = max(wanted, epoch)
        self.trainer.load_state_dict({"iteration": step, "epoch_length": length, "max_epochs": most})
        self.trainer.state.max_epochs = most
        if not whole:
            self._restore_metrics(state.get("metrics", {}))
        if self.evaluator is not None and state["best_epoch"] > 0:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_epoch"]
            self.evaluator.state.epoch = state.get("validated_epoch", epoch)
            self.evaluator.state.best_files = dict(state.get("best_files", {}))
        if process_rank() == 0:
            record = record_of(state["model"]) or self.record
            self._export(state["best_epoch"], epoch if whole else None, record, resumed=True)
            if self.writer is not None:
                drop_rows_after(self.writer.log_dir, EPOCH_ROW, saved)
        done = "finished, nothing left to train" if epoch >= wanted else f"continuing up to epoch {wanted}"
        where = f"epoch {epoch}" if whole else f"step {step} (in epoch {epoch + 1})"
        logger.info("resumed %s after %s: %s", path, where, done)

    def _restore_metrics(self, states: Mapping[str, Any]) -> None:
        """Give metrics back what they had summed up of the epoch that goes on, once it has reset them."""

        def load(trainer: Trainer) -> None:
            for name, metric in self.metrics.items() if trainer.state.epoch == begun else ():
                try:
                    metric.load_state_dict(states.get(name, {}))
                except ValueError:  # of another number of processes
                    logger.info("%s of epoch %d is that of its last steps: it began on other processes", name, begun)

        begun = self.trainer.state.epoch + 1
        self.trainer.add_event_handler(Events.EPOCH_STARTED, load)

    def _restore_steps(self, state: dict[str, Any], changed: bool, names: set[str]) -> None:
        """Restore optimiser and schedule; where settings changed, their numbers and shape are the new ones."""
        fresh = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        shape = self.lr_scheduler.state_dict()
        if len(fresh) != len(state["optimizer"]["param_groups"]):
            raise ValueError(
                f"{self.folder / LAST}: its optimiser has other groups of parameters; give another --output_dir"
            )
        if "optimizer#_target_" not in names:
            self.optimizer.load_state_dict(state["optimizer"])
        if not changed:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
            return
        before, now = state["trainer"]["epoch_length"], self.trainer.state.epoch_length
        held = state["lr_scheduler"]
        step = round(held["last_epoch"] * now / before)
        self.lr_scheduler.load_state_dict({**shape, "last_epoch": step, "_step_count": step + 1})
        rates = getattr(self.lr_scheduler, "_get_closed_form_lr", self.lr_scheduler.get_lr)()
        for group, numbers, rate in zip(self.optimizer.param_groups, fresh, rates, strict=True):
            group.update({**numbers, "lr": rate})
        self.lr_scheduler._last_lr = list(rates)

    # --- saving -----------------------------------------------------------------------------------

    def _require_finite(self, trainer: Trainer) -> None:
        """Refuse to replace sound files by weights that are not.

        Raises:
            FloatingPointError: a weight is NaN or infinite.
        """
        for network in filter(None, (bare(self.network), self.average)):
            if found := non_finite(network.state_dict()):
                raise FloatingPointError(
                    f"weights after epoch {trainer.state.epoch}: {found}, and must be finite; lower --learning_rate, or"
                    f" use --amp false; {self.folder / LAST} holds the last epoch before that was saved"
                )

    def _after_step(self, trainer: Trainer) -> None:
        """Save a step within an epoch, if it is its turn or a signal came, and obey the signal."""
        assert self.signals is not None and self.every is not None
        step = trainer.state.iteration
        if step % trainer.state.epoch_length == 0:  # _save_epoch follows, once the epoch is validated
            return
        number = self.signals.noted()
        if number or (self.every and step % self.every == 0):
            self._save(trainer, None)
        if number:
            logger.info("stopped after step %d, in epoch %d", step, trainer.state.epoch)
            self.signals.obey(number)

    def _save_epoch(self, trainer: Trainer) -> None:
        if self.evaluator is not None and trainer.state.epoch == trainer.state.max_epochs != self.evaluator.state.epoch:
            self.evaluator.run(trainer.state.epoch)  # val_interval left the last epoch out
        self._save(trainer, trainer.state.epoch)
        if process_rank() == 0:
            self.curves.add(trainer, self.evaluator, self.optimizer.param_groups[0]["lr"])
        if self._stalled():
            trainer.terminate()
        elif self.signals is not None and (number := self.signals.noted()):
            self.signals.obey(number)

    def _save(self, trainer: Trainer, epoch: int | None) -> None:
        """Save the state after an epoch, or within one if it is None, and what follows from it."""
        self._require_finite(trainer)
        step, length = trainer.state.iteration, trainer.state.epoch_length
        metrics = {name: metric.state_dict() for name, metric in self.metrics.items()} if epoch is None else {}
        if process_rank() == 0:
            best = self.evaluator.state if self.evaluator is not None else None
            state = {
                "model": stamped(bare(self.network).state_dict(), self.record),
                "optimizer": self.optimizer.state_dict(),
                "lr_scheduler": self.lr_scheduler.state_dict(),
                "trainer": dict(trainer.state_dict()),
                "epoch": step // length,
                "metrics": metrics,
                "best_metric": float(best.best_metric) if best is not None else 0.0,
                "best_epoch": int(best.best_metric_epoch) if best is not None else 0,
                "validated_epoch": int(best.epoch) if best is not None else 0,
                "best_files": dict(getattr(best, "best_files", {})),
                "identity": self.settings.values,
                "changes": self.changes,
            }
            if self.average is not None:
                state["average"] = self.average.state_dict()
            if self.writer is not None:
                self.writer.add_scalar(EPOCH_ROW, step / length, step)
                self.writer.flush()
            save(self.folder / LAST, state)
            if self.kept > 1:
                keep_copy(self.folder / LAST, step, self.kept)
            self._export(state["best_epoch"], epoch, self.record)

    def _export(self, best_epoch: int, epoch: int | None, record: dict[str, Any] | None, resumed: bool = False) -> None:
        """Write what follows from a checkpoint, of an epoch or within one; a resumed run writes what is missing."""
        weights: dict[str, dict[str, Tensor]] = {}
        if self.encoder:
            weights[ENCODER] = cast(nn.Module, bare(self.network).encoder).state_dict()
        if best_epoch == epoch:
            network = self.average if self.average is not None else bare(self.network)
            weights[BEST] = network.state_dict()
        elif resumed and best_epoch > 0 and not (self.folder / BEST).is_file():
            logger.warning(
                "%s of epoch %d is gone, and a later checkpoint cannot give it back: it is written again with the next "
                "better validation", self.folder / BEST, best_epoch
            )  # fmt: skip
        for name, state in weights.items():
            if not (resumed and holds(self.folder / name, state)):
                save(self.folder / name, stamped(state, record))
                if resumed:
                    logger.info("written again, as it follows from the checkpoint: %s", self.folder / name)
        texts = getattr(self.evaluator.state, "best_files", {}) if self.evaluator is not None else {}
        for name, text in texts.items() if best_epoch == epoch or resumed else ():
            write_text(self.folder / Path(name).name, text)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _by_rank_0(decide: Callable[[], Any]) -> Any:
    """Return what a function returns in rank 0, in every process; what it raises, every process raises."""
    if _processes() == 1:
        return decide()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if process_rank() == 0:
        try:
            outcome[0] = decide()
        except (OSError, ValueError) as failure:
            error, outcome[1] = failure, str(failure)
    dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]
