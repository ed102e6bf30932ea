"""Under DDP the ranks agree, with each other and with one process on the same samples."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deadwatch import (
    BiasWarming,
    Policy,
    PositiveBias,
    Recycle,
    Restandardize,
    Revive,
    SiteReport,
    State,
    Swap,
    ThermalKick,
)
from deadwatch.plain import to_plain
from deadwatch.treat.slopes import SharedSlopes
from tests.parallel import Place, Results, Run, batches, compiled, on_ranks


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        *(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    )
    _kill(made[0])
    return made


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        made[1].bias[:3] = -40
    return made


def many_sites() -> nn.Sequential:
    layers = [layer for _ in range(40) for layer in (nn.Linear(6, 6), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(6, 3))


def _kill(layer: Any) -> None:
    """Three units are dead, and a fourth but for one sample."""
    with torch.no_grad():
        layer.bias[:3] = -40
        layer.weight[4] = 0
        layer.weight[4, 5] = 30
        layer.bias[4] = -29


class Branching(nn.Module):
    """Some samples go through an expert as well, most do not."""

    def __init__(self, *, always: bool = False, healthy: bool = False) -> None:
        super().__init__()
        self.always = always
        self.first, self.act = nn.Linear(6, 12), nn.ReLU()
        self.expert = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 12))
        self.last = nn.Linear(12, 3)
        if not healthy:
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


class Functions(nn.Module):
    """Its activations are functions, and one of them makes its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 3)
        _kill(self.first)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.last(F.relu(self.first(x))))


class Margin(nn.Module):
    """In its own forward is a hinge loss: a function whose last axis holds the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)
        _kill(self.first)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.act(self.first(x)))
        return out + F.relu(x[:, 2] - 100)[:, None]


def seeded(build: Any, **settings: Any) -> Any:
    def built() -> nn.Module:
        torch.manual_seed(0)
        made: nn.Module = build(**settings)
        return made

    return built


def some_chosen(window: int) -> list[Tensor]:
    """Some samples go through the expert, all of them on the second rank."""
    made = batches()
    made[0][1, 4] = made[1][1, 4] = made[3][1, 4] = 6
    return made


def by_turns(window: int) -> list[Tensor]:
    """In the first window the second rank alone goes through the expert, then the first alone."""
    made = batches()
    for batch in made:
        batch[1 - window, 4] = 6
    return made


def by_rank(window: int) -> list[Tensor]:
    """Each rank calls one of the heads."""
    made = batches()
    for batch in made:
        batch[0::2, 3], batch[1::2, 3] = 1, -1
    return made


def of_sizes(*sizes: int) -> Callable[[int], list[Tensor]]:
    return lambda window: [torch.ones(size, 6).double() * 0.1 for size in sizes]


def hinge(out: Tensor, target: Tensor) -> Tensor:
    return F.relu(1 - out * target.sign()).sum()


def with_(*remedies: Any, **settings: Any) -> Policy:
    return Policy(remedies, when=0.0, cooldown=0, **settings)


UNUSED = {"find_unused_parameters": True}
PRELU = with_(Swap("prelu"))

RUNS = {
    "DDP": Run(network),
    "DDP, the watch given the network": Run(network, inner=True),
    "static_graph": Run(network, ddp={"static_graph": True}),
    "gradient_as_bucket_view": Run(network, ddp={"gradient_as_bucket_view": True}),
    "no_sync": Run(network, accumulate=2),
    "functions": Run(seeded(Functions)),
    "a hinge loss in the training loop": Run(network, loss=hinge),
    "a hinge loss, and functions in the model": Run(seeded(Functions), loss=hinge),
    "a branch that one rank takes": Run(seeded(Branching), ddp=UNUSED, batches=some_chosen),
    "a branch without samples on one rank": Run(
        seeded(Branching, always=True), batches=some_chosen
    ),
    "a branch that the ranks take by turns": Run(seeded(Branching), ddp=UNUSED, batches=by_turns),
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
    "PReLU, watched in turns": Run(network, PRELU, anew=True, windows=4),
    "PReLU, on a branch": Run(seeded(Branching), PRELU, ddp=UNUSED, batches=some_chosen, windows=3),
    "PReLU, on a branch alone": Run(
        seeded(Branching, healthy=True), PRELU, ddp=UNUSED, batches=some_chosen, windows=3
    ),
    "PReLU, undone": Run(
        network,
        with_(Swap("prelu", quiet=False), warmup=8),
        windows=4,
        losses=lambda step: 9.0 if step > 8 else 1.0,
    ),
}

TWO_RUNS = {
    "readers of their own": Run(
        seeded(Heads), with_(Recycle()), ddp=UNUSED, batches=by_rank, apart=2
    ),
    "behind a norm": Run(
        normed, with_(Restandardize(), Recycle(), BiasWarming(hold=1, anneal=2)), windows=3
    ),
    "many sites": Run(seeded(many_sites), with_(Recycle())),
    "units differ by rank": Run(seeded(Margin), batches=of_sizes(7, 7)),
    "given up on one rank": Run(seeded(Margin), batches=of_sizes(8, 8, 7), windows=1),
    "compiled inside": Run(network, PRELU, wrap=compiled),
    "compiled around": Run(network, over=compiled),
}

BOTH: dict[int, dict[str, Run]] = {2: {**RUNS, **TWO_RUNS}, 3: RUNS}
CASES = [(ranks, name) for ranks, runs in BOTH.items() for name in runs]
BY_RANK = {*TWO_RUNS} - {"compiled inside", "compiled around", "many sites"}
COMPARED = [(ranks, name) for ranks, name in CASES if name not in BY_RANK]


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


@pytest.mark.parametrize(("many", "name"), COMPARED)
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
            require_equal(report[site], own[site])


def require_equal(found: SiteReport, expected: SiteReport) -> None:
    assert (found.samples, found.units) == (expected.samples, expected.units)
    for counted in ("state", "dead", "age", "open_fraction", "nonfinite"):
        values = getattr(found, counted), getattr(expected, counted)
        np.testing.assert_array_equal(*values, f"{found.site.name}: {counted}")
    for figure in ("mean", "std", "min", "max", "mean_abs", "mean_out", "dormancy", "sparsity"):
        values = getattr(found, figure), getattr(expected, figure)
        np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-12, err_msg=figure)


@pytest.mark.parametrize(("many", "name"), COMPARED)
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


def test_a_unit_is_dead_only_if_dead_on_every_rank(ranks: dict[int, list[Results]]) -> None:
    for many, results in ranks.items():
        for rank in results:
            dead = rank["DDP"]["reports"][0]["1"].dead
            assert dead[:3].all(), many
            assert not dead[4], many  # open on one sample of the second rank


def test_all_that_read_a_unit_on_any_rank_are_silenced(ranks: dict[int, list[Results]]) -> None:
    """One rank sees one head, the other the other; each knows of both."""
    for rank in ranks[2]:
        first, _ = rank["readers of their own"]["reports"]
        (treatment,) = first.treatments
        assert treatment.quiet
        assert {"one.weight", "other.weight"} <= {c.tensor for c in treatment.changes}


def test_names_are_those_of_the_model_inside(ranks: dict[int, list[Results]]) -> None:
    for name in ("DDP", "DDP, the watch given the network", "compiled inside", "compiled around"):
        for rank in ranks[2]:
            assert set(rank[name]["reports"][0]) == {"1", "3"}
            assert bool(rank[name]["graphs"]) == name.startswith("compiled"), name


def test_slopes_added_after_the_wrap_have_learned(ranks: dict[int, list[Results]]) -> None:
    names = [name for name in BOTH[2] if name.startswith("PReLU") and "undone" not in name]
    for rank in (rank[name] for rank in ranks[2] for name in names):
        assert all("averages the gradients" in done.note for done in rank["reports"][0].treatments)
        slopes = [value for key, value in rank["weights"].items() if "replacement.weight" in key]
        assert slopes
        assert any((slope != 0.25).any() for slope in slopes)


def test_a_swap_is_undone_on_all_ranks(ranks: dict[int, list[Results]]) -> None:
    for rank in (rank["PReLU, undone"] for rank in ranks[2]):
        assert "'undone': True" in rank["ledger"]
        assert not [key for key in rank["weights"] if key.startswith("1.")]


def test_a_site_of_which_ranks_find_other_numbers_of_units_is_not_judged(
    ranks: dict[int, list[Results]],
) -> None:
    for rank in (rank["units differ by rank"] for rank in ranks[2]):
        assert rank["told"]
        assert all("not the same number of units on all processes" in t for t in rank["told"])
        for report in rank["reports"]:
            assert report["relu"].units == report["relu"].samples == 0
            assert report["act"].samples == 14
            assert report["act"].dead[:3].all()


def test_no_unit_is_dead_where_a_rank_gave_its_site_up(ranks: dict[int, list[Results]]) -> None:
    for number, rank in enumerate(rank["given up on one rank"] for rank in ranks[2]):
        told = "".join(rank["told"])
        assert ("the site had 4 units" in told) == bool(number)
        assert "not seen in window 0: relu" in told
        (report,) = rank["reports"]
        assert report["relu"].unseen
        assert (report["relu"].state == State.UNSEEN).all()


def test_a_window_takes_the_same_collectives_however_many_sites_there_are(
    ranks: dict[int, list[Results]],
) -> None:
    for many, name in CASES:
        for rank in ranks[many]:
            for called in rank[name]["collectives"]:
                met = [each for each in called if each != "all_reduce"]
                assert met in ([], ["broadcast_object_list", "all_gather_object"]), name
                assert called.count("all_reduce") in (4, 5), name  # a fifth where units are due
    assert len(ranks[2][0]["many sites"]["reports"][0]) == 40


def test_who_has_treated_a_slope_leaves_copies_alone() -> None:
    model = network()
    slopes = SharedSlopes(model, lambda parameters: [p.grad for p in parameters])
    slopes.add([model[0].bias])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not any(p._post_accumulate_grad_hooks for p in other.parameters())
    slopes.release()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_gradients_are_averaged_once_a_pass_also_after_one_that_raised() -> None:
    model, calls = network(), []

    def average(parameters: Sequence[Tensor]) -> list[Tensor | None]:
        calls.append(len(parameters))
        return [p.grad for p in parameters]

    def fail(gradient: Tensor) -> None:
        raise RuntimeError("no more")

    slopes = SharedSlopes(model, average)
    slopes.add([model[0].bias, model[2].bias])
    handle = model[0].weight.register_hook(fail)
    with pytest.raises(RuntimeError, match="no more"):
        model(torch.ones(4, 6)).sum().backward()
    handle.remove()
    calls.clear()
    for _ in range(2):
        model(torch.ones(4, 6)).sum().backward()
    assert calls == [2, 2]
