"""Every feature of a Trainer: what is watched, counted and treated under it, and what stays."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import pickle
import signal
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from pytorch_lightning.strategies import FSDPStrategy, SingleDeviceStrategy
from pytorch_lightning.tuner.tuning import Tuner
from torch import Tensor, nn

from deadwatch import ConfigError, DeadWatch, Policy, Recycle, Rules, WindowReport
from deadwatch.show.tensorboard import MODEL_TAG
from deadwatch.trainers import total_batches
from tests.fitting import SAMPLES, Module, fit, hooks_on, lightning_remarks, loader
from tests.trainers import FEATURES, Counted, Feature, Sized, stream

QUICK = Rules(min_samples=1)

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:You passed `Trainer.accelerator='cpu', precision='16-mixed'"
    ),
    pytest.mark.filterwarnings("ignore:LBFGS keeps a state that deadwatch does not know"),
]


@pytest.fixture(autouse=True)
def quiet_lightning() -> None:
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def interrupts_stay_possible() -> Iterator[None]:
    """Lightning ignores further interrupts after the first, for good."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


class Spy(pl.Callback):
    """Keeps each window's report, and between which batches weights were changed.

    Stands behind the `DeadWatch` among the callbacks.
    """

    def __init__(self, watcher: DeadWatch) -> None:
        self.watcher = watcher
        self.reports: list[WindowReport] = []
        self.batches = 0
        self.ends: list[int] = []  # batches done when a window ended
        self.changed: list[int] = []  # batches done when weights were changed before the next
        self._weights: list[Tensor] = []

    def _look(self) -> None:
        report = self.watcher.report
        if report is not None and not any(report is seen for seen in self.reports):
            self.reports.append(report)
            self.ends.append(self.batches)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._look()
        before = self._weights
        unchanged = all(map(torch.equal, before, pl_module.parameters()))
        if not unchanged and not trainer.fit_loop._skip_backward:
            self.changed.append(self.batches)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.batches += not trainer.fit_loop._skip_backward
        self._look()
        self._weights = [parameter.detach().clone() for parameter in pl_module.parameters()]

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._look()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._look()


def run(
    feature: Feature, folder: Path, callback: DeadWatch | None = None
) -> tuple[Any, Any, Spy | None]:
    """Fit under a feature; returns the trainer, the module and what was seen of the callback."""
    spy = None if callback is None else Spy(callback)
    callbacks = [callback, spy] if callback is not None else []
    others = feature.callbacks()
    arguments = {"default_root_dir": folder, **feature.arguments}
    module = feature.module()
    fitted = fit([*callbacks, *others], folder, module, data=feature.data, **arguments)
    return *fitted, spy


def left_behind(module: nn.Module) -> int:
    """Hooks, load hooks and function modes that are still there."""
    load = sum(len(part._load_state_dict_pre_hooks) for part in module.modules())
    return hooks_on(module) + load + torch._C._len_torch_function_stack()


@pytest.mark.parametrize("name", FEATURES)
def test_watching_changes_no_bit_and_counts_every_training_sample(
    name: str, tmp_path: Path
) -> None:
    feature = FEATURES[name]
    _, bare, _ = run(feature, tmp_path / "bare")
    watcher = DeadWatch(rules=QUICK, window=feature.window, stats_every_n_steps=1)
    trainer, module, spy = run(feature, tmp_path / "watched", watcher)
    assert module.losses == bare.losses
    states = module.state_dict(), bare.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(map(torch.equal, *(state.values() for state in states)))
    assert spy is not None
    assert sum(report["net.1"].samples for report in spy.reports) == module.seen
    assert [report.window.index for report in spy.reports] == [*range(len(spy.reports))]
    assert (spy.batches, left_behind(module)) == (feature.batches, 0)
    if watcher.watch is None:
        assert feature.batches == 0
        return
    assert watcher.watch.steps == feature.batches
    assert not watcher.watch.attached
    assert float(trainer.callback_metrics[MODEL_TAG]) == pytest.approx(spy.reports[-1].dead_ratio)
    again = DeadWatch(rules=QUICK, window=feature.window)
    again.load_state_dict(watcher.state_dict())
    assert again.state_key == watcher.state_key


@pytest.mark.parametrize("name", [name for name, feature in FEATURES.items() if feature.treats])
def test_units_are_treated_between_two_windows_and_never_else(name: str, tmp_path: Path) -> None:
    feature = FEATURES[name]
    watcher = DeadWatch(Policy(Recycle(), cooldown=99), rules=QUICK, window=feature.window)
    _, module, spy = run(feature, tmp_path, watcher)
    assert spy is not None
    assert spy.changed == spy.ends[:1]
    assert watcher.watch is not None
    (entry,) = watcher.watch.ledger
    assert (entry.treatment.site, entry.revived) == ("net.1", 6)
    assert spy.reports[0]["net.1"].dead.sum() == 6
    assert spy.reports[-1]["net.1"].dead.sum() == 0
    assert left_behind(module) == 0


# ── how long a fit is ───────────────────────────────────────────────────────────────────


class Length(pl.Callback):
    """What a policy is told of the length of the run."""

    total: int | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.total = total_batches(trainer)


UNKNOWN = ("no time", "epochs cut short", "a dataset without a length")


@pytest.mark.parametrize("name", [name for name in FEATURES if name not in UNKNOWN])
def test_a_policy_knows_how_many_batches_a_fit_has(name: str, tmp_path: Path) -> None:
    feature, length = FEATURES[name], Length()
    extra = 4 if name == "stochastic weight averaging with batch norm" else 0  # Lightning's own
    with_length = Feature(**{**vars(feature), "callbacks": lambda: [length, *feature.callbacks()]})
    run(with_length, tmp_path)
    assert length.total == (feature.batches + extra or None)


def test_a_share_of_a_run_without_an_end_is_refused_before_it_begins(tmp_path: Path) -> None:
    watcher = DeadWatch(Policy(Recycle(), until=0.9), rules=QUICK, window=3)
    feature = Feature({"limit_val_batches": 0}, data=stream(None))
    module = Counted()
    with pytest.raises(ConfigError, match=r"its length is not known: .* \(max_steps=... to a Tr"):
        fit([watcher], tmp_path, module, data=feature.data, **feature.arguments)
    assert (module.losses, left_behind(module)) == ([], 0)


# ── windows of steps ────────────────────────────────────────────────────────────────────


def test_a_checkpoint_at_a_window_end_holds_its_verdict_and_what_it_calls_for(
    tmp_path: Path,
) -> None:
    endless = {"max_steps": 8, "max_epochs": -1, "limit_val_batches": 0, "data": stream(None)}
    watcher = DeadWatch(Policy(Recycle(), cooldown=99), rules=QUICK, window=3)
    spy = Spy(watcher)
    saver = ModelCheckpoint(
        tmp_path / "kept", monitor=MODEL_TAG, every_n_train_steps=3, save_top_k=-1
    )
    fit([watcher, spy, saver], tmp_path, Counted(), **endless)
    scores = sorted((float(score) for score in saver.best_k_models.values()), reverse=True)
    assert scores == pytest.approx([report.dead_ratio for report in spy.reports[:2]])
    first, _ = sorted((tmp_path / "kept").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    again = DeadWatch(Policy(Recycle(), cooldown=99), rules=QUICK, window=3)
    resumed = Counted()
    seen = Spy(again)
    fit([again, seen], tmp_path / "resumed", resumed, ckpt_path=first, **endless)
    assert (seen.reports[0]["net.1"].dead.sum(), seen.ends) == (6, [0, 3, 5])
    assert again.watch is not None
    assert [entry.treatment.step for entry in again.watch.ledger] == [3]
    assert again.watch.steps == 8


# ── what breaks off ─────────────────────────────────────────────────────────────────────


class Breaking(Counted):
    """Raises an error at a given place, the n-th time it comes there."""

    def __init__(self, place: str, error: type[BaseException], turn: int = 2) -> None:
        super().__init__()
        self.place, self.error, self.turns = place, error, turn
        self.trap = self.net[1].register_forward_hook(self.spring)

    def come(self, place: str) -> None:
        if place == self.place:
            self.turns -= 1
            if self.turns == 0:
                raise self.error("on purpose")

    def spring(self, *_: Any) -> None:
        if self.training:
            self.come("forward")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.come("training step")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.come("sanity check" if self.trainer.sanity_checking else "validation step")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.come("start of a batch")

    def on_train_batch_end(self, *_: Any) -> None:
        self.come("end of a batch")

    def on_train_epoch_end(self) -> None:
        self.come("end of an epoch")

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        self.come("optimizer step")

    def on_before_zero_grad(self, *_: Any) -> None:
        self.come("gradients")


@contextlib.contextmanager
def broken_off(error: type[BaseException]) -> Iterator[None]:
    """Of an interrupt Lightning makes an exit, or, in some versions, an ordinary return."""
    if error is KeyboardInterrupt:
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            yield
    else:
        with pytest.raises(error, match="on purpose"):
            yield


PLACES = ("training step", "forward", "validation step", "sanity check", "start of a batch")
PLACES += ("end of a batch", "end of an epoch", "optimizer step", "gradients")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("place", PLACES)
def test_a_fit_that_breaks_off_leaves_nothing_and_the_callback_serves_the_next(
    place: str, error: type[BaseException], tmp_path: Path
) -> None:
    watcher = DeadWatch("revive", rules=QUICK, window=1 if place == "end of an epoch" else "epoch")
    module = Breaking(place, error)
    with broken_off(error):
        fit([watcher], tmp_path / "broken", module)
    assert module.turns <= 0
    module.place = ""
    module.train()  # where an evaluation breaks off, Lightning leaves it evaluating
    module.trap.remove()
    assert left_behind(module) == 0
    whole = Counted()
    again = DeadWatch(rules=QUICK)
    for callback, run_of in ((watcher, module), (again, whole)):
        fit([callback], tmp_path / "next", run_of)
        assert callback.watch is not None
        assert callback.watch.steps == 12
        assert left_behind(run_of) == 0


def test_a_checkpoint_of_an_exception_can_be_resumed(tmp_path: Path) -> None:
    watcher = DeadWatch(Policy(Recycle(), cooldown=99), rules=QUICK)
    module = Breaking("end of a batch", RuntimeError, turn=6)
    module.trap.remove()
    keep = OnExceptionCheckpoint(tmp_path)
    with pytest.raises(RuntimeError, match="on purpose"):
        fit([watcher, keep], tmp_path, module)
    again = DeadWatch(Policy(Recycle(), cooldown=99), rules=QUICK)
    spy, resumed = Spy(again), Counted()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
        fit([again, spy], tmp_path / "resumed", resumed, ckpt_path=Path(keep.ckpt_path))
    assert again.watch is not None
    assert [entry.treatment.step for entry in again.watch.ledger] == [4]
    assert again.watch.steps == 12
    assert [report["net.1"].samples for report in spy.reports[1:]] == [SAMPLES] * 2


# ── one callback, several fits ──────────────────────────────────────────────────────────


def trainer_of(callbacks: list[Any], folder: Path, **arguments: Any) -> Any:
    silent = dict.fromkeys(
        ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False
    )
    return pl.Trainer(
        callbacks=callbacks,
        accelerator="cpu",
        default_root_dir=folder,
        log_every_n_steps=1,
        **{"max_epochs": 2, **silent, **arguments},
    )


def test_one_trainer_fits_twice(tmp_path: Path) -> None:
    watcher = DeadWatch(rules=QUICK)
    spy, module = Spy(watcher), Counted()
    trainer = trainer_of([watcher, spy], tmp_path)
    with lightning_remarks():
        trainer.fit(module, loader())
        trainer.fit_loop.max_epochs = 5
        trainer.fit(module, loader())
    assert [report.window.index for report in spy.reports] == [0, 1, 0, 1, 2]
    assert [report["net.1"].samples for report in spy.reports] == [SAMPLES] * 5
    assert left_behind(module) == 0


def test_several_trainers_take_turns_with_one_callback(tmp_path: Path) -> None:
    watcher = DeadWatch(Policy(Recycle(), cooldown=99), rules=QUICK)
    trainers = [trainer_of([watcher], tmp_path) for _ in range(3)]
    ledgers = []
    for trainer in trainers:
        module = Counted()
        with lightning_remarks():
            trainer.fit(module, loader())
        assert watcher.watch is not None
        assert watcher.report is not None
        assert (watcher.watch.steps, watcher.report["net.1"].samples) == (8, SAMPLES)
        assert left_behind(module) == 0
        ledgers.append(watcher.watch.ledger)
    assert [len(ledger) for ledger in ledgers] == [1, 1, 1]


def test_a_fit_within_a_fit_needs_a_callback_of_its_own(tmp_path: Path) -> None:
    inner = Counted()

    class Nesting(Counted):
        def on_train_batch_end(self, *_: Any) -> None:
            trainer_of([watcher], tmp_path).fit(inner, loader())

    watcher, module = DeadWatch(rules=QUICK), Nesting()
    with pytest.raises(ConfigError, match=r"watching another fit, which has not ended: give ever"):
        fit([watcher], tmp_path, module)
    assert (left_behind(module), left_behind(inner)) == (0, 0)


def test_a_finder_run_by_a_tuner_does_not_count(tmp_path: Path) -> None:
    watcher, module = DeadWatch(rules=QUICK), Sized()
    trainer = trainer_of([watcher], tmp_path, limit_val_batches=0)
    tuner = Tuner(trainer)
    with lightning_remarks():
        tuner.scale_batch_size(module, max_trials=2, init_val=8)
        tuner.lr_find(module, num_training=5, early_stop_threshold=None, update_attr=False)
        assert left_behind(module) == 0
        trainer.fit(module)
    assert watcher.watch is not None
    assert watcher.report is not None
    assert (watcher.watch.steps, watcher.report["net.1"].samples) == (8, SAMPLES)


def test_a_callback_that_has_fitted_can_be_copied_and_pickled(tmp_path: Path) -> None:
    watcher = DeadWatch(rules=QUICK)
    fit([watcher], tmp_path, max_epochs=1, logger=False)
    for again in (copy.deepcopy(watcher), pickle.loads(pickle.dumps(watcher))):
        module = Counted()
        fit([again], tmp_path, module, max_epochs=1)
        assert again.report is not None
        assert again.report["net.1"].samples == module.seen == SAMPLES


def test_nothing_holds_a_model_once_its_fit_is_forgotten(tmp_path: Path) -> None:
    def fitted() -> Any:
        watcher = DeadWatch("revive", rules=QUICK)
        _, module = fit([watcher], tmp_path, Counted())
        return weakref.ref(module), weakref.ref(watcher.watch)

    references = fitted()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


# ── strategies ──────────────────────────────────────────────────────────────────────────


class Sharded(FSDPStrategy):
    """Lightning refuses its own FSDP on a CPU; a class of one's own it takes."""


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Known by its name: DeepSpeed itself is not installed."""


@pytest.fixture
def _own_processes() -> Iterator[None]:
    """Strategies leave the group of processes that they have made."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_own_processes")
@pytest.mark.parametrize("strategy", [Sharded, lambda: DeepSpeedStrategy("cpu")], ids=["F", "D"])
def test_strategies_whose_parameters_cannot_be_treated_are_refused_before_training(
    strategy: Callable[[], Any], tmp_path: Path
) -> None:
    module = Counted()
    trainer = trainer_of([DeadWatch("revive", rules=QUICK)], tmp_path, strategy=strategy())
    name = r"policy 'revive' treats units, and (FSDP|DeepSpeed)Strategy .* strategy='ddp' or with "
    with pytest.raises(ConfigError, match=name), lightning_remarks():
        trainer.fit(module, loader())
    assert (module.losses, left_behind(module)) == ([], 0)


def test_watching_goes_on_under_a_strategy_that_cannot_be_treated(tmp_path: Path) -> None:
    watcher, module = DeadWatch("watch", rules=QUICK), Counted()
    trainer = trainer_of([watcher], tmp_path, strategy=DeepSpeedStrategy("cpu"))
    with lightning_remarks():
        trainer.fit(module, loader())
    assert watcher.report is not None
    assert watcher.report["net.1"].samples == SAMPLES


# ── many sites ──────────────────────────────────────────────────────────────────────────


def test_many_sites_are_logged_without_a_call_of_lightnings_log_for_each(tmp_path: Path) -> None:
    class Deep(Module):
        logged = 0

        def __init__(self) -> None:
            super().__init__()
            layers = [layer for _ in range(50) for layer in (nn.Linear(12, 12), nn.ReLU())]
            self.net = nn.Sequential(*layers)

        def log(self, *_: Any, **__: Any) -> None:
            self.logged += 1

        def validation_step(self, *_: Any) -> None:
            return None

    watcher, module = DeadWatch(rules=QUICK), Deep()
    trainer, _ = fit([watcher], tmp_path, module, max_epochs=1)
    curves = [name for name in trainer.callback_metrics if name.startswith(f"{MODEL_TAG}_of/net.")]
    assert (module.logged, len(curves)) == (0, 50)
    assert trainer.logged_metrics.keys() >= set(curves)
    assert trainer.progress_bar_metrics["dead"] == trainer.callback_metrics[MODEL_TAG]
