"""Advice on what users bring: models and runs that are out of the ordinary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deadwatch import ConfigError, Finding, Policy, Recycle, Watch, WindowReport, advise, scan
from deadwatch.judge.advice import cost
from deadwatch.judge.advice.facts import Facts
from deadwatch.judge.history import History
from deadwatch.records import Death, Gauges
from tests.advised import advised, by, deep, rows, signals


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)  # no unit is born dead but by intent


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


@pytest.mark.parametrize("ignore", [None, 3])
def test_what_is_no_list_of_patterns_is_refused(ignore: Any) -> None:
    with pytest.raises(ConfigError, match="expected a list of ids of findings, such as"):
        advise(deep(1, 4), ignore=ignore)


def test_a_report_of_another_model_is_refused() -> None:
    report = scan(deep(2, 4), [rows()])
    with pytest.raises(ConfigError, match=r"'0.weight' of shape \(4, 6\), .* has no such weight"):
        advise(nn.Identity(), report=report)
    with pytest.raises(ConfigError, match=r"the model has one of shape \(8, 6\); .* scan it again"):
        advise(deep(2, 8), report=report)


def test_a_report_of_a_model_with_compiled_parts_is_one_of_that_model() -> None:
    model = deep(2, 4)
    model[2].compile(backend="eager")
    wrapped = nn.Sequential(torch.compile(model, backend="eager"), nn.Linear(3, 2))
    assert advise(wrapped, report=scan(wrapped, [rows()]))


# ── what findings say ───────────────────────────────────────────────────────────────────


def test_one_unit_is_dead_and_two_are() -> None:
    def told(*units: int) -> str:
        model = shut(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), *units)
        return only("DW602", model, rows()).message

    assert told(1).startswith("1 of 8 units of 1 is dead")
    assert told(1, 2).startswith("2 of 8 units of 1 are dead")


def test_one_bias_is_decayed_and_two_are() -> None:
    model = deep(1, 4)
    for weights, told in ((model[:1], "1 bias or norm parameter by"), (model, "2 biases and norm")):
        decayed = torch.optim.SGD(weights.parameters(), 0.1, weight_decay=0.1)
        assert f"SGD decays {told}" in only("DW301", model, optimizer=decayed).message


def test_none_is_told_as_none() -> None:
    model = shut(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), 1)
    assert "and 0% are open for all" in only("DW203", model, rows()).message


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


# ── runs ────────────────────────────────────────────────────────────────────────────────


def trained(
    model: nn.Module,
    *,
    windows: int,
    steps: int = 10,
    lr: float = 1e-4,
    disturb: Callable[[int, Tensor], Tensor] = lambda step, x: x,
    **arguments: Any,
) -> list[WindowReport]:
    """The windows of a training, of which ``disturb`` changes the data or the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr)
    watch = Watch(model, optimizer=optimizer, advice=True, stats_every_n_steps=2, **arguments)
    reports = []
    with watch:
        for step in range(windows * steps):
            x = disturb(step, rows(400))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            watch.step()
            if step % steps == steps - 1:
                reports.append(watch.close_window())
    return reports


def test_units_whose_data_do_not_vary_any_more_are_left_behind_by_them() -> None:
    """The data become zero: what is left is the bias, which may be above the mean as it was."""
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    last = trained(model, windows=3, disturb=lambda step, x: x if step < 10 else x * 0)[-1]
    assert {death.cause for death in last.deaths} == {"data"}
    assert sum(len(death.units) for death in last.deaths) == last["1"].dead.sum() > 4


def test_no_mean_is_said_to_have_fallen_that_rose() -> None:
    def narrow(step: int, x: Tensor) -> Tensor:
        return x if step < 10 else x * 0.02 - x.new_tensor([0.3, 0, 0, 0, 0, 0])

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model.get_parameter("0.weight")[:] = torch.eye(6)[0] * -1
        model.get_parameter("0.bias")[:] = -0.4
    (found,) = by("DW504", list(trained(model, windows=3, disturb=narrow)[-1].findings))
    assert found.numbers["mean_before"] < found.numbers["mean_after"]
    assert "fell" not in found.message
    assert (
        "mean pre-activation went -0.35 → -0.099, its standard deviation 0.97 → 0.019"
        in found.message
    )


def test_units_that_the_layer_before_closed_are_not_said_to_have_moved_far() -> None:
    model = nn.Sequential(
        *(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
    )

    def drift(step: int, x: Tensor) -> Tensor:
        if step >= 10:
            with torch.no_grad():
                model.get_parameter("0.weight")[:] += 0.02
                model.get_parameter("0.bias")[:] += 0.2
        return x

    found = by("DW505", list(trained(model, windows=4, disturb=drift)[-1].findings))
    (behind,) = (finding for finding in found if finding.where == ("3",))
    assert behind.message.endswith("about then, those of a layer before them by more")


def test_units_that_were_dead_when_advice_began_are_not_said_to_be_dead_from_birth() -> None:
    """A run is resumed with advice that had none; nobody knows when its units were open."""
    model = shut(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), 1, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def window(watch: Watch) -> WindowReport:
        for _ in range(5):
            optimizer.zero_grad()
            model(rows()).square().mean().backward()
            optimizer.step()
            watch.step()
        return watch.close_window()

    with Watch(model, optimizer=optimizer) as watch:
        window(watch)
        state = watch.state_dict()
    for _ in range(2):  # and what is not known then is not known in a run resumed from it
        resumed = Watch(model, optimizer=optimizer, advice=True)
        resumed.load_state_dict(state)
        with resumed:
            last = window(resumed)
            state = resumed.state_dict()
        assert [death.cause for death in last.deaths] == ["unknown"]
        message = by("DW506", list(last.findings))[0].message
        assert message.startswith(
            "2 of 8 units of 1 are dead: what their pre-activations were before was not measured"
        )


def test_what_a_treatment_moved_is_not_told_as_drift_of_the_training() -> None:
    model = shut(deep(2, 16), *range(16))
    seen: list[int] = []

    class Told(History):
        def interrupt(self) -> None:
            super().interrupt()
            seen.append(len(self._rows))

    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    watch = Watch(model, optimizer=optimizer, advice=True, policy=Policy(Recycle(), when=0.5))
    watch._adviser._history = Told()
    with watch:
        model(rows(400)).square().mean().backward()
        optimizer.step()
        watch.step()
        assert watch.close_window().treatments
    assert seen[-1] == 0


@pytest.mark.parametrize(("treated", "cause"), [(False, "weights"), (True, "unknown")])
def test_units_that_die_right_after_a_treatment_have_no_cause(treated: bool, cause: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

    def lower(step: int, x: Tensor) -> Tensor:
        if step == 20:
            with torch.no_grad():
                model.get_parameter("0.weight")[:] = -0.1
        return x.abs() + 1

    nn.init.constant_(model.get_parameter("0.weight"), 0.1)
    history, deaths = History(), list[Death]()
    for report in trained(model, windows=4, disturb=lower):
        if treated:
            history.interrupt()
        measured = replace(report.gauges or Gauges(), updates={})  # which saw that step
        deaths += history.follow(replace(report, gauges=measured))
    assert {death.cause for death in deaths} == {cause}


@pytest.mark.filterwarnings("ignore:not seen in window 0")
def test_a_first_window_without_a_step_hides_no_birth() -> None:
    model = shut(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), 1)
    with Watch(model, advice=True) as watch:
        watch.close_window()
        model(rows())
        watch.step()
        assert [death.cause for death in watch.close_window().deaths] == ["birth"]


def test_values_that_explode_raise_no_warning_of_numpy() -> None:
    """Sums of them are infinite, and a share of infinity is no number."""
    model = deep(2, 8)
    nn.init.constant_(model.get_parameter("0.weight"), 1e38)
    report = scan(model, [rows()])
    assert np.isnan(report["1"].dormancy).any()


def test_the_work_of_all_layers_is_counted_once_for_all_dead_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It took half of the time that a window took, of 500 layers of 2000 units."""
    counted: list[object] = []

    def counting(facts: Facts) -> dict[str, float]:
        counted.append(facts)
        return work(facts)

    work = cost._work
    monkeypatch.setattr(cost, "_work", counting)
    model = deep(3, 8)
    for layer in (0, 2, 4):
        shut(model, 1, layer=layer)
    assert len(by("DW602", advised(model, rows()))) == 3
    assert len(counted) == 1
