"""Two real gloo processes agree with one process on the same samples."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from deadwatch import Rules, Watch
from tests.nets import mlp
from tests.ranks import run_ranks

SCRIPT = """
import os, pickle, sys, warnings
import torch
import torch.distributed as dist
from deadwatch import Policy, Recycle, Rules, ThermalKick, Watch
from tests.test_distributed import batches, network

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
)
torch.manual_seed(100 + rank)  # every rank has its own stream
model = network()
calls = []
for name in ("all_reduce", "all_gather_object", "broadcast", "broadcast_object_list"):
    real = getattr(dist, name)
    def counted(*args, _real=real, _name=name, **kwargs):
        calls.append(_name)
        return _real(*args, **kwargs)
    setattr(dist, name, counted)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
policy = Policy((ThermalKick(), Recycle()), when=0.0, cooldown=0)
watch = Watch(model, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1),
              stats_every_n_steps=1)
with watch:
    for x in batches()[rank::world]:
        model(x)
        watch.step()
    if rank == 1:
        model.late(torch.ones(6, 3))  # a site that only one rank ever runs
    setup = len(calls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = watch.close_window()
    window = calls[setup:]
    model(batches()[rank])
    setup = len(calls)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        second = watch.close_window()
        later = calls[setup:]
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        for step in range(12):
            model(batches()[rank])
            watch.step(1.0)
        with torch.no_grad():
            model[0].bias[:3] = -40
        watch.close_window(treat=False)
        model(batches()[rank])
        before = {name: value.clone() for name, value in model.state_dict().items()}
        third = watch.close_window()
        for step in range(33):
            watch.step(9.0 if rank == 1 and step else 1.0)
result = {
    "third": third,
    "before": before,
    "undone": list(watch.ledger)[-1].undone,
    "report": report,
    "second": second,
    "collectives": window,
    "later collectives": later,
    "second weights": weights,
    "weights": model.state_dict(),
}
with open(f"{folder}/rank{rank}.pkl", "wb") as file:
    pickle.dump(result, file)
dist.barrier()
sys.stdout.flush()
os._exit(0)  # gloo's own threads now and then abort an orderly exit
"""


def network() -> torch.nn.Module:
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    model: Any = mlp()
    with torch.no_grad():
        model[0].bias[:3] = -40
        model[0].weight[4] = 0
        model[0].weight[4, 0] = 30  # opens on the one sample of the last batch that allows it
        model[0].bias[4] = -29
    model.add_module("late", torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Sigmoid()))
    torch.set_rng_state(torch_state)
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))
    return model  # type: ignore[no-any-return]


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    made = [torch.randn(n, 12, generator=generator).clamp(max=0.9) for n in (16, 16, 16, 7)]
    made[3][2, 0] = 1.5
    return made


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(SCRIPT, folder)
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in range(2)]


def test_both_ranks_report_what_one_process_would(ranks: list[dict[str, Any]]) -> None:
    model = network()
    watch = Watch(model, rules=Rules(min_samples=1), stats_every_n_steps=1)
    with watch:
        for x in batches():
            model(x)
            watch.step()
        model.late(torch.ones(6, 3))
        expected = watch.close_window()
    for rank in ranks:
        report = rank["report"]
        assert set(report) == set(expected)
        for name, site in expected.items():
            other = report[name]
            assert (other.samples, other.units) == (site.samples, site.units)
            for field in ("state", "age", "min", "max", "nonfinite", "open_fraction"):
                np.testing.assert_array_equal(getattr(other, field), getattr(site, field), field)
            for field in ("mean", "std", "mean_abs", "mean_out", "dormancy"):
                np.testing.assert_allclose(
                    getattr(other, field), getattr(site, field), rtol=1e-6, atol=1e-9
                )
            assert other.sparsity == pytest.approx(site.sparsity, rel=1e-12)


def test_a_unit_is_dead_only_if_dead_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["report"]["1"].dead[:3].all()
        assert not rank["report"]["1"].dead[4]  # open on one sample of rank 1


def test_every_rank_treats_alike(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["second weights"] for rank in ranks)
    assert any(ranks[0]["report"].treatments)
    assert any(ranks[0]["second"].treatments)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_ranks_that_met_different_sites_take_two_more_collectives_in_that_window(
    ranks: list[dict[str, Any]],
) -> None:
    news = ["broadcast_object_list", "all_gather_object"]
    for rank in ranks:
        # The last is for the treatments, which both windows call for.
        assert rank["collectives"] == ["all_reduce", *news, *["all_reduce"] * 3, "all_reduce"]
        assert rank["later collectives"] == ["all_reduce"] * 5


def test_a_loss_that_rises_on_one_rank_undoes_a_treatment_on_all(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        assert rank["third"].treatments
        assert rank["undone"]
        for name, value in rank["before"].items():
            assert torch.equal(value, rank["weights"][name]), name
