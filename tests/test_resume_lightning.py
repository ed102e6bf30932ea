"""A fit that is interrupted at any step and resumed by a fresh Trainer ends as one that was not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateFinder, ModelCheckpoint
from torch import Tensor, nn

from deadwatch import (
    BiasWarming,
    DeadWatch,
    Policy,
    Recycle,
    Remedy,
    Rules,
    Swap,
    ThermalKick,
    WindowReport,
)
from deadwatch.show.tensorboard import MODEL_TAG
from tests.fitting import Module, curve, events, fit, hooks_on, lightning_remarks, loader
from tests.resuming import differences

EPOCHS, BATCHES = 3, 4


class Resumable(Module):
    """Its data depend on the number of the step alone, not on where a loader stands."""

    lr = 1e-3  # what a finder asks for

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.trainer.global_step)
        x = torch.randn(16, 12, generator=generator)
        loss = nn.functional.cross_entropy(self.net(x), x[:, :3].argmax(1))
        self.losses.append(float(loss.detach()))
        return loss

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.net(batch[0])


class Reports(pl.Callback):
    """Keeps the callback's report as it stands at the start of each batch."""

    def __init__(self, watcher: DeadWatch) -> None:
        self.watcher = watcher
        self.seen: dict[int, WindowReport | None] = {}

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.seen[trainer.global_step] = self.watcher.report


@dataclass
class Fit:
    """A fit, and what it left."""

    callback: Callable[[], DeadWatch]
    folder: Path
    arguments: dict[str, Any] = field(default_factory=dict)

    def run(self, resume: Path | None = None, save: bool = False) -> dict[str, Any]:
        """Fit, perhaps from a checkpoint; returns all that an interruption must not change."""
        torch.manual_seed(7 if resume is None else 12345)
        watcher = self.callback()
        reports = Reports(watcher)
        callbacks: list[Any] = [watcher, reports]
        if save:
            name = "{step}-{epoch}"
            every = {"every_n_train_steps": 1, "save_top_k": -1, "filename": name}
            callbacks.append(ModelCheckpoint(self.folder / "steps", **every))
        trainer, module = fit_anew(callbacks, self.folder, resume, self.arguments)
        assert watcher.watch is not None
        return {
            "model": dict(module.state_dict()),
            "optimizer": trainer.optimizers[0].state_dict(),
            "reports": reports.seen,
            "report": watcher.report,
            "ledger": list(watcher.watch.ledger),
            "steps": watcher.watch.steps,
            "losses": module.losses,
            "logged": float(trainer.callback_metrics.get("deadwatch/dead_ratio", -1)),
        }

    def checkpoints(self) -> dict[int, Path]:
        """The checkpoint after each step."""
        found = (self.folder / "steps").glob("*.ckpt")
        return dict(sorted((int(p.stem.split("=")[1].split("-")[0]), p) for p in found))


def fit_anew(callbacks: list[Any], folder: Path, resume: Path | None, arguments: Any) -> Any:
    with warnings.catch_warnings():
        # The loader need not be resumable: it is not from there that the data come.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
        return fit(callbacks, folder, Resumable(), ckpt_path=resume, **arguments)


def resumed_differently(fitted: Fit) -> dict[int, list[str]]:
    """Resume a fit from the checkpoint after each of its steps; where the ends differ."""
    whole = fitted.run()
    found = {0: differences(whole, fitted.run(save=True))}
    checkpoints = fitted.checkpoints()
    assert list(checkpoints) == list(range(1, EPOCHS * BATCHES + 1))
    for step, path in list(checkpoints.items())[:-1]:
        resumed = fitted.run(path)
        rest = whole | {
            "losses": whole["losses"][step:],
            "reports": {at: seen for at, seen in whole["reports"].items() if at >= step},
        }
        found[step] = differences(rest, resumed)
    return {step: where[:3] for step, where in found.items() if where}


def watcher(policy: Policy | None = None, **arguments: Any) -> Callable[[], DeadWatch]:
    return lambda: DeadWatch(policy, rules=Rules(min_samples=1), stats_every_n_steps=3, **arguments)


@pytest.mark.parametrize("window", ["epoch", 3, 5])
def test_what_is_measured_does_not_depend_on_interruptions(window: Any, tmp_path: Path) -> None:
    assert resumed_differently(Fit(watcher(window=window), tmp_path)) == {}


ARGUMENTS = {
    "validation twice an epoch": {"val_check_interval": 0.5},
    "validation every second epoch": {"check_val_every_n_epoch": 2},
    "no validation": {"limit_val_batches": 0},
    "steps as the limit": {"max_epochs": -1, "max_steps": EPOCHS * BATCHES},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_measured_does_not_depend_on_how_the_trainer_is_set(
    name: str, tmp_path: Path
) -> None:
    assert resumed_differently(Fit(watcher(), tmp_path, ARGUMENTS[name])) == {}


def test_a_fit_resumed_after_its_last_batch_judges_the_last_window(tmp_path: Path) -> None:
    fitted = Fit(watcher(), tmp_path)
    whole = fitted.run(save=True)
    resumed = fitted.run(fitted.checkpoints()[EPOCHS * BATCHES])
    assert whole["report"].window.index == EPOCHS - 1
    assert differences(whole["report"], resumed["report"]) == []


def test_what_is_logged_at_a_missed_epoch_end_is_logged_at_its_step(tmp_path: Path) -> None:
    whole = Fit(watcher(), tmp_path / "whole")
    whole.run(save=True)
    resumed = Fit(watcher(), tmp_path / "resumed")
    resumed.run(whole.checkpoints()[BATCHES])
    before, after = (curve(events(fit.folder), MODEL_TAG) for fit in (whole, resumed))
    assert [step for step, _ in before] == [3, 7, 11]
    assert after == before


def test_a_checkpoint_is_told_by_monitors_at_a_missed_epoch_end(tmp_path: Path) -> None:
    fitted = Fit(watcher(), tmp_path)
    fitted.run(save=True)
    seen: list[float] = []

    class Metric(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append(float(trainer.callback_metrics[MODEL_TAG]))

    callbacks = [watcher()(), Metric()]
    fit_anew(callbacks, tmp_path, fitted.checkpoints()[BATCHES], {"max_epochs": 2})
    assert seen == [6 / 32] * BATCHES


# ── treatments ──────────────────────────────────────────────────────────────────────────

REMEDIES: dict[str, Remedy | list[Remedy]] = {
    "warming": BiasWarming(hold=1, anneal=3),
    "closed loop": BiasWarming(hold=1, anneal=4, schedule="closed-loop"),
    "leaky for a while": Swap("leaky_relu", anneal=5),
    "learned slopes": Swap("prelu"),
    "ladder": [BiasWarming(gamma=0.1, hold=0, anneal=2, quiet=False), Recycle(), ThermalKick()],
}


@pytest.mark.filterwarnings("ignore::deadwatch.errors.UnfinishedCourseWarning")
@pytest.mark.parametrize("window", ["epoch", 3])
@pytest.mark.parametrize("name", REMEDIES)
def test_treatments_do_not_depend_on_interruptions(name: str, window: Any, tmp_path: Path) -> None:
    policy = Policy(REMEDIES[name], when=0.01, cooldown=0, control=0.2)
    fitted = Fit(watcher(policy, window=window), tmp_path)
    assert resumed_differently(fitted) == {}
    assert any(report and report.treatments for report in fitted.run()["reports"].values())


# ── when nothing is to be resumed ───────────────────────────────────────────────────────


def first_checkpoint(tmp_path: Path) -> Path:
    fitted = Fit(watcher(), tmp_path)
    fitted.run(save=True)
    return fitted.checkpoints()[2]


def test_a_second_fit_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    path = first_checkpoint(tmp_path)
    again = watcher()()
    fit_anew([again], tmp_path, path, {})
    fit_anew([again], tmp_path, None, {"max_epochs": 1})
    assert again.watch is not None
    assert again.report is not None
    assert (again.watch.steps, again.report.window.index) == (BATCHES, 0)


@pytest.mark.parametrize("act", ["validate", "test"])
def test_evaluating_a_checkpoint_disturbs_nothing(act: str, tmp_path: Path) -> None:
    path = first_checkpoint(tmp_path)
    watching = watcher()()
    trainer, module = fit_anew([watching], tmp_path, None, {"max_epochs": 1})
    before = watching.watch, watching.report
    with lightning_remarks():
        getattr(trainer, act)(module, loader(), ckpt_path=path)
    assert (watching.watch, watching.report) == before
    assert not hooks_on(module)
    fit_anew([watching], tmp_path, None, {"max_epochs": 1})
    assert watching.watch is not None
    assert watching.watch.steps == BATCHES


def test_a_checkpoint_of_weights_alone_starts_anew(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "weights", save_weights_only=True, save_last=True)
    fit_anew([watcher()(), saver], tmp_path, None, {"max_epochs": 1})
    module = Resumable()
    state = torch.load(tmp_path / "weights" / "last.ckpt", weights_only=True)
    assert "callbacks" not in state
    module.load_state_dict(state["state_dict"])


def test_looking_for_a_learning_rate_does_not_lose_what_is_resumed(tmp_path: Path) -> None:
    path = first_checkpoint(tmp_path)
    watching = watcher()()
    finder = LearningRateFinder(num_training_steps=3, early_stop_threshold=None)
    fit_anew([watching, finder], tmp_path, path, {"max_epochs": 1})
    assert watching.report is not None
    window = watching.report.window
    # Where the loader goes on after a finder is Lightning's affair.
    assert (window.index, window.first_step) == (0, 0)
    assert window.last_step >= BATCHES - 1
    assert watching.report["net.1"].samples == (window.last_step + 1) * 16


@pytest.mark.parametrize(("window", "ends"), [(1, 2), (3, 2), ("epoch", 3)])
def test_a_fit_may_be_resumed_with_another_window(window: Any, ends: int, tmp_path: Path) -> None:
    path = first_checkpoint(tmp_path)
    other = watcher(window=window)()
    reports = Reports(other)
    fit_anew([other, reports], tmp_path, path, {"max_epochs": 2})
    first = next(seen for seen in reports.seen.values() if seen is not None)
    assert (first.window.first_step, first.window.last_step) == (0, ends)
