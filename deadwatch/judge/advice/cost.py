"""What dead units cost, and whether that does harm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from deadwatch.judge.advice.facts import Facts, are, percent, pools
from deadwatch.judge.advice.rule import Hit, rule
from deadwatch.records import SiteReport, Wire

_MEASURED = (
    "a share of a two-layer network killed and left: of 16 units 25% cost 3 points and 50% cost "
    "11, of 32 75% cost 10, of 64 90% cost 18, of 256 90% cost 2"
)


@rule(
    "DW601",
    "Dead units that do harm",
    reason="So many dead units, in a layer of which so few live, cost accuracy where that was "
    "measured; new weights brought it back.",
    source=_MEASURED,
)
def harmful(facts: Facts) -> Iterator[Hit]:
    """Sites whose dead share is in the range that measurement has found harmful."""
    whole = _Whole(facts)
    for site in facts.sites:
        found = facts.seen(site)
        if found is not None and facts.harmful(site):
            live = found.judged - int(found.dead.sum())
            numbers = _numbers(whole, found)
            message = f"{_dead(found)}, and {live} live; {_cost(numbers)}"
            code = 'Watch(model, optimizer=optimizer, policy="revive")'
            yield Hit("warning", (site.name,), message, numbers, code)


@rule(
    "DW602",
    "Dead units that were harmless where it was measured",
    reason="Fewer than cost accuracy where that was measured, or no more than a network is born "
    "with: reviving them moved the accuracy of healthy runs by at most 0.1 points. They cost "
    "memory and time, which pruning them would save.",
    source=f"{_MEASURED}; python -m benchmarks.efficacy, the healthy scenarios",
)
def harmless(facts: Facts) -> Iterator[Hit]:
    """Sites with fewer dead units than measurement has found harm with."""
    whole = _Whole(facts)
    for site in facts.sites:
        found = facts.seen(site)
        if found is not None and found.dead.any() and not facts.harmful(site):
            numbers = _numbers(whole, found)
            message = f"{_dead(found)}; {_cost(numbers)}"
            yield Hit("info", (site.name,), message, numbers)


def _dead(found: SiteReport) -> str:
    dead = int(found.dead.sum())
    return f"{dead} of {found.judged} units of {found.site.name} {are(dead)} dead"


def _cost(numbers: Mapping[str, float]) -> str:
    if "wasted" not in numbers:
        return "what makes or reads them is not known, nor what they cost"
    told = f"they hold {numbers['wasted']:,.0f} parameters"
    if "parameters" in numbers:
        told += f", {percent(numbers['parameters'])} of all"
    if "compute" in numbers:
        told += f", and take {percent(numbers['compute'])} of the multiplications"
    return told


class _Whole:
    """What dead units are a share of, counted once for all sites."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    @cached_property
    def parameters(self) -> int:
        """Elements of all parameters."""
        return sum(math.prod(one.shape) for one in self._facts.parameters.values())

    @cached_property
    def work(self) -> dict[str, float]:
        """`_work`."""
        return _work(self._facts)

    @cached_property
    def everything(self) -> float:
        """All of that."""
        return sum(self.work.values())


def _numbers(whole: _Whole, found: SiteReport) -> dict[str, float]:
    dead = int(found.dead.sum())
    numbers = {"dead": float(dead), "judged": float(found.judged)}
    if math.isnan(found.wasted):
        return numbers
    numbers["wasted"] = found.wasted
    if whole.parameters:
        numbers["parameters"] = found.wasted / whole.parameters
    if whole.everything:
        work = (_share(found, w) * whole.work.get(w.weight or "", 0.0) for w in _around(found))
        numbers["compute"] = sum(work) / whole.everything
    return numbers


def _around(found: SiteReport) -> Iterable[Wire]:
    """What makes or reads a site's units; a weight that does both counts once."""
    return {wire.weight: wire for wire in (*found.site.consumers, *found.site.producers)}.values()


def _share(found: SiteReport, wire: Wire) -> float:
    """The share of a weight that belongs to dead units."""
    dead = int(found.dead[wire.units.start : wire.units.stop].sum())
    return dead * wire.per_unit / max(1, math.prod(wire.shape))


def _work(facts: Facts) -> dict[str, float]:
    """Multiplications of the layers around all sites, in units that they share, by weight.

    A layer is used once for each element of the units that it makes. One that makes none is used
    for each that it reads: of those that it reads side by side, as after a flatten, once, and of
    what was pooled, as by a head, so seldom that it is left out.
    """
    seen = [(site, report) for site in facts.sites if (report := facts.seen(site)) is not None]
    found = {
        wire.weight: math.prod(wire.shape) * report.samples / wire.block
        for site, report in seen
        for wire in site.consumers
        if wire.weight is not None and not pools(site)
    }
    return found | {
        wire.weight: math.prod(wire.shape) * float(report.samples)
        for site, report in seen
        for wire in site.producers
        if wire.weight is not None
    }
