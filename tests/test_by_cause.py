"""`benchmarks/by_cause.py`: the groups, the arithmetic, and the markers in documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import by_cause
from benchmarks.efficacy import ARMS
from benchmarks.quoting import quote, write
from benchmarks.results import NONE, Result, Results, load
from benchmarks.scenarios import SCENARIOS, Scenario
from deadwatch import Watch, scan
from deadwatch.judge.advice.deaths import BEST
from deadwatch.records import Cause


def results(**points: float) -> Results:
    """Every scenario at 50, and each remedy that far better."""
    lower = {one.name for one in SCENARIOS if one.lower}

    def scored(name: str, above: float) -> dict[str, Result]:
        return {"0": Result(50 - above if name in lower else 50 + above, 0.0, 0, 0.1)}

    arms = {NONE: 0.0, **dict.fromkeys(by_cause.REMEDIES, 1.0), **points}
    return {
        one.name: {arm: scored(one.name, above) for arm, above in arms.items()} for one in SCENARIOS
    }


def test_every_scenario_with_an_illness_has_one_cause() -> None:
    grouped = [name for names in by_cause.CAUSES.values() for name in names]
    assert sorted(grouped) == sorted(one.name for one in SCENARIOS if one.kind != "healthy")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_birth_is_what_kills_layers_before_the_first_step(scenario: Scenario) -> None:
    torch.manual_seed(0)
    task = scenario.tasks()[0]
    worst = max(site.dead_ratio for site in scan(scenario.build(nn.ReLU), [task.x]).values())
    assert (worst > 0.5) == (scenario.name in by_cause.CAUSES["birth"])


def test_the_best_remedy_is_the_highest_mean_above_nothing() -> None:
    made = results(Recycle=7.0)
    assert by_cause.best_by_cause(made) == dict.fromkeys(by_cause.CAUSES, ("Recycle", 7.0))
    made["spike"]["Recycle"]["0"] = Result(50 + 7 - 80, 0.0, 0, 0.1)  # 6 scenarios: mean -6.3
    best = by_cause.best_by_cause(made)
    assert best["update"] == ('"revive"', 1.0)
    assert best["birth"] == ("Recycle", 7.0)
    (row,) = [line for line in by_cause.table(made).splitlines() if line.startswith("| Recycle")]
    assert "**+7.0** (worst +7.0)" in row
    assert "| -6.3 (worst -73.0)" in row


def test_the_measured_record_speaks_for_recycling() -> None:
    """What `"revive"` is built on: it, or recycling alone, is the best for every cause."""
    best = by_cause.best_by_cause()
    assert {arm for arm, _ in best.values()} <= {'"revive"', "Recycle"}
    assert all(points > 0 for _, points in best.values())
    for arms in by_cause.by_cause(load(by_cause.EFFICACY)).values():
        gains = {arm: sum(of.values()) / len(of) for arm, of in arms.items()}
        assert gains['"revive"'] > max(gains.values()) - 1


def test_what_advice_quotes_is_what_was_measured() -> None:
    codes = {'"revive"': 'policy="revive"', "Recycle": "policy=Policy(Recycle())"}
    best = by_cause.best_by_cause()
    assert {cause: (codes[arm], round(points, 1)) for cause, (arm, points) in best.items()} == BEST
    assert set(by_cause.REMEDIES) <= set(ARMS)


@pytest.mark.parametrize(
    ("name", "cause"), [("biases −3", "birth"), ("MLP, Adam", "update"), ("MLP, SGD", "weights")]
)
def test_most_units_died_of_the_cause_that_their_scenario_stands_under(
    name: str, cause: Cause
) -> None:
    assert name in by_cause.CAUSES[cause]
    (scenario,) = [one for one in SCENARIOS if one.name == name]
    torch.manual_seed(0)
    model = scenario.build(nn.ReLU)
    optimizer = scenario.optimizer(model.parameters())
    (task,) = scenario.tasks()
    with Watch(model, optimizer=optimizer, advice=True) as watch:
        for _ in range(8):
            for x, y in scenario.batches(task):
                optimizer.zero_grad()
                scenario.loss(model, x, y).backward()
                optimizer.step()
                watch.step()
            report = watch.close_window()
    died = {death.cause: 0 for death in report.deaths}
    for death in report.deaths:
        died[death.cause] += len(death.units)
    assert max(died, key=lambda one: died[one]) == cause, died
    assert sum(died.values()) > 20


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    by_cause.main([])
    assert capsys.readouterr().out == by_cause.table(load(by_cause.EFFICACY)) + "\n"


def test_a_table_goes_between_its_markers_and_nowhere_else(tmp_path: Path) -> None:
    document = tmp_path / "some.md"
    document.write_text("a\n<!-- x -->old<!-- /x -->\nb <!-- y --><!-- /y -->\n")
    write("x", "| new |", document)
    assert document.read_text() == (
        "a\n<!-- x -->\n\n| new |\n\n<!-- /x -->\nb <!-- y --><!-- /y -->\n"
    )
    once = document.read_text()
    write("x", "| new |", document)
    assert document.read_text() == once


@pytest.mark.parametrize(
    "text", ["", "<!-- x -->", "<!-- /x --><!-- x -->", "<!-- x --><!-- x --><!-- /x -->"]
)
def test_missing_or_doubled_markers_are_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected <!-- x --> and then <!-- /x --> in the text"):
        quote(text, "x", "table")
