"""`benchmarks/by_cause.py`: the groups, the arithmetic, and the markers in documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import by_cause
from benchmarks.quoting import quote, write
from benchmarks.results import NONE, Result, Results, load
from benchmarks.scenarios import SCENARIOS, Scenario
from deadwatch import scan


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
    made["spike"]["Recycle"]["0"] = Result(50 + 7 - 80, 0.0, 0, 0.1)  # 10 scenarios: mean -1
    best = by_cause.best_by_cause(made)
    assert best["update"] == ('"revive"', 1.0)
    assert best["birth"] == ("Recycle", 7.0)
    (row,) = [line for line in by_cause.table(made).splitlines() if line.startswith("| Recycle")]
    assert "**+7.0** (worst +7.0)" in row
    assert "| -1.0 (worst -73.0)" in row


def test_the_measured_record_speaks_for_recycling() -> None:
    """What `"revive"` is built on: it, or recycling alone, is the best for every cause."""
    best = by_cause.best_by_cause()
    assert {arm for arm, _ in best.values()} <= {'"revive"', "Recycle"}
    assert all(points > 0 for _, points in best.values())
    for arms in by_cause.by_cause(load(by_cause.EFFICACY)).values():
        gains = {arm: sum(of.values()) / len(of) for arm, of in arms.items()}
        assert gains['"revive"'] > max(gains.values()) - 1


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
