"""`benchmarks/efficacy.py`: the command, its file, and the arithmetic of its tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import efficacy
from benchmarks.efficacy import ARMS, RULES, Arm
from benchmarks.results import ORACLE, Result, Results, Sample, cell, load, summary
from benchmarks.scenarios import SCENARIOS, Scenario, Task, born_dead, bundled
from deadwatch import Policy, Recycle

OTHERS = """
from functools import partial
import torch
from torch import nn
from benchmarks.scenarios import Scenario, Task

x = torch.randn(320, 8, generator=torch.Generator().manual_seed(0))
halves = Task(x, x[:, :2].argmax(1), x, x[:, :2].argmax(1))

def build(act):
    model = nn.Sequential(nn.Linear(8, 16), act(), nn.Linear(16, 2))
    nn.init.constant_(model[0].bias, -9)
    return model

adam = partial(torch.optim.Adam, lr=0.01)
SCENARIOS = [Scenario("theirs", build, adam, lambda: [halves], 4)]
"""


@pytest.fixture
def theirs(tmp_path: Path) -> list[str]:
    """The command's arguments for somebody else's scenario."""
    (tmp_path / "theirs.py").write_text(OTHERS)
    file, out = str(tmp_path / "theirs.py"), str(tmp_path / "out.json")
    return ["--seeds", "1", "--jobs", "1", "--file", file, "--out", out]


def test_the_command_measures_a_scenario_from_a_file_and_prints_its_tables(
    theirs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    results = efficacy.main([*theirs, "--only", "Recycle"])
    assert list(results["theirs"]) == ["none", ORACLE, "Recycle"]
    assert results["theirs"]["none"]["0"].dead == 1
    assert results["theirs"]["none"]["0"].treated == 0
    assert results["theirs"]["Recycle"]["0"].dead < 0.5
    assert results["theirs"]["Recycle"]["0"].treated >= 16
    printed = capsys.readouterr().out
    assert "Listed scenarios, seeds: 1" in printed
    assert cell(results["theirs"]["Recycle"].values()) in printed


def test_what_is_in_the_file_is_not_run_again(theirs: list[str], tmp_path: Path) -> None:
    first = efficacy.main([*theirs, "--only", "Recycle"])
    out = tmp_path / "out.json"
    changed = json.loads(out.read_text())
    changed["theirs"]["none"]["0"]["score"] = 12.5
    out.write_text(json.dumps(changed))
    again = efficacy.main([*theirs, "--only", "Restandardize"])
    assert again["theirs"]["none"]["0"].score == 12.5
    assert again["theirs"]["Recycle"] == first["theirs"]["Recycle"]
    assert again == load(out)


def test_processes_give_the_same_scores(theirs: list[str], tmp_path: Path) -> None:
    def scores(jobs: str) -> dict[str, float]:
        rest = [*theirs, "--only", "Recycle", "--jobs", jobs, "--out", str(tmp_path / jobs)]
        return {arm: one["0"].score for arm, one in efficacy.main(rest)["theirs"].items()}

    assert scores("2") == scores("1")


def test_rules_for_optimizer_state_are_compared(theirs: list[str]) -> None:
    results = efficacy.main([*theirs, "--rules"])
    assert list(results["theirs"]) == ["none", ORACLE, *RULES]


@pytest.mark.parametrize("option", ["--only", "--scenarios"])
def test_an_unknown_name_is_told_with_the_known_ones(
    option: str, theirs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        efficacy.main([*theirs, option, "nobody"])
    assert f"{option}: no nobody; there are: " in capsys.readouterr().err


def result(score: float) -> Result:
    return Result(score, 0.25, 3, 0.1)


def scored(**arms: list[float]) -> Results:
    names = {"oracle": ORACLE}
    seeds = {
        names.get(arm, arm): {str(n): result(score) for n, score in enumerate(scores)}
        for arm, scores in arms.items()
    }
    return {"one": seeds}


@pytest.mark.parametrize("lower", [False, True])
def test_the_share_of_the_gap_is_that_of_the_oracle(lower: bool) -> None:
    sign = -1 if lower else 1
    results = scored(
        none=[40.0 * sign, 42.0 * sign],
        oracle=[80.0 * sign, 82.0 * sign],
        arm=[70.0 * sign, 72.0 * sign],
    )
    scenario = replace(SCENARIOS[0], name="one", lower=lower)
    row = summary(results, [scenario], ["arm"]).splitlines()[-1]
    assert [part.strip() for part in row.split("|")][2:-1] == [
        *("+30.0 (+30.0 to +30.0)", "-10.0 (-10.0 to -10.0)", "75%"),
        *("–", "one -10.0"),
    ]


def test_clearly_below_means_by_more_than_one_standard_error() -> None:
    # Variances 2 and 0 over 2 seeds: the standard error is 1.
    spread, steady = Sample((9.0, 11.0)), Sample((11.0, 11.0))
    assert spread.above(steady) == -1
    assert not spread.clearly_below(steady)
    assert spread.clearly_below(Sample((11.01, 11.01)))
    assert not steady.clearly_below(spread)


def test_a_cell_shows_mean_std_and_dead_share() -> None:
    assert cell([result(10.0), result(12.0)]) == "11.0 ± 1.4 (25%)"
    assert cell([Result(10.0, float("nan"), 0, 0.1)]) == "10.0 ± 0.0 (diverged)"


def test_every_kind_of_scenario_is_there_and_names_are_unique() -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    kinds = [scenario.kind for scenario in SCENARIOS]
    assert kinds.count("listed") >= 10
    assert kinds.count("healthy") >= 2
    assert kinds.count("held out") >= 3


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_scenario_trains_under_watch(scenario: Scenario) -> None:
    torch.manual_seed(0)
    task: Task = scenario.tasks()[0]
    few = Task(task.x[:320], task.y[:320], task.x_out[:64], task.y_out[:64])
    short = replace(scenario, tasks=lambda: [few], epochs=1)
    found = efficacy.run(short, Arm(Policy(Recycle(), when=0.0)), seed=0)
    assert 0 <= found.score <= 100


def test_born_dead_networks_are_dead_with_relu_and_drawn_alike_for_the_oracle() -> None:
    drawn = []
    for act in (nn.ReLU, nn.LeakyReLU):
        torch.manual_seed(1)
        drawn.append(born_dead(act, 16, 8))
    dead, leaky = drawn
    outputs = dead(bundled("digits").x)
    assert (outputs == outputs[0]).all()
    assert not (leaky(bundled("digits").x) == leaky(bundled("digits").x[0])).all()
    for ours, theirs in zip(dead.parameters(), leaky.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_presets_are_among_the_arms() -> None:
    assert {'"gentle"', '"revive"'} <= set(ARMS)


def test_the_readme_quotes_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """All results are in the file, so the command only prints."""
    efficacy.main([])
    printed = capsys.readouterr().out
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) > 90
    assert not [row for row in rows if row not in readme]
