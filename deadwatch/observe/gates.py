"""Where an activation passes gradient.

A unit's gate is open for a sample when the local derivative |f'(z)| exceeds `EPSILON`. For every
activation of `torch.nn` that is an interval of z (or the outside of one). Piecewise-linear
activations have exact rows in `EXACT`; smooth ones are measured by autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadwatch.activations import SwappedActivation, UnitPReLU, pure_copy
from deadwatch.records import Gate

EPSILON = 1e-3
"""A derivative at or below this counts as a closed gate."""

_INF = math.inf
_OPEN = Gate(-_INF, _INF)


def _leaky(slope: float) -> Gate:
    return _OPEN if abs(slope) > EPSILON else Gate(0.0, _INF, flat=slope == 0.0)


def _outside(edge: float) -> Gate:
    return Gate(-edge, edge, inside=False)


# A PReLU is always open: where its slope is zero, the slope itself still receives gradient.
EXACT: dict[type[nn.Module], Callable[[Any], Gate]] = {
    nn.ReLU: lambda m: Gate(0.0, _INF),
    nn.Hardtanh: lambda m: Gate(m.min_val, m.max_val),  # and ReLU6, its subclass
    nn.Hardsigmoid: lambda m: Gate(-3.0, 3.0),
    nn.Hardswish: lambda m: Gate(-3.0, _INF),
    nn.Threshold: lambda m: Gate(m.threshold, _INF),
    nn.Hardshrink: lambda m: _outside(m.lambd),
    nn.Softshrink: lambda m: _outside(m.lambd),
    nn.LeakyReLU: lambda m: _leaky(m.negative_slope),
    nn.RReLU: lambda m: _leaky(max(abs(m.lower), abs(m.upper))),
    nn.PReLU: lambda m: _OPEN,
    UnitPReLU: lambda m: _OPEN,
    # GLU is a·σ(b); its gate is where a receives gradient: σ(b) > ε.
    nn.GLU: lambda m: Gate(math.log(EPSILON / (1 - EPSILON)), _INF, flat=False),
}

SMOOTH: tuple[type[nn.Module], ...] = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.LogSigmoid,
    nn.Mish,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
)


def gate_of(module: nn.Module) -> Gate | None:
    """The gate of an activation module, or None if the module is not a known activation."""
    if isinstance(module, SwappedActivation):
        return gate_of(module.original)  # see `swapped_units` for the units that differ
    for kind in type(module).__mro__:
        if kind in EXACT:
            return _rounded(EXACT[kind](module))
    return measure(module) if isinstance(module, SMOOTH) else None


def swapped_units(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Per-unit lower ends of the gate and flatness, each (C,), where a swap made them differ."""
    if not isinstance(module, SwappedActivation):
        return None
    old, new = gate_of(module.original), gate_of(module.replacement)
    assert old is not None
    assert new is not None
    mask = module.deadwatch_mask
    low = torch.where(mask, new.low, old.low)
    return low, torch.where(mask, new.flat, old.flat)


def measure(module: nn.Module) -> Gate:
    """Measure the gate of a smooth element-wise activation by autograd on a grid.

    Args:
        module: An element-wise activation without parameters.

    Returns:
        The hull of the open set; isolated zeros of the derivative (as in GELU at -0.75) do not
        close it. If the gate is open towards both ends and closed between, the outside of the
        closed band.
    """
    key = type(module), *((k, v) for k, v in vars(module).items() if isinstance(v, _SCALARS))
    if key not in _MEASURED:
        _MEASURED[key] = _measure(pure_copy(module))
    return _MEASURED[key]


_SCALARS = (bool, int, float, str)
_MEASURED: dict[tuple[Any, ...], Gate] = {}


def _measure(function: nn.Module) -> Gate:
    near = torch.linspace(-64, 64, 12801, dtype=torch.float64)
    far = torch.logspace(math.log10(65), 5, 400, dtype=torch.float64)
    grid = torch.cat([-far.flip(0), near, far])
    slope = _derivative(function, grid)
    is_open = slope > EPSILON
    ends = bool(is_open[0]), bool(is_open[-1])
    flat = bool((slope[~is_open] == 0).all())
    if bool(is_open.all()):
        return _OPEN
    marks = (~is_open if all(ends) else is_open).nonzero().flatten()
    first, last = int(marks[0]), int(marks[-1])
    low = -_INF if first == 0 else _edge(function, grid[first], grid[first - 1])
    high = _INF if last == len(grid) - 1 else _edge(function, grid[last], grid[last + 1])
    return _rounded(Gate(low, high, inside=not all(ends), flat=flat))


def _derivative(function: nn.Module, z: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        z = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(z).sum(), z)
    return slope.abs()


def _edge(function: nn.Module, inner: Tensor, outer: Tensor) -> float:
    """Bisect between two grid points for the place where the gate changes."""
    side = bool(_derivative(function, inner) > EPSILON)
    for _ in range(80):
        middle = (inner + outer) / 2
        if bool(_derivative(function, middle) > EPSILON) == side:
            inner = middle
        else:
            outer = middle
    return float(inner)


def _rounded(gate: Gate) -> Gate:
    """Round the ends to float32, so that comparisons in float32 and float64 agree."""
    low, high = float(np.float32(gate.low)), float(np.float32(gate.high))
    return Gate(low, high, gate.inside, gate.flat)
