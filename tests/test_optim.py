"""Optimizer state of treated rows follows their past; that of live rows is bit-equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deadwatch import Recycle
from deadwatch.records import Change
from deadwatch.treat.moments import FIRST_MOMENTS, LATELY, SECOND_MOMENTS
from deadwatch.treat.optim import OptimizerState, Restart, Rule
from tests.clinic import DEAD, Patient

Build = Callable[[Any], Optimizer]

KNOWN: dict[str, Build] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "adam-foreach-amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=True, amsgrad=True),
    "adam-maximize": lambda p: torch.optim.Adam(p, lr=1e-2, maximize=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adamw-fused-amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adagrad-initial": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2),
    "rmsprop-centered": lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True, momentum=0.9),
    "rmsprop-foreach": lambda p: torch.optim.RMSprop(p, lr=1e-2, foreach=True, momentum=0.9),
}
every_known = pytest.mark.parametrize("build", KNOWN.values(), ids=KNOWN)
ROWS = 16
LIVE = [unit for unit in range(ROWS) if unit not in DEAD]


class Gradients:
    """One parameter under an optimizer, fed with gradients that are alike in all its rows."""

    def __init__(self, build: Build, dtype: torch.dtype = torch.float32) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.parameter = nn.Parameter(torch.zeros(ROWS, 8, dtype=dtype))
        self.optimizer = build([self.parameter])

    def train(self, steps: int, dead: float = 1.0, live: float = 1.0) -> Tensor:
        """Every step's update; the gradients of dead and live rows are scaled."""
        scale = torch.full((ROWS, 1), live)
        scale[DEAD] = dead
        updates = []
        for _ in range(steps):
            noise = torch.randn(ROWS, 8, generator=self.random)
            self.parameter.grad = (scale * (noise + 0.5)).to(self.parameter)
            before = self.parameter.detach().clone()
            self.optimizer.step()
            updates.append((self.parameter.detach() - before).double())
        return torch.stack(updates)

    def treat(self, rule: Rule = "by_state", **other: Any) -> tuple[Change, ...]:
        where = {"axis": 0, "index": np.array(DEAD), "live": np.array(LIVE)} | other
        return OptimizerState([self.optimizer], rule).restart(self.parameter, Restart("w", **where))

    def state(self) -> dict[str, Tensor]:
        kept = self.optimizer.state[self.parameter].items()
        return {key: value.clone() for key, value in kept if isinstance(value, Tensor)}

    def rows_of_state(self) -> dict[str, Tensor]:
        return {key: value for key, value in self.state().items() if value.ndim}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ── what each rule does ─────────────────────────────────────────────────────────────────


@every_known
@pytest.mark.parametrize("dead", [0.0, 1.0, 300.0], ids=["decayed", "alike", "blown-up"])
def test_the_state_of_live_rows_is_bit_equal(build: Build, dead: float) -> None:
    run = Gradients(build)
    run.train(10)
    run.train(3, dead=dead)
    before = run.state()
    run.treat()
    for key, value in run.state().items():
        untouched = (value, before[key]) if not value.ndim else (value[LIVE], before[key][LIVE])
        assert torch.equal(*untouched), key


@every_known
def test_all_state_is_of_a_known_kind(build: Build) -> None:
    run = Gradients(build)
    run.train(2)
    assert run.rows_of_state().keys() <= FIRST_MOMENTS | SECOND_MOMENTS


def bounds(state: dict[str, Tensor], key: str) -> tuple[Tensor, Tensor]:
    """What live rows allow: their gradients of late, and their own second moments."""
    high = state[key][LIVE].median(0).values
    if "exp_avg" not in state:
        return high, high
    lately = LATELY * state["exp_avg"][LIVE].square().mean(0)
    return torch.minimum(lately.sqrt() if key == "exp_inf" else lately, high), high


@every_known
@pytest.mark.parametrize("dead", [1e-3, 1.0, 300.0], ids=["decayed", "alike", "blown-up"])
def test_first_moments_go_and_second_ones_stay_within_bounds(build: Build, dead: float) -> None:
    run = Gradients(build)
    run.train(5, dead=dead)
    before = run.rows_of_state()
    run.treat()
    for key, value in run.rows_of_state().items():
        if key in FIRST_MOMENTS:
            assert not value[DEAD].any()
            continue
        low, high = bounds(before, key)
        assert torch.equal(value[DEAD], before[key][DEAD].clamp(low, high)), key
        if dead == 300.0:
            assert torch.equal(value[DEAD], high.expand(len(DEAD), -1))
        elif dead == 1e-3:
            assert torch.equal(value[DEAD], low.expand(len(DEAD), -1))


@pytest.mark.parametrize("name", ["sgd-momentum", "adam", "adamax", "rmsprop"])
def test_rows_with_nan_in_their_state_start_afresh(name: str) -> None:
    run = Gradients(KNOWN[name])
    run.train(5)
    run.train(1, dead=float("nan"))
    assert any(value.isnan().any() for value in run.state().values())
    run.treat()
    assert not any(value.isnan().any() for value in run.state().values())


@every_known
def test_some_rows_of_a_tensor_without_live_ones_lose_their_first_moments_alone(
    build: Build,
) -> None:
    run = Gradients(build)
    run.train(5)
    before = run.state()
    run.treat(live=np.arange(0))
    for key, value in run.state().items():
        if key in FIRST_MOMENTS:
            before[key][DEAD] = 0
        assert torch.equal(value, before[key]), key


@every_known
def test_a_tensor_without_live_rows_starts_as_a_new_parameter(build: Build) -> None:
    run, new = Gradients(build), Gradients(build)
    run.train(20)
    run.treat(index=np.arange(ROWS), live=np.arange(0))
    run.parameter.data.zero_()
    run.random.manual_seed(0)
    assert torch.equal(run.train(5), new.train(5))


def test_rules_can_be_chosen() -> None:
    states = []
    rules: tuple[Rule, ...] = ("keep", "restart", "by_state")
    for rule in rules:
        run = Gradients(KNOWN["adam"])
        run.train(30)
        run.optimizer.state[run.parameter]["exp_avg"] *= 0.01  # nothing of late: no lower bound
        run.optimizer.state[run.parameter]["exp_avg_sq"][DEAD] *= 0.1
        before = run.state()
        run.treat(rule)
        states.append([torch.equal(before[key], run.state()[key]) for key in before])
    # step count, first moments, second moments
    assert states == [[True, True, True], [True, False, False], [True, False, True]]


# ── what comes of it ────────────────────────────────────────────────────────────────────


def leap(build: Build, rule: Rule) -> float:
    """Largest update of rows that wake up, over that of live rows, in the first twenty steps."""
    run = Gradients(build)
    run.train(100)
    run.train(3000, dead=0.0)
    run.treat(rule)
    updates = run.train(20).abs()
    return float(updates[:, DEAD].max() / updates[:, LIVE].max())


@every_known
def test_the_first_steps_after_a_long_death_are_no_leap(build: Build) -> None:
    assert 0.1 < leap(build, "by_state") < 1.5


@pytest.mark.parametrize("name", ["adam", "nadam", "radam", "rmsprop"])
def test_with_the_old_state_they_would_be(name: str) -> None:
    assert leap(KNOWN[name], "keep") > 2


def pace(build: Build, rule: Rule) -> float:
    """How fast rows move, compared to live rows, after a death by a few huge gradients."""
    run = Gradients(build)
    run.train(100)
    run.train(3, dead=300.0)
    run.train(30, dead=0.0)
    run.treat(rule)
    updates = run.train(50).abs()
    return float(updates[:, DEAD].mean() / updates[:, LIVE].mean())


@every_known
def test_rows_learn_after_a_death_by_one_bad_update(build: Build) -> None:
    assert 0.5 < pace(build, "by_state") < 2


@pytest.mark.parametrize("name", ["adam", "adamax", "adagrad", "rmsprop"])
def test_with_the_old_state_they_would_not(name: str) -> None:
    assert pace(KNOWN[name], "keep") < 0.2


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "radam", "adamax"])
def test_rows_that_were_dead_in_a_bad_update_do_not_inherit_it(name: str) -> None:
    paces: dict[str, float] = {}
    rules: tuple[Rule, ...] = ("by_state", "restart")
    for rule in rules:
        run = Gradients(KNOWN[name])
        run.train(100)
        run.train(3, dead=0.0, live=300.0)
        run.train(150, dead=0.0)
        run.treat(rule)
        paces[rule] = float(run.train(50)[:, DEAD].abs().mean())
    assert paces["by_state"] > 5 * paces["restart"]


@every_known
def test_training_goes_on_after_a_treatment(build: Build) -> None:
    patient = Patient.of(optimizer=build, depth=3.0)
    _, watch = patient.treated(Recycle())
    patient.train(3, watch)
    assert torch.isfinite(patient.model(patient.x)).all()


# ── undoing it ──────────────────────────────────────────────────────────────────────────


@every_known
@pytest.mark.parametrize("rule", ["by_state", "restart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_undo_is_the_exact_inverse(build: Build, rule: Rule, dtype: torch.dtype) -> None:
    run = Gradients(build, dtype)
    run.train(5)
    run.train(3, dead=300.0)
    whole = {"index": np.arange(ROWS), "live": np.arange(0)}
    for where in ({}, whole):
        before = run.state()
        changes = run.treat(rule, **where)
        written = {c.state for c in changes}
        assert written == {k for k, v in before.items() if where or v.ndim}
        for change in reversed(changes):
            assert change.tensor == "w"
            OptimizerState([run.optimizer]).undo(run.parameter, change)
        assert same(run.state(), before)


def test_undo_leaves_what_the_rows_of_others_have_learned_since() -> None:
    run = Gradients(KNOWN["adam"])
    run.train(5)
    before = run.state()
    changes = run.treat("restart")
    run.train(3)
    later = run.state()
    for change in changes:
        OptimizerState([run.optimizer]).undo(run.parameter, change)
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(run.state()[key][DEAD], before[key][DEAD])
        assert torch.equal(run.state()[key][LIVE], later[key][LIVE])


def test_undo_does_not_bring_back_a_state_that_was_dropped() -> None:
    run = Gradients(KNOWN["adam"])
    run.train(5)
    (change, *_) = run.treat("restart")
    run.optimizer.state.clear()
    OptimizerState([run.optimizer]).undo(run.parameter, change)
    assert not run.optimizer.state.get(run.parameter)


def test_changes_tell_what_was_written() -> None:
    run = Gradients(KNOWN["adam"])
    run.train(5)
    before = run.state()
    changes = run.treat("restart")
    assert [change.state for change in changes] == ["exp_avg", "exp_avg_sq"]
    for change in changes:
        assert (change.axis, change.rows, change.index.tolist()) == (0, None, DEAD)
        np.testing.assert_array_equal(change.before, before[change.state][DEAD])
        np.testing.assert_array_equal(change.after, run.state()[change.state][DEAD])


def test_only_the_named_rows_of_axis_0_are_renewed() -> None:
    run = Gradients(KNOWN["adam"])
    run.train(5)
    before = run.state()
    columns = {"axis": 1, "index": np.array([0, 1]), "live": np.array([2, 3, 4])}
    (first, *_) = changes = run.treat("restart", **columns, rows=range(4, 8))
    assert first.rows == range(4, 8)
    moved = (run.state()["exp_avg"] != before["exp_avg"]).nonzero().tolist()
    assert moved == [[row, column] for row in range(4, 8) for column in (0, 1)]
    for change in changes:
        OptimizerState([run.optimizer]).undo(run.parameter, change)
    assert same(run.state(), before)
