"""Two real gloo processes show the gauges of one that has all of the data."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from deadwatch import Rules, Watch
from deadwatch.errors import UnseenSiteWarning
from deadwatch.observe import merging, reduce
from deadwatch.observe.readings import Readings, gauges_of
from deadwatch.observe.updates import Moved
from deadwatch.records import Gauges, LayerInput, Share, Site, SiteSnapshot
from tests.parallel import counted_collectives
from tests.ranks import run_ranks
from tests.resuming import differences, through_a_file
from tests.test_distributed import network

STEPS, BATCH = 6, 10


def net() -> Any:
    """A network with a part that only the second rank uses, in its own time."""
    model: Any = network()
    model.late[0].weight.requires_grad_(False)
    return model


def batch(step: int) -> Tensor:
    x = torch.randn(BATCH, 12, generator=torch.Generator().manual_seed(step))
    return x + torch.arange(BATCH)[:, None] % 2 * 5  # ranks are given other data


def train(model: nn.Module, watch: Watch, steps: range) -> None:
    """The loss is a sum, so that gradients do not depend on how many share a batch."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for step in steps:
        model.zero_grad()
        model(batch(step)[rank::ranks]).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    if ranks > 1:
                        dist.all_reduce(parameter.grad)
                    parameter.sub_(parameter.grad, alpha=1e-4)
        watch.step()


def watched(model: nn.Module, *, gauged: bool = True) -> Watch:
    switches = {"advice": gauged, "gradients": gauged}
    return Watch(model, rules=Rules(min_samples=1), stats_every_n_steps=2, **switches)


def run(folder: Path | None = None, rank: int = 0) -> dict[str, Any]:
    """Two windows, the second of which is interrupted; then one without gauges."""
    found: dict[str, Any] = {}
    model = net()
    with watched(model) as watch:
        train(model, watch, range(STEPS))
        if rank == 1:
            model.late(torch.ones(6, 3))
        with counted_collectives() as found["first"]:
            report = watch.close_window()
        train(model, watch, range(STEPS, STEPS + 3))
        found["state"] = through_a_file(watch.state_dict())
        found["weights"] = through_a_file(model.state_dict())
        train(model, watch, range(STEPS + 3, 2 * STEPS))
        with counted_collectives() as found["second"]:
            second = watch.close_window()
    found["reports"] = [report.gauges, second.gauges]
    model = net()
    with watched(model, gauged=False) as watch:
        for part in ("first", "second"):
            train(model, watch, range(2))
            if rank == 1 and part == "first":
                model.late(torch.ones(6, 3))
            with counted_collectives() as found[f"{part} without"]:
                watch.close_window()
    return found


def resumed(state: Any, weights: Any) -> Gauges:
    model = net()
    model.load_state_dict(weights)
    watch = watched(model)
    watch.load_state_dict(state)
    with watch:
        train(model, watch, range(STEPS + 3, 2 * STEPS))
        gauges = watch.close_window().gauges
    assert gauges is not None
    return gauges


def sharded(
    gauged: bool, before: Callable[[Any], None] = lambda model: None
) -> tuple[Gauges | None, dict[str, Tensor]]:
    """A model cut over the ranks by ``fully_shard``, and the same whole where there is one."""
    model = net()
    before(model)
    if dist.is_initialized():
        for index in (0, 2, 4):
            fully_shard(model[index])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with watched(model, gauged=gauged) as watch:
        for step in range(4):
            optimizer.zero_grad()
            model(batch(step)).square().sum().backward()
            optimizer.step()
            before(model)
            watch.step()
        gauges = watch.close_window().gauges
    whole = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }
    return gauges, whole


SCRIPT = """
import os, pickle, sys
from pathlib import Path
import torch
import torch.distributed as dist
from tests import test_gauges_ranks as here

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
init = f"file://{folder}/store"
dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world)
result = here.run(folder, rank)
result["same"] = here.resumed(result["state"], result["weights"])
result["merged"] = here.merged_when_saved()
one = torch.load(folder / "one.pt", weights_only=True)
result["sharded"] = here.sharded(True)
result["sharded, bare"] = here.sharded(False)
result["of one"] = here.resumed(one["state"], one["weights"])
with open(folder / f"rank{rank}.pkl", "wb") as file:
    pickle.dump(result, file)
dist.barrier()
sys.stdout.flush()
os._exit(0)  # gloo's own threads now and then abort an orderly exit
"""


def merged_when_saved() -> tuple[Gauges, Gauges]:
    """A run that goes on, and one whose state is too much to be kept for each rank."""
    model = net()
    with watched(model) as watch:
        train(model, watch, range(3))
        with patch.object(reduce, "GATHERED", 0):
            state = watch.state_dict()
        assert len(state["ranks"]) == 1
        whole = watch.peek().gauges
    other = watched(net())
    other.load_state_dict(through_a_file(state))
    read = other.peek().gauges
    assert whole is not None
    assert read is not None
    return replace(whole, rows={}), replace(read, rows={})


pytestmark = pytest.mark.filterwarnings("ignore::deadwatch.errors.UnseenSiteWarning")


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenSiteWarning)
        return run()


@pytest.fixture(scope="module")
def ranks(alone: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gauges")
    torch.save({name: alone[name] for name in ("state", "weights")}, folder / "one.pt")
    run_ranks(SCRIPT, folder)
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in range(2)]


def assert_alike(found: Gauges, expected: Gauges, inputs: bool = False) -> None:
    """The same, to rounding; inputs are those of the first rank."""
    assert found.updates.keys() == expected.updates.keys()
    for name, update in found.updates.items():
        other = expected.updates[name]
        assert (update.steps, update.peak_step) == (other.steps, other.peak_step)
        assert (update.mean, update.peak) == pytest.approx((other.mean, other.peak), rel=1e-4)
    assert found.gradients == pytest.approx(expected.gradients, rel=1e-4)
    for name, last in expected.last_open.items():
        np.testing.assert_array_equal(found.last_open[name], last)
    for name, rows in expected.rows.items():
        for part in ("bias", "size", "sketch"):
            np.testing.assert_allclose(
                getattr(found.rows[name], part), getattr(rows, part), rtol=1e-3, atol=1e-4
            )
    if inputs:
        assert found.inputs == expected.inputs


def test_ranks_show_what_one_process_would(
    alone: dict[str, Any], ranks: list[dict[str, Any]]
) -> None:
    for window in range(2):
        expected = alone["reports"][window]
        assert len(expected.updates) == 3
        assert len(expected.gradients) == 2
        for rank in ranks:
            assert_alike(rank["reports"][window], expected)
        assert differences(ranks[0]["reports"][window], ranks[1]["reports"][window]) == []


def test_inputs_are_those_of_the_first_rank_that_has_one(
    alone: dict[str, Any], ranks: list[dict[str, Any]]
) -> None:
    found = ranks[1]["reports"][0].inputs
    x = batch(0)[0::2].double()
    centre = float(x.mean(0).norm() / x.var(0, correction=0).sum().sqrt())
    assert found["0.weight"].centre == pytest.approx(centre, rel=1e-5)
    assert (found["0.weight"].samples, found["0.weight"].features) == (BATCH // 2, 12)
    assert found["0.weight"].raw
    assert found["late.0.weight"] == LayerInput(float("inf"), 3, 6, True)  # the second's alone
    assert not found["2.weight"].raw


def test_gauges_take_no_collective_of_their_own(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for window in ("first", "second"):
            assert rank[window] == rank[f"{window} without"]
        assert rank["second"] == ["all_reduce"] * 4


def test_a_resumed_run_shows_the_same_to_the_bit_on_as_many_ranks(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        assert differences(rank["same"], rank["reports"][1]) == []


def test_a_resumed_run_shows_the_same_on_more_ranks_and_on_one(
    alone: dict[str, Any], ranks: list[dict[str, Any]]
) -> None:
    for rank in ranks:
        assert_alike(rank["of one"], alone["reports"][1])
    assert_alike(resumed(ranks[0]["state"], ranks[0]["weights"]), alone["reports"][1])


def test_a_state_that_was_merged_when_saved_holds_the_gauges_of_all(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        whole, read = rank["merged"]
        assert_alike(read, whole, inputs=True)
        assert whole.updates
        assert whole.gradients


def test_of_sharded_weights_each_rank_follows_its_part(ranks: list[dict[str, Any]]) -> None:
    kept: list[dict[str, Tensor]] = []
    expected, _ = sharded(
        True, lambda m: kept.append({n: p.clone() for n, p in m.state_dict().items()})
    )
    assert expected is not None
    assert len(expected.updates) == 3
    for rank in ranks:
        found, weights = rank["sharded"]
        assert differences(weights, rank["sharded, bare"][1]) == []
        assert found.updates.keys() == expected.updates.keys()
        for name, update in found.updates.items():
            assert update.steps == expected.updates[name].steps == 4
            parts = [
                float((b - a).norm() / max(a.norm(), b.norm()))
                for old, new in pairwise(kept)
                for a, b in zip(old[name].chunk(2), new[name].chunk(2), strict=True)
            ]
            assert update.mean == pytest.approx(np.mean(parts), rel=1e-3)
            assert update.peak == pytest.approx(max(parts), rel=1e-3)
        assert found.gradients == pytest.approx(expected.gradients, rel=1e-3)
        assert found.rows == {}  # no process has the whole weights
        assert differences(found, ranks[0]["sharded"][0]) == []


# ── the arrays alone ────────────────────────────────────────────────────────────────────────


def exchanged(*ranks: Readings, first_step: int = 100) -> Gauges:
    """What ranks would agree on."""
    keys = set[merging.Key]().union(*map(merging.keys_of, ranks))
    rows = [merging.offered(one, keys, first_step, rank) for rank, one in enumerate(ranks)]
    merged = {
        name: (np.sum if name in merging.SUMS else np.max)([row[name] for row in rows], 0)
        for name in rows[0]
    }
    found = merging.merged(ranks[0], keys, merged, {}, first_step)
    assert isinstance(found, Readings)
    return gauges_of(found, {})


def readings(**moved: Moved) -> Readings:
    return Readings(moved=moved)


def test_the_peak_is_the_largest_of_all_ranks_and_of_equal_ones_the_first() -> None:
    third = float(np.float32(1 / 3))
    one = readings(a=Moved(1.0, 4, third, 107), b=Moved(0.3, 1, 0.25, 100))
    other = readings(a=Moved(0.5, 2, third, 105), b=Moved(0.4, 1, 0.5, 101))
    found = exchanged(one, other).updates
    assert (found["a"].peak, found["a"].peak_step, found["a"].steps) == (third, 105, 4)
    assert found["a"].mean == pytest.approx(1.5 / 6)
    assert (found["b"].peak, found["b"].peak_step) == (0.5, 101)
    assert exchanged(one).updates == gauges_of(one, {}).updates
    for rows in ((one, one), (one, one, one)):
        assert exchanged(*rows).updates == gauges_of(one, {}).updates  # to the bit


def test_what_one_rank_alone_has_is_kept() -> None:
    one, other = (
        Readings(inputs={"w": LayerInput(2.5, 3, 9, False)}),
        readings(w=Moved(1, 1, 1, 100)),
    )
    for order in ((one, other), (other, one), (Readings(), one, other)):
        found = exchanged(*order)
        assert found.inputs == one.inputs
        assert found.updates["w"].peak == 1


def test_the_packed_numbers_are_exact() -> None:
    one = LayerInput(float("inf"), 2**31 - 1, 2**31 - 1, True)
    assert exchanged(*[Readings()] * 3000, Readings(inputs={"w": one})).inputs == {"w": one}
    largest = float(np.finfo(np.float32).max)
    moved = Moved(largest, 1, largest, 100 + 2**21 - 2)
    assert exchanged(readings(w=moved)).updates["w"].peak_step == moved.peak_step
    assert exchanged(readings(w=moved)).updates["w"].peak == largest
    late = moved._replace(peak_step=100 + 2**22)
    assert exchanged(readings(w=late)).updates["w"].peak_step == 100 + 2**21 - 1


def test_units_that_are_spread_over_processes_are_put_in_their_places() -> None:
    site = Site("relu", "relu", 1, "ReLU", gate=None)
    keys = {merging.OPENINGS, merging.GRADIENTS}
    none = np.zeros(2, np.int64)
    rows = []
    for rank in range(2):
        share = Share(first=2 * rank, total=4, counts=rank == 0)
        snap = SiteSnapshot(site, 1, {}, none, none > 0, share)
        last = {"relu": np.array([5, -1]) + rank}
        rows.append(
            merging.offered_of(snap, Readings(last_open=last, squares={"relu": (1.0, 2.0)}), keys)
        )
    assert rows[0]["last_open"].tolist() == [5, -1, -1, -1]
    assert rows[1]["last_open"].tolist() == [-1, -1, 6, 0]
    assert rows[0]["gradient"].tolist() == [1.0, 2.0]
    assert rows[1]["gradient"].tolist() == [0.0, 0.0]
    blank = merging.offered_of(snap, None, keys)
    assert blank["last_open"].tolist() == [-1] * 4
