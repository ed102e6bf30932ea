"""Rules on initialisation: numbers against plain formulas and simulations, limits from both sides.

DW201 is on biases far below zero, DW202 on gains that do not fit, DW203 on units dead on arrival.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deadwatch import Rules, advise, scan
from deadwatch.judge.advice.initialisation import FAINT, LOW, POWER
from tests import architectures, table_tokens
from tests.advised import advised, by, deep, later, rows, run_code, signals, tdnn
from tests.nets import mlp


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def spreads(layer: nn.Linear, x: Tensor) -> Tensor:
    """Standard deviation of each unit's pre-activation."""
    return (x @ layer.weight.detach().T).std(0, correction=0)


def biased(by_spreads: float, act: nn.Module | None = None, units: int = 33) -> nn.Sequential:
    """A network whose first biases are so many standard deviations of the pre-activations."""
    first = nn.Linear(6, units)
    with torch.no_grad():
        first.bias.copy_(by_spreads * spreads(first, rows()))
    return nn.Sequential(first, act or nn.ReLU(), nn.Linear(units, 2))


# ── DW201 ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("ratio", "found"), [(LOW - 0.02, 1), (LOW + 0.02, 0), (2.0, 0)])
def test_biases_are_too_low_from_one_standard_deviation_on(ratio: float, found: int) -> None:
    findings = by("DW201", advised(biased(ratio), rows()))
    assert len(findings) == found
    for finding in findings:
        assert finding.where == ("0.bias",)
        assert finding.numbers == {"median": pytest.approx(ratio, rel=1e-4), "negative": 1.0}


def test_the_median_is_that_of_the_measured_ratios() -> None:
    model = biased(0.0)
    with torch.no_grad():
        model[0].bias.copy_(torch.linspace(-9, 0.5, 33))
    (finding,) = by("DW201", advised(model, rows()))
    ratios = model[0].bias.detach() / spreads(model[0], rows())
    assert finding.numbers["median"] == pytest.approx(float(ratios.median()), rel=1e-4)
    assert finding.numbers["negative"] == pytest.approx(float((ratios < 0).float().mean()))


def test_behind_a_batch_norm_a_shift_is_low_against_its_scale() -> None:
    model = tdnn(nn.BatchNorm1d, lambda _: nn.ReLU())
    with torch.no_grad():
        model.get_parameter("4.weight").fill_(0.5)
        model.get_parameter("4.bias").fill_(-1.25)
    (finding,) = by("DW201", advised(model, signals()))
    assert finding.where == ("4.bias",)
    assert finding.numbers["median"] == pytest.approx(-2.5)


def test_low_biases_are_a_warning_where_the_units_that_they_close_do_harm() -> None:
    (mild,) = by("DW201", advised(biased(-1.5), rows()))
    assert mild.severity == "info"
    (deadly,) = by("DW201", advised(biased(-30.0), rows()))
    assert deadly.severity == "warning"
    assert "33 of 33 units are dead" in deadly.message
    model = biased(-30.0)
    run_code(by("DW201", advised(model, rows()))[0], model)
    assert not model[0].bias.any()


@pytest.mark.parametrize("act", [nn.LeakyReLU(), nn.Tanh(), nn.Sigmoid()])
def test_low_biases_before_what_does_not_close_on_that_side_are_in_order(act: nn.Module) -> None:
    assert not by("DW201", advised(biased(-3.0, act), rows()))


def test_low_biases_are_no_matter_of_initialisation_once_training_is_under_way() -> None:
    model = biased(-30.0)
    assert not by("DW201", advise(model, report=later(scan(model, [rows()]))))


def test_without_a_forward_no_bias_is_judged() -> None:
    assert not by("DW201", advised(biased(-30.0)))


# ── DW202 ───────────────────────────────────────────────────────────────────────────────


def chain(layers: int, gain: float, width: int = 256, act: Any = nn.ReLU) -> nn.Sequential:
    """Layers and activations whose gains all are that much (He et al.), and a head."""
    model: list[nn.Module] = []
    for _ in range(layers):
        layer = nn.Linear(width, width, bias=False)
        layer.weight.data.mul_(gain / POWER[act.__name__] ** 0.5 / rms(layer.weight) / width**0.5)
        model += [layer, act()]
    return nn.Sequential(*model, nn.Linear(width, 2))


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


@pytest.mark.parametrize("gain", [0.4, 2.6])
def test_the_gain_is_that_of_the_weights_and_about_what_happens_to_the_signal(gain: float) -> None:
    model, x = chain(6, gain, act=nn.SiLU if gain < 1 else nn.ReLU), rows(400, 256)
    (finding,) = by("DW202", advised(model, x))
    weights = [model[2 * i].weight for i in range(6)]
    power = POWER[type(model[1]).__name__]
    by_hand = float(np.prod([rms(w) * math.sqrt(w.shape[1] * power) for w in weights]))
    assert finding.numbers == {"gain": pytest.approx(by_hand, rel=1e-4), "layers": 6}
    assert finding.where == tuple(f"{2 * i}.weight" for i in range(6))
    if gain > 1:  # a ReLU's share of the power is the same at every scale
        measured = rms(model[:-1](x)) / rms(x)
        assert measured == pytest.approx(by_hand, rel=0.3)


@pytest.mark.parametrize(
    ("product", "severity"),
    [
        (math.sqrt(FAINT) * 1.05, None),
        (math.sqrt(FAINT) * 0.95, "info"),
        (FAINT * 1.05, "info"),
        (FAINT * 0.95, "warning"),
        (0.95 / math.sqrt(FAINT), None),
        (1.05 / math.sqrt(FAINT), "info"),
        (0.95 / FAINT, "info"),
        (1.05 / FAINT, "warning"),
    ],
)
def test_a_gain_is_a_misfit_from_its_limits_on(product: float, severity: str | None) -> None:
    model = chain(5, product ** (1 / 5), width=32)
    found = by("DW202", advised(model, rows(400, 32)))
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert [f.severity for f in by("DW202", advised(model))] == [f.severity for f in found]


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv1d(8, 16, 3, bias=False),
        nn.Conv1d(8, 16, 3, groups=4, bias=False),
        nn.ConvTranspose1d(8, 16, 3, bias=False),
        nn.ConvTranspose1d(8, 16, 3, groups=4, bias=False),
    ],
    ids=["plain", "grouped", "transposed", "transposed, grouped"],
)
def test_the_fan_in_of_a_convolution_is_what_one_unit_sums_up(convolution: nn.Module) -> None:
    """The simulated gain of one layer; the other of the chain has a gain of 1e-4."""
    weight = convolution.get_parameter("weight")
    nn.init.normal_(weight, std=0.5)
    then = nn.Conv1d(16, 16, 1, bias=False)
    then.weight.data.mul_(1e-4 / rms(then.weight) / math.sqrt(16 * 0.5))
    model = nn.Sequential(convolution, nn.ReLU(), then, nn.ReLU(), nn.Conv1d(16, 2, 1))
    (finding,) = by("DW202", advised(model, signals()))
    x = torch.randn(300, 8, 30)
    inside = convolution(x)[..., 3:-3]  # a transposed one sums up less at its ends
    assert finding.numbers["gain"] * 1e4 == pytest.approx(rms(torch.relu(inside)), rel=0.1)


@pytest.mark.parametrize("name", POWER)
def test_powers_are_those_of_a_standard_normal(name: str) -> None:
    z = torch.linspace(-9, 9, 20_001, dtype=torch.double)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    act = getattr(nn, name)().double().eval()
    power = float(torch.trapezoid(density * act(z).detach().square(), z))
    assert POWER[name] == pytest.approx(power, abs=0.04)


def healthy() -> dict[str, tuple[nn.Module, Tensor]]:
    fitted = deep(20, 64)
    for one in fitted.modules():
        if isinstance(one, nn.Linear):
            nn.init.kaiming_normal_(one.weight, nonlinearity="relu")
    normed = [p for _ in range(9) for p in (nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())]
    return {
        "he": (fitted, rows()),
        "shallow": (mlp(), rows(features=12)),
        "normed": (nn.Sequential(*normed), rows()),
        "residual": (architectures.basic_block(), architectures.images()),
        "transformer": (architectures.transformer(True, True), architectures.tokens()),
        "gpt": (table_tokens.GPT(), table_tokens.gpt_batch()),
    }


@pytest.mark.parametrize("name", healthy())
def test_healthy_architectures_begin_with_fitting_gains_and_biases(name: str) -> None:
    model, x = healthy()[name]
    found = advised(model, x)
    assert not by("DW202", found)
    assert not by("DW201", found)
    assert not [f for f in by("DW203", found) if f.at_least("warning")]


def test_a_deep_chain_as_torch_makes_it_loses_the_signal() -> None:
    model = deep(20, 64)
    (finding,) = by("DW202", advised(model, rows()))
    assert finding.severity == "warning"
    assert finding.numbers["gain"] == pytest.approx((1 / 6) ** 10, rel=0.5)  # √(1/6) a layer
    run_code(finding, model)
    assert not by("DW202", advised(model, rows()))


def test_gains_are_not_judged_once_training_is_under_way() -> None:
    model = deep(20, 64)
    assert not by("DW202", advise(model, report=later(scan(model, [rows()]))))


@pytest.mark.parametrize(("variance", "found"), [(0.45, 1), (0.55, 0), (1.0, 0), (2.1, 1)])
def test_selu_wants_weights_of_unit_variance(variance: float, found: int) -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.SELU(), nn.Linear(48, 2))
    model[0].weight.data.mul_(math.sqrt(variance / 64) / rms(model[0].weight))
    findings = by("DW202", advised(model, rows(400, 64)))
    assert [f.severity for f in findings] == ["info"] * found
    for finding in findings:
        assert finding.numbers["variance"] == pytest.approx(variance, rel=1e-4)
        run_code(finding, model)
        assert rms(model[0].weight) ** 2 * 64 == pytest.approx(1, rel=0.1)


# ── DW203 ───────────────────────────────────────────────────────────────────────────────


def off_centre(ratio: float, features: int = 32, count: int = 1000) -> Tensor:
    """Data whose mean is that many times as long as their standard deviation."""
    x = torch.randn(count, features)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    direction = torch.randn(features)
    mean: Tensor = ratio * math.sqrt(features) * direction / direction.norm()
    return x + mean


@pytest.mark.parametrize("ratio", [1.5, 3.0, 8.0])
def test_as_many_units_are_closed_and_open_for_all_as_theory_says(ratio: float) -> None:
    units = 6000
    model = nn.Sequential(nn.Linear(32, units, bias=False), nn.ReLU(), nn.Linear(units, 2))
    (finding,) = by("DW203", advised(model, off_centre(ratio)))
    largest = NormalDist().inv_cdf((1000 - 3 / 8) / (1000 + 1 / 4))  # Blom 1958
    expected = NormalDist().cdf(-largest / ratio)
    assert finding.numbers["expected"] == pytest.approx(expected, rel=0.01)
    for share in ("dead", "always_open"):
        assert finding.numbers[share] == pytest.approx(expected, rel=0.25)
    assert finding.severity == "info"
    assert finding.code.startswith("# nothing: ")


def test_shares_are_counted_and_a_layer_that_leans_is_a_warning() -> None:
    model = biased(0.0, units=40)
    with torch.no_grad():
        model[0].bias[:24] = -100
        model[0].bias[24:26] = 100
    (finding,) = by("DW203", advised(model, rows()))
    assert finding.severity == "warning"
    assert finding.numbers["dead"] == 24 / 40
    assert finding.numbers["always_open"] == 2 / 40
    assert finding.numbers["units"] == 40
    run_code(finding, model)
    assert not by("DW203", advised(model, rows()))


def test_a_symmetric_layer_is_only_told_however_many_are_closed() -> None:
    model = biased(0.0, units=40)
    with torch.no_grad():
        model[0].bias[:15] = -100
        model[0].bias[15:30] = 100
    (finding,) = by("DW203", advised(model, rows()))
    assert finding.severity == "info"
    assert finding.code.startswith("# nothing: ")  # the biases are not what leans


def test_a_layer_that_is_closed_as_a_whole_is_an_error() -> None:
    (finding,) = by("DW203", advised(biased(-100.0), rows()))
    assert finding.severity == "error"
    assert finding.numbers["dead"] == 1


def test_what_is_expected_of_unknown_inputs_is_the_half_of_what_is_closed_or_open() -> None:
    model = biased(0.0, nn.Hardswish(), units=40)  # no rectifier: the theory is not for it
    with torch.no_grad():
        model[0].bias[:15] = -100
        model[0].bias[15:20] = 100
    (finding,) = by("DW203", advised(model, 10 * rows()))
    assert finding.numbers["expected"] == pytest.approx(10 / 40)


def test_too_few_samples_say_nothing_of_death() -> None:
    model = biased(-100.0)
    least = Rules().min_samples
    assert not by("DW203", advised(model, rows(least - 1)))
    assert by("DW203", advised(model, rows(least)))


def test_units_that_are_all_alive_have_not_arrived_dead() -> None:
    assert not by("DW203", advised(mlp(), rows(features=12)))


def test_what_is_dead_in_a_later_window_has_not_just_arrived() -> None:
    model = biased(-100.0)
    assert not by("DW203", advise(model, report=later(scan(model, [rows()]))))
