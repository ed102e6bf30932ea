"""The passes over one activation: exact, whatever the shape, precision, chunking or NaN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deadwatch.observe import host, kernels, stats, views
from deadwatch.records import Gate

RELU = Gate(0.0, math.inf)
GATES = {
    "above": RELU,
    "below": Gate(-math.inf, 0.3),
    "between": Gate(0.0, 0.4),
    "outside": Gate(-0.5, 0.5, inside=False),
    "always": Gate(-math.inf, math.inf),
}


def accumulate(batches: list[Tensor], dim: int, gate: Gate = RELU) -> dict[str, Any]:
    total = stats.new(batches[0].shape[dim], batches[0].device)
    for z in batches:
        stats.update_(total, kernels.liveness(z, dim, gate))
        for part in kernels.moments(z, dim, gate):
            stats.update_(total, part)
    return {name: value.numpy() for name, value in total.items()}


def is_open(gate: Gate, z: Any) -> Any:
    if gate.inside:
        return (z > gate.low) & (z < gate.high) | ~np.isfinite([gate.low, gate.high]).any() & (
            z == z
        )
    return (z > gate.high) | (z < gate.low)


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
@pytest.mark.parametrize(
    ("shape", "dim"), [((9,), 0), ((5, 4), 1), ((3, 4, 6), 1), ((2, 3, 4, 5), 1), ((4, 5, 3), -1)]
)
def test_counts_are_exact_for_every_gate_and_shape(
    gate: Gate, shape: tuple[int, ...], dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "CHUNK", 7)  # many chunks, of uneven size
    z = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    got = accumulate([z], dim, gate)
    rows = z.movedim(dim, -1).reshape(-1, z.shape[dim]).double().numpy()
    opened = is_open(gate, rows)
    np.testing.assert_array_equal(got["open"], opened.sum(0))
    np.testing.assert_array_equal(got["opened"], opened.any(0))
    np.testing.assert_array_equal(got["count"], len(rows))
    np.testing.assert_allclose(got["mean"], rows.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["m2"] / len(rows), rows.var(0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_mean_and_small_spread(dtype: torch.dtype) -> None:
    """Mean 1000, std 0.1: a sum of squares in float32 would be off by more than the variance."""
    generator = torch.Generator().manual_seed(0)
    spread = 0.1 if dtype is torch.float32 else 8.0
    batches = [
        (1000 + spread * torch.randn(4096, 3, generator=generator)).to(dtype) for _ in range(50)
    ]
    got = accumulate(batches, 1)
    exact = torch.cat(batches).double().numpy()
    np.testing.assert_allclose(got["mean"], exact.mean(0), rtol=1e-9)
    np.testing.assert_allclose(got["m2"] / got["finite"], exact.var(0), rtol=1e-5)


def test_one_pass_about_a_pivot_bears_a_large_mean_too() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [1000 + 0.1 * torch.randn(4096, 3, generator=generator) for _ in range(50)]
    batches[0][:3] = torch.tensor([[math.nan], [math.inf], [1e6]])  # of what the first pivot is
    total = stats.new(3, torch.device("cpu"))
    for z in batches:
        pivot = kernels.pivot_of(z, 1, total)
        stats.update_(total, kernels.fused(z, 1, RELU, None, pivot))
    exact = torch.cat(batches)[2:].double().numpy()
    np.testing.assert_allclose(total["mean"], exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(total["m2"] / total["finite"], exact.var(0), rtol=1e-3)
    again = stats.new(3, torch.device("cpu"))
    for z in batches[1:]:
        pivot = kernels.pivot_of(z, 1, again)
        stats.update_(again, kernels.fused(z, 1, RELU, None, pivot))
    later = torch.cat(batches[1:]).double().numpy()
    np.testing.assert_allclose(again["mean"], later.mean(0), rtol=1e-9)
    np.testing.assert_allclose(again["m2"] / again["finite"], later.var(0), rtol=1e-5)


def test_counts_beyond_what_float32_can_hold() -> None:
    total = stats.new(2, torch.device("cpu"))
    batch: stats.Batch = {"count": 2**31 + 1, "open": torch.tensor([2**31, 2**31 + 1])}
    stats.update_(total, batch)
    stats.update_(total, batch)
    assert total["count"].tolist() == [2**32 + 2]
    assert total["open"].tolist() == [2**32, 2**32 + 2]


def test_a_count_of_rare_events_saturates_and_does_not_wrap() -> None:
    total = stats.new(2, torch.device("cpu"))
    for _ in range(3):
        stats.update_(total, {"out_bad": torch.tensor([2**30, 1], dtype=torch.int32)})
    assert total["out_bad"].tolist() == [2**31 - 2**30, 3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_does_not_poison_the_rest(bad: float) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(64, 4, generator=generator) - 9 for _ in range(3)]
    batches[1][5, 2] = bad
    got = accumulate(batches, 1)
    z = torch.cat(batches).double().numpy()
    finite = np.isfinite(z)
    np.testing.assert_array_equal(got["finite"], finite.sum(0))
    kept = [z[finite[:, c], c] for c in range(4)]
    np.testing.assert_allclose(got["mean"], [k.mean() for k in kept], rtol=1e-6)
    np.testing.assert_allclose(got["m2"], [k.var() * len(k) for k in kept], rtol=1e-5)
    np.testing.assert_array_equal(got["min"], [k.min() for k in kept])
    np.testing.assert_array_equal(got["max"], [k.max() for k in kept])
    assert got["suspect"].tolist() == [False, False, math.isnan(bad), False]
    assert got["opened"].tolist() == [False, False, bad == math.inf, False]


def test_a_nan_hides_no_open_gate_of_another_batch() -> None:
    z = torch.full((4, 2), -1.0)
    bad = z.clone()
    bad[0, 0] = math.nan
    got = accumulate([bad, z + 2, z], 1)
    assert got["opened"].tolist() == [True, True]


def test_outputs_skip_what_is_not_finite() -> None:
    h = torch.tensor([[1.0, -2.0], [math.nan, 4.0], [3.0, math.inf]])
    total = stats.new(2, h.device)
    for part in kernels.outputs(h, 1):
        stats.update_(total, part)
    assert total["out_bad"].tolist() == [1, 1]
    assert total["out_sum"].tolist() == [4.0, 2.0]
    assert total["out_abs"].tolist() == [4.0, 6.0]


def test_scratch_is_bounded_by_the_chunk_not_by_the_activation() -> None:
    z = torch.randn(64, 8, 64, 64)  # eight chunks
    sizes = [int(part["count"]) * 8 for part in kernels.moments(z, 1, RELU)]
    assert len(sizes) == z.numel() // views.CHUNK
    assert max(sizes) <= views.CHUNK


reals = st.floats(-100, 100, width=32, allow_subnormal=False)
matrices = st.lists(st.lists(reals, min_size=2, max_size=2), min_size=1, max_size=12)


def as_batch(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def same(left: dict[str, Any], right: dict[str, Any]) -> None:
    for name, stat in stats.STATISTICS.items():
        if stat.kind == "real":
            np.testing.assert_allclose(left[name], right[name], rtol=1e-4, atol=1e-3)
        else:
            np.testing.assert_array_equal(left[name], right[name])


@settings(max_examples=60, deadline=None)
@given(a=matrices, b=matrices, c=matrices)
def test_merging_is_commutative_and_associative(
    a: list[list[float]], b: list[list[float]], c: list[list[float]]
) -> None:
    one, two, three = as_batch(a), as_batch(b), as_batch(c)
    forward = accumulate([one, two, three], 1)
    same(forward, accumulate([three, one, two], 1))
    same(forward, accumulate([torch.cat([one, two, three])], 1))


@settings(max_examples=60, deadline=None)
@given(rows=matrices)
def test_permuting_units_permutes_the_results(rows: list[list[float]]) -> None:
    z = as_batch(rows)
    got, swapped = accumulate([z], 1), accumulate([z.flip(1)], 1)
    same({name: value[::-1] for name, value in got.items()}, swapped)


@settings(max_examples=60, deadline=None)
@given(rows=matrices, scale=st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_rescaling_a_layer_leaves_its_dead_set(rows: list[list[float]], scale: float) -> None:
    z = as_batch(rows)
    before, after = accumulate([z], 1), accumulate([z * scale], 1)
    np.testing.assert_array_equal(before["opened"], after["opened"])


def layouts() -> dict[str, tuple[Tensor, int]]:
    x = torch.randn(4, 6, 8, 10, generator=torch.Generator().manual_seed(3))
    wide = torch.randn(12, 12, generator=torch.Generator().manual_seed(4))
    return {
        "contiguous": (x, 1),
        "units last": (x, -1),
        "units first": (x, 0),
        "channels_last": (x.to(memory_format=torch.channels_last), 1),
        "transposed": (x.transpose(1, 3), 1),
        "permuted": (x.permute(2, 0, 3, 1), 2),
        "half of the channels": (x.chunk(2, 1)[1], 1),
        "half of the features": (x.chunk(2, -1)[0], -1),
        "every other row": (x[:, :, ::2], 1),
        "every other unit": (x[:, ::2], 1),
        "expanded": (x[:1].expand(5, -1, -1, -1), 1),
        "one unit": (x[:, :1], 1),
        "a diagonal": (wide.diagonal()[None], 1),
        "flipped matrix": (wide.t(), 0),
        "small planes": (x[..., :2, :2].contiguous(), 1),
    }


@pytest.mark.parametrize("chunk", [7, 1 << 18])
@pytest.mark.parametrize("layout", layouts())
def test_every_memory_layout_gives_the_same(
    layout: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "CHUNK", chunk)
    z, dim = layouts()[layout]
    rows = z.movedim(dim, -1).reshape(-1, z.shape[dim]).double().numpy()
    got = accumulate([z], dim)
    batch, output = host.moments(z, dim, RELU), host.outputs(z, dim, signed=True)
    assert batch is not None
    assert output is not None
    fast = stats.new(z.shape[dim], z.device)
    stats.update_(fast, batch)
    for found in (got, {name: value.numpy() for name, value in fast.items()}):
        np.testing.assert_array_equal(found["count"], len(rows))
        np.testing.assert_array_equal(found["open"], (rows > 0).sum(0))
        np.testing.assert_array_equal(found["opened"], (rows > 0).any(0))
        np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["m2"], rows.var(0) * len(rows), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found["min"], rows.min(0))
        np.testing.assert_array_equal(found["max"], rows.max(0))
    np.testing.assert_allclose(output["out_sum"], rows.sum(0), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(output["out_abs"], np.abs(rows).sum(0), rtol=1e-5)


def test_a_canonical_view_moves_no_data() -> None:
    for z, dim in layouts().values():
        x = views.canonical(z, dim)
        if x is not None:
            assert x.untyped_storage().data_ptr() == z.untyped_storage().data_ptr()
            assert x.shape[1] == z.shape[dim]
            np.testing.assert_array_equal(np.sort(x.numpy(), None), np.sort(z.numpy(), None))
    copied = {name for name, (z, dim) in layouts().items() if views.canonical(z, dim) is None}
    assert copied == {"every other row", "expanded", "one unit"}
