"""The callback in real Trainers."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger, Logger
from torch import Tensor, nn

from deadwatch import (
    ConfigError,
    DeadWatch,
    Policy,
    Recycle,
    Rules,
    Swap,
    ThermalKick,
    WindowReport,
    outcomes_table,
)
from deadwatch.show.tensorboard import LAYOUT
from tests.fitting import (
    BATCH,
    SAMPLES,
    Module,
    curve,
    events,
    fit,
    hooks_on,
    lightning_remarks,
    loader,
)

QUICK = Rules(min_samples=1)
BATCHES = SAMPLES // BATCH


@pytest.fixture(autouse=True)
def quiet_lightning() -> None:
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


class Reports(pl.Callback):
    """Keeps every report of a DeadWatch, and the weights at each batch's start."""

    def __init__(self, watch: DeadWatch) -> None:
        self.watch = watch
        self.reports: list[WindowReport] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert self.watch.report is not None
        self.reports.append(self.watch.report)


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_watching_a_full_fit_leaves_losses_and_weights_bit_equal(
    package: str, tmp_path: Path
) -> None:
    fits = {}
    for name, callbacks in {"with": [DeadWatch(stats_every_n_steps=1)], "without": []}.items():
        trainers = import_module(package)
        module = _module_of(trainers)
        _, module = fit(callbacks, tmp_path / name, module, trainers, logger=False)
        fits[name] = module
    assert fits["with"].losses == fits["without"].losses
    for one, two in zip(
        fits["with"].state_dict().values(), fits["without"].state_dict().values(), strict=True
    ):
        assert torch.equal(one, two)
    assert hooks_on(fits["with"]) == 0


def _module_of(package: Any) -> Any:
    if package is pl:
        return Module()
    bases = (Module, package.LightningModule)
    members = {
        name: value for name, value in vars(Module).items() if callable(value) and name[0] != "_"
    }
    made: Any = type("Module", (package.LightningModule,), members)()
    source = Module()
    assert bases
    for name in ("net", "make", "losses"):
        setattr(made, name, getattr(source, name))
    return made


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_one_class_serves_both_packages(package: str, tmp_path: Path) -> None:
    trainers = import_module(package)
    watch = DeadWatch(policy="gentle", rules=QUICK)
    trainer, _ = fit([watch], tmp_path, _module_of(trainers), trainers, logger=False)
    assert watch.report is not None
    assert watch.report["net.1"].samples == SAMPLES
    assert "deadwatch/dead_ratio" in trainer.callback_metrics
    assert isinstance(watch, trainers.Callback)


def test_only_training_batches_count(tmp_path: Path) -> None:
    watch = DeadWatch(rules=QUICK)
    seen = Reports(watch)
    fit([watch, seen], tmp_path)  # with sanity checks and validation
    assert [report["net.1"].samples for report in seen.reports] == [SAMPLES] * 3
    assert [(r.window.first_step, r.window.last_step) for r in seen.reports] == [
        (0, 3),
        (4, 7),
        (8, 11),
    ]
    assert seen.reports[0]["net.1"].dead[:6].all()


def test_event_files_hold_every_curve_at_the_epoch_step(tmp_path: Path) -> None:
    watch = DeadWatch(rules=QUICK)
    seen = Reports(watch)
    fit([watch, seen], tmp_path)
    written = events(tmp_path)
    steps = [BATCHES * (epoch + 1) - 1 for epoch in range(3)]
    expected = {"deadwatch/dead_ratio": [report.dead_ratio for report in seen.reports]}
    for site in ("net.1", "net.3"):
        reports = [report[site] for report in seen.reports]
        expected[f"deadwatch/dead_ratio_of/{site}"] = [r.dead_ratio for r in reports]
        for kind in ("mean", "std", "open_fraction"):
            values = [float(np.mean(getattr(r, kind))) for r in reports]
            expected[f"deadwatch/{kind}/{site}"] = values
    tags = [tag for tag in written.Tags()["scalars"] if tag.startswith("deadwatch")]
    assert sorted(tags) == sorted(expected)
    for tag, values in expected.items():
        points = curve(written, tag)
        assert [step for step, _ in points] == steps, tag
        np.testing.assert_allclose([value for _, value in points], values, rtol=1e-6)
    assert curve(written, "val")[0][0] == steps[0]  # the same axis as Lightning's own


def test_event_files_hold_treatments_and_the_layout_of_the_charts(tmp_path: Path) -> None:
    watch = DeadWatch(policy=Policy(Recycle(), cooldown=9), rules=QUICK)
    fit([watch], tmp_path)
    assert watch.report is not None
    written = events(tmp_path)
    (text,) = written.Tensors("deadwatch/treatments/text_summary")
    assert text.step == BATCHES - 1
    (body,) = text.tensor_proto.string_val
    assert body.decode().startswith("- **Recycle** on 6 units of `net.1` (quiet)")
    tables = [
        text.tensor_proto.string_val[0].decode()
        for text in written.Tensors("deadwatch/outcomes/text_summary")
    ]
    assert tables[-1] == outcomes_table(watch.report.outcomes)
    revived = [
        f"| Recycle |     6 |       {units} |" in table
        for units, table in zip((0, 6), tables, strict=True)
    ]
    assert revived == [True, True]
    (layout,) = written.Tensors("custom_scalars__config__")
    for title in LAYOUT["deadwatch"]:
        assert title.encode() in layout.tensor_proto.string_val[0]


def test_treatments_are_applied_before_the_next_batch_and_never_after_the_last(
    tmp_path: Path,
) -> None:
    class Spy(pl.Callback):
        def __init__(self) -> None:
            self.ends: list[Tensor] = []
            self.starts: list[Tensor] = []

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            self.ends.append(pl_module.net[0].weight.detach().clone())

        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 0 and trainer.current_epoch:
                self.starts.append(pl_module.net[0].weight.detach().clone())

    spy = Spy()
    watch = DeadWatch(policy=Policy(Recycle()), rules=QUICK)
    _, module = fit([watch, spy], tmp_path, max_epochs=2)
    changed = (spy.starts[0] != spy.ends[0]).any(1)
    assert changed.tolist() == [True] * 6 + [False] * 10
    assert torch.equal(spy.ends[-1], module.net[0].weight)
    assert watch.watch is not None
    assert len(watch.watch.ledger) == 1


def test_a_report_tells_what_was_treated_at_its_start(tmp_path: Path) -> None:
    policy = Policy((Recycle(),), cooldown=0)
    module = Module(optimizer=lambda p: torch.optim.SGD(list(p)[:4], lr=0.1))
    with torch.no_grad():
        module.net[2].bias[:3] = -50
    watch = DeadWatch(policy=policy, rules=QUICK)
    seen = Reports(watch)
    fit([watch, seen], tmp_path, module, max_epochs=2)
    first, second = seen.reports
    assert (first.treatments, first.refusals) == ((), ())
    assert [treatment.site for treatment in second.treatments] == ["net.1"]
    assert [refusal.site for refusal in second.refusals] == ["net.3"]


def test_a_treated_run_revives_its_units(tmp_path: Path) -> None:
    watch = DeadWatch(policy="revive", rules=QUICK)
    seen = Reports(watch)
    fit([watch, seen], tmp_path, max_epochs=6)
    ratios = [report["net.1"].dead_ratio for report in seen.reports]
    assert ratios[0] >= 6 / 16
    assert ratios[-1] <= 1 / 16


@pytest.mark.parametrize("first", [True, False])
def test_checkpoint_and_early_stopping_can_monitor_the_ratio(first: bool, tmp_path: Path) -> None:
    watch = DeadWatch(policy=Policy(Recycle(), cooldown=9), rules=QUICK)
    stop = EarlyStopping("deadwatch/dead_ratio", patience=1, mode="min")
    keep = ModelCheckpoint(tmp_path / "best", monitor="deadwatch/dead_ratio", filename="{epoch}")
    callbacks = [watch, stop, keep] if first else [keep, stop, watch]
    trainer, _ = fit(callbacks, tmp_path, max_epochs=8)
    assert trainer.current_epoch < 8
    assert stop.stopped_epoch > 0
    assert keep.best_model_score == pytest.approx(0, abs=1 / 16)
    assert Path(keep.best_model_path).name != "epoch=0.ckpt"


@pytest.mark.parametrize(
    "arguments", [{"val_check_interval": 2}, {"check_val_every_n_epoch": 2}], ids=str
)
def test_checkpoints_at_a_validation_within_the_epoch(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    keep = ModelCheckpoint(tmp_path / "best", monitor="deadwatch/dead_ratio", save_top_k=-1)
    watch = DeadWatch(rules=QUICK)
    seen = Reports(watch)
    fit([watch, seen, keep], tmp_path, max_epochs=2, **arguments)
    assert keep.best_model_score is not None
    assert [report["net.1"].samples for report in seen.reports] == [SAMPLES] * 2


def test_windows_of_steps(tmp_path: Path) -> None:
    watch = DeadWatch(policy=Policy(Recycle(), cooldown=99), rules=QUICK, window=3)
    trainer, _ = fit([watch], tmp_path)  # 12 batches
    written = events(tmp_path)
    assert [step for step, _ in curve(written, "deadwatch/dead_ratio")] == [2, 5, 8, 11]
    assert watch.report is not None
    assert watch.report["net.1"].samples == 3 * BATCH
    assert trainer.callback_metrics["deadwatch/dead_ratio"] == watch.report.dead_ratio
    (text,) = written.Tensors("deadwatch/treatments/text_summary")
    assert text.step == 2


def test_a_window_of_steps_that_training_cuts_short_is_still_judged(tmp_path: Path) -> None:
    watch = DeadWatch(rules=QUICK, window=8)
    fit([watch], tmp_path)  # 12 batches
    assert watch.report is not None
    assert (watch.report.window.index, watch.report["net.1"].samples) == (1, 4 * BATCH)
    assert [step for step, _ in curve(events(tmp_path), "deadwatch/dead_ratio")] == [7, 11]


def test_two_optimizers_by_hand(tmp_path: Path) -> None:
    class Pair(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.critic = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
            with torch.no_grad():
                self.critic[0].bias[:4] = -40

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            made = self.net(batch[0])
            for index, loss in enumerate(
                (self.critic(made).mean(), -self.critic(made.detach()).square().mean())
            ):
                optimizer = self.optimizers()[index]
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.Adam(self.net.parameters(), lr=1e-3),
                torch.optim.SGD(self.critic.parameters(), lr=1e-3, momentum=0.9),
            ]

    watch = DeadWatch(policy=Policy(Recycle(), cooldown=9), rules=QUICK)
    fit([watch], tmp_path, Pair())
    assert watch.report is not None
    assert watch.report["net.1"].samples == SAMPLES
    assert watch.report["critic.1"].samples == 2 * SAMPLES
    assert watch.watch is not None
    entries = {entry.treatment.site: entry for entry in watch.watch.ledger}
    assert entries["net.1"].revived == 6
    assert set(range(4)) <= set(entries["critic.1"].treatment.units.tolist())


@pytest.mark.parametrize("kind", [None, CSVLogger])
def test_other_loggers_and_none(kind: Any, tmp_path: Path) -> None:
    watch = DeadWatch(policy="revive", rules=QUICK)
    fit([watch], tmp_path, logger=kind is not None and kind(tmp_path))
    assert watch.report is not None
    assert watch.report["net.1"].samples == SAMPLES
    if kind is not None:
        (metrics,) = tmp_path.rglob("metrics.csv")
        assert "deadwatch/dead_ratio_of/net.3" in metrics.read_text().splitlines()[0]


def test_a_swap_survives_a_best_checkpoint_of_the_same_run(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "last", save_last=True)
    watch = DeadWatch(policy=Policy(Swap(), cooldown=9), rules=QUICK)
    _, module = fit([watch, keep], tmp_path)
    saved = torch.load(keep.last_model_path, weights_only=True)["state_dict"]
    assert saved["net.1.deadwatch_mask"].nonzero().flatten().tolist() == [*range(6)]
    module.load_state_dict(saved)


class Averaged(Module):
    """With a batch norm, so that weight averaging makes its extra pass."""

    def __init__(self) -> None:
        super().__init__(dead=0)
        self.net = nn.Sequential(
            *(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU()), nn.Linear(16, 3)
        )

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == 3:
            with torch.no_grad():
                self.net[1].bias[:4] = -40


def test_nothing_is_treated_once_weights_are_averaged(tmp_path: Path) -> None:
    watch = DeadWatch(policy=Policy(Recycle(), cooldown=0), rules=QUICK)
    seen = Reports(watch)
    average = StochasticWeightAveraging(1e-2, swa_epoch_start=2)
    _, module = fit([watch, seen, average], tmp_path, Averaged(), max_epochs=5)
    assert watch.watch is not None
    assert len(watch.watch.ledger) == 0
    assert [report["net.2"].samples for report in seen.reports[:5]] == [SAMPLES] * 5
    assert seen.reports[4]["net.2"].dead[:4].all()  # seen, and left alone
    assert seen.reports[-1].window.index == 4  # the extra pass is no window
    assert hooks_on(module) == 0


def test_a_logger_without_an_experiment(tmp_path: Path) -> None:
    class Plain(Logger):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()

        @property
        def name(self) -> str:
            return "plain"

        @property
        def version(self) -> int:
            return 0

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.seen |= set(metrics)

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            return None

    logger = Plain()
    fit([DeadWatch(policy="revive", rules=QUICK)], tmp_path, logger=logger)
    assert "deadwatch/dead_ratio_of/net.1" in logger.seen


def test_a_window_longer_than_an_epoch_can_be_monitored(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "best", monitor="deadwatch/dead_ratio")
    watch = DeadWatch(rules=QUICK, window=100)
    fit([watch, keep], tmp_path)
    assert keep.best_model_score is not None
    assert keep.best_model_score > 0


def test_a_ratio_without_evidence_is_not_logged(tmp_path: Path) -> None:
    module = Module(dead=16)
    with torch.no_grad():
        module.net[2].bias.fill_(-50)
    seen: list[bool] = []

    class Spy(pl.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append("deadwatch/dead_ratio" in trainer.callback_metrics)

    fit([DeadWatch(), Spy()], tmp_path, module, max_epochs=6, check_val_every_n_epoch=2)
    assert seen == [False, False, False, True]  # 64 samples an epoch; 300 are asked for


def test_one_line_a_window_when_something_died_or_was_treated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deadwatch.show.tables.find_spec", lambda name: None)  # no rich
    watch = DeadWatch(policy=Policy(Recycle(), cooldown=9), rules=QUICK, include="net.1")
    fit([watch], tmp_path, max_epochs=5)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("deadwatch epoch")]
    assert printed.splitlines()[-3:] == [
        "| remedy  | units | revived | relapsed | still dead | open | undone | written |",
        "| ------- | ----: | ------: | -------: | ---------: | ---: | -----: | ------: |",
        "| Recycle |     6 |       6 |        0 |          0 |    0 |      0 |     174 |",
    ]
    assert lines == [
        "deadwatch epoch 0: 37.5% dead (6/16 units, +6), most in net.1 (6/16)",
        "deadwatch epoch 1: 0.0% dead (0/16 units, -6); "
        "treated before it: 6 units (Recycle on net.1)",
    ]


def test_a_refusal_is_said_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = Module(optimizer=lambda p: torch.optim.SGD(list(p)[2:], lr=0.1))
    watch = DeadWatch(policy=Policy(Recycle(), cooldown=9), rules=QUICK, include="net.1")
    fit([watch], tmp_path, module, max_epochs=2)
    assert "Recycle refused on net.1: no optimizer given to deadwatch updates net.0.weight" in (
        capsys.readouterr().out
    )


def test_the_callback_can_be_copied_and_pickled() -> None:
    watch = DeadWatch(policy="revive", window=7)
    for again in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        assert again._settings == watch._settings


def test_validating_is_no_business_of_ours(tmp_path: Path) -> None:
    watch = DeadWatch()
    trainer, module = fit([watch], tmp_path, max_epochs=1)
    report = watch.report
    with lightning_remarks():
        trainer.validate(module, loader(), verbose=False)
    assert watch.report is report
    assert hooks_on(module) == 0


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: DeadWatch("heroic"), "policy is 'heroic'; expected one of 'watch'"),
    (lambda: DeadWatch(window=0), "window is 0; expected 'epoch' or a number of training batches"),
    (lambda: DeadWatch(window="step"), "window is 'step'"),
    (lambda: DeadWatch(stats_every_n_steps=0), "stats_every_n_steps is 0"),
]


@pytest.mark.parametrize(("build", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments_raise_at_construction(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_pattern_that_matches_nothing_stops_before_training(tmp_path: Path) -> None:
    module = Module()
    with pytest.raises(ConfigError, match=r"include pattern 'head.*' matches no activation"):
        fit([DeadWatch(include="head.*")], tmp_path, module)
    assert module.losses == []


def test_two_callbacks_watch_two_parts_of_one_model(tmp_path: Path) -> None:
    both = [DeadWatch(rules=QUICK, include=site) for site in ("net.1", "net.3")]
    fit(both, tmp_path)
    assert [list(watch.report or ()) for watch in both] == [["net.1"], ["net.3"]]
    assert both[0].state_key != both[1].state_key


def test_a_loss_that_leaves_its_band_undoes_a_treatment(tmp_path: Path) -> None:
    class Ruined(Module):
        """Its loss rises for good some steps after the first epochs."""

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss + (50.0 if self.global_step > 12 else 0.0)

    policy = Policy(ThermalKick(quiet=False), warmup=12, cooldown=20, when=0.0)
    watch = DeadWatch(policy=policy, rules=QUICK, include="net.1")
    module = Ruined()
    before = module.net[0].bias.detach()[:6].clone()
    fit([watch], tmp_path, module, max_epochs=6)
    assert watch.watch is not None
    assert [entry.undone for entry in watch.watch.ledger] == [True]
    assert torch.equal(module.net[0].bias.detach()[:6], before)
    (text, *_) = events(tmp_path).Tensors("deadwatch/treatments/text_summary")[1:]
    assert b"ThermalKick on net.1 was undone" in text.tensor_proto.string_val[0]


def test_what_a_window_tells_is_told_once(tmp_path: Path) -> None:
    class Spy(pl.Callback):
        def __init__(self) -> None:
            self.notes: list[tuple[str, ...]] = []

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert watch.report is not None
            self.notes.append(watch.report.notes)

    watch, spy = DeadWatch(policy="revive", include="net.1"), Spy()
    fit([watch, spy], tmp_path)
    told = [f"on {elements} elements so far" for elements in (64, 128, 192)]
    assert [len(notes) for notes in spy.notes] == [1, 1, 1]
    assert all(text in notes[0] for text, notes in zip(told, spy.notes, strict=True))
    written = events(tmp_path).Tensors("deadwatch/treatments/text_summary")
    assert len(written) == 3
