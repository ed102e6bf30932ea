"""What a process that fails, lags or sees something else does to the others.

Each test runs real gloo processes whose group gives up after `TIMEOUT` seconds.
"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.windows import World, close, relu_between
from deadwatch import BiasWarming, Case, Plan, Policy, Recycle, Rules, Watch
from deadwatch.errors import TreatmentFailedWarning
from deadwatch.observe import reduce
from deadwatch.observe.roll import Roll
from deadwatch.records import Snapshot, Window
from tests.nets import mlp
from tests.ranks import run_ranks

TIMEOUT = 4


def begin(rank: int, ranks: int, folder: Path, timeout: int = 60) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}-store",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout),
    )


def hooks(model: nn.Module) -> int:
    """How many hooks are on a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


LAUNCH = """
import sys
from functools import partial
from pathlib import Path
from tests.forks import in_forks
from tests.test_faults import FAULTS, faulty

folder = Path(sys.argv[1])
in_forks([partial(faulty, rank, folder, fault) for fault in FAULTS for rank in range(2)])
"""

# ── a process is gone ───────────────────────────────────────────────────────────────────


def killed(rank: int) -> None:
    if rank == 1:
        os._exit(9)


def raises(rank: int) -> None:
    if rank == 1:
        raise ValueError("the data of this rank are broken")


def interrupted(rank: int) -> None:
    if rank == 1:
        raise KeyboardInterrupt


def elsewhere(rank: int) -> None:
    """Rank 1 lives on, and does not close its window before the others have given up."""
    if rank == 1:
        time.sleep(TIMEOUT + 4)
        os._exit(7)


FAULTS: dict[str, Callable[[int], None]] = {
    "killed": killed,
    "raises": raises,
    "interrupted": interrupted,
    "elsewhere": elsewhere,
}


def faulty(rank: int, folder: Path, fault: str) -> None:
    """Train two windows; the fault is in the second."""
    begin(rank, 2, folder / fault, TIMEOUT)
    model = mlp()
    left: dict[str, Any] = {}
    watch = Watch(model, rules=Rules(min_samples=1))
    try:
        with watch:
            for window in range(2):
                model(torch.randn(4, 12))
                watch.step()
                if window:
                    FAULTS[fault](rank)
                start = time.perf_counter()
                watch.close_window()
    except BaseException as error:
        left["error"] = "\n".join([str(error), *getattr(error, "__notes__", ())])
        left["kind"] = type(error).__name__
        left["own"] = isinstance(error, RuntimeError)
    left |= {"waited": time.perf_counter() - start, "hooks": hooks(model)}
    left["ran"] = bool(torch.isfinite(model(torch.randn(4, 12))).all())
    (folder / f"{fault}-{rank}.pkl").write_bytes(pickle.dumps(left))
    os._exit(0)


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, Any]]:
    """What each process is left with after each fault; all faults happen at once."""
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-c", LAUNCH, str(folder)]
    subprocess.run(command, check=True, timeout=90, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found: dict[str, dict[int, Any]] = {fault: {} for fault in FAULTS}
    for path in folder.glob("*.pkl"):
        fault, rank = path.stem.split("-")
        found[fault][int(rank)] = pickle.loads(path.read_bytes())
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_process_that_is_gone_does_not_hang_the_others(
    left: dict[str, dict[int, Any]], fault: str
) -> None:
    found = left[fault][0]
    assert found["waited"] < TIMEOUT + 4
    assert found["own"], found  # it is the process group's own error …
    assert "deadwatch: all processes of the group exchange" in found["error"]  # … and says where
    assert "close_window()" in found["error"]
    if fault == "elsewhere":
        assert found["waited"] > TIMEOUT - 1


@pytest.mark.parametrize("fault", FAULTS)
def test_hooks_are_off_after_a_fault_and_the_model_runs(
    left: dict[str, dict[int, Any]], fault: str
) -> None:
    for found in left[fault].values():
        assert (found["hooks"], found["ran"]) == (0, True)
    kinds = {"raises": "ValueError", "interrupted": "KeyboardInterrupt"}
    if fault in kinds:
        assert left[fault][1]["kind"] == kinds[fault]
    assert len(left[fault]) == (2 if fault in kinds else 1)


# ── a process sees something else ───────────────────────────────────────────────────────


class Branches(nn.Module):
    """A branch that some processes take, and a reader that only some see."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(12, 8), nn.ReLU()
        self.always, self.sometimes = nn.Linear(8, 5), nn.Linear(8, 5)
        self.side = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5))

    def forward(self, x: torch.Tensor, branch: bool) -> torch.Tensor:
        h = self.act(self.first(x))
        out: torch.Tensor = self.always(h)
        return out + self.sometimes(h) + self.side(h).relu() if branch else out


def count_collectives() -> list[str]:
    """Have every call of a collective noted in the list that is returned."""
    calls: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return real(*args, **kwargs)

        return call

    for name in (
        *("all_reduce", "all_gather", "all_gather_object", "all_gather_into_tensor", "broadcast"),
        *("broadcast_object_list", "barrier", "gather", "gather_object", "reduce", "send", "recv"),
        *("scatter", "scatter_object_list", "reduce_scatter", "all_to_all", "new_group"),
    ):
        setattr(dist, name, counted(name, getattr(dist, name)))
    return calls


def chain(sites: int) -> nn.Module:
    parts = [part for _ in range(sites) for part in (nn.Linear(6, 6), nn.ReLU())]
    model = nn.Sequential(*parts, nn.Linear(6, 2))
    with torch.no_grad():
        for layer in list(model)[:-1:2]:
            layer.bias[0] = -40
    return model


def collectives(calls: list[str], sites: int, policy: Policy | None) -> dict[str, Any]:
    """The collectives of each part of three windows of 40 steps."""
    torch.manual_seed(0)
    model = chain(sites)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    watch = Watch(model, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1))
    found: dict[str, Any] = {"steps": [], "windows": [], "treated": 0}
    with watch:
        for _ in range(3):
            calls.clear()
            for _ in range(40):
                model(torch.ones(2, 6))
                watch.step(1.0)
            found["steps"].append(calls.copy())
            calls.clear()
            found["treated"] += len(watch.close_window().treatments)
            found["windows"].append(calls.copy())
    return found


def broken(*_: object) -> None:
    raise RuntimeError("this device is out of memory")


def failing_on_one(rank: int) -> dict[str, Any]:
    """Observing a site fails on rank 1 in the first window; nobody treats what is not known."""
    torch.manual_seed(0)
    model = mlp()
    with torch.no_grad():
        for index in (0, 2):
            model[index].bias[:3] = -40
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    policy = Policy(Recycle(), when=0.0, cooldown=0)
    watch = Watch(model, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1))
    found: dict[str, Any] = {}
    with watch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(torch.ones(8, 12))
        watch.step(1.0)
        if rank == 1:
            watch._taps._calls.sites["1"].observe = broken
        model(torch.ones(8, 12))
        watch.step(1.0)
        for window in ("first", "second"):
            found[window] = watch.close_window()
            model(torch.ones(8, 12))
            watch.step(1.0)
    found["warnings"] = [f"{type(w.message).__name__}: {w.message}" for w in caught]
    found["weights"] = model.state_dict()
    return found


@dataclass(frozen=True)
class Unlucky(Recycle):
    """A remedy that fails at one site, on rank 1 alone."""

    rank: int = 0
    site: str = ""

    def plan(self, case: Case) -> Plan:
        if self.rank == 1 and case.report.site.name == self.site:
            broken()
        return super().plan(case)


def treating_on_one(rank: int) -> dict[str, Any]:
    """A remedy fails on rank 1, at the second of two sites."""
    torch.manual_seed(0)
    model = mlp()
    with torch.no_grad():
        for index in (0, 2):
            model[index].bias[:3] = -40
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    policy = Policy(Unlucky(rank=rank, site="3"), when=0.0, cooldown=0)
    watch = Watch(model, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1))
    found: dict[str, Any] = {"reports": [], "before": copy.deepcopy(model.state_dict())}
    with watch, warnings.catch_warnings():
        warnings.simplefilter("ignore", TreatmentFailedWarning)
        for _ in range(2):
            for _ in range(12):
                model(torch.ones(8, 12))
                watch.step(1.0)
            found["reports"].append(watch.close_window())
        watch.step(1.0)
        found["ledger"] = len(watch.ledger)
    return found | {"after": model.state_dict()}


class Delicate(BiasWarming):
    """A warming whose course fails on rank 1 alone."""

    rank = 0

    def plan(self, case: Case) -> Plan:
        plan = super().plan(case)
        if self.rank == 1:
            plan.course.step = broken
        return plan


def going_on_one(calls: list[str], rank: int) -> list[int]:
    """A course ends early on rank 1; the looks of the guard still match."""
    torch.manual_seed(0)
    model = mlp()
    with torch.no_grad():
        model[0].bias[:3] = -40
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    Delicate.rank = rank
    policy = Policy(Delicate(hold=50, anneal=10), when=0.0, cooldown=0)
    watch = Watch(model, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1))
    looks = []
    with watch, warnings.catch_warnings():
        warnings.simplefilter("ignore", TreatmentFailedWarning)
        for _ in range(12):
            model(torch.ones(8, 12))
            watch.step(1.0)
        watch.close_window()
        calls.clear()
        for step in range(1, 110):
            watch.step(1.0)
            looks += [step] * len(calls)
            calls.clear()
    return looks


def idle(rank: int) -> dict[str, Any]:
    """Rank 1 runs no forward and takes no step in the first window."""
    torch.manual_seed(0)
    model = mlp()
    watch = Watch(model, rules=Rules(min_samples=1))
    found: dict[str, Any] = {}
    with watch:
        for _ in range(0 if rank else 3):
            model(torch.ones(8, 12))
            watch.step()
        found["first"] = watch.close_window()
        model(torch.ones(8, 12))
        watch.step()
        found["second"] = watch.close_window()
        found["steps"] = watch.steps
    return found


def branching(calls: list[str], rank: int) -> dict[str, Any]:
    """Only rank 1 takes the branch; then all go on as before."""
    torch.manual_seed(0)
    model = Branches()
    with torch.no_grad():
        model.first.bias[:3] = -40
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    warming = BiasWarming(hold=1, anneal=1)
    policy = Policy([warming, Recycle()], when=0.0, cooldown=0)
    watch = Watch(model, optimizer=optimizer, policy=policy, rules=Rules(min_samples=1))
    found: dict[str, Any] = {"reports": [], "calls": []}
    with watch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(5):
            for _ in range(3):
                model(torch.ones(8, 12), rank == 1)
                watch.step(1.0)
            calls.clear()
            found["reports"].append(watch.close_window())
            found["calls"].append(calls.copy())
    return found | {"weights": model.state_dict()}


def saving(rank: int) -> dict[str, Any]:
    """Only rank 1 takes the branch, and the state is saved, as each did and merged."""
    torch.manual_seed(0)
    model = Branches()
    found: dict[str, Any] = {}
    with Watch(model, rules=Rules(min_samples=1)) as watch:
        for _ in range(3):
            model(torch.ones(8, 12), rank == 1)
            watch.step()
        found["each"] = watch.state_dict()
        with patch.object(reduce, "GATHERED", 0):
            found["merged"] = watch.state_dict()
        found["report"] = watch.peek()
    return found


def widths(rank: int) -> dict[str, Any]:
    """The same site has another number of units on each process."""
    model = nn.Sequential(nn.Linear(12, 4 + rank), nn.ReLU())
    with Watch(model) as watch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found: dict[str, Any] = {}
        for window in ("first", "second"):
            model(torch.ones(8, 12))
            found[window] = watch.close_window()
    return found | {"warnings": [str(w.message) for w in caught]}


def differing(rank: int, ranks: int, folder: Path) -> None:
    """Everything that takes two processes which both end well."""
    begin(rank, ranks, folder)
    calls = count_collectives()
    found: dict[str, Any] = {
        "failing": failing_on_one(rank),
        "treating": treating_on_one(rank),
        "going": going_on_one(calls, rank),
        "idle": idle(rank),
        "branching": branching(calls, rank),
        "saving": saving(rank),
        "widths": widths(rank),
    }
    treating = Policy(Recycle(), when=0.0, cooldown=0)
    for sites in (1, 60):
        for name, policy in (("watching", None), ("treating", treating)):
            found[f"{name} {sites}"] = collectives(calls, sites, policy)
    (folder / f"rank{rank}.pkl").write_bytes(pickle.dumps(found))
    dist.barrier()
    os._exit(0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("differing")
    script = "import sys; from pathlib import Path; from tests.test_faults import differing; "
    run_ranks(f"{script}differing(int(sys.argv[1]), 2, Path(sys.argv[3]))", folder)
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in range(2)]


def test_a_window_takes_a_fixed_number_of_collectives(ranks: list[dict[str, Any]]) -> None:
    """Whatever the number of sites; one more where a policy has found something to do."""
    for rank in ranks:
        assert rank["treating 1"]["treated"]
        assert rank["treating 60"]["treated"] >= 60
        for run in ("watching 1", "watching 60"):
            assert rank[run]["windows"] == [["all_reduce"] * 4] * 3, run
        for run in ("treating 1", "treating 60"):
            assert rank[run]["windows"][0] == ["all_reduce"] * 5, run
        assert {len(window) for window in rank["treating 60"]["windows"]} <= {4, 5}


def test_what_a_window_sends_grows_with_units_alone() -> None:
    sites = tuple(relu_between(index, 64) for index in range(50))
    snapshot, roll = Snapshot(Window(0, 0, 9), sites, 10), Roll()
    for ranks in (8, 4096):
        world = close(snapshot, roll, World(ranks))
        assert world.collectives == 4
        assert sum(world.reduced) == 24 + 50 * (88 * 64 + 24)
    met = replace(snapshot, sites=(*sites, relu_between(50, 64)))
    other = close(met, roll, World(4096, alike=False))
    assert other.collectives == 6
    assert other.broadcast[0] + other.gathered[0] < 2000  # of one site, and not of all


def test_steps_take_no_collectives_but_the_looks_of_the_guard(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for sites in (1, 60):
            assert rank[f"watching {sites}"]["steps"] == [[], [], []]
        # After 1, 2, 4, 8, 16 and 32 steps.
        assert rank["treating 1"]["steps"][1] == ["all_reduce"] * 6
        assert rank["treating 60"]["steps"][1] == ["all_reduce"] * 6
        assert rank["treating 60"]["steps"][0] == []


def test_a_site_given_up_on_one_process_is_unseen_on_all(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(ranks):
        failing = found["failing"]
        for window in ("first", "second"):
            site = failing[window]["1"]
            assert (site.samples, site.units, site.judged) == (0, 16, 0)
            assert failing[window]["3"].judged == 16
        given_up = [w for w in failing["warnings"] if w.startswith("SiteDisabledWarning")]
        assert len(given_up) == rank  # told where it happened …
        told = [w for w in failing["warnings"] if w.startswith("UnseenSiteWarning")]
        assert len(told) == 2  # … and on all what became of it
        assert all("on this process or another, and was given up" in w for w in told)
        assert all("not seen in window" in w and ": 1. Nothing" in w for w in told)


def test_processes_treat_alike_where_one_has_given_up(ranks: list[dict[str, Any]]) -> None:
    one, other = (rank["failing"] for rank in ranks)
    assert {t.site for t in one["first"].treatments} == {"3"}
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name


def test_a_remedy_that_fails_on_one_process_is_taken_back_on_all(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        treating = rank["treating"]
        first, second = treating["reports"]
        assert not first.treatments
        assert [r.site for r in first.refusals] == ["1", "3"]
        assert all(
            "not all processes could treat these units alike" in r.reason for r in first.refusals
        )
        assert treating["ledger"] == 0
        assert not second.treatments  # it rests there
        assert {r.site for r in second.refusals} == {"1", "3"}
        for name, value in treating["before"].items():
            assert torch.equal(value, treating["after"][name]), name


def test_a_course_that_fails_on_one_process_does_not_part_the_guards(
    ranks: list[dict[str, Any]],
) -> None:
    assert ranks[0]["going"] == ranks[1]["going"] == [1, 2, 4, 8, 16, 32, 64]


def test_a_process_without_a_forward_reports_what_the_others_saw(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        idle = rank["idle"]
        assert [site.samples for site in idle["first"].values()] == [24, 24]
        assert [site.samples for site in idle["second"].values()] == [16, 16]
        assert idle["first"].window.last_step == 2
        assert idle["second"].window.first_step == 3
        assert idle["steps"] == 4  # all count on from where the furthest is


def test_processes_that_take_other_branches_treat_alike(ranks: list[dict[str, Any]]) -> None:
    one, other = (rank["branching"] for rank in ranks)
    for mine, theirs in zip(one["reports"], other["reports"], strict=True):
        assert list(mine) == list(theirs)
        for name in mine:
            assert mine[name].site == theirs[name].site
            assert mine[name].age.tolist() == theirs[name].age.tolist()
    # The readers of all processes, as if one had seen all the data.
    readers = {wire.weight for wire in one["reports"][0]["act"].site.consumers}
    assert readers == {"always.weight", "sometimes.weight", "side.0.weight"}
    assert one["reports"][0].treatments
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name


def test_what_one_process_sees_is_exchanged_once(ranks: list[dict[str, Any]]) -> None:
    exchanged = ["all_gather_object" in calls for calls in ranks[0]["branching"]["calls"]]
    assert exchanged == ["all_gather_object" in calls for calls in ranks[1]["branching"]["calls"]]
    assert exchanged[0]
    assert not any(exchanged[3:])


@pytest.mark.parametrize("form", ["each", "merged"])
def test_one_process_goes_on_with_what_only_some_have_seen(
    ranks: list[dict[str, Any]], form: str
) -> None:
    for rank in ranks:
        expected = rank["saving"]["report"]
        assert len(rank["saving"][form]["ranks"]) == (2 if form == "each" else 1)
        watch = Watch(Branches(), rules=Rules(min_samples=1))
        watch.load_state_dict(rank["saving"][form])
        report = watch.peek()
        assert set(report) == set(expected) == {"act", "side.1", "relu"}
        for name, site in report.items():
            other = expected[name]
            assert (site.samples, site.units) == (other.samples, other.units)
            assert site.state.tolist() == other.state.tolist()
            assert set(site.site.consumers) == set(other.site.consumers), name
            np.testing.assert_allclose(site.mean, other.mean, rtol=1e-12)
            np.testing.assert_allclose(site.std, other.std, rtol=1e-9, atol=1e-12)
        assert {site.samples for site in report.values()} == {24, 48}


def test_a_site_of_another_width_on_each_process_is_not_merged(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        for window in ("first", "second"):
            site = found["widths"][window]["1"]
            assert (site.units, site.samples, site.judged) == (0, 0, 0)
        assert len(found["widths"]["warnings"]) == 2
        assert all("not the same number of units" in w for w in found["widths"]["warnings"])
