"""Rules on data and statistics: numbers against plain formulas, limits from both sides.

DW401 is on inputs off centre, DW402 on growth, DW403 on what is not finite, DW404 on saturation,
DW405 on units in a coma, DW406 on gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from deadwatch import Finding, Watch, advise, scan
from deadwatch.judge.advice.statistics import (
    COMA,
    FADED,
    GROWTH,
    LARGE,
    OFF_CENTRE,
    OFF_CENTRE_WITHIN,
    SHUT,
)
from tests import architectures
from tests.advised import advised, by, rows, run_code, trained
from tests.nets import mlp


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ── DW401 ───────────────────────────────────────────────────────────────────────────────


def apart(ratio: float, count: int = 500, features: int = 12) -> Tensor:
    """Data with a mean of that many times their standard deviation."""
    x = rows(count, features)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    direction = torch.linspace(-1, 2, features)
    mean: Tensor = ratio * math.sqrt(features) * direction / direction.norm()
    return x + mean


@pytest.mark.parametrize(
    ("ratio", "severity"),
    [
        (OFF_CENTRE[0] - 0.05, None),
        (OFF_CENTRE[0] + 0.05, "info"),
        (OFF_CENTRE[1] - 0.05, "info"),
        (OFF_CENTRE[1] + 0.05, "warning"),
    ],
)
def test_data_are_off_centre_from_their_limits_on(ratio: float, severity: str | None) -> None:
    x = apart(ratio)
    found = by("DW401", advised(mlp(), x))
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    array = x.numpy().astype(np.float64)
    by_hand = np.linalg.norm(array.mean(0)) / np.linalg.norm(array.std(0))
    for finding in found:
        assert finding.where == ("0.weight",)
        assert finding.numbers["centre"] == pytest.approx(by_hand, rel=1e-4)
        scope: dict[str, object] = {"x": x, "mean": x.mean(0), "std": x.std(0)}
        run_code(finding, mlp(), **scope)


def test_data_that_were_centred_as_the_finding_says_are_in_order() -> None:
    x = apart(5.0)
    assert by("DW401", advised(mlp(), x))
    assert not by("DW401", advised(mlp(), (x - x.mean(0)) / x.std(0)))


@pytest.mark.parametrize(
    ("ratio", "found"), [(OFF_CENTRE_WITHIN - 0.2, 0), (OFF_CENTRE_WITHIN + 0.2, 1)]
)
def test_what_other_layers_make_may_be_further_off_centre(ratio: float, found: int) -> None:
    first = nn.Linear(12, 12)
    with torch.no_grad():
        first.weight.copy_(torch.eye(12))
        first.bias.copy_(apart(ratio).mean(0))
    x = apart(0.0)
    findings = by("DW401", advised(nn.Sequential(first, nn.Linear(12, 3), nn.ReLU()), x))
    assert [(f.where, f.severity) for f in findings] == [(("1.weight",), "info")] * found


@pytest.mark.parametrize(("count", "found"), [(15, 0), (16, 1)])
def test_a_few_samples_have_no_mean(count: int, found: int) -> None:
    assert len(by("DW401", advised(mlp(), apart(5.0, count)))) == found


def test_channels_of_images_are_features() -> None:
    x = architectures.images() + torch.tensor([9.0, 0, 0])[:, None, None]
    (finding,) = by("DW401", advised(architectures.basic_block(), x))
    channels = x.transpose(0, 1).flatten(1).double()
    by_hand = channels.mean(1).norm() / channels.std(1, correction=0).norm()
    assert finding.numbers["centre"] == pytest.approx(float(by_hand), rel=1e-4)


def test_data_that_do_not_vary_are_told_as_that() -> None:
    (finding,) = by("DW401", advised(mlp(), torch.ones(500, 12)))[:1]
    assert finding.severity == "warning"
    assert "does not vary" in finding.message


# ── DW402 ───────────────────────────────────────────────────────────────────────────────


def chain(factor: float, layers: int = 5, width: int = 64) -> nn.Sequential:
    """ReLU layers whose weights are those of He et al. times a factor."""
    model: list[nn.Module] = []
    for index in range(layers):
        layer = nn.Linear(12 if index == 0 else width, width, bias=False)
        nn.init.kaiming_normal_(layer.weight)
        layer.weight.data.mul_(factor if index else 1)
        model += [layer, nn.ReLU()]
    return nn.Sequential(*model, nn.Linear(width, 3))


def sizes(model: nn.Sequential, x: Tensor) -> list[float]:
    """Root mean squares of the pre-activations, by hand."""
    found = []
    for part in model:
        if isinstance(part, nn.ReLU):
            found.append(float(x.detach().square().mean().sqrt()))
        x = part(x)
    return found


@pytest.mark.parametrize(("towards", "found"), [(0.97, 0), (1.03, 1)])
@pytest.mark.parametrize("growth", [GROWTH, 1 / GROWTH])
def test_growth_is_that_of_the_weights_and_found_from_its_limit_on(
    growth: float, towards: float, found: int
) -> None:
    x = rows(features=12)
    model = chain(1.0)
    first, *_, last = sizes(model, x)
    own = (last / first) ** (1 / 4)
    wanted = growth * (towards if growth > 1 else 1 / towards)
    for layer in list(model)[2:-1:2]:
        layer.weight.data.mul_(wanted / own)  # a ReLU keeps its shape at every scale
    findings = [f for f in by("DW402", advised(model, x)) if "growth" in f.numbers]
    assert [f.severity for f in findings] == ["warning"] * found
    for finding in findings:
        assert finding.numbers == {"growth": pytest.approx(wanted, rel=1e-3), "layers": 5}
        assert finding.where == ("1", "3", "5", "7", "9")
        assert ("grow" if growth > 1 else "shrink") in finding.message


def test_growth_is_also_told_of_a_training_that_is_under_way() -> None:
    model = chain(20.0, layers=4)
    model[-1].weight.data.mul_(1e-6)
    reports = trained(model, SGD(model.parameters(), 1e-9), windows=2, steps=12)
    assert [f for f in by("DW402", list(reports[1].findings)) if "growth" in f.numbers]


def test_two_layers_are_no_chain_to_grow_along() -> None:
    x = rows(features=12)
    assert not by("DW402", advised(chain(20.0, layers=2), x))
    assert by("DW402", advised(chain(20.0, layers=3), x))


def test_a_norm_ends_growth() -> None:
    model = [p for _ in range(5) for p in (nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU())]
    for layer in model[::3]:
        layer.get_parameter("weight").data.mul_(50)
    assert not by("DW402", advised(nn.Sequential(*model), rows(features=12)))


@pytest.mark.parametrize(("times", "found"), [(0.999, 0), (1.001, 1)])
def test_values_are_too_large_from_a_limit_on(times: float, found: int) -> None:
    model, x = mlp(), rows(features=12)
    first, _ = sizes(model, x)
    with torch.no_grad():
        model[0].weight.mul_(times * LARGE / first)
        model[0].bias.mul_(times * LARGE / first)
        model[2].weight.mul_(first / LARGE)
    findings = by("DW402", advised(model, x))
    assert [(f.where, f.severity) for f in findings] == [(("1",), "warning")] * found
    for finding in findings:
        assert finding.numbers["size"] == pytest.approx(times * LARGE, rel=1e-5)


# ── DW403 ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_counted_and_an_error(value: float) -> None:
    model, x = mlp(), rows(features=12)
    x[3] = value
    with torch.no_grad():
        model[0].weight[:5] = 0.1
        model[0].weight[5:] = torch.rand(11, 12) + 0.1
    found = {f.where[0]: f for f in by("DW403", advised(model, x))}
    assert found.keys() == {"1", "3"}
    assert {finding.severity for finding in found.values()} == {"error"}
    assert found["1"].numbers["values"] == float((~model[0](x).isfinite()).sum()) == 16
    assert "16 pre-activations of 16 units of 1" in found["1"].message
    run_code(found["1"], model)
    torch.autograd.set_detect_anomaly(False)


def test_finite_values_are_in_order() -> None:
    assert not by("DW403", advised(mlp(), rows(features=12) * 1e6))


# ── DW404, DW405 ────────────────────────────────────────────────────────────────────────


def shut(act: nn.Module, share: float, value: float = 100.0) -> list[Finding]:
    """Advice where such a share of the elements lies at a value, and the others at a quarter."""
    first = nn.Linear(6, 6, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(6))
    x = torch.full((1000, 6), 0.25)
    x[: round(share * 1000)] = value
    x[: round(share * 500)] *= -1
    return advised(nn.Sequential(first, act, nn.Linear(6, 2)), x)


@pytest.mark.parametrize("act", [nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Softsign])
@pytest.mark.parametrize(
    ("share", "severity"),
    [
        (SHUT[0] - 0.001, None),
        (SHUT[0] + 0.001, "info"),
        (SHUT[1] - 0.001, "info"),
        (SHUT[1] + 0.001, "warning"),
    ],
)
def test_gates_of_two_sided_activations_are_shut_from_their_limits_on(
    act: Callable[[], nn.Module], share: float, severity: str | None
) -> None:
    found = by("DW404", shut(act(), share))
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    for finding in found:
        assert finding.where == ("1",)
        assert finding.numbers["closed"] == pytest.approx(share)


def test_an_output_that_is_certain_is_only_told() -> None:
    first = nn.Linear(6, 6, bias=False)
    with torch.no_grad():
        first.weight.mul_(1000)
    (found,) = by("DW404", advised(nn.Sequential(first, nn.Sigmoid()), rows()))
    assert found.severity == "info"
    assert found.numbers["closed"] > SHUT[1]


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6(), nn.ELU(), nn.LeakyReLU(), nn.Hardswish()])
def test_one_sided_activations_are_not_saturated_by_being_closed(act: nn.Module) -> None:
    assert not by("DW404", shut(act, 0.9))


def asleep(act: nn.Module, closed: int, units: int = 20) -> list[Finding]:
    """Advice where so many units lie far below zero for all data."""
    model = nn.Sequential(nn.Linear(6, units), act, nn.Linear(units, 2))
    with torch.no_grad():
        model.get_parameter("0.bias").fill_(2.0)
        model.get_parameter("0.bias")[:closed] = -50
    return advised(model, rows())


@pytest.mark.parametrize("act", [nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus])
@pytest.mark.parametrize(
    ("closed", "severity"), [(1, None), (2, "info"), (5, "info"), (6, "warning"), (20, "warning")]
)
def test_units_in_a_coma_are_told_from_their_limits_on(
    act: Callable[[], nn.Module], closed: int, severity: str | None
) -> None:
    assert COMA == (0.1, 0.3)
    found = by("DW405", asleep(act(), closed))
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    for finding in found:
        assert finding.numbers == {"units": closed, "share": closed / 20}
        run_code(finding, mlp())


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU()])
def test_only_what_has_a_tail_on_one_side_falls_into_a_coma(act: nn.Module) -> None:
    assert not by("DW405", asleep(act, 20))


# ── DW406 ───────────────────────────────────────────────────────────────────────────────


def pinched(factor: float) -> nn.Sequential:
    """A chain through which the gradient comes back smaller by a factor, in one place."""
    model = nn.Sequential(
        *(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 40)),
        *(nn.Tanh(), nn.Linear(40, 3)),
    )
    with torch.no_grad():
        model[2].weight.mul_(factor)
    return model


def ratio_by_hand(model: nn.Sequential, x: Tensor, y: Tensor) -> float:
    """Norm of the gradient at the first pre-activation over that at the last."""
    kept = []
    for part in model:
        if isinstance(part, nn.Tanh):
            x.retain_grad()
            kept.append(x)
        x = part(x)
    F.cross_entropy(x, y).backward()
    norms = [float(one.grad.norm()) for one in kept if one.grad is not None]
    model.zero_grad()
    return norms[0] / norms[-1]


def gradient_advice(model: nn.Module, x: Tensor, y: Tensor, windows: int = 1) -> list[Finding]:
    """Advice of the last window of some that are all of one batch, without steps."""
    with Watch(model, optimizer=SGD(model.parameters(), 0.1), advice=True, gradients=True) as watch:
        for _ in range(windows):
            F.cross_entropy(model(x), y).backward()
            watch.step()
            report = watch.close_window()
    return by("DW406", list(report.findings))


def batch() -> tuple[Tensor, Tensor]:
    x = rows(64, 12)
    return x, x[:, :3].argmax(1)


@pytest.mark.parametrize(("towards", "found"), [(0.8, 1), (1.2, 0)])
def test_a_gradient_vanishes_from_a_limit_on(towards: float, found: int) -> None:
    model = pinched(1e-3)
    factor = FADED * towards / ratio_by_hand(model, *batch())
    with torch.no_grad():
        model[2].weight.mul_(factor)  # it is small: tanh is linear there
    findings = gradient_advice(model, *batch())
    assert [f.severity for f in findings] == ["warning"] * found
    for finding in findings:
        by_hand = ratio_by_hand(model, *batch())
        assert finding.numbers["ratio"] == pytest.approx(by_hand, rel=1e-3)
        assert by_hand == pytest.approx(FADED * towards, rel=0.02)
        assert finding.where == ("1", "5")
        assert "vanishes" in finding.message


@pytest.mark.parametrize(("towards", "found"), [(0.8, 0), (1.2, 1)])
def test_a_gradient_explodes_from_a_limit_on(towards: float, found: int) -> None:
    model = pinched(1e-6)
    ratio = ratio_by_hand(model, *batch())
    with torch.no_grad():  # two layers of a chain pull it up; what flows forward stays small
        model[0].weight.mul_(1e-8)
        model[0].bias.mul_(1e-8)
        model[2].weight.mul_(towards / FADED / ratio)
        model[2].bias.zero_()
    ratio = ratio_by_hand(model, *batch())
    with torch.no_grad():
        model[2].weight.mul_(towards / FADED / ratio)
    findings = gradient_advice(model, *batch())
    by_hand = ratio_by_hand(model, *batch())
    assert (by_hand > 1 / FADED) == bool(found)
    assert [f.severity for f in findings] == ["warning"] * found
    for finding in findings:
        assert finding.numbers["ratio"] == pytest.approx(by_hand, rel=1e-3)
        assert "explodes" in finding.message


def test_a_site_that_no_gradient_reaches_is_told_and_later_a_warning() -> None:
    model = pinched(0.0)
    (first,) = gradient_advice(model, *batch())
    assert (first.where, first.severity, first.numbers["norm"]) == (("1",), "info", 0)
    (second,) = gradient_advice(model, *batch(), windows=2)
    assert second.severity == "warning"


def test_gradients_of_a_healthy_training_are_in_order() -> None:
    model = mlp()
    for report in trained(model, SGD(model.parameters(), 0.05), windows=2, gradients=True):
        assert report.gauges is not None
        assert report.gauges.gradients
        assert not by("DW406", list(report.findings))


def test_where_no_gradient_is_measured_nothing_is_said_of_it() -> None:
    model = pinched(0.0)
    report = trained(model, SGD(model.parameters(), 0.05), windows=2)[-1]
    assert not by("DW406", list(report.findings))
    assert not by("DW406", advise(model, report=scan(model, [rows(features=12)])))
