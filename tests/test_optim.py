"""Optimizer state of treated rows starts afresh; that of live rows is bit-equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from deadwatch import Recycle
from deadwatch.errors import OptimizerStateWarning
from deadwatch.treat.optim import FIRST_MOMENTS, SECOND_MOMENTS
from tests.clinic import DEAD, Patient

KNOWN: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "adam-foreach-amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=True, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
}
LIVE = [unit for unit in range(16) if unit not in DEAD]


def state_of(tensors: dict[str, Tensor], parameter: str) -> dict[str, Tensor]:
    prefix = f"{parameter}:"
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.mark.parametrize("optimizer", KNOWN.values(), ids=KNOWN)
def test_treated_rows_start_afresh_and_live_rows_are_bit_equal(
    optimizer: Callable[[Any], Optimizer],
) -> None:
    patient = Patient.of(optimizer=optimizer)
    before = patient.tensors()
    patient.treated(Recycle())
    after = patient.tensors()
    for parameter, axis in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
        old, new = state_of(before, parameter), state_of(after, parameter)
        for key, value in new.items():
            if value.ndim == 0:  # the step count, shared by all rows
                assert torch.equal(value, old[key])
                continue
            live = torch.tensor(LIVE)
            assert torch.equal(value.index_select(axis, live), old[key].index_select(axis, live))
            rows = value.index_select(axis, torch.tensor(DEAD))
            if key in FIRST_MOMENTS:
                assert not rows.any()
            else:
                assert key in SECOND_MOMENTS
                typical = value.index_select(axis, live).median(axis, keepdim=True).values
                assert torch.equal(rows, typical.expand_as(rows))


def test_the_first_step_of_a_restarted_row_is_no_leap() -> None:
    """With a zeroed second moment and an old step count it would be 2.5 to 3.2 times the rate."""
    patient = Patient.of(depth=1.5)
    patient.train(300)
    with torch.no_grad():
        patient.model[0].bias[DEAD] -= 30
    patient.train(1)
    _, watch = patient.treated(Recycle())
    before = patient.tensors()
    patient.train(1, watch)
    after = patient.tensors()
    leap = (after["2.weight"][:, DEAD] - before["2.weight"][:, DEAD]).abs().max()
    assert 0 < leap <= 1.5e-2


def test_an_unknown_optimizer_is_left_alone_with_a_warning() -> None:
    patient = Patient.of(optimizer=lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9))
    before = patient.tensors()
    with pytest.warns(OptimizerStateWarning, match="RMSprop keeps a state that deadwatch does not"):
        report, _ = patient.treated(Recycle())
    after = patient.tensors()
    assert len(report.treatments) == 1
    assert all(torch.equal(before[name], after[name]) for name in before if ":" in name)
    assert not torch.equal(before["0.weight"], after["0.weight"])


def test_two_optimizers_each_keep_their_own() -> None:
    patient = Patient.of()
    first = torch.optim.Adam(patient.model[0].parameters(), lr=1e-2)
    second = torch.optim.SGD(patient.model[2].parameters(), lr=1e-2, momentum=0.9)
    for optimizer in (first, second):
        patient.model(patient.x).square().mean().backward()
        optimizer.step()
    patient.optimizer = [first, second]
    watch = patient.watch(Recycle()).attach()
    patient.model(patient.x)
    assert len(watch.close_window().treatments) == 1
    rows = first.state[patient.model[0].weight]["exp_avg"]
    columns = second.state[patient.model[2].weight]["momentum_buffer"]
    assert not rows[DEAD].any()
    assert rows[LIVE].any()
    assert not columns[:, DEAD].any()
    assert columns[:, LIVE].any()


def test_training_goes_on_after_a_treatment() -> None:
    for optimizer in KNOWN.values():
        patient = Patient.of(optimizer=optimizer, depth=3.0)
        _, watch = patient.treated(Recycle())
        patient.train(3, watch)
        assert torch.isfinite(patient.model(patient.x)).all()
