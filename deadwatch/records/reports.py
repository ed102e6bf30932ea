"""What the evidence of a window says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from importlib import import_module
from typing import Any

import numpy as np

from deadwatch.records.arrays import Bools, Floats, Ints
from deadwatch.records.found import Finding
from deadwatch.records.gauged import Death, Gauges
from deadwatch.records.measured import Window
from deadwatch.records.sites import Site
from deadwatch.records.treated import Outcome, Refusal, Treatment


class State(IntEnum):
    """What the evidence of a window says about a unit."""

    UNSEEN = 0  # the site did not run
    UNCERTAIN = 1  # gate never open, but on too few samples (or some were NaN)
    DEAD = 2  # gate never open, and the closed side has exactly zero derivative
    SATURATED = 3  # gate never open, but the closed side still has a tiny derivative
    RARE = 4  # gate open on very few samples: alive, worth watching
    ALIVE = 5


@dataclass(frozen=True, eq=False)
class SiteReport:
    """One site over one window, as NumPy arrays with one entry per unit.

    Where nothing was measured the floats are NaN, never 0. Moments, fractions and extremes come
    from the sampled forwards (`stats_every_n_steps`) and leave out NaN and infinite elements;
    `state`, `dead` and `samples` come from every counted forward.

    Attributes:
        site: The site.
        samples: Elements per unit on which liveness was judged.
        state: `State` of each unit.
        age: Samples since each unit's gate was last open.
        open_fraction: Share of elements on which the gate was open.
        mean: Mean of the pre-activation.
        std: Standard deviation (population) of the pre-activation.
        min: Least pre-activation.
        max: Greatest pre-activation.
        mean_abs: Mean |f(z)| of the activation's output.
        mean_out: Mean f(z) of the activation's output.
        nonfinite: Number of NaN or infinite pre-activations.
        dormancy: ReDo score: ``mean_abs`` over its mean across the layer (Sokar et al. 2023).
        sparsity: Share of closed gates over all elements of the site; not a measure of death.
        harmful: Whether so many of its units are dead that measurement has found harm; see
            `deadwatch.Rules`.
    """

    site: Site
    samples: int
    state: Ints
    age: Ints
    open_fraction: Floats
    mean: Floats
    std: Floats
    min: Floats
    max: Floats
    mean_abs: Floats
    mean_out: Floats
    nonfinite: Floats
    dormancy: Floats
    sparsity: float
    harmful: bool = False

    @property
    def units(self) -> int:
        """Number of units, 0 if the site has never run."""
        return len(self.state)

    @property
    def unseen(self) -> bool:
        """Whether nothing is known of it in the window."""
        return not self.samples

    @property
    def dead(self) -> Bools:
        """Which units are dead (C,)."""
        dead: Bools = self.state == State.DEAD
        return dead

    @property
    def judged(self) -> int:
        """Units with enough evidence for a state."""
        return int((self.state >= State.DEAD).sum())

    @property
    def dead_ratio(self) -> float:
        """Dead units over judged units; NaN if none was judged."""
        return int(self.dead.sum()) / self.judged if self.judged else math.nan

    @property
    def wasted(self) -> float:
        """Elements of parameters that make dead units or read them; NaN where not all are known.

        A layer between two sites has elements of both, which count at each of them.
        """
        site, found = self.site, 0
        if not (self.judged and site.producers and site.consumers):
            return math.nan
        dead = np.flatnonzero(self.dead)
        for wire, makes in [
            *((w, True) for w in site.producers),
            *((w, False) for w in site.consumers),
        ]:
            units = int(((dead >= wire.units.start) & (dead < wire.units.stop)).sum())
            biased = makes and wire.bias is not None
            found += units * (wire.per_unit + (wire.block if biased else 0))
        return float(found)


def _notebook(name: str) -> Any:
    """A function that draws reports: looked up when it is called, as the package's own names are.

    Records know nothing of what is drawn of them, also not where they were unpickled on their own.
    """
    return getattr(import_module("deadwatch.show.notebook"), name)


@dataclass(frozen=True, eq=False)
class WindowReport(Mapping[str, SiteReport]):
    """All sites over one window: a mapping of site name to `SiteReport`.

    Attributes:
        window: Index, first and last step.
        sites: Reports in the order of the data.
        treatments: What was applied at the end of the window.
        refusals: Remedies that could not be applied, and why.
        notes: What else there is to tell: dead units that were left alone, treatments undone.
        outcomes: What came of each remedy so far.
        gauges: What the gauges measured, if advice is asked for; None if not.
        deaths: How the units that are dead now have died, if advice is asked for.
        findings: What advice there is, if it is asked for.
        advised: Whether it was asked for and given: without it, no findings mean nothing.
    """

    window: Window
    sites: Mapping[str, SiteReport]
    treatments: tuple[Treatment, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    gauges: Gauges | None = None
    deaths: tuple[Death, ...] = ()
    findings: tuple[Finding, ...] = ()
    advised: bool = False

    def __getitem__(self, name: str) -> SiteReport:
        try:
            return self.sites[name]
        except KeyError:
            known = ", ".join(self.sites) or "none"
            raise KeyError(f"no site {name!r} in this window; the sites are: {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def plot(self) -> Any:
        """The states of the units of each site, and its dead ratio, as a matplotlib ``Figure``.

        Raises:
            DeadwatchError: matplotlib is not installed.
        """
        return _notebook("plot")(self)

    def _repr_html_(self) -> str:
        """The report as a table, in a notebook."""
        html: str = _notebook("html_of")(self)
        return html

    @property
    def dead(self) -> int:
        """Dead units of all sites."""
        return sum(int(site.dead.sum()) for site in self.sites.values())

    @property
    def judged(self) -> int:
        """Units of all sites with enough evidence for a state."""
        return sum(site.judged for site in self.sites.values())

    @property
    def dead_ratio(self) -> float:
        """Dead units over judged units, summed over sites; NaN if none was judged."""
        return self.dead / self.judged if self.judged else math.nan
