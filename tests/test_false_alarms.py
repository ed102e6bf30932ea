"""`benchmarks/false_alarms.py`: what is counted, and that the README says what was counted."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from benchmarks import false_alarms
from benchmarks.false_alarms import Count, alarms, count, table, trained
from deadwatch.errors import NoSiteWarning
from tests.agreement import one_thread
from tests.zoo import ZOO

SOME = {
    "a": Count({"DW203 info": 2, "DW601 warning": 1}, {"DW302 error": 3}, 4, 3, 0.5),
    "b": Count({"DW203 info": 5}, {}, 4, 3, 0.9),
}


def test_false_alarms_are_warnings_and_errors_and_infos_are_none() -> None:
    assert alarms(SOME["a"].fresh) == 1
    assert alarms(SOME["a"].trained) == 3
    assert alarms(SOME["b"].fresh) == 0


def test_the_table_counts_alarms_and_the_architectures_that_each_rule_spoke_in() -> None:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(SOME).splitlines()]
    del lines[1]
    assert lines == [
        ["", "fresh", "in training"],
        ["healthy architectures", "2", "2"],
        ["looked at", "8 models", "6 windows"],
        ["**false alarms**", "**1**", "**3**"],
        ["architectures with any", "1", "1"],
        ["architectures with DW302 error", "0", "1"],
        ["architectures with DW601 warning", "1", "0"],
        ["architectures with DW203 info", "2", "0"],
    ]


def test_counts_are_read_as_they_were_written(tmp_path: Path) -> None:
    false_alarms.save(SOME, tmp_path / "counts.json")
    assert false_alarms.load(tmp_path / "counts.json") == SOME


def test_a_healthy_architecture_is_looked_at_in_both_modes_and_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with one_thread():
        found = count("LeNet-5", 2)
    assert (found.looks, found.windows) == (4, 3)
    assert found.loss < 0.5, "it is trained, and learns"
    assert alarms(found.fresh) == alarms(found.trained) == 0
    assert not capsys.readouterr().err


QUICK = (
    *("ConvMixer", "Deep averaging network", "GIN", "PPO actor and critic", "SIREN"),
    *("Self-normalising MLP", "Sparse autoencoder", "TCN", "Two towers", "VAE"),
)


@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_warned_of_while_a_healthy_architecture_trains(name: str) -> None:
    with one_thread(), warnings.catch_warnings():
        if not ZOO[name].sites:
            warnings.simplefilter("ignore", NoSiteWarning)
        ends = list(trained(ZOO[name], 0))
    assert len(ends) == 3
    assert not [str(one) for _, found in ends for one in found if one.at_least("warning")]


def test_an_alarm_is_counted_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy = ZOO["ReLU MLP"].build

    def sick() -> nn.Module:
        model = healthy()
        nn.init.constant_(model[0].bias, -3.0)
        return model

    monkeypatch.setitem(ZOO, "sick", replace(ZOO["ReLU MLP"], build=sick))
    with one_thread():
        found = count("sick", 1)
    assert alarms(found.fresh) > 0
    assert "sick: DW" in capsys.readouterr().err


def test_the_readme_says_what_was_counted_over_the_whole_zoo() -> None:
    counts = false_alarms.load()
    assert set(counts) == set(ZOO), "run python -m benchmarks.false_alarms --write"
    assert len(counts) >= 30
    assert table(counts) in false_alarms.README.read_text()


def test_all_learn_in_the_training_that_was_counted() -> None:
    assert all(one.loss < 1 for one in false_alarms.load().values())
