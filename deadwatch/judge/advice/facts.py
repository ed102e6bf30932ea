"""What rules are told: plain facts about a model, and what was measured of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from deadwatch.records import Gate, Gauges, Parameter, Site, SiteReport, WindowReport, Wire
from deadwatch.records.sites import LAYERS

NORMS = ("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm")
"""Norms by the functions that compute them."""

POOLING = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "mean", "amax")
"""Pools, without the number of their dimensions."""


@dataclass(frozen=True, eq=False)
class Facts:
    """All that is known.

    Attributes:
        sites: The sites in the order of the data, as measured or as a Sequential shows them.
        parameters: The model's parameters by name.
        report: What was measured; None if nothing was.
        fresh: Whether nothing, or the first window alone, has been seen of a training.
        trained: Whether steps were taken, so that parameters are no more as they were made.
    """

    sites: tuple[Site, ...]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    report: WindowReport | None = None
    fresh: bool = True
    trained: bool = False

    @property
    def gauges(self) -> Gauges:
        """What the gauges measured."""
        found = self.report.gauges if self.report is not None else None
        return found or Gauges()

    def seen(self, site: Site) -> SiteReport | None:
        """What was measured of a site; None if nothing was."""
        report = self.report
        found = report.sites.get(site.name) if report is not None else None
        return found if found is not None and found.samples else None

    def harmful(self, site: Site) -> bool:
        """Whether there is evidence that a site's dead units do harm.

        They have to be as many as `Rules` treats. Healthy networks are born with many, by the
        symmetry of w and −w, and train: units that were never open do harm if they are more than
        the symmetry makes, and as many as killing them cost accuracy. Where units died in this run,
        half as many are a warning: there, they went on dying.
        """
        found = self.seen(site)
        if found is None or not found.harmful:
            return False
        if self.fresh or 2 * self._born(site) >= int(found.dead.sum()):
            return leans(found) and found.dead_ratio >= costly(found.judged)
        return found.dead_ratio > costly(found.judged) / 2

    def _born(self, site: Site) -> int:
        """Dead units of a site that were never open, as far as is known."""
        deaths = self.report.deaths if self.report is not None else ()
        return sum(len(d.units) for d in deaths if (d.site, d.cause) == (site.name, "birth"))

    @cached_property
    def chains(self) -> tuple[tuple[Site, ...], ...]:
        """Runs of sites of which each is made by one layer that reads the one before, and no other.

        No norm and no sum stands in between: what happens to the signal in one happens to all.
        """
        after = {site.name: self._next(site) for site in self.sites}
        begun = {site.name for site in after.values() if site is not None}
        first = [site for site in self.sites if site.name not in begun and layer_of(site)]
        return tuple(tuple(self._follow(site, after)) for site in first)

    def _follow(self, site: Site, after: Mapping[str, Site | None]) -> Iterator[Site]:
        seen = set[str]()
        found: Site | None = site
        while found is not None and found.name not in seen:
            seen.add(found.name)
            yield found
            found = after[found.name]

    def _next(self, site: Site) -> Site | None:
        """The site that a site alone feeds through one layer; None if there is no such."""
        readers = site.consumers
        if len(readers) != 1 or len(site.trails) > 1 or readers[0].shared:
            return None
        if readers[0].through in NORMS or not layer_of(site):
            return None
        return self._made.get(readers[0].weight) if readers[0].weight else None

    @cached_property
    def _made(self) -> dict[str | None, Site]:
        """The first site that the layer of each weight makes alone."""
        return {_weight(site): site for site in reversed(self.sites)}


def costly(units: int) -> float:
    """The share of a layer from which killing it has cost a point of accuracy or more.

    Measured on two-layer networks: 25% of 16 units, 50% of 32, 75% of 64 and of 256.
    """
    return min(0.75, max(0.25, 0.25 * (math.log2(max(1, units)) - 3)))


_ONE_IN_A_HUNDRED = 2.33  # standard errors


def leans(found: SiteReport) -> bool:
    """Whether more units are closed for all data than the symmetry of w and −w makes.

    As many should be open for all (McNemar 1947); chance alone makes one layer in a hundred lean. A
    layer that is closed as a whole leans.
    """
    closed, opened = int(found.dead.sum()), int((found.open_fraction >= 1).sum())
    return (
        closed - opened > _ONE_IN_A_HUNDRED * math.sqrt(closed + opened)
        or closed == found.judged > 0
    )


def _weight(site: Site) -> str | None:
    layer = layer_of(site)
    return None if layer is None else layer.weight


def layer_of(site: Site) -> Wire | None:
    """The one layer that makes a site's units with no norm behind it; None if it is not so."""
    if len(site.producers) != 1 or any(step in NORMS for step in site.path):
        return None
    return site.producers[0] if site.producers[0].kind in LAYERS else None


def shift_of(site: Site) -> Wire | None:
    """What stands last before the activation, a layer or a norm; None for sums and unknowns."""
    last = site.producers[-1] if site.producers else None
    return last if last is not None and last.branch == 0 and last.kind != "skip" else None


def rectifies(gate: Gate) -> bool:
    """Whether a gate is closed, and exactly flat, for all that is negative: ReLU and its like."""
    return gate.inside and gate.flat and abs(gate.low) < 1e-6 < gate.high


def one_sided(gate: Gate) -> bool:
    """Whether a gate closes on the negative side alone: also GELU's, ELU's."""
    return gate.inside and gate.low > -1e6 and gate.high == float("inf")


def is_a(step: str, kinds: tuple[str, ...]) -> bool:
    """Whether a function is one of some kinds, in any number of dimensions."""
    return step in kinds or step.rstrip("d").rstrip("123") in kinds


def pools(site: Site) -> bool:
    """Whether what reads a site's units reads them pooled, or some of it does."""
    return any(is_a(step, POOLING) for trail in site.trails for step in trail)


def percent(share: float) -> str:
    """A share for a sentence: small ones keep a digit."""
    if not share:
        return "0%"
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}" if share >= 9.5e-4 else "under 0.1%"


def are(count: int) -> str:
    """The verb for so many."""
    return "is" if count == 1 else "are"


def figure(value: float) -> str:
    """A number for a sentence: two digits, and no power of ten where it can do without."""
    return f"{value:.0f}" if 10 <= abs(value) < 1e6 else f"{value:.2g}"


def listed(names: list[str], most: int = 3) -> str:
    """A few names, and how many more there are."""
    told = ", ".join(names[:most])
    return told if len(names) <= most else f"{told} and {len(names) - most} more"
