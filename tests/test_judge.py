"""States follow from the evidence; sparsity and dormancy are not death."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deadwatch import ConfigError, Rules, State, Watch, WindowReport
from deadwatch.judge.rules import judge
from deadwatch.observe.stats import STATISTICS
from deadwatch.records import Gate, Site, SiteSnapshot, Snapshot, Window


def snapshot(flat: bool = True, samples: int = 1000, **data: Any) -> Snapshot:
    """One site whose units have the given statistics; the rest is as if nothing ever opened."""
    units = len(next(iter(data.values())))
    defaults: dict[str, Any] = {
        name: np.zeros(units, np.bool_ if stat.kind == "flag" else np.int64)
        for name, stat in STATISTICS.items()
        if stat.kind != "real"
    }
    reals = {n: np.zeros(units) for n, stat in STATISTICS.items() if stat.kind == "real"}
    counts = {name: np.full(units, 1000) for name in ("count", "finite", "out_count")}
    age = data.pop("age", np.full(units, samples))
    given = {name: np.asarray(value) for name, value in data.items()}
    site = Site("net.1", "net.1", 1, "ReLU", Gate(0.0, math.inf, flat=flat))
    snap = SiteSnapshot(
        site, samples, {**defaults, **reals, **counts, **given}, age, np.full(units, flat)
    )
    return Snapshot(Window(0, 0, 9), (snap,))


def states(snap: Snapshot, rules: Rules | None = None) -> list[State]:
    report = judge(snap, rules or Rules())
    return [State(value) for value in report["net.1"].state]


def test_each_state_by_its_evidence() -> None:
    snap = snapshot(
        opened=np.array([True, True, False, False, False]),
        open=np.array([500, 3, 0, 0, 0]),
        suspect=np.array([False, False, False, True, False]),
        age=np.array([0, 0, 1000, 1000, 299]),
    )
    assert states(snap) == [
        State.ALIVE,
        State.RARE,
        State.DEAD,
        State.UNCERTAIN,
        State.UNCERTAIN,
    ]


def test_a_closed_side_with_a_slope_is_saturated_not_dead() -> None:
    assert states(snapshot(flat=False, opened=np.array([False]))) == [State.SATURATED]


def test_a_site_that_did_not_run_is_unseen() -> None:
    report = judge(snapshot(samples=0, opened=np.array([False])), Rules())
    assert report["net.1"].state.tolist() == [State.UNSEEN]
    assert math.isnan(report.dead_ratio)


def test_ratios_leave_out_what_was_not_judged() -> None:
    snap = snapshot(opened=np.array([True, False, False, False]), age=np.array([0, 1000, 1000, 10]))
    report = judge(snap, Rules())
    assert report["net.1"].judged == 3
    assert report.dead_ratio == pytest.approx(2 / 3)


def test_few_sampled_elements_are_no_evidence_for_rare() -> None:
    few = {"opened": np.array([True]), "count": np.array([20]), "open": np.array([0])}
    assert states(snapshot(**few)) == [State.ALIVE]


def test_evidence_of_successive_windows_adds_up() -> None:
    """Windows of 40 samples: dead only once 300 samples have gone by without an open gate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with torch.no_grad():
        model[0].bias[0] = -100
    seen = []
    with Watch(model) as watch:
        for _ in range(9):
            model(torch.randn(40, 4))
            seen.append(State(watch.close_window()["1"].state[0]))
    assert seen == [State.UNCERTAIN] * 7 + [State.DEAD] * 2


def test_one_open_gate_resets_the_evidence() -> None:
    model = nn.Sequential(nn.ReLU())
    closed, opened = torch.full((300, 1), -1.0), torch.full((1, 1), 1.0)
    seen = []
    with Watch(model) as watch:
        for batch in (closed, opened, closed[:200], closed[:200]):
            model(batch)
            report = watch.close_window()["0"]
            seen.append((State(report.state[0]), int(report.age[0])))
    assert seen == [
        (State.DEAD, 300),
        (State.ALIVE, 0),
        (State.UNCERTAIN, 200),
        (State.DEAD, 400),
    ]


def watched(z: Tensor) -> WindowReport:
    with Watch(nn.Sequential(nn.ReLU()), stats_every_n_steps=1) as watch:
        watch._model(z)
        return watch.close_window()


def test_sparsity_is_not_death() -> None:
    """A layer with 0 of 128 dead units and over 90% zero elements has no dead unit."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2048, 128, generator=generator) - 1.7
    report = watched(z)["0"]
    assert report.sparsity > 0.9
    assert report.dead.sum() == 0
    assert report.dead_ratio == 0


def test_death_is_not_sparsity() -> None:
    """A layer with 51 of 128 dead units and under 90% zeros has exactly those 51."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2048, 128, generator=generator) + 0.5
    dead = torch.randperm(128, generator=generator)[:51]
    z[:, dead] = -z[:, dead].abs() - 1e-3
    report = watched(z)["0"]
    assert report.sparsity < 0.9
    assert set(np.flatnonzero(report.dead)) == set(dead.tolist())
    assert report.dead_ratio == 51 / 128


def test_a_unit_that_fires_once_in_a_window_is_not_dead() -> None:
    z = torch.full((5000, 2), -1.0)
    z[4321, 1] = 0.1
    report = watched(z)["0"]
    assert [State(value) for value in report.state] == [State.DEAD, State.RARE]


def test_dormancy_is_measured_beside_death() -> None:
    z = torch.full((500, 4), 1.0)
    z[:, 1] = 0.01
    z[:, 2] = -1
    report = watched(z)["0"]
    np.testing.assert_allclose(report.dormancy, np.array([1, 0.01, 0, 1]) / (2.01 / 4), rtol=1e-6)
    assert [State(value) for value in report.state] == [
        *(State.ALIVE, State.ALIVE, State.DEAD, State.ALIVE)
    ]


def test_nan_is_flagged_and_not_called_dead() -> None:
    z = torch.full((500, 3), -1.0)
    z[7, 1] = math.nan
    report = watched(z)["0"]
    assert report.nonfinite.tolist() == [0, 1, 0]
    assert [State(value) for value in report.state] == [State.DEAD, State.UNCERTAIN, State.DEAD]


@pytest.mark.parametrize("act", [nn.ReLU, nn.Hardtanh, nn.Sigmoid, nn.Hardshrink])
def test_nan_alone_is_never_evidence(act: Any) -> None:
    model = nn.Sequential(act())
    with Watch(model) as watch:
        model(torch.full((400, 2), math.nan))
        first = watch.close_window()["0"]
        model(-torch.ones(1, 2))
        second = watch.close_window()["0"]
    assert (first.state == State.UNCERTAIN).all()
    assert (second.state != State.DEAD).all()


def test_one_nan_does_not_hide_that_a_unit_lives() -> None:
    z = torch.ones(400, 1)
    z[3] = math.nan
    with Watch(nn.Sequential(nn.ReLU())) as watch:
        watch._model(z)
        first = watch.close_window()["0"]
        watch._model(-torch.ones(5, 1))
        second = watch.close_window()["0"]
    assert State(first.state[0]) == State.ALIVE
    assert State(second.state[0]) == State.UNCERTAIN
    assert int(second.age[0]) == 5


def test_a_silent_layer_is_wholly_dormant() -> None:
    assert watched(torch.full((500, 3), -1.0))["0"].dormancy.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_samples": 0}, "min_samples is 0; expected an integer of 1 or more"),
        ({"rare_below": 1.5}, "rare_below is 1.5; expected a share between 0 and 1"),
    ],
)
def test_bad_thresholds(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rules(**arguments)


def test_an_unknown_site_names_those_there_are() -> None:
    with pytest.raises(KeyError, match=r"no site 'net\.9' in this window; the sites are: 0"):
        watched(torch.ones(4, 2))["net.9"]
