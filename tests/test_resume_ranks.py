"""A run goes on, on another number of processes, as if one process had done all of it."""

from __future__ import annotations

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
from tests.nets import mlp
from tests.ranks import run_ranks
from tests.resuming import EVENTS, Run, Setup, through_a_file
from tests.test_resume import dying

INTERRUPTED = {
    "within a window, while warmed": 7,
    "between a verdict and its treatment": 5,
    "within a window, while annealed": 10,
    "after a window": 12,
}
"""After which of the events of a run it is interrupted."""

MERGED = 7
"""After which it is interrupted where what the processes measured is merged when it is saved."""

TO_FINISH: dict[int, list[tuple[int, int | str]]] = {
    1: [*((2, done) for done in INTERRUPTED.values()), (2, "merged")],
    2: [*((1, done) for done in INTERRUPTED.values()), (2, "merged")],
    3: [*((2, done) for done in INTERRUPTED.values()), (2, "merged")],
}
"""By the number of processes that finish a run, the number of those that saved it, and when."""

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


def setup() -> Setup:
    """Three units are dead from the start, warmed from the first window on, and annealed."""
    warming = BiasWarming(hold=3, anneal=4, quiet=False)
    return Setup(
        lambda: dying(mlp()),
        lambda: Policy([warming, Recycle()], when=0.01, cooldown=1, prevent=NoBiasDecay()),
        # Without momentum and curvature, rounding stays rounding.
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-3, weight_decay=0.5),
        loss=lambda step, loss: torch.tensor(1 + 0.01 * (step % 3)),
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


def interrupted(done: int) -> dict[str, Any]:
    run = Shared(setup())
    run.go_on(done)
    return run.state()


def finished(state: Any = None) -> dict[str, Any]:
    run = Shared(setup(), state)
    run.go_on()
    return end(run)


def merged(done: int) -> dict[str, Any]:
    """The same, where what all processes measured is too much for each of them."""
    with patch.object(reduce, "GATHERED", 0):
        return interrupted(done)


def on_ranks(rank: int, ranks: int, folder: Path) -> None:
    """Save runs here if there are two processes, and finish those that other numbers saved."""
    init = f"file://{folder}/store{ranks}"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=ranks)
    if ranks == 2:
        states: dict[int | str, Any] = {done: interrupted(done) for done in INTERRUPTED.values()}
        for done, state in (states | {"merged": merged(MERGED)}).items():
            if rank == 0:
                torch.save(state, folder / f"2-{done}.pt")
    dist.barrier()
    for saved_by, done in TO_FINISH[ranks]:
        path = folder / f"{saved_by}-{done}.pt"
        result = finished(torch.load(path, weights_only=True))
        torch.save(result, folder / f"{saved_by}-{ranks}-{done}-{rank}.pt")
    dist.barrier()


SCRIPT = """
import os, sys, warnings
from pathlib import Path
from tests.test_resume_ranks import on_ranks

warnings.simplefilter("error")
on_ranks(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
os._exit(0)  # gloo's own threads now and then abort an orderly exit
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for done in INTERRUPTED.values():
        torch.save(interrupted(done), folder / f"1-{done}.pt")
    for ranks in (2, 3):
        run_ranks(SCRIPT, folder, ranks)
    return folder


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return finished()


@pytest.mark.parametrize(
    ("ranks", "saved_by", "done"),
    [(ranks, *one) for ranks, several in TO_FINISH.items() for one in several],
)
def test_a_run_goes_on_on_another_number_of_processes(
    ranks: int, saved_by: int, done: int | str, folder: Path, whole: dict[str, Any]
) -> None:
    if ranks == 1:
        results = [finished(torch.load(folder / f"{saved_by}-{done}.pt", weights_only=True))]
    else:
        paths = [folder / f"{saved_by}-{ranks}-{done}-{rank}.pt" for rank in range(ranks)]
        results = [torch.load(path, weights_only=True) for path in paths]
    for result in results:
        assert close(result, through_a_file(whole)) == []


def test_the_run_is_one_in_which_schedules_end(whole: dict[str, Any]) -> None:
    reports = from_plain(list[WindowReport], whole["reports"])
    assert [len(report.treatments) for report in reports] == [1, 0, 1]
    assert [int(report["1"].dead.sum()) for report in reports][:2] == [3, 0]
    assert whole["in course"] == 0
    assert len(EVENTS) > max(INTERRUPTED.values())


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
