"""Whose state is renewed: which optimizers are understood, and what each of several owns."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deadwatch import Recycle
from deadwatch.errors import OptimizerStateWarning
from deadwatch.treat.optim import OptimizerState, Restart, understood
from tests.clinic import DEAD, Patient
from tests.test_optim import LIVE, ROWS, Build

# ── whose state it is ───────────────────────────────────────────────────────────────────


class Renamed(torch.optim.Adam):
    """Adds nothing to how Adam steps."""


class Odd(torch.optim.Adam):
    """Gives Adam's state another meaning, for all we know."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


UNKNOWN: dict[str, Build] = {
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-3),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=1e-3),
    "Odd": lambda p: Odd(p, lr=1e-3),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_optimizer_is_left_alone_with_one_warning(name: str) -> None:
    parameters = [nn.Parameter(torch.ones(ROWS, 8)) for _ in range(2)]
    optimizer = UNKNOWN[name](parameters)
    for parameter in parameters:
        parameter.grad = torch.ones(ROWS, 8)
    optimizer.step(lambda: 1.0)
    before = copy.deepcopy(optimizer.state_dict())
    state = OptimizerState([optimizer])
    where = Restart("w", 0, np.array(DEAD), np.array(LIVE))
    with pytest.warns(OptimizerStateWarning, match=f"{name} keeps a state that deadwatch does not"):
        assert state.restart(parameters[0], where) == ()
    assert state.restart(parameters[1], where) == ()  # another warning would be an error
    assert repr(optimizer.state_dict()) == repr(before)


def test_parameters_under_an_unknown_optimizer_are_treated() -> None:
    patient = Patient.of(optimizer=UNKNOWN["Rprop"])
    before = patient.tensors()
    with pytest.warns(OptimizerStateWarning, match="Rprop keeps a state that deadwatch does not"):
        report, _ = patient.treated(Recycle())
    after = patient.tensors()
    assert len(report.treatments) == 1
    assert all(torch.equal(before[name], after[name]) for name in before if ":" in name)
    assert not torch.equal(before["0.weight"], after["0.weight"])


@pytest.mark.parametrize("first", [True, False])
def test_a_subclass_is_known_unless_it_steps_by_itself(first: bool) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    kinds = [torch.optim.Adam, Renamed, Odd][:: 1 if first else -1]
    known = {kind: understood(kind([parameter], lr=0.1)) for kind in kinds}
    assert known == {torch.optim.Adam: True, Renamed: True, Odd: False}


def test_a_scheduler_does_not_make_an_optimizer_unknown() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert understood(optimizer)


def test_two_optimizers_each_keep_their_own() -> None:
    patient = Patient.of()
    first = torch.optim.Adam(patient.model[0].parameters(), lr=1e-2)
    second = torch.optim.SGD(patient.model[2].parameters(), lr=1e-2, momentum=0.9)
    for optimizer in (first, second):
        patient.model(patient.x).square().mean().backward()
        optimizer.step()
    rows = first.state[patient.model[0].weight]["exp_avg_sq"]
    columns = second.state[patient.model[2].weight]["momentum_buffer"]
    rows[DEAD] += 1e6
    columns[:, DEAD] += 1e6
    patient.optimizer = [first, second]
    watch = patient.watch(Recycle()).attach()
    patient.model(patient.x)
    assert len(watch.close_window().treatments) == 1
    assert rows.max() < 1e6
    assert not columns[:, DEAD].any()
    assert columns[:, LIVE].any()


# ── new parameters ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("named", [True, False])
def test_remove_is_the_exact_inverse_of_insert(named: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.PReLU(2), nn.Linear(2, 1))
    slope = model[1].weight
    old = [pair for pair in model.named_parameters() if pair[1] is not slope]
    optimizer = torch.optim.Adam(old if named else [p for _, p in old], lr=1e-2)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    state = OptimizerState([optimizer])
    state.insert(slope, model[0].weight, dict(model.named_parameters()))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [
        id(p) for p in model.parameters()
    ]
    if named:
        names = [name for name, _ in model.named_parameters()]
        assert optimizer.param_groups[0]["param_names"] == names
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert optimizer.state[slope]
    state.remove(slope)
    state.remove(slope)  # a second time changes nothing
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    assert len(optimizer.state) == len(old)
    assert state.owner(slope) is None
