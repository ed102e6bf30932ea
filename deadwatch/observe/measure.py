"""Measure the gate of a function from its derivative on a grid.

Shapes: z is (G,), slopes are (G, C): one function per channel, or C = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from deadwatch.records import Gate

EPSILON = 1e-3
"""A derivative at or below this counts as a closed gate."""

TINY = 2.0**-149
"""The smallest float32: what is open at zero itself is open above ``-TINY``."""

Slopes = Callable[[Tensor], Tensor]

_INF = math.inf


def grid(points: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """``2 points - 1`` places from -1e5 to 1e5: zero is one of them, and they crowd around it."""
    half = torch.linspace(0, math.asinh(1e5), points, dtype=torch.float64).sinh().to(dtype)
    return torch.cat([-half.flip(0)[:-1], half])


def measure_gate(slopes: Slopes, z: Tensor) -> Gate | None:
    """Measure where a function passes gradient.

    What is open for one channel is open: a unit must not be called dead on another one's formula.
    A derivative that is not finite counts as closed, and not as zero.

    Args:
        slopes: The derivative at any z.
        z: A grid.

    Returns:
        The hull of the open set; isolated zeros of the derivative (as in GELU at -0.75) do not
        close it. If the gate is open towards both ends, the outside of the one closed band
        between them; several do not close it either. Where the closed side is exactly flat, the
        gate ends where it ceases to be, so that there death is exact. None if nowhere open.
    """
    found = slopes(z)
    is_open = _opened(found, EPSILON)
    if not bool(is_open.any()):
        return None
    ends = bool(is_open[0]), bool(is_open[-1])
    marks = (~is_open if all(ends) else is_open).nonzero().flatten()
    if len(marks) == 0 or (all(ends) and len(marks) <= int(marks[-1] - marks[0])):
        return Gate(-_INF, _INF)
    first, last = int(marks[0]), int(marks[-1])
    within, without = found[first : last + 1], torch.cat([found[:first], found[last + 1 :]])
    flat = not bool((within if all(ends) else without).any())  # NaN is true
    above = 0.0 if flat else EPSILON
    low = -_INF if first == 0 else _edge(slopes, above, z[first - 1 : first + 1])
    high = _INF if last == len(z) - 1 else _edge(slopes, above, z[last : last + 2])
    return rounded(Gate(low, high, inside=not all(ends), flat=flat))


def _opened(slopes: Tensor, above: float) -> Tensor:
    return ((slopes.abs() > above) & slopes.isfinite()).any(1)


def _edge(slopes: Slopes, above: float, pair: Tensor) -> float:
    """Bisect between two places for the last one at which the gate is closed."""
    opened, closed = pair if bool(_opened(slopes(pair), above)[0]) else pair.flip(0)
    for _ in range(54):
        middle = (opened + closed) / 2
        if bool(_opened(slopes(middle[None]), above)):
            opened = middle
        else:
            closed = middle
    # Bisection towards zero does not end.
    end = np.float32(0.0 if abs(float(closed)) < 1e-15 else float(closed))
    if above == 0.0 and bool(_opened(slopes(closed.new_tensor([end])), above)):
        # A clamp is open at its very end.
        end = np.nextafter(end, np.float32(-_INF if closed < opened else _INF))
    return float(end)


def rounded(gate: Gate) -> Gate:
    """Round the ends to float32, so that comparisons in float32 and float64 agree."""
    low, high = float(np.float32(gate.low)), float(np.float32(gate.high))
    return Gate(low, high, gate.inside, gate.flat)
