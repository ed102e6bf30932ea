"""What is removed is what was added, to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from deadwatch import BiasWarming, Policy, Rules, State, Watch
from deadwatch.errors import MissingStepWarning, UnfinishedCourseWarning
from tests.clinic import DEAD, Patient

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["mlp", "norm"])
def test_after_annealing_the_biases_are_bit_equal_to_before(kind: str, dtype: torch.dtype) -> None:
    patient = Patient.of(kind, dtype=dtype, depth=7.3)
    before = patient.tensors()["1.bias" if kind == "norm" else "0.bias"]
    report, watch = patient.treated(BiasWarming(hold=3, anneal=17, quiet=False))
    assert len(report.treatments) == 1
    course = [patient.tensors()]
    for _ in range(20):
        watch.step()
        course.append(patient.tensors())
    name = "1.bias" if kind == "norm" else "0.bias"
    assert torch.equal(course[-1][name], before)
    assert torch.equal(course[3][name], course[0][name])  # held
    heights = torch.stack([state[name][DEAD[0]] - before[DEAD[0]] for state in course[3:]])
    assert (heights.diff() <= 0).all()
    assert heights[9] > 0  # still on its way down after a third
    watch.detach()  # nothing is left to warn of


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whatever_moves_the_bias_meanwhile_the_schedule_writes_nothing_in_sum(
    dtype: torch.dtype,
) -> None:
    """Sum of all writes = 0, up to the one rounding that the last of them cannot avoid."""
    patient = Patient.of(dtype=dtype, depth=7.3)
    bias = patient.model[0].bias
    assert isinstance(bias, torch.Tensor)
    start = bias[DEAD].detach().double()
    _, watch = patient.treated(BiasWarming(hold=2, anneal=30, quiet=False))
    written = bias[DEAD].detach().double() - start
    assert (written > 5).all()
    for _ in range(32):
        with torch.no_grad():
            bias[DEAD] += 0.3 * torch.randn(3)  # as an optimizer would
        before = bias[DEAD].detach().double()
        watch.step()
        written += bias[DEAD].detach().double() - before
    last_place = torch.finfo(dtype).eps * bias[DEAD].detach().double().abs()
    assert (written.abs() <= last_place / 2 + 1e-12).all()
    watch.detach()


def test_live_units_are_never_written() -> None:
    patient = Patient.of()
    before = patient.tensors()["0.bias"]
    _, watch = patient.treated(BiasWarming(hold=0, anneal=5))
    for _ in range(5):
        watch.step()
        assert torch.equal(patient.tensors()["0.bias"][3:], before[3:])


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_auto_gamma_opens_the_chosen_share(share: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].bias[:4] -= 20
    x = torch.randn(20000, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    policy = Policy(BiasWarming(open_share=share))
    with Watch(model, optimizer=optimizer, policy=policy) as watch:
        model(x)
        watch.close_window()
        model(x)
        opened = watch.peek()["1"].open_fraction[:4]
        for _ in range(250):
            watch.step()
    np.testing.assert_allclose(opened, share, atol=0.02)


def test_a_number_is_added_as_it_is() -> None:
    patient = Patient.of()
    before = patient.tensors()["0.bias"][DEAD]
    patient.treated(BiasWarming(gamma=0.5, quiet=False))
    torch.testing.assert_close(patient.tensors()["0.bias"][DEAD], before + 0.5)


def test_units_with_a_constant_input_are_opened() -> None:
    """Behind a layer that is wholly dead, a unit sees its bias and nothing else."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[0].bias[:3] = torch.tensor([-1e-4, -1.0, -50.0])
    x = torch.randn(400, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Watch(model, optimizer=optimizer, policy=Policy(BiasWarming())) as watch:
        model(x)
        (treatment,) = watch.close_window().treatments
        model(x)
        report = watch.peek()
        with pytest.warns(UnfinishedCourseWarning, match="3 units were being warmed"):
            watch.detach()
    assert treatment.units.tolist()[:3] == [0, 1, 2]
    assert (report["1"].state[:3] == State.ALIVE).all()


def test_a_missing_step_is_noticed() -> None:
    patient = Patient.of()
    _, watch = patient.treated(BiasWarming(hold=5))
    patient.model(patient.x)
    with pytest.warns(MissingStepWarning, match=r"call it after every optimizer.step\(\)"):
        watch.close_window()
    watch.step()
    patient.model(patient.x)
    watch.close_window()  # no further warning
    with pytest.warns(UnfinishedCourseWarning, match="watching ended while 3 units"):
        watch.detach()


def test_units_in_a_course_are_not_treated_again() -> None:
    patient = Patient.of(depth=30.0)
    _, watch = patient.treated(BiasWarming(gamma=1e-3, hold=2, anneal=2), cooldown=0, when=0.0)
    patient.model(patient.x)
    watch.step()
    report = watch.close_window()
    assert report["1"].dead[DEAD].all()  # γ was far too small
    assert not report.treatments
    for _ in range(3):
        watch.step()
    patient.model(patient.x)
    assert watch.close_window().treatments[0].units.tolist() == DEAD
    for _ in range(4):
        watch.step()


def test_a_gate_of_its_own_is_respected() -> None:
    """Warming aims at where this activation opens, not at zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 8), nn.Threshold(2.0, 0.0), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].bias[0] -= 20
        model[0].bias[1:] += 4
    x = torch.randn(5000, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Watch(model, optimizer=optimizer, policy=Policy(BiasWarming(anneal=1, hold=0))) as watch:
        model(x)
        watch.close_window()
        model(x)
        assert watch.peek()["1"].open_fraction[0] == pytest.approx(0.25, abs=0.02)
        watch.step()


def test_rules_that_want_more_samples_hold_treatment_back() -> None:
    patient = Patient.of()
    watch = Watch(
        patient.model,
        optimizer=patient.optimizer,
        policy=Policy(BiasWarming()),
        rules=Rules(min_samples=1000),
    )
    with watch:
        patient.model(patient.x)
        report = watch.close_window()
    assert not report.treatments
    assert (report["1"].state[DEAD] == State.UNCERTAIN).all()
    assert report.dead_ratio == 0 or math.isnan(report.dead_ratio)


def test_a_bias_far_below_gamma_returns_to_its_bits() -> None:
    """Float64 cannot hold 1 + 1e-20; what was there before is kept for that."""
    patient = Patient.of(dead=[])
    with torch.no_grad():
        for unit, value in zip(DEAD, (-1.2345e-10, -1e-20, 0.0), strict=True):
            patient.model[0].weight[unit] = -1
            patient.model[0].bias[unit] = value
    patient.x = patient.x.abs()
    before = patient.tensors()["0.bias"]
    report, watch = patient.treated(BiasWarming(gamma=1.0, hold=1, anneal=4, quiet=False))
    assert set(DEAD) <= set(report.treatments[0].units.tolist())
    for _ in range(5):
        watch.step()
    assert torch.equal(patient.tensors()["0.bias"], before)
