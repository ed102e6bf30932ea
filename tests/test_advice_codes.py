"""The code of every finding is Python, and where it is more than a remark it runs."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from deadwatch import Finding, Watch, WindowReport, advise, scan
from deadwatch.judge.advice.rule import all_rules
from deadwatch.records import Cause, Death, Gauges, Update
from tests import architectures
from tests.advised import Scorer, by, deep, rows, run_code, signals, tdnn, tokens

Built = tuple[nn.Module, Tensor]


class Functional(nn.Module):
    """Activations that are functions: there is no module to put another in the place of."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(8))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return torch.softmax(F.relu(self.head(x)), -1)


def shut(act: nn.Module, bias: float, scale: float = 1.0) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 20), act, nn.Linear(20, 3))
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[0].bias.fill_(bias)
        model[0].bias[:4] = 0
    return model


def growing() -> nn.Module:
    model = deep(5, 32)
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(30)
    return model


BUILDS: dict[str, Callable[[], Built]] = {
    "norm last": lambda: (tdnn(lambda _: nn.ReLU(), nn.BatchNorm1d), signals()),
    "norm first": lambda: (tdnn(nn.BatchNorm1d, lambda _: nn.ReLU()), signals()),
    "scorer": lambda: (Scorer(nn.ReLU()), tokens()),
    "relu last": lambda: (nn.Sequential(nn.Linear(6, 3), nn.ReLU()), rows()),
    "narrow": lambda: (deep(30, 3), rows()),
    "functions": lambda: (Functional(), rows()),
    "dropout": lambda: (tdnn(lambda _: nn.Dropout(), lambda _: nn.ReLU()), signals()),
    "dropout, norm": lambda: (
        nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.ReLU()),
        rows(),
    ),
    "deep": lambda: (deep(20, 64), rows()),
    "low": lambda: (shut(nn.ReLU(), -60), rows()),
    "off centre": lambda: (deep(2, 32), rows() + 9),
    "selu": lambda: (shut(nn.SELU(), 0.0), rows()),
    "coma": lambda: (shut(nn.ELU(), -60), rows()),
    "tanh": lambda: (shut(nn.Tanh(), 0, 99), rows()),
    "growing": lambda: (growing(), rows()),
    "nan": lambda: (deep(2, 16), rows() * torch.tensor([math.nan, 1, 1, 1, 1, 1])),
    "block": lambda: (architectures.basic_block(), architectures.images()),
}


def ill(report: WindowReport) -> WindowReport:
    """A later window that also tells of large updates, faded gradients and deaths of each cause."""
    sites = list(report)
    dead = np.flatnonzero(report[sites[0]].dead)
    large = Update(0.2, 0.9, 3, 9)
    deaths = tuple(
        Death(sites[0], dead[:1], cause, 0, (0, 9), {}, {}, 0.5, "0.weight", large)
        for cause in get_args(Cause)
    )
    gradients = dict.fromkeys(sites, 1.0) | {sites[0]: 1e-9, sites[1]: 0.0}
    known = report.gauges or Gauges()
    leap = {"0.weight": large, "2.weight": Update(0.01, 0.9, 3, 9)}
    gauges = replace(known, gradients=gradients, updates=leap)
    later = replace(report.window, index=2)
    return replace(report, gauges=gauges, deaths=deaths, window=later)


@cache
def found() -> tuple[tuple[str, Finding], ...]:
    return tuple(_found())


def _found() -> Iterator[tuple[str, Finding]]:
    for name, build in BUILDS.items():
        torch.manual_seed(0)
        model, x = build()
        optimizer = SGD(model.parameters(), 0.1, weight_decay=0.1)
        for finding in advise(model, report=scan(model, [x]), optimizer=optimizer):
            yield name, finding
    torch.manual_seed(0)
    model, x = born()
    report = ill(scan(model, [x]))
    for finding in advise(model, report=report, optimizer=SGD(model.parameters(), 0.1)):
        yield "ill", finding


def born() -> Built:
    model = deep(4, 16)
    with torch.no_grad():
        model[0].bias[:9] = -99
    return model, rows()


def test_every_rule_is_tried_here() -> None:
    assert {finding.id for _, finding in found()} == {rule.id for rule in all_rules()}


def test_every_code_is_python_and_all_but_harmless_units_have_one() -> None:
    for name, finding in found():
        assert bool(finding.code) == (finding.id != "DW602"), name
        ast.parse(finding.code)
        assert "\t" not in finding.code


@pytest.mark.parametrize("rule", [rule.id for rule in all_rules()])
def test_code_that_does_something_runs(rule: str) -> None:
    for name, finding in found():
        if finding.id == rule and ast.parse(finding.code).body:
            torch.manual_seed(0)
            model, x = {**BUILDS, "ill": born}[name]()
            optimizer = SGD(model.parameters(), 0.1, weight_decay=0.1)
            scope = {"optimizer": optimizer, "x": x, "mean": x.mean(0), "std": x.std(0), "F": F}
            with torch.autograd.set_detect_anomaly(False):
                run_code(finding, model, **scope)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("DW102", "scorer"),
        ("DW102", "relu last"),
        ("DW103", "norm first"),
        ("DW104", "narrow"),
        ("DW201", "low"),
        ("DW202", "deep"),
        ("DW202", "growing"),
        ("DW202", "selu"),
        ("DW203", "low"),
        ("DW301", "deep"),
        ("DW301", "block"),
    ],
)
def test_code_that_mends_the_model_leaves_nothing_to_find(rule: str, name: str) -> None:
    torch.manual_seed(0)
    model, x = BUILDS[name]()
    optimizer = SGD(model.parameters(), 0.1, weight_decay=0.1)
    before = [one for where, one in found() if (where, one.id) == (name, rule)]
    assert before
    for finding in before:
        run_code(finding, model, optimizer=optimizer)
    assert not by(rule, advise(model, report=scan(model, [x]), optimizer=optimizer))


def test_a_policy_that_is_told_of_treats() -> None:
    (finding,) = {one.code: one for _, one in found() if one.id == "DW405"}.values()
    scope: dict[str, object] = {}
    model = shut(nn.ELU(), -60)
    run_code(replace(finding, code=f"kept['policy'] = {finding.code}"), model, kept=scope)
    policy = scope["policy"]
    optimizer = SGD(model.parameters(), 0.1)
    with Watch(model, optimizer=optimizer, policy=policy) as watch:
        for _ in range(3):
            model(rows()).square().mean().backward()
            watch.step()
        treated = watch.close_window().treatments
    assert [len(one.units) for one in treated] == [16]
