"""A run goes on, on another number of processes, as if one process had done all of it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist

from deadwatch import BiasWarming, NoBiasDecay, Policy, Recycle
from deadwatch.observe import reduce
from deadwatch.plain import from_plain, to_plain
from deadwatch.records import WindowReport
from deadwatch.treat.ledger import Entry
from tests.nets import mlp
from tests.resuming import Run, Setup, through_a_file
from tests.test_resume import dying


@dataclass(frozen=True)
class Case:
    """A run, and after which of its events it is interrupted.

    Attributes:
        after: That.
        guarded: Whether the loss leaves its band after the treatment.
        merged: Whether what the processes measured is too much to be saved for each of them.
    """

    after: int
    guarded: bool = False
    merged: bool = False


CASES = {
    "between a verdict and its treatment": Case(5),
    "while warmed, within a window": Case(7),
    "while annealed, within a window": Case(10),
    "after a window": Case(12),
    "while on trial": Case(13, guarded=True),
    "merged when saved": Case(7, merged=True),
}

TO_FINISH = {1: (2,), 2: (1, 2), 3: (2,)}
"""By the number of processes that finish runs, the numbers of those that saved them."""

GLOBAL = 12
"""Rows of a step's batch, over all processes."""


class Shared(Run):
    """One process of a run whose data do not depend on how many processes share them."""

    def train(self) -> None:
        generator = torch.Generator().manual_seed(100 * self.step)
        x = torch.randn(GLOBAL, 12, generator=generator)
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.optimizer.zero_grad()
        loss = self.model(x[rank::ranks]).square().mean()
        loss.backward()
        for parameter in self.model.parameters() if ranks > 1 else ():
            dist.all_reduce(parameter.grad)
            parameter.grad /= ranks
        self.optimizer.step()
        self.watch.step(self.setup.loss(self.step, loss.detach()))
        self.step += 1


def setup(guarded: bool) -> Setup:
    """Three units are dead from the start, warmed as soon as it is allowed, and annealed."""
    warming = BiasWarming(hold=3, anneal=4, quiet=False)
    policy = {"when": 0.01, "cooldown": 1, "prevent": NoBiasDecay(), "warmup": 8 * guarded}
    return Setup(
        lambda: dying(mlp()),
        lambda: Policy([warming, Recycle()], **policy),
        # Without momentum and curvature, rounding stays rounding.
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-3, weight_decay=0.5),
        loss=lambda step, _: torch.tensor(9.0 if guarded and step > 8 else 1 + 0.01 * (step % 3)),
    )


def end(run: Run) -> dict[str, Any]:
    """What is to be the same at the end, in plain values."""
    clinic = run.watch._clinic
    assert clinic is not None
    return {
        "model": dict(run.model.state_dict()),
        "reports": to_plain(run.reports),
        "peek": to_plain(run.watch.peek()),
        "clinic": to_plain(clinic.state_dict()),
        "in course": clinic.in_course,
        "decay": [group["weight_decay"] for group in run.optimizer.param_groups],
    }


def interrupted(case: Case) -> dict[str, Any]:
    run = Shared(setup(case.guarded))
    run.go_on(case.after)
    with patch.object(reduce, "GATHERED", 0 if case.merged else 1 << 28):
        return run.state()


def finished(guarded: bool, state: Any = None) -> dict[str, Any]:
    run = Shared(setup(guarded), state)
    run.go_on()
    return end(run)


def on_ranks(rank: int, ranks: int, folder: Path) -> None:
    """Save runs here if there are two processes, and finish those that were saved."""
    init = f"file://{folder}/store{ranks}"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=ranks)
    for name, case in CASES.items() if ranks == 2 else ():
        state = interrupted(case)
        assert len(state["watch"]["ranks"]) == (1 if case.merged else 2)
        if rank == 0:
            torch.save(state, folder / f"2 {name}.pt")
    dist.barrier()
    for saved_by in TO_FINISH[ranks]:
        for name, case in CASES.items():
            state = torch.load(folder / f"{saved_by} {name}.pt", weights_only=True)
            torch.save(
                finished(case.guarded, state), folder / f"{saved_by} {ranks} {rank} {name}.pt"
            )
    dist.barrier()


SCRIPT = """
import sys, warnings
from functools import partial
from pathlib import Path
from tests.forks import in_forks
from tests.test_resume_ranks import on_ranks

warnings.simplefilter("error")
for ranks in (2, 3):
    calls = [partial(on_ranks, rank, ranks, Path(sys.argv[1])) for rank in range(ranks)]
    assert not any(in_forks(calls))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for name, case in CASES.items():
        torch.save(interrupted(case), folder / f"1 {name}.pt")
    subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def whole() -> dict[bool, Any]:
    """What is left of runs that were not interrupted, on one process; by whether guarded."""
    return {guarded: through_a_file(finished(guarded)) for guarded in (False, True)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("saved_by", "ranks"), [(one, ranks) for ranks, several in TO_FINISH.items() for one in several]
)
def test_a_run_goes_on_on_another_number_of_processes(
    saved_by: int, ranks: int, name: str, folder: Path, whole: dict[bool, Any]
) -> None:
    guarded = CASES[name].guarded
    if ranks == 1:
        state = torch.load(folder / f"{saved_by} {name}.pt", weights_only=True)
        results = [finished(guarded, state)]
    else:
        paths = [folder / f"{saved_by} {ranks} {rank} {name}.pt" for rank in range(ranks)]
        results = [torch.load(path, weights_only=True) for path in paths]
    for result in results:
        assert close(result, whole[guarded]) == []


def test_the_runs_are_such_that_schedules_end_and_guards_act(whole: dict[bool, Any]) -> None:
    reports = from_plain(list[WindowReport], whole[False]["reports"])
    assert [len(report.treatments) for report in reports] == [1, 0, 1]
    assert [int(report["1"].dead.sum()) for report in reports][:2] == [3, 0]
    assert whole[False]["in course"] == 0
    entries = from_plain(list[Entry], whole[True]["clinic"]["ledger"])
    assert [(entry.treatment.window, entry.undone) for entry in entries] == [(1, True)] * 2


def close(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two results differ by more than rounding; whole numbers have to be equal."""
    if isinstance(one, torch.Tensor) and one.is_floating_point():
        same = np.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)
        return [] if same else [f"{path}: {one} and {other}"]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [f"{path}: {one} and {other}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{path}: {list(one)} and {list(other)}"]
        return [d for key in one for d in close(one[key], other[key], f"{path}[{key}]")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{path}: {len(one)} and {len(other)} items"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in close(a, b, f"{path}[{i}]")]
    if isinstance(one, float):
        return (
            [] if np.isclose(one, other, rtol=1e-4, equal_nan=True) else [f"{path}: {one} {other}"]
        )
    return [] if one == other else [f"{path}: {one!r} and {other!r}"]
