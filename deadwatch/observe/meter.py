"""What watching costs, measured while it is to be found out how often moments can be taken.

On a few steps of a window, some with moments and some without, the time that hooks take is added
up: on the host by its clock, on an accelerator by events in the stream, so that nothing waits.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

WARM = 2
"""Steps at the start of a window that tell nothing: the first are traced, and fill caches."""

_STEPS = 64
"""How many steps are timed as a whole."""

LEAST_OFTEN = 50_000

ROUND: tuple[int, ...] = (
    *(digit * 10**power for power in range(4) for digit in (1, 2, 5)),
    *(10_000, 20_000, LEAST_OFTEN),
)
"""The intervals to choose from: few, so that runs of the same program choose the same."""


@dataclass(frozen=True)
class Cost:
    """Seconds a step.

    Attributes:
        step: A whole step, with what watching adds where no moments are taken.
        base: What it adds on such a step.
        moments: What it adds beyond that where moments are taken.
    """

    step: float
    base: float
    moments: float

    def interval(self, overhead: float) -> int:
        """The shortest interval of `ROUND` that keeps to a bound, or the longest.

        Args:
            overhead: What watching may add, as a share of a step without it.
        """
        free = overhead * (self.step - self.base) - self.base
        return next((every for every in ROUND if self.moments <= free * every), LEAST_OFTEN)

    def share(self, every: int) -> float:
        """What watching adds with an interval, as a share of a step without it."""
        return (self.base + self.moments / every) / max(self.step - self.base, 1e-9)


def told(every: int, cost: Cost | None, overhead: float) -> str:
    """An interval, and why, in words."""
    often = "first step of a window" if every == LEAST_OFTEN else f"{every}. step"
    text = f"statistics are taken on every {often} from here on"
    if cost is None:
        return f"{text}; what they cost inside of compiled graphs cannot be measured"
    share, least = cost.share(every), cost.share(LEAST_OFTEN)
    found = f"{text}: watching adds {share:.1%} to a step so, and {least:.1%} without them"
    return f"{found}; overhead={overhead:.1%} is {'kept' if share <= overhead else 'not kept'}"


@dataclass(eq=False)
class Meter:
    """Adds up the time between its ``with`` statements' beginnings and ends; inner ones are part.

    Args:
        device: Where the model is; its own events are used if it is an accelerator.

    Attributes:
        on: Whether this step is measured.
        spans: Beginnings and ends on measured steps, with and without moments.
    """

    device: torch.device
    on: bool = False
    spans: dict[bool, list[tuple[Any, Any]]] = field(default_factory=lambda: {True: [], False: []})
    _steps: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    _moments: bool = False
    _begun: Any = None
    _depth: int = 0
    _last: float = math.nan
    _intervals: list[float] = field(default_factory=list)

    def begin_step(self, done: int) -> None:
        """A step begins, after ``done`` others of its window."""
        now = time.perf_counter()
        if done > WARM and not self.on and len(self._intervals) < _STEPS:
            self._intervals.append(now - self._last)
        self._last = now
        # Moments are taken on steps 4, 8, 16 …; 6, 12, 24 … are like them, but without.
        self._moments = done & (done - 1) == 0
        self.on = done > WARM and (self._moments or (done // 3) & (done // 3 - 1) == done % 3 == 0)
        self._steps[self._moments] += self.on
        self._depth = 0

    def __enter__(self) -> None:
        if self._depth == 0:
            self._begun = self._mark()
        self._depth += 1

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if self._depth == 0 and self.on:
            self.spans[self._moments].append((self._begun, self._mark()))

    def _mark(self) -> Any:
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self.device.type, enable_timing=True)
        event.record()
        return event

    def read(self) -> Cost | None:
        """What was measured; None if that is too little. Waits for the device."""
        if not (all(self._steps.values()) and self._intervals):
            return None
        spent = {
            kind: sum(map(self._seconds, spans)) / self._steps[kind]
            for kind, spans in self.spans.items()
        }
        base = spent[False]
        return Cost(median(self._intervals), base, max(0.0, spent[True] - base))

    def _seconds(self, span: tuple[Any, Any]) -> float:
        begun, ended = span
        if self.device.type == "cpu":
            return float(ended - begun)
        ended.synchronize()
        return float(begun.elapsed_time(ended)) / 1000
