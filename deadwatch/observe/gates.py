"""Where an activation passes gradient.

A unit's gate is open for a sample when the local derivative |f'(z)| exceeds `EPSILON`. For every
activation of `torch.nn` that is an interval of z (or the outside of one). Piecewise-linear
activations have exact rows in `EXACT`; smooth ones are measured by autograd, and so are classes
that torch does not know (`probe.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deadwatch.activations import SwappedActivation, UnitPReLU, pure_copy
from deadwatch.observe.functions import Clamp
from deadwatch.observe.measure import EPSILON, TINY, grid, measure_gate, rounded
from deadwatch.observe.probe import isolated, probe
from deadwatch.observe.trial import Trial
from deadwatch.records import Gate

_INF = math.inf
_OPEN = Gate(-_INF, _INF)


def _leaky(slope: float) -> Gate:
    return _OPEN if abs(slope) > EPSILON else Gate(0.0, _INF, flat=slope == 0.0)


def _outside(edge: float) -> Gate:
    return Gate(-edge, edge, inside=False)


# A PReLU is always open: where its slope is zero, the slope itself still receives gradient.
EXACT: dict[type[nn.Module], Callable[[Any], Gate]] = {
    nn.ReLU: lambda m: Gate(0.0, _INF),
    Clamp: lambda m: Gate(-TINY, _INF),
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
    """The gate of an activation module, or None if the module is no activation."""
    if isinstance(module, SwappedActivation):
        return gate_of(module.original)  # see `swapped_units` for the units that differ
    kind = _known_kind(module)
    if kind is None:
        return probe(module)
    return rounded(EXACT[kind](module)) if kind in EXACT else measure(module)


def is_learned(module: nn.Module) -> bool:
    """Whether the gate of an activation moves with its parameters, so that it must be asked anew.

    A slope that has been learned to be 1 makes it linear, and `gate_of` finds no activation then.
    """
    if isinstance(module, SwappedActivation):
        return module.deadwatch_share is not None or is_learned(module.original)
    return _known_kind(module) is None and any(p.requires_grad for p in module.parameters())


def _known_kind(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch that a module is of, unless it does something else in its place."""
    for kind in type(module).__mro__:
        if kind in EXACT or kind in SMOOTH:
            return kind if type(module).forward is kind.forward else None
    return None


def swapped_units(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Per-unit lower ends of the gate and flatness, each (C,), where a swap made them differ."""
    if not isinstance(module, SwappedActivation):
        return None
    # What has become a line by what it learned closes for nobody.
    old, new = (gate_of(part) or _OPEN for part in (module.original, module.replacement))
    if module.deadwatch_share is not None:
        # Waits for the device, once a window while it is annealed.
        new = _shared(module.replacement, float(module.deadwatch_share), old)
    mask = module.units()
    low = torch.where(mask, new.low, old.low)
    return low, torch.where(mask, new.flat, old.flat)


def _shared(replacement: nn.Module, share: float, old: Gate) -> Gate:
    """The gate of units of which ``share`` is the replacement's and the rest the original's."""
    with isolated():
        trial = Trial(pure_copy(replacement).to("cpu", torch.float64), torch.float64)
        found = measure_gate(lambda z: share * trial.slopes(z), grid(_POINTS))
    # Below the original's gate, the derivative is the replacement's alone.
    return Gate(old.low if found is None else min(old.low, found.low), old.high, flat=False)


def measure(module: nn.Module) -> Gate:
    """Measure the gate of a smooth activation of torch, once for each class and parameters."""
    key = type(module), *((k, v) for k, v in vars(module).items() if isinstance(v, _SCALARS))
    if key not in _MEASURED:
        with isolated():
            gate = Trial(pure_copy(module), torch.float64).gate()
        if len(_MEASURED) >= _MOST:  # a parameter changes with every step
            _MEASURED.clear()
        _MEASURED[key] = gate or _OPEN  # with extreme parameters it is a line
    return _MEASURED[key]


_MOST = 1024
_POINTS = 6401
_SCALARS = (bool, int, float, str)
_MEASURED: dict[tuple[Any, ...], Gate] = {}
