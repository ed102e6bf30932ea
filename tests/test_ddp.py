"""Under DDP the ranks agree, with each other and with one process on the same samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deadwatch import (
    BiasWarming,
    Policy,
    PositiveBias,
    Recycle,
    Restandardize,
    Revive,
    SiteReport,
    Swap,
    ThermalKick,
)
from deadwatch.plain import to_plain
from tests.parallel import Place, Results, Run, batches, on_ranks


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        *(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    )
    _kill(made[0])
    return made


def _kill(layer: Any) -> None:
    """Three units are dead, and a fourth but for one sample."""
    with torch.no_grad():
        layer.bias[:3] = -40
        layer.weight[4] = 0
        layer.weight[4, 5] = 30
        layer.bias[4] = -29


class Branching(nn.Module):
    """Some samples go through an expert as well, most do not."""

    def __init__(self, *, always: bool = False) -> None:
        super().__init__()
        self.always = always
        self.first, self.act = nn.Linear(6, 12), nn.ReLU()
        self.expert = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 12))
        self.last = nn.Linear(12, 3)
        _kill(self.first)
        with torch.no_grad():
            self.expert[0].bias[:2] = -40

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.first(x))
        chosen = (x[:, 4] > 5).nonzero().squeeze(1)
        if len(chosen) or self.always:
            hidden = hidden.index_add(0, chosen, self.expert(hidden[chosen]))
        out: Tensor = self.last(hidden)
        return out


class Heads(nn.Module):
    """Of two layers, one reads the units of some calls, the other those of the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(6, 12), nn.ReLU()
        self.one, self.other = nn.Linear(12, 3), nn.Linear(12, 3)
        _kill(self.first)

    def forward(self, x: Tensor) -> Tensor:
        head = self.one if x[0, 3] > 0 else self.other
        out: Tensor = head(self.act(self.first(x)))
        return out


def seeded(build: Any, **settings: Any) -> Any:
    def built() -> nn.Module:
        torch.manual_seed(0)
        made: nn.Module = build(**settings)
        return made

    return built


def some_chosen() -> list[Tensor]:
    """Some samples go through the expert, all of them on the second rank."""
    made = batches()
    made[0][1, 4] = made[1][1, 4] = made[3][1, 4] = 6
    return made


def by_rank() -> list[Tensor]:
    """Each rank calls one of the heads."""
    made = batches()
    for batch in made:
        batch[0::2, 3], batch[1::2, 3] = 1, -1
    return made


def with_(*remedies: Any, **settings: Any) -> Policy:
    return Policy(remedies, when=0.0, cooldown=0, **settings)


def compiled(network: Any) -> Any:
    return torch.compile(network, backend="aot_eager")


UNUSED = {"find_unused_parameters": True}
PRELU = with_(Swap("prelu"))

RUNS = {
    "DDP": Run(network),
    "DDP, the watch given the network": Run(network, inner=True),
    "static_graph": Run(network, ddp={"static_graph": True}),
    "gradient_as_bucket_view": Run(network, ddp={"gradient_as_bucket_view": True}),
    "no_sync": Run(network, accumulate=2),
    "a branch that one rank takes": Run(seeded(Branching), ddp=UNUSED, batches=some_chosen),
    "a branch without samples on one rank": Run(
        seeded(Branching, always=True), batches=some_chosen
    ),
    "Recycle": Run(network, with_(Recycle())),
    "ThermalKick": Run(network, with_(ThermalKick())),
    "Restandardize": Run(network, with_(Restandardize())),
    "BiasWarming": Run(network, with_(BiasWarming(hold=1, anneal=2))),
    "closed loop": Run(network, with_(BiasWarming(hold=1, anneal=4, schedule="closed-loop"))),
    "Revive": Run(network, with_(Revive(), Recycle())),
    "PositiveBias": Run(network, with_(Recycle(), prevent=[PositiveBias(0.1)])),
    "Swap": Run(network, with_(Swap("leaky_relu"))),
    "Swap, annealed": Run(network, with_(Swap("leaky_relu", anneal=3)), windows=3),
    "Recycle, find_unused": Run(
        seeded(Branching), with_(Recycle()), ddp=UNUSED, batches=some_chosen
    ),
    "PReLU": Run(network, PRELU),
    "PReLU, for all units": Run(network, with_(Swap("prelu", only="all")), inner=True),
    "PReLU, static_graph": Run(network, PRELU, ddp={"static_graph": True}),
    "PReLU, no_sync": Run(network, PRELU, accumulate=2),
    "PReLU, on a branch": Run(seeded(Branching), PRELU, ddp=UNUSED, batches=some_chosen, windows=3),
    "PReLU, undone": Run(
        network,
        with_(Swap("prelu"), warmup=8),
        windows=4,
        losses=lambda step: 9.0 if step > 8 else 1.0,
    ),
}

TWO_RUNS = {
    "readers of their own": Run(
        seeded(Heads), with_(Recycle()), ddp=UNUSED, batches=by_rank, apart=2
    ),
    "compiled inside": Run(network, PRELU, wrap=compiled),
    "compiled around": Run(network, over=compiled),
}

BOTH = {2: {**RUNS, **TWO_RUNS}, 3: RUNS}
CASES = [(ranks, name) for ranks, runs in BOTH.items() for name in runs]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Results]]:
    make = tmp_path_factory.mktemp
    return {many: on_ranks("tests.test_ddp:BOTH", make(f"ranks{many}"), many) for many in BOTH}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """What one process finds; there the same network does without a compiler."""
    runs = {name: replace(run, wrap=_as_it_is) for name, run in BOTH[2].items()}
    return {name: run(Place()) for name, run in runs.items()}


def _as_it_is(network: nn.Module) -> nn.Module:
    return network


@pytest.mark.parametrize(("many", "name"), CASES)
def test_weights_and_optimizer_are_the_same_on_all_ranks_after_every_step(
    ranks: dict[int, list[Results]], many: int, name: str
) -> None:
    first, *others = (rank[name]["hashes"] for rank in ranks[many])
    assert len(set(first)) > 2
    assert all(other == first for other in others)


@pytest.mark.parametrize(("many", "name"), CASES)
def test_ranks_hold_the_same_verdicts_ledger_and_treatments(
    ranks: dict[int, list[Results]], many: int, name: str
) -> None:
    first, *others = (rank[name] for rank in ranks[many])
    for other in others:
        assert other["ledger"] == first["ledger"]
        for report, own in zip(other["reports"], first["reports"], strict=True):
            assert repr(to_plain(report)) == repr(to_plain(own))


@pytest.mark.parametrize(("many", "name"), CASES)
def test_reports_are_those_of_one_process(
    ranks: dict[int, list[Results]], alone: dict[str, dict[str, Any]], many: int, name: str
) -> None:
    found, expected = ranks[many][0][name]["reports"], alone[name]["reports"]
    for report, own in zip(found, expected, strict=True):
        assert set(report) == set(own)
        assert {(t.remedy, t.site, *t.units) for t in report.treatments} == {
            (t.remedy, t.site, *t.units) for t in own.treatments
        }
        for site in own:
            _require_equal(report[site], own[site])


def _require_equal(found: SiteReport, expected: SiteReport) -> None:
    assert (found.samples, found.units) == (expected.samples, expected.units)
    for counted in ("state", "dead", "age", "open_fraction", "nonfinite"):
        values = getattr(found, counted), getattr(expected, counted)
        np.testing.assert_array_equal(*values, f"{found.site.name}: {counted}")
    for figure in ("mean", "std", "min", "max", "mean_abs", "mean_out", "dormancy", "sparsity"):
        values = getattr(found, figure), getattr(expected, figure)
        np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-12, err_msg=figure)


@pytest.mark.parametrize(("many", "name"), CASES)
def test_weights_are_those_of_one_process(
    ranks: dict[int, list[Results]], alone: dict[str, dict[str, Any]], many: int, name: str
) -> None:
    found, expected = ranks[many][0][name]["weights"], alone[name]["weights"]
    assert set(found) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("many", "name"), CASES)
def test_nothing_is_left_on_the_parameters(
    ranks: dict[int, list[Results]], many: int, name: str
) -> None:
    assert [rank[name]["hooks"] for rank in ranks[many]] == [0] * many
