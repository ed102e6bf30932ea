"""Lightning's strategies on two real processes: what one process measures, treats and logs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deadwatch.plain import to_plain
from tests.fitting import SAMPLES
from tests.resuming import differences
from tests.strategies import RESUMED, RUNS

Result = dict[str, Any]


def launch(strategy: str, folder: Path) -> None:
    """Run the table under a strategy, as a user's script."""
    command = [sys.executable, "-m", "tests.strategies", str(folder), strategy]
    # Not a rank of another run, whatever ran in this process before.
    clean = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "MASTER_PORT")}
    here = Path(__file__).parent.parent
    done = subprocess.run(
        command, cwd=here, env=clean, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Result]]:
    folder = tmp_path_factory.mktemp("ddp")
    launch("ddp", folder)
    return [pickle.loads((folder / f"rank{rank}.pkl").read_bytes()) for rank in range(2)]


def agree(rank: Result, single: Result) -> None:
    """A rank reports, treats and logs what one process does."""
    assert len(rank["reports"]) == len(single["reports"]) > 0
    for ours, theirs in zip(rank["reports"], single["reports"], strict=True):
        assert list(ours) == list(theirs)
        for name, site in theirs.items():
            assert ours[name].samples == site.samples
            for counted in ("state", "age", "open_fraction", "nonfinite"):
                np.testing.assert_array_equal(getattr(ours[name], counted), getattr(site, counted))
            for measured in ("mean", "std", "min", "max", "mean_abs", "dormancy"):
                np.testing.assert_allclose(
                    *(getattr(x[name], measured) for x in (ours, theirs)), rtol=1e-6, atol=1e-6
                )
    assert rank["ledger"] == single["ledger"]
    assert rank["epochs"] == single["epochs"]
    assert rank["metrics"] == pytest.approx(single["metrics"], rel=1e-5)
    assert [step for step, _ in rank["logged"]] == [step for step, _ in single["logged"]]
    for (_, ours), (_, theirs) in zip(rank["logged"], single["logged"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run.watched])
def test_two_ranks_do_what_one_process_does(
    name: str, ranks: list[dict[str, Result]], tmp_path: Path
) -> None:
    single = RUNS[name](tmp_path)
    for rank in ranks:
        agree(rank[name], single)
        assert rank[name]["left"] == 0
        for key, value in single["weights"].items():
            exact = value.dtype == torch.float64
            close = {"rtol": 1e-9, "atol": 1e-12} if exact else {"rtol": 1e-4, "atol": 1e-6}
            torch.testing.assert_close(rank[name]["weights"][key], value, **close)
    assert sum(rank[name]["seen"] for rank in ranks) == single["seen"]


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run.watched])
def test_ranks_hold_one_verdict_one_ledger_and_one_model(
    name: str, ranks: list[dict[str, Result]]
) -> None:
    first, second = (rank[name] for rank in ranks)
    assert first["hash"] == second["hash"]
    assert differences(to_plain(first["reports"]), to_plain(second["reports"])) == []
    for key in ("ledger", "metrics", "logged", "epochs"):
        assert first[key] == second[key], key
    assert bool(first["ledger"]) == (RUNS[name].policy is not None)


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_fit_ends_as_one_that_was_not_interrupted(
    name: str, ranks: list[dict[str, Result]]
) -> None:
    for rank in ranks:
        whole, resumed = rank[name], rank[f"{name}, resumed"]
        for key in ("hash", "ledger", "epochs"):
            assert resumed[key] == whole[key], key
        assert resumed["losses"] == whole["losses"][-len(resumed["losses"]) :]
        assert differences(*(to_plain(done["reports"]) for done in (whole, resumed))) == []


def refusal_of(rank: Result) -> str:
    """Why a swap was not tried."""
    (refusal,) = rank["reports"][1].refusals
    return str(refusal.reason)


def test_a_swap_that_checkpoints_would_lose_is_refused(ranks: list[dict[str, Result]]) -> None:
    for rank in ranks:
        reason = refusal_of(rank["sharded and recycled"])
        assert reason.startswith("ModelParallelStrategy saves and loads no entry of a checkpoint")


def test_watching_changes_no_bit_on_any_rank(ranks: list[dict[str, Result]]) -> None:
    for rank in ranks:
        for key in ("hash", "losses"):
            assert rank["watched"][key] == rank["unwatched"][key]


def test_a_fit_in_spawned_processes_leaves_metrics_and_weights(tmp_path: Path) -> None:
    launch("ddp_spawn", tmp_path)
    single = RUNS["recycled"](tmp_path / "single")
    spawned = [pickle.loads((tmp_path / f"spawned{rank}.pkl").read_bytes()) for rank in range(2)]
    for rank in spawned:
        agree(rank, single)
        assert refusal_of(rank).startswith("processes that Lightning spawns or forks hand their")
    assert spawned[0]["hash"] == spawned[1]["hash"]
    back = pickle.loads((tmp_path / "main.pkl").read_bytes())
    assert back["metrics"] == pytest.approx(single["metrics"], rel=1e-5)
    for key, value in back["weights"].items():
        assert torch.equal(value, spawned[0]["weights"][key].to(value.dtype))
    assert back["reports"] == []  # the callbacks that saw them ended with their processes
    assert single["reports"][0]["net.1"].samples == SAMPLES
