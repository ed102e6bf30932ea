"""The Lightning callback: Trainer events → `Watch` calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import torch

from deadwatch.activations import slopes_of
from deadwatch.errors import ConfigError
from deadwatch.judge.rules import Rules
from deadwatch.plain import from_plain, to_plain
from deadwatch.records import WindowReport
from deadwatch.restoring import forget_loading, reconcile_on_load
from deadwatch.settings import Settings, owners
from deadwatch.show.console import ConsoleView
from deadwatch.show.loggers import LoggerViews
from deadwatch.show.tables import end_of_run
from deadwatch.show.tensorboard import MODEL_TAG, scalars
from deadwatch.show.texts import writable
from deadwatch.trainers import (
    averaged_copies,
    averages,
    check_strategy,
    follow_swaps,
    loss_of,
    total_batches,
    why_no_swaps,
)
from deadwatch.treat.optim import OptimizerState
from deadwatch.treat.policy import Policy
from deadwatch.watch import Watch

if TYPE_CHECKING:
    from pytorch_lightning import Callback as _Callback
else:
    # `lightning` and `pytorch_lightning` each check for their own base class; this is both.
    _homes = [name for name in ("lightning", "pytorch_lightning") if find_spec(name)]
    _paths = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
    _bases = tuple(import_module(_paths[name]).Callback for name in _homes)
    _Callback = type("_Callback", _bases, {})


class DeadWatch(_Callback):
    """Watches a `LightningModule` while it is fitted, and treats dead units if asked to.

    Counts only training batches: sanity checks, validation, learning-rate finders and checkpoint
    recomputation never count. Logs ``deadwatch/dead_ratio`` (so that `ModelCheckpoint` and
    `EarlyStopping` can monitor it) and a curve per site to every logger. Treatments are applied
    before the next training batch, so that a checkpoint matches its metrics and nothing is
    treated after the last window, nor once stochastic weight averaging has begun. A ratio that
    no evidence supports yet (see `Rules.min_samples`) is not logged at all.

    Args:
        policy: As for `Watch`; optimizers are the Trainer's.
        rules: As for `Watch`.
        include: As for `Watch`; paths are those of the `LightningModule`.
        exclude: As for `Watch`.
        unit_dim: As for `Watch`.
        stats_every_n_steps: As for `Watch`.
        overhead: As for `Watch`.
        count_no_grad: As for `Watch`.
        advice: As for `Watch`.
        gradients: As for `Watch`.
        ignore: As for `Watch`.
        window: ``"epoch"``, or a number of training batches after which to judge.

    Attributes:
        report: The latest `WindowReport`, None before the first. Its treatments and refusals are
            those of the window's start.
        watch: The `Watch` of the latest fit, None before the first.

    Raises:
        ConfigError: An argument is wrong; the message says what was expected.
    """

    def __init__(
        self,
        policy: Policy | str | None = None,
        *,
        rules: Rules | None = None,
        include: Sequence[str] | str | None = None,
        exclude: Sequence[str] | str | None = None,
        unit_dim: Mapping[str, int] | None = None,
        stats_every_n_steps: int | Literal["auto"] = 10,
        overhead: float | None = None,
        count_no_grad: bool = False,
        advice: bool = False,
        gradients: bool = False,
        ignore: Sequence[str] = (),
        window: Literal["epoch"] | int = "epoch",
    ) -> None:
        super().__init__()
        self._settings = Settings(
            policy,
            rules,
            include,
            exclude,
            unit_dim,
            stats_every_n_steps,
            overhead,
            count_no_grad,
            advice,
            gradients,
            ignore,
        )
        if window != "epoch" and (type(window) is not int or window < 1):
            raise ConfigError(
                f"window is {window!r}; expected 'epoch' or a number of training batches"
            )
        self._window = window
        self.report: WindowReport | None = None
        self.watch: Watch | None = None
        self._untreated: WindowReport | None = None
        self._treated: WindowReport | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._batches = 0
        self._epoch = 0
        self._step = 0
        self._suspended = False
        self._console = ConsoleView()
        self._views = LoggerViews()

    def __getstate__(self) -> dict[str, Any]:
        """A copy leaves out what belongs to a fit: the model and the Trainer's loggers."""
        own = {**vars(self), "watch": None, "_views": LoggerViews()}
        return {name: value for name, value in own.items() if name not in ("log", "log_dict")}

    # ── attaching ───────────────────────────────────────────────────────────────────────

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let checkpoints that hold swaps, or lack them, find their architecture."""
        self._loaded = None  # what is loaded for this run comes later
        if stage == "fit":
            if self.watch is not None and (self.watch.attached or self._suspended):
                raise ConfigError(
                    "this DeadWatch is watching another fit, which has not ended: give every "
                    "Trainer that runs meanwhile a DeadWatch of its own"
                )
            self.watch = None
            if self._settings.treats:
                check_strategy(trainer.strategy, self._settings.policy)
        for module in (pl_module, *averaged_copies(trainer)):
            reconcile_on_load(module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Put learned slopes where the optimizer's state, which is loaded next, has them."""
        if self._loaded is not None:
            optimizers = OptimizerState(trainer.optimizers)
            optimizers.rehome(slopes_of(pl_module), self._loaded["watch"]["slopes"])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach; whatever runs from here on inside a training batch counts."""
        treats = self._settings.treats
        advised = owners(trainer.optimizers, pl_module) if self._settings.advice else None
        optimizers = trainer.optimizers if treats else advised
        total = total_batches(trainer)
        settings = vars(self._settings)
        self.watch = Watch(pl_module, optimizer=optimizers, total_steps=total, **settings)
        self.report = self._untreated = self._treated = None
        self._batches = 0
        self._console = ConsoleView()
        self._views = LoggerViews()
        self._resume(self.watch)
        self.watch.attach()
        self.watch.pause()
        reason = why_no_swaps(trainer, pl_module)
        if reason:
            self.watch.forbid_swaps(reason)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Judge what is left of a window of steps, and detach."""
        if self.watch is not None and self._batches:
            self._close(trainer, pl_module, self.watch, ended=True)
        if self.report is not None and trainer.is_global_zero:
            pl_module.print(writable(end_of_run(self.report)))
        self._detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Detach: after an exception nothing else is called."""
        self._detach()
        self._forget(trainer, pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Detach, should nothing else have."""
        self._loaded = None
        self._detach()
        self._forget(trainer, pl_module)

    def _forget(self, trainer: Any, pl_module: Any) -> None:
        for module in (pl_module, *averaged_copies(trainer)):
            forget_loading(module)

    def _detach(self) -> None:
        self._suspended = False
        if self.watch is not None:
            self.watch.detach()

    # ── while training ──────────────────────────────────────────────────────────────────

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Apply what the last window called for, and count from here on."""
        if self.watch is None or trainer.fit_loop._skip_backward:
            return  # a pass that only refreshes batch norms after weight averaging
        self._close_missed(trainer, pl_module, self.watch)
        if self._untreated is not None and not averages(trainer):
            self._treat(trainer, pl_module, self.watch, self._untreated)
        self._untreated = None
        self.watch.resume(reports_steps=True)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop counting, advance scheduled remedies, close a window of steps."""
        if self.watch is None or trainer.fit_loop._skip_backward:
            return
        self.watch.pause()
        replaced = self.watch.replaced
        self.watch.step(loss_of(outputs))
        if self.watch.replaced > replaced:
            follow_swaps(trainer, pl_module)
        self._batches += 1
        # A run may be resumed with a shorter window than it had.
        if self._window != "epoch" and self._batches >= self._window:
            self._close(trainer, pl_module, self.watch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Close a window of an epoch; tell monitors how a longer window stands."""
        if self.watch is not None:
            self.watch.pause()  # a batch that was skipped has a start, but no end
        if self.watch is None or not self._batches:
            return
        if self._window == "epoch":
            self._close(trainer, pl_module, self.watch)
        else:
            self._log_so_far(trainer, self.watch)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the hooks off: some modules of torch evaluate faster without."""
        if self.watch is not None and not trainer.sanity_checking:
            self._suspended = self.watch.attached
            self.watch.suspend()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the hooks back."""
        if self.watch is not None and self._suspended:
            self.watch.attach()
        self._suspended = False

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Give callbacks that act on validation within an epoch the ratio so far."""
        if self.watch is None or trainer.sanity_checking or not self._batches:
            return
        if trainer.val_check_interval != 1.0 or trainer.check_val_every_n_epoch != 1:
            self._log_so_far(trainer, self.watch)

    def _close_missed(self, trainer: Any, pl_module: Any, watch: Watch) -> None:
        """Close the window of an epoch whose end a resumed run never came to.

        Resumed after an epoch's last batch, Lightning goes on with the next epoch.
        """
        if self._window == "epoch" and self._batches and self._epoch != trainer.current_epoch:
            self._close(trainer, pl_module, watch)
        self._epoch = trainer.current_epoch

    def _log_so_far(self, trainer: Any, watch: Watch) -> None:
        ratio = watch.peek().dead_ratio
        if math.isfinite(ratio):
            trainer.callback_metrics[MODEL_TAG] = torch.tensor(ratio)

    def _close(self, trainer: Any, pl_module: Any, watch: Watch, *, ended: bool = False) -> None:
        self._batches = 0
        # Lightning counts a batch only after its end hooks, and logs an epoch at its last batch.
        stepped = trainer.fit_loop.epoch_loop._batches_that_stepped
        self._step = stepped - 1 if ended or self._window == "epoch" else stepped
        verdict = watch.close_window(treat=False)
        self._untreated = verdict if self._settings.treats else None
        self.report = self._with_treatments(verdict)
        self._log(trainer, scalars(verdict))
        if trainer.is_global_zero:
            self._views.window(trainer.loggers, verdict, self._step)
        line = self._console.line(self.report, self._when(trainer))
        if line is not None:
            pl_module.print(writable(line))  # above the progress bar, on rank 0

    def _log(self, trainer: Any, points: Mapping[str, float]) -> None:
        """Hand all curves to the loggers, to the callbacks that monitor, and to the progress bar.

        Not by `pl_module.log`, which takes a third of a millisecond a curve, merges over ranks
        what is merged already, and does nothing within a window of steps but now and then.
        """
        for logger in trainer.loggers:
            logger.log_metrics(dict(points), step=self._step)
        measured = {name: torch.tensor(value) for name, value in points.items()}
        trainer.callback_metrics.update(measured)
        trainer.logged_metrics.update(measured)
        if MODEL_TAG in points:
            trainer.progress_bar_metrics["dead"] = points[MODEL_TAG]

    def _treat(self, trainer: Any, pl_module: Any, watch: Watch, verdict: WindowReport) -> None:
        replaced = watch.replaced
        # What the verdict itself tells has been told when its window ended.
        self._treated = watch.treat(replace(verdict, notes=()))
        if watch.replaced > replaced:
            follow_swaps(trainer, pl_module)
        if trainer.is_global_zero:
            self._views.events(trainer.loggers, self._treated, self._step)
        self._console.treated(self._treated)

    def _with_treatments(self, verdict: WindowReport) -> WindowReport:
        """The verdict on a window, with what was done just before the window."""
        done, self._treated = self._treated, None
        if done is None:
            return verdict
        notes = (*done.notes, *verdict.notes)
        return replace(verdict, treatments=done.treatments, refusals=done.refusals, notes=notes)

    def _when(self, trainer: Any) -> str:
        if self._window == "epoch":
            return f"epoch {self._epoch}"
        return f"step {self._step}"

    # ── checkpoints ─────────────────────────────────────────────────────────────────────

    @property
    def state_key(self) -> str:
        """Under which a checkpoint keeps the state: several may watch parts of one model."""
        # Not the window: a run may be resumed with another.
        settings = self._settings
        key: str = self._generate_state_key(include=settings.include, exclude=settings.exclude)
        return key

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run goes on as if not interrupted."""
        if self._loaded is not None:  # a run that has not begun, say while a rate is looked for
            return dict(self._loaded)
        if self.watch is None:
            return {}
        return {
            "watch": self.watch.state_dict(),
            "reports": {name: to_plain(getattr(self, name)) for name in _REPORTS},
            "counts": {name: getattr(self, name) for name in _COUNTS},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until training begins; evaluation has no use for it."""
        self._loaded = state_dict

    def _resume(self, watch: Watch) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        watch.load_state_dict(loaded["watch"])
        for name in _REPORTS:
            setattr(self, name, from_plain(WindowReport | None, loaded["reports"][name]))
        for name in _COUNTS:
            setattr(self, name, loaded["counts"][name])


_REPORTS = ("report", "_untreated", "_treated")
_COUNTS = ("_batches", "_epoch", "_step")
