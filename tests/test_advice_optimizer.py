"""Rules on the optimizer, in real steps of real optimizers, and their limits from both sides.

DW301 is on decay of biases and norms, DW302 on large updates, DW303 on the rate at which units die.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from deadwatch import Finding, NoBiasDecay, Watch, WindowReport, advise
from deadwatch.judge.advice.optimizer import HORIZON, MOST, PULL
from deadwatch.judge.causes import LEAP, RUSH
from tests.advised import advised, by, rows, run_code, tdnn, trained
from tests.nets import mlp


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ── DW301 ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_the_pull_of_decay_is_what_a_thousand_steps_take_off(kind: type[Optimizer]) -> None:
    model = mlp()
    optimizer = kind(model.parameters(), lr=0.05, weight_decay=0.01)  # type: ignore[call-arg]
    (finding,) = by("DW301", advised(model, optimizer=optimizer))
    assert finding.where == ("0.bias", "2.bias", "4.bias")
    before = model[0].bias.detach().clone()
    for one in model.parameters():
        one.grad = torch.zeros_like(one)
    for _ in range(HORIZON):
        optimizer.step()
    taken = 1 - float((model[0].bias.detach() / before).mean())
    assert finding.numbers == {"decay": 0.01, "pull": pytest.approx(taken, rel=1e-3)}
    least = "at least " if kind is SGD else ""
    assert f"takes {least}{taken:.0%} off" in finding.message


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_momentum_takes_off_more_and_the_message_says_at_least(momentum: float) -> None:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=momentum, weight_decay=0.01)
    (finding,) = by("DW301", advised(model, optimizer=optimizer))
    before = model[0].bias.detach().clone()
    for one in model.parameters():
        one.grad = torch.zeros_like(one)
    for _ in range(HORIZON):
        optimizer.step()
    assert 1 - float((model[0].bias.detach() / before).mean()) > finding.numbers["pull"]
    assert "takes at least" in finding.message


def test_what_adam_takes_off_is_not_told_for_it_is_no_share() -> None:
    model = mlp()
    (finding,) = by("DW301", advised(model, optimizer=Adam(model.parameters(), 1, weight_decay=1)))
    assert finding.severity == "info"
    assert finding.numbers == {"decay": 1}
    assert "off" not in finding.message


@pytest.mark.parametrize(("times", "severity"), [(0.98, "info"), (1.02, "warning")])
def test_decay_of_biases_is_a_warning_from_half_a_bias_on(times: float, severity: str) -> None:
    decay = times * (1 - (1 - PULL) ** (1 / HORIZON)) / 0.1
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=decay)
    (finding,) = by("DW301", advised(model, optimizer=optimizer))
    assert finding.severity == severity


def test_decay_that_pulls_up_the_biases_of_dead_units_is_left_to_do_so() -> None:
    torch.manual_seed(0)
    model = mlp()
    with torch.no_grad():
        model.get_parameter("2.bias").fill_(1)
        model.get_parameter("0.bias").fill_(1)[:5] = -100
        model.get_parameter("0.weight")[5] = 0  # dead for its weights: its bias is no reason
        model.get_parameter("0.bias")[5] = 0
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    (finding,) = by("DW301", advised(model, rows(features=12), optimizer=optimizer))
    assert finding.severity == "info"
    assert "negative biases of 5 dead units" in finding.message
    weights = [{"params": [model.get_parameter("0.bias")], "weight_decay": 0}]
    others = [one for name, one in model.named_parameters() if name != "0.bias"]
    optimizer = SGD([{"params": others}, *weights], lr=0.1, weight_decay=0.1)
    (finding,) = by("DW301", advised(model, rows(features=12), optimizer=optimizer))
    assert finding.where == ("2.bias", "4.bias")
    assert finding.severity == "warning"


def test_scales_and_shifts_of_norms_are_told_with_the_biases() -> None:
    model = tdnn(nn.BatchNorm1d, lambda _: nn.ReLU())
    optimizer = AdamW(model.parameters(), 1e-2)
    (finding,) = by("DW301", advised(model, optimizer=optimizer))
    decayed = {name for name, one in model.named_parameters() if one.ndim < 2}
    assert set(finding.where) == decayed
    assert finding.severity == "info"


@pytest.mark.parametrize(("decay", "told"), [(0.05, 0), (0.06, 1)])
def test_decay_that_does_next_to_nothing_is_not_told(decay: float, told: int) -> None:
    model = mlp()
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=decay)  # 4.9% and 5.8%
    assert len(by("DW301", advised(model, optimizer=optimizer))) == told


def test_each_kind_of_optimizer_is_told_of_with_its_own_parameters() -> None:
    model = mlp()
    both = [
        SGD(model[0].parameters(), lr=0.1, weight_decay=0.1),
        AdamW(model[2:].parameters(), lr=1e-3, weight_decay=0.1),
    ]
    found = {f.where: f for f in by("DW301", advised(model, optimizer=both))}
    assert found.keys() == {("0.bias",), ("2.bias", "4.bias")}
    assert found["0.bias",].severity == "warning"
    assert found["2.bias", "4.bias"].severity == "info"
    assert found["2.bias", "4.bias"].numbers["pull"] == pytest.approx(1 - (1 - 1e-4) ** 1000)


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "no decay": lambda model: SGD(model.parameters(), 0.1),
    "adam has none": lambda model: Adam(model.parameters()),
    "groups": lambda model: AdamW(NoBiasDecay().groups(model, weight_decay=0.01)),
    "weights alone": lambda model: SGD(
        [one for one in model.parameters() if one.ndim > 1], 0.1, weight_decay=0.1
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_that_decay_no_bias_are_in_order(name: str) -> None:
    model = mlp()
    assert not by("DW301", advised(model, optimizer=OPTIMIZERS[name](model)))


def test_without_an_optimizer_nothing_is_said_of_decay() -> None:
    assert not by("DW301", advised(mlp(), rows(features=12)))


# ── DW302 ───────────────────────────────────────────────────────────────────────────────


def moved(shares: Mapping[str, list[float]], windows: int = 2) -> list[WindowReport]:
    """Steps that move weights by just these shares of themselves: there, and back again."""
    model = mlp()
    reports = []
    steps = len(next(iter(shares.values())))
    watch = Watch(model, optimizer=SGD(model.parameters(), 0.02), advice=True)
    with watch:
        for _ in range(windows):
            for step in range(steps):
                model(rows(30, features=12))
                with torch.no_grad():
                    for name, each in shares.items():
                        factor = 1 - each[step]
                        model.get_parameter(name).mul_(factor if step % 2 == 0 else 1 / factor)
                watch.step()
            reports.append(watch.close_window())
    return reports


def large(report: WindowReport) -> dict[str, Finding]:
    return {finding.where[0]: finding for finding in by("DW302", list(report.findings))}


@pytest.mark.parametrize(("share", "found"), [(RUSH - 0.002, 0), (RUSH + 0.002, 1)])
def test_updates_are_too_large_from_a_tenth_of_the_weight_on(share: float, found: int) -> None:
    names = ("0.weight", "2.weight", "4.weight")
    first, second = moved({name: [share] * 8 for name in names})
    for report, severity in ((first, "info"), (second, "warning")):
        findings = large(report)
        assert len(findings) == found * 3
        for finding in findings.values():
            assert finding.severity == severity
            assert finding.numbers["mean"] == pytest.approx(share, rel=1e-3)
            assert finding.numbers["peak"] == pytest.approx(share, rel=1e-3)
            assert "at a learning rate of 0.02" in finding.message
            assert finding.code.startswith(f"lr={0.02 * 0.01 / share:.1g}  #")


@pytest.mark.parametrize(
    ("share", "others", "found"),
    [
        (MOST + 0.002, 0.0049, 1),
        (MOST - 0.002, 0.001, 0),
        (MOST + 0.002, 0.0059, 0),
    ],
    ids=["stands out", "small", "not alone"],
)
def test_a_weight_stands_out_at_ten_times_the_median(
    share: float, others: float, found: int
) -> None:
    shares = {"0.weight": [others] * 8, "2.weight": [share] * 8, "4.weight": [others] * 8}
    report = moved(shares, windows=1)[0]
    assert list(large(report)) == ["2.weight"] * found


@pytest.mark.parametrize(
    ("peak", "found"), [(RUSH + 0.01, 1), (RUSH - 0.01, 0)], ids=["a leap", "a hop"]
)
def test_a_step_that_leaps_is_named(peak: float, found: int) -> None:
    steps = [0.01] * 12
    steps[6] = steps[7] = peak  # there and back
    steps[7] = 0.01
    first, second = moved({"0.weight": steps, "2.weight": [0.01] * 12, "4.weight": [0.01] * 12})
    assert [finding.severity for finding in large(first).values()] == ["info"] * found
    assert [finding.severity for finding in large(second).values()] == ["warning"] * found
    for window, report in enumerate((first, second)):
        for finding in large(report).values():
            assert finding.numbers["step"] == 12 * window + 6
            assert finding.numbers["peak"] == pytest.approx(peak, rel=1e-3)
            assert "clip_grad_norm_" in finding.code


def test_a_step_that_is_large_among_large_ones_is_no_leap() -> None:
    usual = 0.03
    assert usual * LEAP > RUSH + 0.01
    steps = [usual] * 12
    steps[6] = RUSH + 0.01
    same = [usual] * 12
    assert not large(moved({"0.weight": steps, "2.weight": same, "4.weight": same})[1])


def test_the_mean_update_is_that_of_full_copies() -> None:
    model = mlp()
    copies = [model[2].weight.detach().clone()]

    def keep(step: int) -> None:
        copies.append(model[2].weight.detach().clone())

    report = trained(model, SGD(model.parameters(), 3.0), windows=1, after=keep)[0]
    ratios = [float((b - a).norm() / max(a.norm(), b.norm())) for a, b in pairwise(copies)]
    finding = large(report)["2.weight"]
    assert finding.numbers["mean"] == pytest.approx(np.mean(ratios), rel=1e-3)
    assert finding.numbers["peak"] == pytest.approx(max(ratios), rel=1e-3)
    assert finding.numbers["step"] == int(np.argmax(ratios))


def test_a_healthy_training_has_no_large_updates() -> None:
    model = mlp()
    for report in trained(model, SGD(model.parameters(), 0.05), windows=3):
        assert not large(report)
        assert not by("DW303", list(report.findings))


def test_without_gauges_nothing_is_known_of_updates() -> None:
    model = mlp()
    assert not by("DW302", advised(model, rows(features=12)))


# ── DW303 ───────────────────────────────────────────────────────────────────────────────


def spiked(at: int) -> tuple[nn.Module, Optimizer, list[WindowReport]]:
    """A training with a step at a huge rate, for a loss by which half the units are too large."""
    model = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 3))
    optimizer = SGD(model.parameters(), 0.02)

    def penalty(step: int) -> torch.Tensor:
        optimizer.param_groups[0]["lr"] = 30.0 if step == at else 0.02
        large: torch.Tensor = model[0](rows(2000, features=12))[:, :24].sum(1).mean()
        return large if step == at else 0 * large

    return model, optimizer, trained(model, optimizer, windows=5, penalty=penalty)


def test_the_rate_at_which_units_died_is_named_with_its_window_and_steps() -> None:
    _, _, reports = spiked(77)
    assert not any(by("DW303", list(report.findings)) for report in reports[:3])
    (finding,) = by("DW303", list(reports[-1].findings))
    dead = int(reports[-1]["1"].dead.sum())
    assert 18 <= dead <= 30
    assert finding.where == ("1",)
    numbers = {name: finding.numbers[name] for name in ("window", "rate", "units")}
    assert numbers == {"window": 2, "rate": 30, "units": dead}
    assert 60 <= finding.numbers["step"] <= 77
    assert finding.severity == "warning"
    assert "learning rate below 30" in finding.code


def test_where_few_units_died_of_a_rate_it_is_only_told() -> None:
    model, _, reports = spiked(77)
    died = reports[-1].deaths[0]
    few = replace(died, units=died.units[:2])
    sites = {"1": replace(reports[-1]["1"], state=np.where(np.arange(48) < 2, 2, 5), harmful=False)}
    report = replace(reports[-1], deaths=(few,), sites=sites)
    (finding,) = by("DW303", advise(model, report=report))
    assert (finding.severity, finding.numbers["units"]) == ("info", 2)


def test_of_several_windows_the_first_is_named_and_what_died_since_is_counted() -> None:
    model, _, reports = spiked(77)
    died = reports[-1].deaths[0]
    later = replace(died, units=died.units[:3], window=3, rate=0.5, cause="bias")
    report = replace(reports[-1], deaths=(later, died))
    (finding,) = by("DW303", advise(model, report=report))
    assert (finding.numbers["window"], finding.numbers["rate"]) == (2, 30)
    assert f"{len(died.units)} then, 3 since" in finding.message


def test_units_that_were_dead_from_birth_died_of_no_rate() -> None:
    model = mlp()
    with torch.no_grad():
        model.get_parameter("0.bias")[:6] = -100
    report = trained(model, SGD(model.parameters(), 0.02), windows=2)[-1]
    assert {death.cause for death in report.deaths} == {"birth"}
    assert not by("DW303", list(report.findings))


def test_the_codes_of_the_optimizer_rules_run() -> None:
    model, optimizer, reports = spiked(77)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    leap = by("DW302", advise(model, report=reports[2], optimizer=optimizer))
    (decays,) = by("DW301", advise(model, report=reports[-1], optimizer=optimizer))
    assert leap
    for finding in (*leap, decays):
        run_code(finding, model, optimizer=optimizer)
    assert not by("DW301", advise(model, report=reports[-1], optimizer=optimizer))
