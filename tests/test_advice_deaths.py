"""Causes of death, in real trainings in which the cause is known since the test has brought it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.by_cause import best_by_cause
from deadwatch import Finding, Policy, Recycle, Watch, WindowReport, advise
from deadwatch.judge.advice.deaths import BEST
from tests.advised import by


def mlp(*, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))
    )


@dataclass
class Run:
    """A training of a few windows of some steps, and how it is disturbed.

    Attributes:
        before: Called before each step, with the run, the window and the step within it.
        data: Makes a batch, given the window.
        penalty: Added to the loss.
    """

    model: nn.Module
    before: Callable[[Run, int, int], None] = lambda run, window, step: None
    data: Callable[[int, torch.Generator], Tensor] = lambda window, source: torch.randn(
        64, 12, generator=source
    )
    penalty: Callable[[nn.Module, Tensor], Tensor] | None = None
    lr: float = 0.02
    windows: int = 5
    steps: int = 30

    def train(self, **arguments: Any) -> list[WindowReport]:
        source = torch.Generator().manual_seed(1)
        teacher = torch.randn(12, 3, generator=source)
        self.optimizer = torch.optim.SGD(self.model.parameters(), self.lr)
        watch = Watch(
            self.model,
            optimizer=self.optimizer,
            advice=True,
            stats_every_n_steps=2,
            **arguments,
        )
        reports = []
        with watch:
            for window in range(self.windows):
                for step in range(self.steps):
                    self.before(self, window, step)
                    x = self.data(window, source)
                    loss = F.cross_entropy(self.model(x), (x @ teacher).argmax(1))
                    if self.penalty is not None:
                        loss = loss + self.penalty(self.model, x)
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()
                    watch.step(loss)
                reports.append(watch.close_window())
        return reports


def causes(report: WindowReport) -> Counter[tuple[str, str]]:
    """Dead units by site and cause."""
    found: Counter[tuple[str, str]] = Counter()
    for death in report.deaths:
        found[death.site, death.cause] += len(death.units)
    return found


def mostly(report: WindowReport, site: str, cause: str) -> bool:
    """Whether nearly all dead units of a site, and there are some, died of a cause."""
    found = causes(report)
    return found[site, cause] >= 0.9 * int(report[site].dead.sum()) > 4


def found_by(rule: str, report: WindowReport) -> list[Finding]:
    return by(rule, list(report.findings))


def test_units_with_a_low_bias_from_the_start_are_dead_from_birth() -> None:
    model = mlp()
    with torch.no_grad():
        model.get_parameter("0.bias")[:20] = -50.0
    last = Run(model).train()[-1]
    assert causes(last) == {("1", "birth"): 20}
    (finding,) = found_by("DW501", last)
    assert finding.message.startswith("20 of 48 units of 1 are dead: never open in this run")
    assert finding.numbers["mean_after"] == pytest.approx(-50, abs=1)


def spike(run: Run, window: int, step: int) -> None:
    """One step at a huge rate, for a loss by which the units of the first layer are too large."""
    now = (window, step) == (2, 17)
    run.optimizer.param_groups[0]["lr"] = 30.0 if now else run.lr
    run.penalty = (lambda model, x: model[0](x).sum(1).mean()) if now else None


def test_units_that_one_step_at_a_huge_rate_killed_died_of_that_step() -> None:
    reports = Run(mlp(), before=spike).train()
    assert not causes(reports[2])
    last = reports[-1]
    assert mostly(last, "1", "update")
    deaths = [death for death in last.deaths if death.cause == "update"]
    for death in deaths:
        assert death.window == 2
        assert death.update is not None
        assert death.update.peak_step == 2 * 30 + 17
        assert death.steps[0] <= 77 + 16
        assert death.steps[1] == 90
    assert "step 77 moved" in found_by("DW502", last)[0].message
    (rate,) = found_by("DW303", last)
    assert rate.numbers["rate"] == 30
    assert rate.numbers["window"] == 2


def test_units_that_every_step_moves_far_too_much_die_of_updates() -> None:
    last = Run(mlp(), lr=20.0, windows=3).train()[-1]
    found = causes(last)
    assert sum(n for (_, cause), n in found.items() if cause == "update") > 0.5 * found.total() > 4


def biases(model: nn.Module, x: Tensor) -> Tensor:
    """What pulls the biases of the first layer down and nothing else."""
    return 3 * model.get_parameter("0.bias").sum()


def test_units_whose_biases_a_penalty_pulls_down_died_of_that() -> None:
    last = Run(mlp(), penalty=biases, windows=6).train()[-1]
    assert mostly(last, "1", "bias")
    finding = found_by("DW503", last)[0]
    assert finding.numbers["bias_before"] - finding.numbers["bias_after"] > 1


def shifted(window: int, source: torch.Generator) -> Tensor:
    """From window 3 on, inputs lie elsewhere."""
    return torch.randn(64, 12, generator=source) + (20.0 if window >= 3 else 0.0)


def test_units_that_a_shift_of_the_data_left_behind_died_of_that() -> None:
    last = Run(mlp(), data=shifted, lr=1e-6, windows=5).train()[-1]
    assert mostly(last, "1", "data")
    (finding,) = found_by("DW504", last)[:1]
    assert finding.numbers["moved_after"] < 0.01
    assert not found_by("DW303", last)  # no step has killed them


def decay(run: Run, window: int, step: int) -> None:
    """The rows of the first layer are turned round, little by little, in windows 2 and 3."""
    if window in (2, 3):
        with torch.no_grad():
            run.model.get_parameter("0.weight")[:24, 0] -= 0.1


def positive(window: int, source: torch.Generator) -> Tensor:
    x = torch.randn(64, 12, generator=source)
    return torch.cat([x[:, :1].abs() + 2, x[:, 1:] / 10], 1)


def test_units_whose_weights_drift_away_died_of_that() -> None:
    last = Run(mlp(), before=decay, data=positive, lr=1e-4).train()[-1]
    found = causes(last)
    assert found["1", "weights"] > 4
    assert found["1", "update"] == found["1", "data"] == 0


def test_a_healthy_training_has_no_deaths_to_tell_of() -> None:
    reports = Run(mlp()).train()
    assert not any(report.deaths for report in reports)
    assert not any(f.at_least("warning") for report in reports for f in report.findings)


def test_units_that_a_remedy_brought_back_are_told_of_no_more() -> None:
    def alive(report: WindowReport) -> int:
        return sum(n for (_, cause), n in causes(report).items() if cause == "birth")

    model = mlp()
    with torch.no_grad():
        model.get_parameter("0.bias")[:20] = -50.0
    reports = Run(model, windows=6).train(policy=Policy(Recycle(), when=0.1))
    assert alive(reports[0]) == 20
    assert alive(reports[-1]) < 4


# ── what is told of them ────────────────────────────────────────────────────────────────


def test_the_remedy_that_is_named_is_the_one_with_the_best_record() -> None:
    for cause, (arm, points) in best_by_cause().items():
        remedy, told = BEST[cause]
        assert told == pytest.approx(points, abs=0.05)
        assert arm.strip('"') in remedy


def test_a_report_of_a_run_is_enough_for_the_same_advice() -> None:
    run = Run(mlp(), before=spike)
    last = run.train()[-1]
    again = advise(run.model, report=replace(last, findings=()), optimizer=run.optimizer)
    assert [str(finding) for finding in again] == [str(finding) for finding in last.findings]


def test_without_advice_nothing_is_said_of_deaths() -> None:
    model = mlp()
    watch = Watch(model)
    with watch:
        model(torch.randn(400, 12)).sum().backward()
        report = watch.close_window()
    assert not report.deaths
    assert not report.findings
    assert report.gauges is None
