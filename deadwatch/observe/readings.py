"""What the gauges of one process show, and how those of several become one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from deadwatch.observe.gradients import Squares
from deadwatch.observe.updates import Moved
from deadwatch.records import Gauges, Rows, Update


@dataclass(frozen=True, eq=False)
class Readings(Gauges):
    """Gauges that can still be merged; `gauges_of` is what they come to.

    Attributes:
        layers: Whether the rows of weights are to be looked at.
        moved: By name of a weight, what its updates come to.
        squares: By site, what its gradients come to.
    """

    layers: bool = False
    moved: Mapping[str, Moved] = field(default_factory=dict)
    squares: Mapping[str, Squares] = field(default_factory=dict)


def gauges_of(readings: Readings, rows: Mapping[str, Rows]) -> Gauges:
    """What readings come to, with the rows of weights, which all processes have."""
    updates = {
        name: Update(one.total / one.steps, one.peak, one.peak_step, one.steps)
        for name, one in readings.moved.items()
    }
    return Gauges(
        updates=updates,
        inputs=readings.inputs,
        gradients={n: math.sqrt(total / count) for n, (total, count) in readings.squares.items()},
        rows=rows,
        last_open=readings.last_open,
        rates=readings.rates,
    )
