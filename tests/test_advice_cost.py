"""What dead units cost, counted by hand, and where they are called harmful.

DW601 is on dead units that do harm, DW602 on the others.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from deadwatch import Finding, Rules, Watch, WindowReport, advise, scan
from deadwatch.judge.advice.facts import Facts, costly, leans
from deadwatch.records import Cause, Death, Ints
from tests import architectures
from tests.advised import advised, by, later, rows, run_code, signals, trained
from tests.nets import mlp


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def killed(units: int, dead: int, opened: int = 0) -> nn.Sequential:
    """A network some of whose units are closed for all data, and some open for all."""
    model = nn.Sequential(nn.Linear(6, units), nn.ReLU(), nn.Linear(units, 2))
    with torch.no_grad():
        model[0].weight.mul_(0.1).sub_(model[0].weight.mean(1, keepdim=True))
        model[0].bias.zero_()
        model[0].bias[:dead] = -100
        model[0].bias[dead : dead + opened] = 100
    return model


def costs(model: nn.Module, x: Tensor) -> dict[str, Finding]:
    findings = advised(model, x)
    return {f.where[0]: f for f in by("DW601", findings) + by("DW602", findings)}


def facts(model: nn.Module, x: Tensor) -> Facts:
    report = scan(model, [x])
    return Facts(tuple(one.site for one in report.values()), report=report)


# ── where they do harm ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("units", "share"),
    [(4, 0.25), (16, 0.25), (32, 0.5), (64, 0.75), (256, 0.75), (4096, 0.75)],
)
def test_a_dead_share_is_costly_where_measurement_found_it(units: int, share: float) -> None:
    assert costly(units) == pytest.approx(share)


@pytest.mark.parametrize("units", [32, 64, 128])
def test_more_dead_units_than_are_costly_do_harm_in_a_fresh_network(units: int) -> None:
    most = round(costly(units) * units)
    for dead, rule in ((most - 1, "DW602"), (most, "DW601")):
        (finding,) = costs(killed(units, dead), rows()).values()
        assert finding.id == rule
        assert finding.severity == ("warning" if rule == "DW601" else "info")
        assert finding.message.startswith(f"{dead} of {units} units of 1 are dead")
    assert f"and {units - most} live" in finding.message


def test_a_fresh_network_that_is_symmetric_is_not_harmed_and_a_trained_one_is() -> None:
    model = killed(16, 6, opened=6)
    report = scan(model, [rows()])
    assert [f.id for f in advise(model, report=report) if f.id > "DW6"] == ["DW602"]
    assert [f.id for f in advise(model, report=later(report)) if f.id > "DW6"] == ["DW601"]


@pytest.mark.parametrize(
    ("dead", "opened", "lean"),
    [(5, 0, False), (6, 0, True), (20, 8, False), (20, 7, True), (5, 9, False), (0, 0, False)],
)
def test_a_layer_leans_where_more_are_closed_than_open_by_chance(
    dead: int, opened: int, lean: bool
) -> None:
    report = scan(killed(40, dead, opened), [rows()])["1"]
    assert int(report.dead.sum()) == dead
    assert int((report.open_fraction >= 1).sum()) == opened
    assert leans(report) is lean
    assert lean is (dead - opened > 2.33 * math.sqrt(dead + opened))


def test_a_layer_that_is_closed_as_a_whole_leans_however_narrow() -> None:
    assert leans(scan(killed(2, 2), [rows()])["1"])


@pytest.mark.parametrize(("born", "harm"), [(14, False), (8, False), (7, True), (0, True)])
def test_units_that_died_in_a_run_do_harm_before_those_that_were_born_dead(
    born: int, harm: bool
) -> None:
    """Of 40 units 15 are dead, which `Rules` calls harmful and which is not costly yet."""
    model = killed(40, 15)
    report = later(scan(model, [rows()]))
    assert report["1"].harmful
    assert report["1"].dead_ratio < costly(40)
    death = dying(report, born)
    found = advise(model, report=replace(report, deaths=death))
    assert bool(by("DW601", found)) is harm
    assert bool(by("DW602", found)) is not harm


def dying(report: WindowReport, born: int) -> tuple[Death, ...]:
    dead = np.flatnonzero(report["1"].dead)
    kinds: tuple[tuple[Cause, Ints], ...] = (("birth", dead[:born]), ("data", dead[born:]))
    return tuple(Death("1", units, cause, 0, (0, 1), {}, {}) for cause, units in kinds)


def test_what_the_rules_do_not_call_harmful_is_not() -> None:
    model = killed(16, 10)
    for ratio, rule in ((0.62, "DW601"), (0.63, "DW602")):
        report = scan(model, [rows()], rules=Rules(harmful_ratio_narrow=ratio))
        assert [f.id for f in advise(model, report=report) if f.id > "DW6"] == [rule]


def test_units_that_are_killed_in_a_training_do_harm_and_are_told_from_then_on() -> None:
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))

    def strike(step: int) -> None:
        if step == 45:
            with torch.no_grad():
                model[0].bias[:9] = -100

    reports = trained(model, SGD(model.parameters(), 0.02), windows=4, after=strike)
    told = [[f.id for f in report.findings if f.id > "DW6"] for report in reports]
    assert told == [[], [], ["DW601"], ["DW601"]]


# ── what they cost ──────────────────────────────────────────────────────────────────────


def test_a_dense_layer_costs_its_rows_and_columns() -> None:
    model = killed(16, 5)
    (finding,) = costs(model, rows()).values()
    assert finding.numbers["dead"] == 5
    assert finding.numbers["judged"] == 16
    assert finding.numbers["wasted"] == 5 * (6 + 1 + 2)
    assert finding.numbers["parameters"] == pytest.approx(5 * 9 / (16 * 9 + 2))
    assert finding.numbers["compute"] == pytest.approx(5 / 16)  # biases multiply nothing
    assert "they hold 45 parameters, 31% of all" in finding.message
    assert "31% of the multiplications" in finding.message


def lenet() -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998) with ReLUs."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5)),
        *(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def test_units_of_a_convolution_cost_what_is_counted_by_hand() -> None:
    model = lenet()
    with torch.no_grad():
        model[3].bias.fill_(1.0)
        model[3].bias[:4] = -100
    finding = costs(model, torch.randn(20, 1, 28, 28))["4"]
    assert finding.numbers["wasted"] == 4 * (6 * 25 + 1 + 25 * 120)
    assert finding.numbers["parameters"] == pytest.approx(4 * 3151 / 61_706)
    per_image = {
        "conv1": 28 * 28 * 6 * 25,
        "conv2": 10 * 10 * 16 * 6 * 25,
        "dense": 400 * 120 + 120 * 84 + 84 * 10,
    }
    dead = 4 / 16 * (per_image["conv2"] + 400 * 120)
    assert finding.numbers["compute"] == pytest.approx(dead / sum(per_image.values()))


@pytest.mark.parametrize("pooled", [False, True])
def test_a_head_is_applied_once_behind_a_flatten_and_left_out_behind_pooling(pooled: bool) -> None:
    model = nn.Sequential(
        *(nn.Conv1d(8, 16, 3), nn.ReLU(), nn.Conv1d(16, 4, 3), nn.ReLU()),
        nn.AdaptiveAvgPool1d(1) if pooled else nn.Identity(),
        *(nn.Flatten(), nn.Linear(4 if pooled else 4 * 26, 50)),
    )
    with torch.no_grad():
        model.get_parameter("0.bias").fill_(1.0)
        model.get_parameter("2.bias").fill_(1.0)[:2] = -100
    first, second, head = 16 * 8 * 3 * 28, 4 * 16 * 3 * 26, 0 if pooled else 4 * 26 * 50
    finding = costs(model, signals())["3"]
    by_hand = (second + head) / 2 / (first + second + head)
    assert finding.numbers["compute"] == pytest.approx(by_hand)


def test_the_compute_of_a_training_is_that_of_all_its_steps() -> None:
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].bias[:10] = -100
    report = trained(model, SGD(model.parameters(), 0.02), windows=1)[0]
    (finding,) = by("DW601", list(report.findings))
    assert finding.numbers["compute"] == pytest.approx(10 / 16)


def test_dead_units_of_a_residual_network_are_counted_where_their_wires_are_known() -> None:
    model = architectures.basic_block()
    with torch.no_grad():
        model.get_parameter("bn1.bias")[:2] = -100
        model.get_parameter("bn2.bias")[:2] = -100
        model.get_parameter("bn3.bias")[:2] = -100
    x = torch.cat([architectures.images()] * 40)
    found = costs(model, x)
    assert found["act1"].numbers["wasted"] == 2 * (4 * 9 + 1 + 2 + 6 * 9)
    assert "wasted" not in found["act2"].numbers
    assert "compute" not in found["act2"].numbers
    assert "is not known, nor what they cost" in found["act2"].message


def test_without_dead_units_or_a_measurement_nothing_is_said_of_costs() -> None:
    assert not costs(mlp(), rows(features=12))
    assert not costs(killed(16, 8), rows(200))  # too few to call one dead
    found = advise(killed(16, 8))
    assert not [f for f in found if f.id > "DW6"]


def test_the_code_of_a_harmful_layer_treats_it() -> None:
    model = killed(16, 8)
    (finding,) = costs(model, rows()).values()
    optimizer = SGD(model.parameters(), 0.1)
    run_code(finding, model, optimizer=optimizer)
    with Watch(model, optimizer=optimizer, policy="revive") as watch:
        for _ in range(3):
            model(rows()).square().mean().backward()
            optimizer.step()
            watch.step()
        assert watch.close_window().treatments
