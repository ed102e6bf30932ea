"""The passes over an activation that lies in the host's memory.

There nothing has to be waited for, so these look at what they have found: where every element is
finite, and no mean is far from zero, half of the passes of `kernels.py` are not needed. Where it is
otherwise they return None, or take the others too. A variance that is the difference of a sum of
squares and a squared sum is right to about 16 roundings of float32, for it is taken so only while
the squared mean is below 15 variances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deadwatch.observe.kernels import open_count
from deadwatch.observe.stats import Accumulator, Batch
from deadwatch.observe.views import LONG, chunks, chunks_with_scratch, per_unit, reduced
from deadwatch.records import Gate

_NEAR = 16.0
"""How often the variance may go into the mean square."""


class Sums(NamedTuple):
    """What one chunk gives for each unit, each (C,)."""

    total: Tensor
    squares: Tensor
    opened: Tensor
    least: Tensor
    most: Tensor


def moments(z: Tensor, dim: int, gate: Gate, low: Tensor | None = None) -> Batch | None:
    """Liveness, counts, moments and extremes of z; None unless every element is finite.

    Args:
        z: Pre-activation, in the host's memory.
        dim: Unit axis.
        gate: The gate of all units.
        low: Lower ends per unit (C,), where they differ; only with a gate that has no upper end.
    """
    sums = _sums(z, dim, gate, low)
    count = z.numel() // z.shape[dim]
    mean = sums.total / count
    m2 = torch.addcmul(sums.squares, sums.total, mean, value=-1)
    farthest = float(torch.sub(sums.squares, m2, alpha=_NEAR).amax())
    if not math.isfinite(farthest):
        return None
    if farthest > 0:
        mean, m2 = _centred(z, dim, mean)
    return {
        "opened": sums.opened > 0,
        "count": count,
        "open": sums.opened,
        "finite": count,
        "mean": mean,
        "m2": m2,
        "min": sums.least,
        "max": sums.most,
    }


def outputs(h: Tensor, dim: int, *, signed: bool) -> Batch | None:
    """Sums of f(z) and |f(z)|; None unless every element is finite.

    Args:
        h: Output, in the host's memory.
        dim: Unit axis.
        signed: Whether it may be negative.
    """
    totals, sizes = [], []
    for chunk in chunks(h, dim):
        totals.append(reduced(torch.sum, chunk))
        if signed:
            sizes.append(reduced(torch.sum, chunk.abs()))
    total = _added(totals)
    size = _added(sizes) if signed else total
    return {"out_sum": total, "out_abs": size} if math.isfinite(float(size.sum())) else None


def is_settled(data: Accumulator) -> bool:
    """Whether every gate has been open."""
    return bool(data["opened"].all())


def is_signed(activation: nn.Module) -> bool:
    """Whether outputs of an activation may be negative, as far as is known."""
    return type(activation) not in _NEVER_NEGATIVE or "forward" in vars(activation)


_NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)


def _sums(z: Tensor, dim: int, gate: Gate, low: Tensor | None) -> Sums:
    found = [_sums_of(part, gate, low, a, b) for part, a, b in chunks_with_scratch(z, dim)]
    totals, squares, opened, least, most = zip(*found, strict=True)
    return Sums(
        _added(totals),
        _added(squares),
        _added(opened, torch.int64),
        least[0] if len(least) == 1 else torch.stack(least).amin(0),
        most[0] if len(most) == 1 else torch.stack(most).amax(0),
    )


def _sums_of(x: Tensor, gate: Gate, low: Tensor | None, a: Tensor, b: Tensor) -> Sums:
    return Sums(
        reduced(torch.sum, x),
        _squares(x, a),
        reduced(torch.sum, open_count(x, gate, low, a, b)),
        reduced(torch.amin, x),
        reduced(torch.amax, x),
    )


def _centred(z: Tensor, dim: int, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations, taken about a mean that may be a rounding off."""
    drifts, squares = [], []
    for part, a, _ in chunks_with_scratch(z, dim):
        torch.sub(part, per_unit(mean.to(part.dtype), part), out=a)
        drifts.append(reduced(torch.sum, a))
        squares.append(_squares(a, a))
    drift, count = _added(drifts), z.numel() // z.shape[dim]
    centre = mean.to(part.dtype).to(torch.float64)
    return centre + drift / count, (_added(squares) - drift.square() / count).clamp_(min=0)


def _squares(x: Tensor, scratch: Tensor) -> Tensor:
    if x.ndim == 3 and x.shape[2] >= LONG:
        norms: Tensor = torch.linalg.vector_norm(x, dim=2)
        return norms.square_().sum(0)
    return reduced(torch.sum, torch.mul(x, x, out=scratch))


def _added(parts: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    """The sum of what the chunks gave, in float64 or as whole numbers."""
    if len(parts) == 1:
        return parts[0].to(dtype)
    return torch.stack(tuple(parts)).to(dtype).sum(0)
