"""Advice on what users bring: models and runs that are out of the ordinary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deadwatch import Finding, WindowReport, advise, scan
from tests.advised import advised, by, deep, rows, signals


def only(rule: str, model: nn.Module, x: Tensor | None = None, **arguments: Any) -> Finding:
    (found,) = by(rule, advised(model, x, **arguments))
    return found


def shut(model: nn.Sequential, *units: int, layer: int = 0) -> nn.Sequential:
    """The model, with units that no data open."""
    with torch.no_grad():
        model.get_parameter(f"{layer}.bias")[list(units)] = -1e3
    return model


# ── models ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_layer_whose_weight_is_computed_by_a_hook_is_passed_over(norm: Any) -> None:
    """Such a weight is a plain tensor and no parameter."""
    model = nn.Sequential(norm(nn.Linear(6, 4)), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert only("DW101", model).where == ("1",)


def test_a_grouped_transposed_convolution_has_the_gain_of_its_own_inputs() -> None:
    def chain(groups: int) -> nn.Sequential:
        layers = [nn.ConvTranspose1d(32, 32, 3, groups=groups) for _ in range(6)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=(2 / (32 // groups * 3)) ** 0.5)
        return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))

    for groups in (1, 16):
        model = chain(groups)
        report = scan(model, [torch.randn(20, 32, 8)])
        assert not by("DW202", advise(model) + advise(model, report=report))


def test_no_theory_of_births_for_units_that_read_a_part_of_the_inputs() -> None:
    """The inputs as a whole are centred; half of the channels are far off, each way."""
    x = rows(400, 4).unsqueeze(-1) + torch.tensor([[[5.0], [5.0], [-5.0], [-5.0]]])
    model = nn.Sequential(nn.Conv1d(4, 64, 1, groups=4, bias=False), nn.ReLU(), nn.Conv1d(64, 2, 1))
    found = only("DW203", model, x)
    numbers = found.numbers
    assert numbers["expected"] == (numbers["dead"] + numbers["always_open"]) / 2


# ── what findings say ───────────────────────────────────────────────────────────────────


def test_one_unit_is_dead_and_two_are() -> None:
    def told(*units: int) -> str:
        model = shut(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), *units)
        return only("DW602", model, rows()).message

    assert told(1).startswith("1 of 8 units of 1 is dead")
    assert told(1, 2).startswith("2 of 8 units of 1 are dead")


def test_an_input_that_does_not_vary_is_told_so() -> None:
    found = by("DW401", advised(deep(1, 4), torch.ones(40, 6)))
    assert (
        found[0].message
        == "the data that 0.weight reads does not vary: 40 samples are all the same"
    )


def test_biases_are_no_harmless_ones_where_nothing_was_judged() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.constant_(model.get_parameter("0.bias"), -30.0)
    found = only("DW201", model, rows(20))
    assert found.severity == "warning"
    assert found.message.endswith("standard deviations of what 1 reads")


@pytest.mark.parametrize(("gain", "told"), [(8.0, "3e+04"), (0.125, "3e-05")])
def test_a_misfit_gain_is_told_the_same_way_up_and_down(gain: float, told: str) -> None:
    model = deep(5, 32, 32)
    for layer in range(0, 10, 2):
        nn.init.constant_(model.get_parameter(f"{layer}.weight"), gain * (2 / 32) ** 0.5)
    end = f"the 5 layers from 1 to 9 multiply the signal's amplitude by {told}"
    assert only("DW202", model).message == end


# ── what dead units cost ────────────────────────────────────────────────────────────────


def compute(report: WindowReport, model: nn.Module, site: str) -> float:
    (found,) = (f for f in advise(model, report=report) if f.id in ("DW601", "DW602"))
    assert found.where == (site,)
    return found.numbers["compute"]


def test_dead_units_take_no_more_than_all_multiplications() -> None:
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
    report = scan(shut(model, *range(8)), [rows(400, 1)])
    assert compute(report, model, "1") == 1


def test_a_head_behind_a_flatten_multiplies_once_a_sample() -> None:
    """Of 8 × 3 × 4 × 28 multiplications of the convolution and 4 × 28 × 5 of the head."""
    convolution, head = nn.Conv1d(8, 4, 3), nn.Linear(4 * 28, 5)
    model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), head, nn.ReLU(), nn.Linear(5, 20))
    report = scan(shut(model, 0, 1, layer=3), [torch.cat([signals()] * 10)])
    most = 8 * 3 * 4 * 28 + 4 * 28 * 5 + 5 * 20
    least = 2 * (4 * 28 + 20)
    assert compute(report, model, "4") == pytest.approx(least / most)
