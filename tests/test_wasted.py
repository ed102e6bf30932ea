"""Parameters that make dead units or are read from them, counted against the weights themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deadwatch import Rules, SiteReport, Watch
from deadwatch.show import documents
from tests.histories import Log, site

X = torch.randn(60, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def watched(model: nn.Module, x: Tensor) -> dict[str, SiteReport]:
    with Watch(model, rules=Rules(min_samples=1)) as watch:
        for _ in range(2):
            model(x).sum().backward()
        report = watch.close_window()
    run = Log().write([report]).run()
    for row in documents.table(run)["rows"]:
        known = report[row["site"]].wasted
        assert row["wasted"] == (None if math.isnan(known) else known)
    return dict(report)


CASES: dict[str, tuple[nn.Sequential, str, dict[str, int]]] = {
    "linear": (
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
        "1",
        {"0.weight": 4, "0.bias": 1, "2.weight": 3},
    ),
    "conv": (
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3, bias=False)),
        "1",
        {"0.weight": 36, "0.bias": 1, "2.weight": 18},
    ),
    "grouped": (
        nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2)),
        "1",
        {"0.weight": 18, "0.bias": 1, "2.weight": 18},
    ),
    "flattened": (
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5)),
        "1",
        {"0.weight": 36, "0.bias": 1, "3.weight": 45},
    ),
    "normed": (
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        "2",
        {"0.weight": 36, "0.bias": 1, "1.weight": 1, "1.bias": 1} | {"3.weight": 2},
    ),
    "transposed": (
        nn.Sequential(
            nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ReLU(), nn.ConvTranspose2d(6, 5, 2)
        ),
        "1",
        {"0.weight": 8, "0.bias": 1, "2.weight": 20},
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dead", [0, 1, 2])
def test_wasted_parameters_are_those_of_dead_units(name: str, dead: int) -> None:
    torch.manual_seed(0)
    model, path, each = CASES[name]
    norm = model[1] if name == "normed" else model[0]
    before = norm.bias.detach().clone()
    with torch.no_grad():
        norm.bias.fill_(1.0)
        norm.bias[:dead] = -99
    found = watched(model, X if name != "linear" else torch.randn(60, 4))[path]
    with torch.no_grad():
        norm.bias.copy_(before)
    assert int(found.dead.sum()) == dead
    assert found.wasted == dead * sum(each.values())


def test_what_is_not_known_is_not_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())  # who reads it is not known
    assert math.isnan(watched(model, torch.randn(60, 4))["1"].wasted)
    assert math.isnan(site("act", [2, 5]).wasted)
    run = Log().write([]).run()
    assert documents.table(run)["rows"] == []
    assert np.isnan(run.measures["wasted"]).all()
