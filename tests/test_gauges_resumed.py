"""A run that is interrupted shows the gauges of one that was not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from deadwatch import Policy, Recycle, Watch
from deadwatch.observe.progress import Progress, as_one
from deadwatch.records import Gauges, LayerInput
from tests.nets import SharedReLU, conv, mlp
from tests.resuming import EVENTS, Run, Setup, differences, differs_when_interrupted
from tests.test_resume import Chance, Functions, dying

GAUGED: dict[str, Any] = {"advice": True, "gradients": True}

SETUPS = {
    "modules": Setup(lambda: dying(mlp()), watch=GAUGED),
    "functions": Setup(lambda: dying(Functions()), watch=GAUGED),
    "shared and in-place": Setup(SharedReLU, batch=(4, 3, 5, 5), watch=GAUGED),
    "convolutions": Setup(lambda: conv(2, norm=True), batch=(4, 3, 4, 4), watch=GAUGED),
    "readers by chance": Setup(Chance, watch=GAUGED),
    "treated": Setup(lambda: dying(mlp()), lambda: Policy([Recycle()], when=0.0), watch=GAUGED),
    "gradients alone": Setup(mlp, watch={"gradients": True}),
}


@pytest.mark.filterwarnings("ignore::deadwatch.errors.UnseenSiteWarning")
@pytest.mark.parametrize("name", SETUPS)
def test_gauges_do_not_depend_on_interruptions(name: str) -> None:
    after = list(range(0, len(EVENTS) + 1, 2 if name in ("modules", "treated") else 5))
    assert differs_when_interrupted(SETUPS[name], after) == {}


def test_the_gauges_that_are_compared_are_full() -> None:
    run = Run(SETUPS["modules"])
    run.go_on()
    for report in (*run.reports, run.watch.peek()):
        gauges = report.gauges
        assert type(gauges) is Gauges
        assert gauges.updates and gauges.gradients and gauges.rows  # noqa: PT018
        assert gauges.inputs and gauges.last_open and gauges.rates  # noqa: PT018


def test_a_state_of_a_run_without_gauges_begins_them_anew_and_the_other_way_round() -> None:
    for before, after in ((GAUGED, {}), ({}, GAUGED)):
        run = Run(Setup(mlp, watch=before))
        run.go_on(3)
        resumed = Run(Setup(mlp, watch=after), run.state())
        resumed.go_on(4)
        gauges = resumed.watch.peek().gauges
        assert (gauges is None) == (not after)
        if gauges is not None:
            assert {update.steps for update in gauges.updates.values()} == {1}


def test_an_interrupted_run_differs_if_its_gauges_are_lost() -> None:
    run = Run(SETUPS["modules"])
    run.go_on(3)
    state = run.state()
    state["watch"]["ranks"][0]["taps"]["gauges"] = None
    resumed = Run(SETUPS["modules"], state)
    for one in (run, resumed):
        one.go_on(4)
    found = differences(run.watch.peek().gauges, resumed.watch.peek().gauges)
    assert {line.split("[")[0].split(":")[0] for line in found} >= {".updates", ".gradients"}


def test_several_processes_as_one() -> None:
    given = LayerInput(1.0, 4, 8, True)
    one = Progress(
        {"w": (2.0, 4, 0.75, 7)},
        {"a": (1.0, 2.0)},
        {"w": given},
        {"a": (torch.tensor([3, -1]), torch.tensor([5, 0])), "b": (torch.ones(2), torch.ones(2))},
        ([0.1], [0.2]),
    )
    other = replace(
        one,
        moved={"w": (1.0, 2, 0.75, 5), "v": (1.0, 1, 1.0, 1)},
        inputs={"w": replace(given, centre=2.0), "v": given},
        openings={"a": (torch.tensor([1, 2]), torch.tensor([1, 1])), "b": (torch.ones(3),) * 2},
    )
    found = as_one([one, other])
    assert found.moved == {"w": (2.0, 4, 0.75, 5), "v": (1.0, 1, 1.0, 1)}
    assert found.squares == {"a": (2.0, 4.0)}
    assert found.inputs == {"w": given, "v": given}
    assert [part.tolist() for part in found.openings["a"]] == [[3, 2], [6, 1]]
    assert len(found.openings["b"][0]) == 2
    assert found.rates == ([0.1], [0.2])
    assert as_one([Progress()]).rates is None


def gauges_of(watch: Watch) -> Gauges:
    """What adds up; rows are those of the weights as they are."""
    gauges = watch.peek().gauges
    assert gauges is not None
    return replace(gauges, rows={})


def test_what_a_watch_saves_is_a_copy() -> None:
    model: nn.Module = mlp()
    with Watch(model, **GAUGED) as watch:
        model(torch.randn(8, 12)).sum().backward()
        watch.step()
        saved = watch.state_dict()
        before = gauges_of(watch)
        other = Watch(model, **GAUGED)
        other.load_state_dict(saved)
        model(torch.randn(8, 12)).sum().backward()
        with torch.no_grad():
            model[0].weight.mul_(2)
        watch.step()
        assert differences(gauges_of(other), before) == []
