"""Loops around DDP in which not all processes do the same: uneven data, and models of their own."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deadwatch import BiasWarming, ConfigError, Policy, Rules, Swap, Watch
from deadwatch.errors import UnfinishedCourseWarning
from deadwatch.observe.reduce import mean_gradients
from deadwatch.plain import to_plain
from tests.ranks import run_ranks
from tests.test_ddp import network

WINDOWS = 6

COURSES: dict[str, Any] = {
    "linear": BiasWarming(hold=3, anneal=6, quiet=False),
    "cosine": BiasWarming(hold=0, anneal=9, schedule="cosine", quiet=False),
    "closed loop": BiasWarming(hold=1, anneal=90, schedule="closed-loop", quiet=False),
    "annealed": Swap("leaky_relu", anneal=9, quiet=False),
}


def joined(remedy: Any, rank: int) -> dict[str, Any]:
    """Train at a rate of zero, in turns on more and on less data than the other rank has."""
    model = network()
    before = model[0].bias.detach().clone()
    wrapper = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    policy = Policy(remedy, when=0.0, guard=False, per_unit=1, cooldown=99)
    watch = Watch(wrapper, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1))
    found: dict[str, Any] = {"weights": [], "modules": [], "in course": []}
    with watch, warnings.catch_warnings():
        warnings.simplefilter("error")  # also where a rank has no data in a window
        warnings.simplefilter("ignore", UnfinishedCourseWarning)  # of the closed loop
        for window in range(WINDOWS):
            sizes = (0, 4) if window == 1 else (2, 4)
            with wrapper.join():
                for step in range(sizes[(rank + window) % 2]):
                    torch.manual_seed(100 * window + 10 * step + rank)
                    wrapper(torch.randn(8, 6)).square().mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    watch.step()
            watch.close_window()
            found["weights"].append([p.detach().clone() for p in model.parameters()])
            found["modules"].append([str(module) for module in model])
            found["in course"].append(watch._clinic.in_course if watch._clinic else None)
        found["ledger"] = repr(to_plain(watch.ledger.state_dict()))
    found["moved"] = float((model[0].bias - before).abs().max())
    return found


def of_one(group: Any, *, inner: bool) -> dict[str, Any]:
    """Watch a model that this rank trains without the other."""
    model = network()
    wrapper = DistributedDataParallel(model, process_group=group)
    watched = model if inner else wrapper
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Watch(watched)
    try:
        Watch(watched, optimizer=torch.optim.SGD(model.parameters(), 0.1), policy="revive")
        refusal = ""
    except ConfigError as error:
        refusal = str(error)
    return {"told": [str(w.message) for w in caught], "refusal": refusal}


def alone() -> list[str]:
    """Close windows when the other processes are gone."""
    model = network()
    with Watch(model, rules=Rules(min_samples=1)) as watch:
        model(torch.randn(8, 6)).sum().backward()
        watch.close_window()
        dist.destroy_process_group()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                model(torch.randn(8, 6)).sum().backward()
                watch.close_window()
    return [str(w.message) for w in caught]


def main(rank: int, ranks: int, folder: Path) -> None:
    """Be one rank; does not return."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    found: dict[str, Any] = {name: joined(remedy, rank) for name, remedy in COURSES.items()}
    group = [dist.new_group([0]), dist.new_group([1])][rank]
    found["wrapper"], found["inner"] = of_one(group, inner=False), of_one(group, inner=True)
    whole = DistributedDataParallel(network())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Watch(whole)
    dist.barrier()
    found["alone"] = alone()
    (folder / f"rank{rank}.pkl").write_bytes(pickle.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # gloo's own threads now and then abort an orderly exit


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("loops")
    script = (
        "import sys; from pathlib import Path; from tests.test_ddp_loops import main; "
        "main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))"
    )
    run_ranks(script, folder)
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in range(2)]


@pytest.mark.parametrize("name", COURSES)
def test_schedules_keep_together_under_join(name: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[name] for rank in ranks)
    for key in ("modules", "in course", "ledger"):
        assert first[key] == second[key], key
    assert first["in course"][0] > 0
    for ours, theirs in zip(first["weights"], second["weights"], strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("name", ["linear", "cosine", "annealed"])
def test_what_was_lent_under_join_is_taken_back_once(
    name: str, ranks: list[dict[str, Any]]
) -> None:
    for rank in ranks:
        assert rank[name]["in course"][-1] == 0
        assert rank[name]["modules"][-1] == [str(module) for module in network()]
        assert rank[name]["moved"] < 1e-5


@pytest.mark.parametrize("given", ["wrapper", "inner"])
def test_models_of_some_processes_alone_are_not_treated(
    given: str, ranks: list[dict[str, Any]]
) -> None:
    for rank in ranks:
        assert "a DistributedDataParallel over 1 of 2 processes" in rank[given]["refusal"]
        (told,) = rank[given]["told"]
        assert "also if they train another model" in told


def test_a_window_closed_without_the_other_processes_says_so(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        (told,) = rank["alone"]
        assert "window 1 is of this process alone" in told


def test_a_schedule_that_has_ended_takes_no_more_steps() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    with torch.no_grad():
        model[0].bias[:3] = -40
    policy = Policy(Swap("leaky_relu", anneal=2, quiet=False), when=0.0, guard=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with Watch(model, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1)) as watch:
        model(torch.randn(8, 6)).sum().backward()
        watch.step()
        watch.close_window()
        assert watch._clinic is not None
        watch._clinic.follow(5)
        assert watch._clinic.in_course == 0
    assert str(model[1]) == "ReLU()"


def test_a_backward_pass_that_others_do_not_take_says_what_was_going_on() -> None:
    slope = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="process group") as caught:
        mean_gradients([slope])  # there are no others
    (note,) = caught.value.__notes__
    assert "average the gradients of learned slopes" in note
    assert "every backward pass through the model is to be taken on every process alike" in note
