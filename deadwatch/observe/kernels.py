"""The passes over an activation, as pure functions of tensors.

Shapes: z is the pre-activation, any number of dimensions, C units along ``dim``; results are (C,).
Reductions run over all other axes, whatever the strides, so channels_last costs no copy. Passes
that need scratch work through z in chunks (`views.chunks`), so that scratch stays in cache and no
temporary of z's size is ever made. No function here waits for the device; for activations in the
host's memory `host.py` has faster passes, which look at what they find.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from deadwatch.observe.stats import Accumulator, Batch, real_dtype
from deadwatch.observe.views import (
    LONG,
    Reduction,
    canonical,
    chunks_with_scratch,
    per_unit,
    reduced,
    wide,
)
from deadwatch.records import Gate


def liveness(z: Tensor, dim: int, gate: Gate, low: Tensor | None = None) -> Batch:
    """Whether each unit's gate was open on any element: one reduction, exact.

    Args:
        z: Pre-activation.
        dim: Unit axis.
        gate: The gate of all units.
        low: Lower ends per unit (C,), where they differ; only with a gate that has no upper end.

    Returns:
        ``opened`` and, where a NaN can hide an open gate, ``suspect``.
    """
    if not gate.inside:
        top, bottom = _extreme(torch.amax, z, dim), _extreme(torch.amin, z, dim)
        return {"opened": (top > gate.high) | (bottom < gate.low), "suspect": top.isnan()}
    if gate.always_open:
        return {"opened": torch.ones(z.shape[dim], dtype=torch.bool, device=z.device)}
    if gate.high == math.inf:
        top = _extreme(torch.amax, z, dim)
        return {"opened": top > (gate.low if low is None else low), "suspect": top.isnan()}
    if gate.low == -math.inf:
        bottom = _extreme(torch.amin, z, dim)
        return {"opened": bottom < gate.high, "suspect": bottom.isnan()}
    return _opened_between(z, dim, gate)


def moments(z: Tensor, dim: int, gate: Gate, low: Tensor | None = None) -> Iterator[Batch]:
    """Counts, moments and extremes of z, chunk by chunk; arguments as for `liveness`.

    The variance is taken about the chunk's own mean with the rounding error of that mean
    corrected (Chan, Golub & LeVeque 1983), so a mean far above the standard deviation is safe.
    """
    for chunk, a, b in chunks_with_scratch(z, dim):
        yield _moments_of(chunk, gate, low, a, b)


def outputs(h: Tensor, dim: int) -> Iterator[Batch]:
    """Sums of f(z) and |f(z)| over the finite elements of an output, chunk by chunk."""
    real = real_dtype(h.device)
    for chunk, scratch, _ in chunks_with_scratch(h, dim):
        finite = reduced(torch.sum, _finite(chunk, scratch)).to(torch.int32)
        torch.nan_to_num(chunk, 0.0, 0.0, 0.0, out=scratch)
        yield {
            "out_bad": chunk.numel() // len(finite) - finite,
            "out_sum": reduced(torch.sum, scratch).to(real),
            "out_abs": reduced(torch.sum, scratch.abs_()).to(real),
        }


def fused(
    z: Tensor, dim: int, gate: Gate, low: Tensor | None, pivot: Tensor | None = None
) -> Batch:
    """Liveness, and with a pivot the moments, for a compiler that fuses them into one pass.

    Args:
        z: Pre-activation.
        dim: Unit axis.
        gate: The gate of all units.
        low: Lower ends per unit (C,), where they differ.
        pivot: Something near the mean of each unit (C,), about which the variance is taken: the
            mean itself would need a pass of its own. See `pivot_of`.
    """
    z, dim = _two_axes(z, dim)
    x = wide(z)
    is_open = _is_open(x, gate, None if low is None else low.view(_broadcast(z, dim)))
    if pivot is None:
        opened, suspect = _staged(torch.any, is_open, dim), _staged(torch.any, x != x, dim)
    else:
        opened, suspect = (_counted(of, dim) for of in (is_open, x != x))
    batch: Batch = {"opened": opened > 0, "suspect": suspect > 0}
    if gate.always_open:
        batch = {"opened": torch.ones_like(opened, dtype=torch.bool)}
    return batch if pivot is None else batch | {"open": opened} | _moments_about(pivot, x, dim)


def pivot_of(z: Tensor, dim: int, into: Accumulator) -> Tensor:
    """The mean so far (C,), or else that of the first few elements of each unit."""
    z, dim = _two_axes(z, dim)
    at: tuple[Any, ...] = (slice(_FIRST), *(0,) * (z.ndim - 2))
    first = wide(z.movedim(dim, -1)[at])
    finite, known = first.isfinite(), into["finite"] > 0
    first = torch.where(finite & ~known, first, 0) / finite.sum(0).clamp(min=1)
    # A sum at the end, for compilers compute all before it anew for every element.
    return torch.cat([torch.where(known, into["mean"], 0).to(first.dtype)[None], first]).sum(0)


_FIRST = 8
"""Elements whose mean is taken for the mean at first: some, should one be far off or not finite."""


def _moments_about(pivot: Tensor, x: Tensor, dim: int) -> Batch:
    real, finite = real_dtype(x.device), x.isfinite()
    apart = torch.where(finite, x - pivot.view(_broadcast(x, dim)), 0)
    count = _counted(finite, dim)
    total, squares = (_staged(torch.sum, of, dim).to(real) for of in (apart, apart.square()))
    drift = total / count.clamp(min=1)
    return {
        "count": x.numel() // x.shape[dim],
        "finite": count,
        "mean": pivot.to(real) + drift,
        "m2": (squares - drift * total).clamp(min=0),
        "min": _staged(torch.amin, torch.where(finite, x, math.inf), dim),
        "max": _staged(torch.amax, torch.where(finite, x, -math.inf), dim),
    }


def fused_outputs(h: Tensor, dim: int, *, signed: bool = True) -> Batch:
    """Sums of f(z) and |f(z)|, as `outputs` takes them, for a compiler.

    Args:
        h: Output.
        dim: Unit axis.
        signed: Whether it may be negative.
    """
    h, dim = _two_axes(h, dim)
    x, real = wide(h), real_dtype(h.device)
    finite = x.isfinite()
    clean = torch.where(finite, x, 0)
    total = _staged(torch.sum, clean, dim).to(real)
    return {
        "out_bad": _counted(~finite, dim).to(torch.int32),
        "out_sum": total,
        "out_abs": _staged(torch.sum, clean.abs(), dim).to(real) if signed else total,
    }


def _counted(flags: Tensor, dim: int) -> Tensor:
    """How often a flag is set for each unit (C,)."""
    # Compilers vectorise sums of int32 best; one tensor holds no more elements than fit.
    return _staged(_sum_of_flags, flags, dim).to(torch.int64)


def _sum_of_flags(flags: Tensor, dim: Any) -> Tensor:
    return flags.sum(dim, dtype=torch.int32)


def _staged(reduction: Reduction, x: Tensor, dim: int) -> Tensor:
    """A reduction to (C,), over the batch first where the axes behind the units are short."""
    others = _others(x, dim)
    if dim % x.ndim != 1 or x.ndim == 2 or math.prod(x.shape[2:]) >= LONG:
        return reduction(x, others)
    return reduction(reduction(x, 0), tuple(range(1, x.ndim - 1)))


def open_count(x: Tensor, gate: Gate, low: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """1 where the gate is open, 0 elsewhere and for NaN; written into the scratch ``a``."""
    if gate.always_open:
        return torch.eq(x, x, out=a)
    if not gate.inside:
        return torch.gt(x, gate.high, out=a).add_(torch.lt(x, gate.low, out=b))
    if gate.low == -math.inf:
        return torch.lt(x, gate.high, out=a)
    if low is None:
        torch.gt(x, gate.low, out=a)
    else:
        torch.gt(x, per_unit(low, x), out=a)
    if gate.high == math.inf:
        return a
    return a.mul_(torch.lt(x, gate.high, out=b))


def _is_open(x: Tensor, gate: Gate, low: Tensor | None) -> Tensor:
    """Where the gate is open, as a bool tensor; it is closed for NaN."""
    if gate.always_open:
        return x == x
    if not gate.inside:
        return (x > gate.high) | (x < gate.low)
    if gate.low == -math.inf:
        return x < gate.high
    above = x > (gate.low if low is None else low)
    return above if gate.high == math.inf else above & (x < gate.high)


def _moments_of(x: Tensor, gate: Gate, low: Tensor | None, a: Tensor, b: Tensor) -> Batch:
    finite = reduced(torch.sum, _finite(x, b))
    divisor = finite.clamp(min=1)
    torch.nan_to_num(x, 0.0, 0.0, 0.0, out=a)
    mean = reduced(torch.sum, a) / divisor
    a.sub_(per_unit(mean, x)).mul_(b)
    drift = reduced(torch.sum, a)
    real = real_dtype(x.device)
    m2 = reduced(torch.sum, torch.mul(a, a, out=a)).to(real) - drift.to(real).square() / divisor
    least = reduced(torch.amin, torch.nan_to_num(x, math.inf, math.inf, math.inf, out=a))
    most = reduced(torch.amax, torch.nan_to_num(x, -math.inf, -math.inf, -math.inf, out=a))
    return {
        "count": x.numel() // len(finite),
        "open": reduced(torch.sum, open_count(x, gate, low, a, b)).to(torch.int64),
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


def _extreme(reduction: Reduction, z: Tensor, dim: int) -> Tensor:
    z, dim = _two_axes(z, dim)
    x = canonical(z, dim)
    return wide(reduction(z, _others(z, dim)) if x is None else reduced(reduction, x))


def _opened_between(z: Tensor, dim: int, gate: Gate) -> Batch:
    opened = torch.zeros(z.shape[dim], device=z.device)
    top = torch.full_like(opened, -math.inf)
    for chunk, a, b in chunks_with_scratch(z, dim):
        opened += reduced(torch.amax, open_count(chunk, gate, None, a, b))
        top = torch.maximum(top, reduced(torch.amax, chunk))
    return {"opened": opened > 0, "suspect": top.isnan()}


def _two_axes(z: Tensor, dim: int) -> tuple[Tensor, int]:
    """At least two axes: a reduction over none is one over all."""
    return (z.reshape(1, -1), 1) if z.ndim < 2 else (z, dim)


def _others(z: Tensor, dim: int) -> tuple[int, ...]:
    return tuple(d for d in range(z.ndim) if d != dim % z.ndim)


def _broadcast(z: Tensor, dim: int) -> tuple[int, ...]:
    return tuple(-1 if d == dim % z.ndim else 1 for d in range(z.ndim))
