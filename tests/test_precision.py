"""Numbers are right in every precision, at any count, and next to NaN and infinity."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from deadwatch import Rules, State, Watch, WindowReport
from deadwatch.observe import host, kernels, reduce, stats
from deadwatch.observe.accumulate import SiteState
from deadwatch.observe.gates import gate_of
from deadwatch.observe.sites import Candidate
from deadwatch.observe.transfer import fetch
from deadwatch.records import Gate, Site, SiteSnapshot, Snapshot, Window
from tests.agreement import one_thread
from tests.nets import mlp
from tests.test_kernels import GATES, RELU

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with one_thread():
        yield


def watched(
    model: nn.Module, batches: list[Tensor], call: Any = None, autocast: torch.dtype | None = None
) -> tuple[WindowReport, dict[str, Tensor]]:
    """The report, and what the activations of a sequence were given."""
    given: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, name=name: given.setdefault(name, []).append(args[0].detach())
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.ReLU) and call is None
    ]
    with Watch(model, stats_every_n_steps=1, rules=Rules(min_samples=1)) as watch:
        for x in batches:
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                (model if call is None else call)(x)
            watch.step()
        report = watch.peek()
    for hook in hooks:
        hook.remove()
    return report, {name: torch.cat(parts) for name, parts in given.items()}


def assert_right(report: WindowReport, given: dict[str, Tensor], dtype: torch.dtype) -> None:
    assert set(report) == set(given)
    for name, site in report.items():
        assert given[name].dtype == dtype
        z = given[name].double().movedim(1, -1).reshape(-1, site.units).numpy()
        assert site.samples == len(z)
        np.testing.assert_array_equal(site.open_fraction, (z > 0).mean(0))
        np.testing.assert_array_equal(site.min, z.min(0))
        np.testing.assert_array_equal(site.max, z.max(0))
        np.testing.assert_array_equal(site.dead, ~(z > 0).any(0))
        np.testing.assert_allclose(site.mean, z.mean(0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(site.std, z.std(0), rtol=1e-6)
        np.testing.assert_allclose(site.mean_out, z.clip(0).mean(0), rtol=1e-6, atol=1e-6)


# ── precisions ──────────────────────────────────────────────────────────────────────────


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = mlp()
    with torch.no_grad():
        model[0].bias[:3] = -50
    return model


@pytest.mark.parametrize("dtype", HALVES)
def test_autocast(dtype: torch.dtype) -> None:
    report, given = watched(net(), [torch.randn(400, 12) for _ in range(3)], autocast=dtype)
    assert_right(report, given, dtype)
    assert report["1"].dead[:3].all()


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
def test_models_of_another_precision(dtype: torch.dtype) -> None:
    batches = [torch.randn(400, 12, dtype=torch.float32).to(dtype) for _ in range(3)]
    report, given = watched(net().to(dtype), batches)
    assert_right(report, given, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_last(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.ReLU(), nn.Conv2d(7, 2, 1), nn.ReLU())
    model = model.to(dtype, memory_format=torch.channels_last)
    batches = [torch.randn(4, 3, 9, 8).to(dtype, memory_format=torch.channels_last)] * 2
    report, given = watched(model, batches)
    assert given["1"].is_contiguous(memory_format=torch.channels_last)
    assert_right(report, given, dtype)


def test_ten_million_samples_far_from_zero_and_close_together() -> None:
    noise = torch.randn(1_000_000, 2, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.ReLU())
    batches = [1000 + 0.1 * noise.roll(shift, 1) for shift in range(10)]
    began = time.process_time()
    with Watch(model, stats_every_n_steps=1) as watch:
        for x in batches:
            model(x)
            watch.step()
        site = watch.peek()["0"]
    assert time.process_time() - began < 2
    assert site.samples == 10_000_000
    exact = torch.stack([batches[0].double(), batches[1].double()])
    expected = exact.mean((0, 1)).numpy(), exact.std((0, 1), correction=0).numpy()
    np.testing.assert_allclose(site.mean, expected[0], rtol=1e-9)
    np.testing.assert_allclose(site.std, expected[1], rtol=1e-6)
    np.testing.assert_allclose(site.mean, 1000, rtol=1e-6)
    np.testing.assert_allclose(site.std, 0.1, rtol=1e-3)


# ── large counts ────────────────────────────────────────────────────────────────────────

LARGE = [2**31 - 2, 2**31 + 1, 2**40 + 1, 2**53 - 9]


def long_run(count: int) -> SiteState:
    """A site that has seen ``count`` elements of mean 3 and standard deviation 2."""
    module = nn.ReLU()
    gate = gate_of(module)
    assert gate is not None
    candidate = Candidate(module, "ReLU", gate, ("0",))
    state = SiteState.start("0", Site("0", "0", 1, "ReLU", gate), candidate, torch.zeros(1, 2), -1)
    state.samples = count
    for name in ("count", "open", "finite"):
        state.data[name].fill_(count)
    state.data["mean"].fill_(3)
    state.data["m2"].fill_(4.0 * count)
    state.data["opened"].fill_(True)
    return state


@pytest.mark.parametrize("count", LARGE)
def test_counts_stay_exact_and_moments_right_after_a_long_run(count: int) -> None:
    state = long_run(count)
    state.observe(torch.tensor([[1.0, 5.0], [math.nan, -1.0]]), 0, 1)
    snapshot = fetch([state])[0]
    assert snapshot.samples == count + 2
    assert snapshot.data["count"].tolist() == [count + 2, count + 2]
    assert snapshot.data["finite"].tolist() == [count + 1, count + 2]
    assert snapshot.data["open"].tolist() == [count + 1, count + 1]
    np.testing.assert_allclose(snapshot.data["mean"], 3, rtol=1e-8)
    np.testing.assert_allclose(snapshot.data["m2"] / count, 4, rtol=1e-8)


@pytest.mark.parametrize("count", LARGE)
def test_two_long_runs_merge(count: int) -> None:
    one, two = long_run(count).data, long_run(5).data
    two["mean"].fill_(3 + 1e-3)
    stats.update_(one, two)
    assert one["count"].tolist() == [count + 5]
    np.testing.assert_allclose(one["mean"], 3 + 5e-3 / (count + 5), rtol=1e-15)
    np.testing.assert_allclose(one["m2"], 4.0 * (count + 5), rtol=1e-12)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group(
        "gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("count", LARGE)
def test_processes_exchange_large_counts_exactly(
    count: int, one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduce, "_world", lambda: 2)  # exchange, though there is one only
    (sent,) = fetch([long_run(count)])
    window = Window(0, 0, 0)
    (got,) = reduce.reduce(Snapshot(window, (sent,))).sites
    assert isinstance(got, SiteSnapshot)
    assert got.samples == count
    for name in stats.STATISTICS:
        np.testing.assert_array_equal(got.data[name], sent.data[name])
        assert got.data[name].dtype == sent.data[name].dtype


# ── NaN and infinity ────────────────────────────────────────────────────────────────────


class Both(nn.Module):
    """A module, and a function that is given what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        return F.gelu(self.act(x))


@pytest.mark.parametrize("compiled", [False, True])
def test_one_bad_batch_marks_the_units_it_hit_and_no_other(compiled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(50, 5, generator=generator) for _ in range(6)]
    for batch in batches:
        batch[:, 4] = -1
    batches[4][2, 1] = math.nan
    batches[4][5:7, 2] = torch.tensor([math.inf, -math.inf])
    batches[4][9, 4] = math.nan
    model = Both()
    torch._dynamo.reset()
    report, _ = watched(
        model, batches, torch.compile(model, backend="eager") if compiled else model
    )
    torch._dynamo.reset()
    z = torch.cat(batches).double()
    for name, seen in (("act", z), ("gelu", z.clamp(min=0))):
        kept = [column[column.isfinite()] for column in seen.T]
        site = report[name]
        assert site.samples == 300
        assert site.nonfinite.tolist() == [300 - len(column) for column in kept]
        np.testing.assert_allclose(site.mean, [c.mean() for c in kept], atol=1e-7)
        np.testing.assert_allclose(site.std, [c.std(correction=0) for c in kept], atol=1e-7)
        np.testing.assert_allclose(site.max, [c.max() for c in kept], rtol=1e-6)
    assert report["act"].nonfinite.tolist() == [0, 1, 2, 0, 1]
    # The NaN may have been an open gate; that of the second unit was, in other rows.
    expected = [State.ALIVE] * 4 + [State.UNCERTAIN]
    assert report["act"].state.tolist() == expected


# ── the two ways to compute them ────────────────────────────────────────────────────────


def in_one_pass(z: Tensor, dim: int, gate: Gate) -> dict[str, Any]:
    total = stats.new(z.shape[dim], z.device)
    stats.update_(total, kernels.fused(z, dim, gate, None, kernels.pivot_of(z, dim, total)))
    stats.update_(total, kernels.fused_outputs(z, dim))
    return {name: value.numpy() for name, value in total.items()}


def in_passes(z: Tensor, dim: int, gate: Gate) -> dict[str, Any]:
    total = stats.new(z.shape[dim], z.device)
    stats.update_(total, kernels.liveness(z, dim, gate))
    for part in (*kernels.moments(z, dim, gate), *kernels.outputs(z, dim)):
        stats.update_(total, part)
    return {name: value.numpy() for name, value in total.items()}


def assert_same(one: dict[str, Any], two: dict[str, Any], gate: Gate) -> None:
    for name, stat in stats.STATISTICS.items():
        if name == "opened":  # the exact check may leave to the count what a NaN hides
            np.testing.assert_array_equal(one[name] | (one["open"] > 0), two[name])
        elif name == "suspect" and gate.always_open:
            assert not one[name].any()
        elif stat.kind == "real":
            np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=1e-3)
        else:
            np.testing.assert_array_equal(one[name], two[name])


def is_open(gate: Gate, z: Any) -> Any:
    """By the definition of `Gate`; an end at infinity closes for nobody, not even infinity."""
    if not gate.inside:
        return (z > gate.high) | (z < gate.low)
    above = (z > gate.low) | (gate.low == -math.inf)
    below = (z < gate.high) | (gate.high == math.inf)
    return above & below & ~np.isnan(z)


finite = st.floats(-100, 100, width=16)
elements = st.one_of(finite, finite, st.sampled_from([0.0, math.nan, math.inf, -math.inf]))


@st.composite
def activations(draw: st.DrawFn) -> tuple[Tensor, int]:
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    size = math.prod(shape)
    values = draw(st.lists(elements, min_size=size, max_size=size))
    dtype = draw(st.sampled_from([*HALVES, torch.float32, torch.float64]))
    z = torch.tensor(values, dtype=torch.float64).to(dtype).view(shape)
    if draw(st.booleans()) and z.ndim == 4:
        z = z.to(memory_format=torch.channels_last)
    return z, draw(st.integers(-len(shape), len(shape) - 1))


@settings(max_examples=150, deadline=None)
@given(case=activations(), gate=st.sampled_from(list(GATES.values())))
def test_one_pass_gives_what_several_give(case: tuple[Tensor, int], gate: Gate) -> None:
    z, dim = case
    one, two = in_passes(z, dim, gate), in_one_pass(z, dim, gate)
    assert_same(one, two, gate)
    rows = z.double().movedim(dim, -1).reshape(-1, z.shape[dim]).numpy()
    np.testing.assert_array_equal(two["open"], is_open(gate, rows).sum(0))
    np.testing.assert_array_equal(two["finite"], np.isfinite(rows).sum(0))


@settings(max_examples=100, deadline=None)
@given(case=activations(), order=st.randoms(use_true_random=False), seed=st.integers(0, 99))
def test_neither_chunks_nor_the_order_of_units_matter(
    case: tuple[Tensor, int], order: Any, seed: int
) -> None:
    z, dim = case
    rows = z.movedim(dim, -1).reshape(-1, z.shape[dim])
    units = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(seed))
    parts = list(rows.tensor_split(1 + seed % 4))
    order.shuffle(parts)
    total = stats.new(rows.shape[1], rows.device)
    for part in parts:
        if part.numel():
            pivot = kernels.pivot_of(part[:, units], 1, total)
            stats.update_(total, kernels.fused(part[:, units], 1, RELU, None, pivot))
            stats.update_(total, kernels.fused_outputs(part[:, units], 1))
    whole = in_one_pass(z, dim, RELU)
    whole = {name: v if len(v) == 1 else v[units.numpy()] for name, v in whole.items()}
    assert_same({name: value.numpy() for name, value in total.items()}, whole, RELU)


@settings(max_examples=200, deadline=None)
@given(
    case=activations(), gate=st.sampled_from(list(GATES.values())), shift=st.sampled_from([0, 3e3])
)
def test_the_host_finds_what_several_passes_find(
    case: tuple[Tensor, int], gate: Gate, shift: float
) -> None:
    z, dim = case[0] + shift, case[1]
    total = stats.new(z.shape[dim], z.device, wide=True)
    batch, output = host.moments(z, dim, gate), host.outputs(z, dim, signed=True)
    assert (batch is not None) == bool(z.isfinite().all()) == (output is not None)
    if batch is None or output is None:
        return
    for part in (batch, output):
        stats.update_(total, part)
    found = {name: value.numpy() for name, value in total.items()}
    several = in_passes(z, dim, gate)
    narrow = {name: found[name].astype(np.float32) for name in ("min", "max")}
    assert_same({**found, **narrow}, several, gate)  # the passes hold extremes in float32
    assert found["min"].dtype == np.float64
    rows = z.movedim(dim, -1).reshape(-1, z.shape[dim]).double().numpy()
    np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(found["m2"], rows.var(0) * len(rows), rtol=1e-5, atol=1e-3)


def weights_of(parts: list[Tensor]) -> stats.Accumulator:
    total = stats.new(2, parts[0].device)
    for part in parts:
        stats.update_(total, kernels.fused(part, 1, RELU, None, kernels.pivot_of(part, 1, total)))
    return total


@settings(max_examples=60, deadline=None)
@given(values=st.lists(elements, min_size=24, max_size=24))
def test_accumulators_merge_in_any_grouping(values: list[float]) -> None:
    a, b, c = torch.tensor(values, dtype=torch.float32).view(3, 4, 2)
    left, right = weights_of([a, b]), weights_of([c])
    stats.update_(left, weights_of([c]))
    both = weights_of([b])
    stats.update_(both, right)
    grouped = weights_of([a])
    stats.update_(grouped, both)
    assert_same(
        {name: value.numpy() for name, value in left.items()},
        {name: value.numpy() for name, value in grouped.items()},
        RELU,
    )
