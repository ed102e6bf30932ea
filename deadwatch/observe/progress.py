"""What a checkpoint keeps of the gauges, so that a resumed run shows what a whole one does.

The samples of weights are not kept: a resumed run takes them of the weights that it has loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from deadwatch.observe.gradients import Squares
from deadwatch.observe.updates import Moved
from deadwatch.records import LayerInput

T = TypeVar("T")

Rates = tuple[list[float], list[float]]
"""The learning rates at a window's first and last step."""


@dataclass(frozen=True, eq=False)
class Progress:
    """Where the gauges of one process stand.

    Attributes:
        moved: What the updates of each weight come to.
        squares: What the gradients of each site come to.
        inputs: What each layer was given.
        openings: By site, when gates were last open, and how often they had been (C,).
        rates: Learning rates.
    """

    moved: Mapping[str, tuple[float, int, float, int]] = field(default_factory=dict)
    squares: Mapping[str, Squares] = field(default_factory=dict)
    inputs: Mapping[str, LayerInput] = field(default_factory=dict)
    openings: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    rates: Rates | None = None


def as_one(ranks: Sequence[Progress]) -> Progress:
    """Where several processes stand, as if one had seen all their data."""
    return Progress(
        moved=_joined((one.moved for one in ranks), _moved),
        squares=_joined((one.squares for one in ranks), _added),
        inputs=_joined((one.inputs for one in ranks), lambda first, _: first),
        openings=_joined((one.openings for one in ranks), _opened),
        rates=next((one.rates for one in ranks if one.rates), None),
    )


def _joined(parts: Iterable[Mapping[str, T]], join: Callable[[T, T], T]) -> dict[str, T]:
    found: dict[str, T] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = join(found[name], value) if name in found else value
    return found


def _moved(
    one: tuple[float, int, float, int], other: tuple[float, int, float, int]
) -> tuple[float, int, float, int]:
    """All ranks take the same steps: what they hold of a weight adds no further ones."""
    first, second = Moved(*one), Moved(*other)
    top = max(first, second, key=lambda moved: (moved.peak, -moved.peak_step))
    most = max(first, second, key=lambda moved: moved.steps)
    return most.total, most.steps, top.peak, top.peak_step


def _added(one: Squares, other: Squares) -> Squares:
    return one[0] + other[0], one[1] + other[1]


def _opened(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if one[0].shape != other[0].shape:  # of ranks that know a site otherwise, the first counts
        return one
    return torch.maximum(one[0], other[0]), one[1] + other[1]
