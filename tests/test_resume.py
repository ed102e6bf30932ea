"""A run that is interrupted at any step and resumed ends bit for bit as one that was not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import SharedReLU, conv, mlp
from tests.resuming import EVENTS, Run, Setup, differences, differs_when_interrupted


class Functions(nn.Module):
    """Functions with several calls, parts that run in some steps only, and a slope that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.norm = nn.BatchNorm1d(8)
        self.second = nn.Linear(8, 8)
        self.rare = nn.Sequential(nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 8), nn.ReLU())
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)))
        h = F.relu(self.second(h)) + F.leaky_relu(h, 0.0)
        if x[0, 0] > 0.5:
            h = h + self.rare(h)
        out: Tensor = self.last(h)
        return out


class Learned(nn.Module):
    """An activation of the model's own, whose gate moves with its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        return torch.maximum(z, self.edge)


def dying(model: nn.Module) -> nn.Module:
    """Kill three units of the first layer."""
    with torch.no_grad():
        first = next(m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
        assert first.bias is not None
        first.bias[:3] -= 30
    return model


SETUPS = {
    "modules": Setup(lambda: dying(mlp())),
    "functions": Setup(lambda: dying(Functions())),
    "shared and in-place": Setup(SharedReLU, batch=(4, 3, 5, 5)),
    "convolutions": Setup(lambda: dying(conv(2, norm=True)), batch=(4, 3, 4, 4)),
    "learned gates": Setup(lambda: mlp(Learned)),
    "selected": Setup(mlp, watch={"exclude": "1"}),
}


@pytest.mark.filterwarnings("ignore::deadwatch.errors.UnseenSiteWarning")
@pytest.mark.parametrize("name", SETUPS)
def test_what_is_measured_does_not_depend_on_interruptions(name: str) -> None:
    assert differs_when_interrupted(SETUPS[name]) == {}


@pytest.mark.filterwarnings("ignore::deadwatch.errors.UnseenSiteWarning")
@pytest.mark.parametrize("name", SETUPS)
def test_a_run_may_be_interrupted_after_every_step(name: str) -> None:
    whole = Run(SETUPS[name])
    whole.go_on()
    state: Any = None
    for done in range(1, len(EVENTS) + 1):
        run = Run(SETUPS[name], state)
        run.go_on(done)
        state = run.state()
    assert differences(whole.result(), run.result()) == []
