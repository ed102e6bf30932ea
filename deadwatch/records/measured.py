"""What was measured over a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from deadwatch.records.arrays import Bools, Ints
from deadwatch.records.gauged import Gauges
from deadwatch.records.sites import Site


@dataclass(frozen=True)
class Window:
    """The stretch of training a report speaks of; both steps are included."""

    index: int
    first_step: int
    last_step: int


@dataclass(frozen=True)
class Share:
    """Which part of a site a process measures; by default all of its units, on samples of its own.

    Attributes:
        first: Where its units begin among all.
        total: How many there are in all processes; None if this one has all of them.
        counts: Whether its sums count; False if another process measures the same samples.
        stages: The pipeline stages of the process that run the site; empty if none does.
    """

    first: int = 0
    total: int | None = None
    counts: bool = True
    stages: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class SiteSnapshot:
    """What was measured at one site over one window.

    Attributes:
        site: The site.
        samples: Elements per unit on which liveness was judged (every counted forward).
        data: Per-unit statistics by name, each (C,); see `deadwatch.observe.stats.STATISTICS`.
            Empty if the site has never run.
        age: Samples since each unit's gate was last open, at window granularity (C,).
        flat: Whether each unit's closed side has exactly zero derivative (C,).
        share: Which part of the site this is.
    """

    site: Site
    samples: int
    data: Mapping[str, npt.NDArray[Any]]
    age: Ints
    flat: Bools
    share: Share = Share()

    @property
    def units(self) -> int:
        """Number of units, 0 if the site has never run."""
        return len(self.age)

    @property
    def base(self) -> str:
        """Name of the first call of its place, of which it may be a later one."""
        if self.site.call == 1:
            return self.site.name
        return self.site.name.removesuffix(f"-{self.site.call}").removesuffix("-")

    @property
    def opened(self) -> Bools:
        """Which gates are known to have been open in the window (C,)."""
        # Where a NaN hid a batch from the exact check, the sampled count may still have seen it.
        known: Bools = self.data["opened"] | (self.data["open"] > 0)
        return known


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What was measured at all sites over one window, in the order of the data.

    Attributes:
        window: Index, first and last step.
        sites: The sites.
        steps: Training steps of the run so far.
        missing: By name of a site of which nothing is known although it may have run, why.
        gauges: What the gauges measured, if there are any.
    """

    window: Window
    sites: tuple[SiteSnapshot, ...]
    steps: int = 0
    missing: Mapping[str, str] = field(default_factory=dict)
    gauges: Gauges | None = None
