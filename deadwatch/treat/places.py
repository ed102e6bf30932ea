"""Where a site's units lie in the tensors of the layers that make and read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deadwatch.records import Ints, Wire
from deadwatch.treat.optim import Restart


@dataclass(frozen=True, eq=False)
class Place:
    """Slices ``index`` along ``axis``; with ``rows``, only within these indices of axis 0."""

    axis: int
    index: Ints
    rows: range | None = None


def places(wire: Wire, name: str, units: Ints, shape: Sequence[int]) -> tuple[Place, ...]:
    """Where ``units`` lie in a tensor of a layer, in ascending order; one place where possible.

    Args:
        wire: The layer.
        name: Name of the tensor: the weight, or anything else with one entry per unit.
        units: The units, ascending.
        shape: Shape of the tensor.
    """
    index = wire.slices(units)
    if name != wire.weight or wire.axis == 0 or wire.groups == 1:
        return (Place(wire.axis if name == wire.weight else 0, index),)
    each, inner = shape[0] // wire.groups, shape[1]
    if inner == 1:  # depthwise: these rows hold the unit and nothing else
        return (Place(0, (index[:, None] * each + np.arange(each)).ravel()),)
    found = [
        Place(1, index[index // inner == group] % inner, range(group * each, (group + 1) * each))
        for group in np.unique(index // inner).tolist()
    ]
    return tuple(found) or (Place(1, index),)


def restarts(name: str, treated: tuple[Place, ...], live: tuple[Place, ...]) -> tuple[Restart, ...]:
    """Restarts whose live slices lie within the same rows as the treated ones."""
    beside = {place.rows: place.index for place in live}
    none = np.empty(0, np.int64)
    return tuple(
        Restart(name, each.axis, each.index, beside.get(each.rows, none), each.rows)
        for each in treated
    )
