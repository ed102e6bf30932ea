"""The passes over an activation, as pure functions of tensors.

Shapes: z is the pre-activation, any number of dimensions, C units along ``dim``; results are (C,).
Reductions run over all other axes, whatever the strides, so channels_last costs no copy. Passes
that need scratch work through z in chunks of about `CHUNK` elements, so that scratch stays in
cache and no temporary of z's size is ever made. No function here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from deadwatch.observe.stats import Accumulator, real_dtype
from deadwatch.records import Gate

CHUNK = 1 << 18


def liveness(z: Tensor, dim: int, gate: Gate, low: Tensor | None = None) -> Accumulator:
    """Whether each unit's gate was open on any element: one reduction, exact.

    Args:
        z: Pre-activation.
        dim: Unit axis.
        gate: The gate of all units.
        low: Lower ends per unit (C,), where they differ; only with a gate that has no upper end.

    Returns:
        ``opened`` and, where a NaN can hide an open gate, ``suspect``.
    """
    z, dim = _canonical(z, dim)
    others = _others(z, dim)
    if not gate.inside:
        top, bottom = _wide(z.amax(others)), _wide(z.amin(others))
        return {"opened": (top > gate.high) | (bottom < gate.low), "suspect": top.isnan()}
    if gate.always_open:
        return {"opened": torch.ones(z.shape[dim], dtype=torch.bool, device=z.device)}
    if gate.high == math.inf:
        top = _wide(z.amax(others))
        return {"opened": top > (gate.low if low is None else low), "suspect": top.isnan()}
    if gate.low == -math.inf:
        bottom = _wide(z.amin(others))
        return {"opened": bottom < gate.high, "suspect": bottom.isnan()}
    return _opened_between(z, dim, gate)


def moments(z: Tensor, dim: int, gate: Gate, low: Tensor | None = None) -> Iterator[Accumulator]:
    """Counts, moments and extremes of z, chunk by chunk; arguments as for `liveness`.

    The variance is taken about the chunk's own mean with the rounding error of that mean
    corrected (Chan, Golub & LeVeque 1983), so a mean far above the standard deviation is safe.
    """
    z, dim = _canonical(z, dim)
    if low is not None:
        low = low.view(_broadcast(z, dim))
    scratch: tuple[Tensor, Tensor] | None = None
    for chunk in _chunks(z, dim):
        if scratch is None or scratch[0].shape != chunk.shape:
            scratch = torch.empty_like(chunk), torch.empty_like(chunk)
        yield _moments_of(chunk, dim, gate, low, *scratch)


def outputs(h: Tensor, dim: int) -> Iterator[Accumulator]:
    """Sums of f(z) and |f(z)| over the finite elements of an output, chunk by chunk."""
    h, dim = _canonical(h, dim)
    real = real_dtype(h.device)
    scratch: Tensor | None = None
    for chunk in _chunks(h, dim):
        others = _others(chunk, dim)
        if scratch is None or scratch.shape != chunk.shape:
            scratch = torch.empty_like(chunk)
        finite = _finite(chunk, scratch).sum(others).to(torch.int64)
        torch.nan_to_num(chunk, 0.0, 0.0, 0.0, out=scratch)
        yield {
            "out_count": finite,
            "out_sum": scratch.sum(others).to(real),
            "out_abs": scratch.abs_().sum(others).to(real),
        }


def fused(z: Tensor, dim: int, gate: Gate, low: Tensor | None, every: bool) -> Accumulator:
    """Liveness, and with ``every`` the moments, for a compiler that fuses them into one pass."""
    z, dim = _canonical(z, dim)
    x, others = _wide(z), _others(z, dim)
    is_open = _is_open(x, gate, None if low is None else low.view(_broadcast(z, dim)))
    batch = {"opened": is_open.any(others), "suspect": x.isnan().any(others)}
    if gate.always_open:
        batch = {"opened": torch.ones_like(batch["opened"])}
    if not every:
        return batch
    finite, real = x.isfinite(), real_dtype(x.device)
    count = finite.sum(others)
    divisor = count.clamp(min=1)
    mean = torch.where(finite, x, 0).sum(others) / divisor
    apart = torch.where(finite, x - mean.view(_broadcast(z, dim)), 0)
    drift = apart.sum(others) / divisor
    m2 = apart.square().sum(others) - drift.square() * divisor
    return batch | {
        "count": torch.full_like(count, z.numel() // z.shape[dim]),
        "open": is_open.sum(others),
        "finite": count,
        "mean": mean.to(real) + drift,
        "m2": m2.to(real).clamp(min=0),
        "min": torch.where(finite, x, math.inf).amin(others),
        "max": torch.where(finite, x, -math.inf).amax(others),
    }


def fused_outputs(h: Tensor, dim: int) -> Accumulator:
    """Sums of f(z) and |f(z)|, as `outputs` takes them, for a compiler."""
    h, dim = _canonical(h, dim)
    x, others, real = _wide(h), _others(h, dim), real_dtype(h.device)
    finite = x.isfinite()
    clean = torch.where(finite, x, 0)
    return {
        "out_count": finite.sum(others),
        "out_sum": clean.sum(others).to(real),
        "out_abs": clean.abs().sum(others).to(real),
    }


def _is_open(x: Tensor, gate: Gate, low: Tensor | None) -> Tensor:
    """Where the gate is open, as a bool tensor; it is closed for NaN."""
    if gate.always_open:
        return ~x.isnan()
    if not gate.inside:
        return (x > gate.high) | (x < gate.low)
    if gate.low == -math.inf:
        return x < gate.high
    above = x > (gate.low if low is None else low)
    return above if gate.high == math.inf else above & (x < gate.high)


def _moments_of(
    x: Tensor, dim: int, gate: Gate, low: Tensor | None, a: Tensor, b: Tensor
) -> Accumulator:
    others, wide = _others(x, dim), _broadcast(x, dim)
    finite = _finite(x, b).sum(others)
    divisor = finite.clamp(min=1)
    torch.nan_to_num(x, 0.0, 0.0, 0.0, out=a)
    mean = a.sum(others) / divisor
    a.sub_(mean.view(wide)).mul_(b)
    drift = a.sum(others)
    real = real_dtype(x.device)
    m2 = torch.mul(a, a, out=a).sum(others).to(real) - drift.to(real).square() / divisor
    least = torch.nan_to_num(x, math.inf, math.inf, math.inf, out=a).amin(others)
    most = torch.nan_to_num(x, -math.inf, -math.inf, -math.inf, out=a).amax(others)
    count = x.numel() // x.shape[dim]
    return {
        "count": torch.full_like(finite, count, dtype=torch.int64),
        "open": _open_count(x, gate, low, a, b).sum(others).to(torch.int64),
        "finite": finite.to(torch.int64),
        "mean": mean.to(real) + drift / divisor,
        "m2": m2.clamp_(min=0),
        "min": least,
        "max": most,
    }


def _finite(x: Tensor, out: Tensor) -> Tensor:
    """1 where x is finite, 0 elsewhere, written into ``out``; `isfinite` is many times slower."""
    torch.sub(x, x, out=out)
    return torch.eq(out, 0, out=out)


def _open_count(x: Tensor, gate: Gate, low: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """1 where the gate is open, 0 elsewhere and for NaN; written into the scratch ``a``."""
    if gate.always_open:
        return torch.eq(x, x, out=a)
    if not gate.inside:
        return torch.gt(x, gate.high, out=a).add_(torch.lt(x, gate.low, out=b))
    if gate.low == -math.inf:
        return torch.lt(x, gate.high, out=a)
    torch.gt(x, gate.low if low is None else low, out=a)
    if gate.high == math.inf:
        return a
    return a.mul_(torch.lt(x, gate.high, out=b))


def _opened_between(z: Tensor, dim: int, gate: Gate) -> Accumulator:
    opened = torch.zeros(z.shape[dim], dtype=torch.bool, device=z.device)
    suspect = torch.zeros_like(opened)
    for chunk in _chunks(z, dim):
        others = _others(chunk, dim)
        opened |= _is_open(chunk, gate, None).amax(others)
        suspect |= chunk.isnan().amax(others)
    return {"opened": opened, "suspect": suspect}


def _chunks(z: Tensor, dim: int) -> Iterator[Tensor]:
    """Slices of z of about `CHUNK` elements, in float32 or wider."""
    along = max(_others(z, dim), key=lambda d: z.shape[d])
    rows = max(1, CHUNK * z.shape[along] // max(1, z.numel()))
    for part in torch.split(z, rows, along):
        yield _wide(part)


def _canonical(z: Tensor, dim: int) -> tuple[Tensor, int]:
    """At least two axes, and a non-negative unit axis."""
    if z.ndim < 2:
        return z.reshape(1, -1), 1
    return z, dim % z.ndim


def _wide(x: Tensor) -> Tensor:
    """Float32, or x itself if it is float32 or float64: half precision cannot count."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _others(z: Tensor, dim: int) -> tuple[int, ...]:
    return tuple(d for d in range(z.ndim) if d != dim)


def _broadcast(z: Tensor, dim: int) -> tuple[int, ...]:
    return tuple(-1 if d == dim else 1 for d in range(z.ndim))
