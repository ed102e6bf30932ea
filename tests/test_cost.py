"""What watching costs, counted: against the numbers of `cost.json`, and what holds of any torch."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deadwatch.observe import host, kernels
from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.gates import gate_of
from deadwatch.observe.views import CHUNK, DEVICE_CHUNK
from deadwatch.records import Gate
from tests.agreement import one_thread
from tests.cost import (
    FILE,
    KINDS,
    NETWORKS,
    VERSIONS,
    Cost,
    Table,
    Training,
    a_step,
    compared,
    cost_of_a_step,
    dumped,
    loaded,
)
from tests.dispatches import counted

ROOT = Path(__file__).parents[1]
COMMITTED_WITH, COMMITTED = loaded(FILE.read_text())
ON_DEVICE = [name for name, kind in KINDS.items() if kind.device == "meta"]


# ── the committed numbers ───────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def now() -> Table:
    """Measured in a process of its own, where no other test has left anything behind."""
    command = [sys.executable, "-W", "error", "-m", "tests.cost"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return loaded(done.stdout)[1]


def test_watching_costs_what_is_committed(now: Table) -> None:
    if COMMITTED_WITH["torch"] != VERSIONS["torch"]:
        pytest.skip(
            f"cost.json was counted with torch {COMMITTED_WITH['torch']}, and this is "
            f"{VERSIONS['torch']}: operations differ between versions"
        )
    same_python = COMMITTED_WITH["python"] == VERSIONS["python"]
    difference = compared(COMMITTED, now, calls=same_python)
    assert not difference, difference


def test_an_idle_step_asks_torch_for_nothing(now: Table) -> None:
    for network in NETWORKS:
        idle = now[f"{network}: idle"]
        assert (idle.launches, idle.read, idle.written, idle.largest, idle.looks) == (0,) * 5
        # The pre-activation of a function is looked at before its site is known.
        assert network == "functions" or not idle.operations


def test_a_step_on_a_device_never_looks_at_a_value(now: Table) -> None:
    for network, kind in itertools.product(NETWORKS, ON_DEVICE):
        assert now[f"{network}: {kind}"].launches > 0
        assert now[f"{network}: {kind}"].looks == 0


def test_steps_that_do_more_cost_more(now: Table) -> None:
    for network in NETWORKS:
        kinds = ("idle", "liveness", "full", "full, mean far from 0")
        costs = [now[f"{network}: {kind}"] for kind in kinds]
        for one, two in itertools.pairwise(costs):
            assert one.launches < two.launches
            assert one.read < two.read


def test_no_temporary_of_an_activations_size(now: Table) -> None:
    for kind in KINDS:
        if "full" in kind and "device" not in kind:
            assert now[f"four chunks: {kind}"].largest == 4 * CHUNK
        elif "liveness" in kind:
            assert now[f"four chunks: {kind}"].largest <= 4 * 256


# ── the comparison ──────────────────────────────────────────────────────────────────────────

COST = Cost(10, 4, 2000, 500, 64, 1, 90, {"amax": 6, "gt": 4, "view": 4})
TABLE = {"MLP: full": COST}


def test_equal_tables_are_equal() -> None:
    assert compared(TABLE, dict(TABLE)) == ""
    assert loaded(dumped(TABLE)) == (VERSIONS, TABLE)


@pytest.mark.parametrize("name", ["launches", "others", "read", "written", "largest", "looks"])
def test_every_number_is_compared_both_ways(name: str) -> None:
    old = getattr(COST, name)
    for new, word in ((old + 1, "dearer"), (old - 1, "cheaper")):
        told = compared(TABLE, {"MLP: full": replace(COST, **{name: new})})
        assert f"MLP: full: {word}: {name} {old:,} → {new:,} ({new - old:+}, " in told
        assert told.endswith("python -m tests.cost --write")


def test_the_operation_that_got_dearer_is_named() -> None:
    worse = replace(COST, launches=13, operations=COST.operations | {"amax": 8, "mul": 1})
    assert compared(TABLE, {"MLP: full": worse}).splitlines()[1:-1] == [
        "MLP: full: dearer: launches 10 → 13 (+3, +30.0%)",
        "MLP: full: dearer: · amax 6 → 8 (+2, +33.3%)",
        "MLP: full: dearer: · mul 0 → 1 (+1)",
    ]


def test_calls_are_compared_on_the_same_python_alone() -> None:
    worse = {"MLP: full": replace(COST, calls=91)}
    assert "dearer: calls 90 → 91" in compared(TABLE, worse)
    assert compared(TABLE, worse, calls=False) == ""


def test_rows_that_come_and_go_are_told() -> None:
    assert "MLP: full: new" in compared({}, TABLE)
    assert "MLP: full: not measured any more" in compared(TABLE, {})


# ── the counting ────────────────────────────────────────────────────────────────────────────


def made_dearer(monkeypatch: pytest.MonkeyPatch, method: str, more: Callable[..., Any]) -> None:
    """Have a method of every site do something more."""
    original = getattr(SiteState, method)

    def dearer(self: SiteState, z: Tensor, *args: Any) -> None:
        more(z)
        original(self, z, *args)

    monkeypatch.setattr(SiteState, method, dearer)


@pytest.mark.parametrize(
    ("more", "number", "least"),
    [
        (lambda z: z.clone(), "largest", 128 * 512 * 4),
        (lambda z: z.sum(), "launches", 3),
        (lambda z: z.sum(), "read", 3 * 128 * 512 * 4),
        (lambda z: bool(z[0, 0] > 0), "looks", 3),
        (lambda z: z[0], "others", 3),
    ],
    ids=["clone", "launch", "read", "look", "view"],
)
@pytest.mark.parametrize(("kind", "method"), [("idle", "pass_by"), ("liveness", "observe")])
def test_an_operation_more_is_seen(
    kind: str, method: str, more: Any, number: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cost_of_a_step("MLP", KINDS[kind])
    made_dearer(monkeypatch, method, more)
    after = cost_of_a_step("MLP", KINDS[kind])
    assert getattr(after, number) >= least
    told = compared({"MLP": before}, {"MLP": after})
    assert f"MLP: dearer: {number} " in told
    assert "cheaper" not in told


def test_a_look_at_a_value_on_a_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made_dearer(monkeypatch, "observe", lambda z: z.sum().item())
    with pytest.warns(match="cannot be called on meta tensors"):
        a_step("MLP", KINDS["liveness, device"])


def test_a_python_call_more_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def calls() -> int:
        return a_step("MLP", KINDS["idle"])[1]

    before = calls()
    assert calls() == before
    made_dearer(monkeypatch, "pass_by", lambda z: None)
    assert calls() == before + 3 * 2  # the wrapper, and what it calls


@pytest.mark.parametrize("kind", ["idle", "liveness", "full"])
def test_the_profiler_sees_what_is_counted(kind: str) -> None:
    """It sees deadwatch's operations as they are, and what they consist of within torch."""
    watched, bare = (profiled(Training("MLP", KINDS[kind], watch)) for watch in (True, False))
    counts = cost_of_a_step("MLP", KINDS[kind]).operations
    assert not bare - watched
    assert bool(watched - bare) == bool(counts)
    for name, count in counts.items():
        assert (watched - bare)[f"aten::{name}"] >= count


def profiled(training: Training) -> Counter[str]:
    """The names of all that torch's profiler sees in a step."""
    with training.attached():
        training.step()
        with torch.profiler.profile(acc_events=True) as profiler:
            training.step()
    return Counter(event.name for event in profiler.events() if event.name.startswith("aten::"))


# ── one pass ────────────────────────────────────────────────────────────────────────────────

LAYOUTS: dict[str, Callable[[int], tuple[Tensor, int]]] = {
    "rows": lambda n: (torch.randn(n // 256, 256), -1),
    "column": lambda n: (torch.randn(n, 1), -1),
    "tokens": lambda n: (torch.randn(8, n // 1024, 128), -1),
    "images": lambda n: (torch.randn(n // 16384, 64, 16, 16), 1),
    "small images": lambda n: (torch.randn(n // 256, 64, 2, 2), 1),
    "signal": lambda n: (torch.randn(1, 8, n // 8), 1),
    "channels last": lambda n: (
        torch.randn(n // 16384, 64, 16, 16).to(memory_format=torch.channels_last),
        1,
    ),
    "slice": lambda n: (torch.randn(8, n // 1024 + 1, 128)[:, :-1], -1),
    "slice of images": lambda n: (torch.randn(n // 16384, 64, 16, 17)[..., :-1], 1),
    "half": lambda n: (torch.randn(n // 256, 256).bfloat16(), -1),
    "double": lambda n: (torch.randn(n // 256, 256).double(), -1),
}

ACTIVATIONS = [nn.ReLU(), nn.ReLU6(), nn.Hardshrink(), nn.LeakyReLU()]
"""Their gates: open above, between, outside and everywhere."""

PASSES: dict[str, Callable[[Tensor, int, Gate], Any]] = {
    "liveness": kernels.liveness,
    "moments": lambda z, dim, gate: list(kernels.moments(z, dim, gate)),
    "outputs": lambda z, dim, gate: list(kernels.outputs(z, dim)),
    "host moments": host.moments,
    "host outputs": lambda z, dim, gate: host.outputs(z, dim, signed=True),
}


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda act: type(act).__name__)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_temporaries_are_no_larger_than_a_chunk(
    device: str, layout: str, activation: nn.Module
) -> None:
    size = CHUNK if device == "cpu" else DEVICE_CHUNK
    with torch.device(device):
        z, dim = LAYOUTS[layout](size * 7 // 2)
    gate = gate_of(activation)
    assert gate is not None
    chunk = size * max(4, z.element_size())
    for name, run in PASSES.items():
        if "host" in name and device != "cpu":
            continue
        with one_thread(), counted() as tally:
            run(z, dim, gate)
        assert tally.operations
        scratch = name != "liveness" or isinstance(activation, nn.ReLU6)  # else it is a reduction
        assert tally.largest <= (chunk if scratch else chunk // 50), name
        assert tally.peak <= (5.1 * chunk if scratch else chunk // 50), name
        assert "host" in name or not tally.looks, name


# ── the end of a window ─────────────────────────────────────────────────────────────────────

TO_THE_HOST = ("cpu", "item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "to")


class Reading(TorchFunctionMode):
    """Counts what moves values to Python, or would from a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        self.counts.update([name] if name in TO_THE_HOST else [])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_window_is_read_with_one_copy(network: str) -> None:
    training = Training(network, KINDS["full"], True)
    assert training.watch is not None
    with training.attached(), Reading() as reading:
        report = training.watch.close_window()
    assert reading.counts == {"cpu": 1}
    assert all(site.samples for site in report.values())
