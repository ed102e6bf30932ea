"""What dead units cost, and whether that does harm."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from deadwatch.judge.advice.facts import Facts, are, percent
from deadwatch.judge.advice.rule import Hit, rule
from deadwatch.records import Site, SiteReport, Wire

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
    for site in facts.sites:
        found = facts.seen(site)
        if found is not None and facts.harmful(site):
            live = found.judged - int(found.dead.sum())
            message = f"{_dead(found)}, and {live} live; {_cost(facts, found)}"
            code = 'Watch(model, optimizer=optimizer, policy="revive")'
            yield Hit("warning", (site.name,), message, _numbers(facts, found), code)


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
    for site in facts.sites:
        found = facts.seen(site)
        if found is not None and found.dead.any() and not facts.harmful(site):
            message = f"{_dead(found)}; {_cost(facts, found)}"
            yield Hit("info", (site.name,), message, _numbers(facts, found))


def _dead(found: SiteReport) -> str:
    dead = int(found.dead.sum())
    return f"{dead} of {found.judged} units of {found.site.name} {are(dead)} dead"


def _cost(facts: Facts, found: SiteReport) -> str:
    numbers = _numbers(facts, found)
    if "wasted" not in numbers:
        return "what makes or reads them is not known, nor what they cost"
    told = f"they hold {numbers['wasted']:,.0f} parameters"
    if "parameters" in numbers:
        told += f", {percent(numbers['parameters'])} of all"
    if "compute" in numbers:
        told += f", and take about {percent(numbers['compute'])} of the multiplications"
    return told


def _numbers(facts: Facts, found: SiteReport) -> dict[str, float]:
    dead = int(found.dead.sum())
    numbers = {"dead": float(dead), "judged": float(found.judged)}
    if math.isnan(found.wasted):
        return numbers
    numbers["wasted"] = found.wasted
    total = sum(math.prod(one.shape) for one in facts.parameters.values())
    if total:
        numbers["parameters"] = found.wasted / total
    compute = _compute(facts, found)
    if not math.isnan(compute):
        numbers["compute"] = compute
    return numbers


def _compute(facts: Facts, found: SiteReport) -> float:
    """Share of the multiplications of all layers around sites; NaN if some are not known."""
    runs = _runs(facts)
    reports = [one for site in facts.sites if (one := facts.seen(site)) is not None]
    layers = {w.weight: w for one in reports for w in _wires(one.site) if w.weight is not None}
    work = sum(math.prod(w.shape) * runs.get(name, math.nan) for name, w in layers.items())
    dead = np.flatnonzero(found.dead)
    wasted = sum(
        len(wire.slices(dead)) // wire.block * wire.per_unit * runs.get(wire.weight, math.nan)
        for wire in _wires(found.site)
        if wire.weight is not None
    )
    return wasted / work if work else math.nan


def _runs(facts: Facts) -> dict[str, float]:
    """How often each layer around a site is applied, by its weight, as far as is known.

    Those that make units, as often as these have elements. Those that only read some, as often as
    in the forward that was looked at, in each step: pooling may stand in between.
    """
    assert facts.report is not None
    found: dict[str, float] = {}
    inputs, window = facts.gauges.inputs, facts.report.window
    steps = window.last_step - window.first_step + 1
    for site in facts.sites:
        report = facts.seen(site)
        if report is None:
            continue
        found |= {w.weight: float(report.samples) for w in site.producers if w.weight is not None}
        for wire in site.consumers:
            if wire.weight is not None and wire.weight in inputs.keys() - found.keys():
                found[wire.weight] = float(inputs[wire.weight].samples * steps)
    return found


def _wires(site: Site) -> tuple[Wire, ...]:
    return (*site.producers, *site.consumers)
