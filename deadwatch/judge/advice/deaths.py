"""Causes of death: how the units that are dead now have died."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from deadwatch.judge.advice.facts import Facts, are, figure, percent
from deadwatch.judge.advice.rule import Hit, rule
from deadwatch.judge.causes import SWAY
from deadwatch.records import Cause, Death, Severity

BEST: dict[Cause, tuple[str, float]] = {
    "birth": ('policy="revive"', 43.1),
    "update": ('policy="revive"', 28.1),
    "bias": ('policy="revive"', 3.8),
    "data": ("policy=Policy(Recycle())", 17.0),
    "weights": ("policy=Policy(Recycle())", 6.4),
}
"""What helped most against each cause, and by how many points above doing nothing: the table of
``python -m benchmarks.by_cause``."""

_MANY = 0.1
"""Share of a site's units that have to have died of one cause for it to be a warning."""

_MEASURED = "points above doing nothing: python -m benchmarks.by_cause"


def _found(cause: Cause, evidence: Callable[[Death], str]) -> Callable[[Facts], Iterator[Hit]]:
    """What finds the units that died of one cause."""

    def find(facts: Facts) -> Iterator[Hit]:
        deaths = facts.report.deaths if facts.report is not None else ()
        own = [death for death in deaths if death.cause == cause]
        for site in dict.fromkeys(death.site for death in own):
            same = [death for death in own if death.site == site]
            most = max(same, key=lambda death: len(death.units))
            yield _hit(facts, same, most, evidence(most))

    return find


def _hit(facts: Facts, deaths: list[Death], death: Death, evidence: str) -> Hit:
    """The units of a site that died of one cause; ``death`` is how most of them did."""
    assert facts.report is not None
    site, units = facts.report.sites[death.site], sum(len(one.units) for one in deaths)
    when = "" if death.window < 0 else f" since window {death.window + 1}"
    if len(deaths) > 1:
        last = max(one.window for one in deaths) + 1
        when = f", {len(death.units)} of them{when}, and others until window {last}"
    message = f"{units} of {site.judged} units of {death.site} {are(units)} dead{when}: {evidence}"
    remedy, points = BEST.get(death.cause, BEST["birth"])
    names = "Policy, Recycle, Watch" if "Recycle" in remedy else "Watch"
    code = f"from deadwatch import {names}\nWatch(model, optimizer=optimizer, {remedy})"
    if death.cause in BEST:
        code += f"  # {points:+.1f} points above doing nothing where units died so"
    numbers = {"units": units, "window": death.window, **_pairs(death)}
    # Of the dead units of a site, those of one cause may be too few to matter.
    many = facts.harmful(site.site) and units >= _MANY * site.judged
    severity: Severity = "warning" if many else "info"
    return Hit(severity, (death.site,), message, numbers, code)


def _it(death: Death) -> str:
    return "it" if len(death.units) == 1 else "them"


def _its(death: Death) -> str:
    return "its" if len(death.units) == 1 else "their"


def _pairs(death: Death) -> dict[str, float]:
    before = {f"{name}_before": value for name, value in death.before.items()}
    return before | {f"{name}_after": value for name, value in death.after.items()}


def _from_to(death: Death, name: str) -> str:
    before, after = death.before.get(name), death.after.get(name)
    if before is None or after is None:
        return f"its {name} was not measured at both times"
    return f"{figure(before)} → {figure(after)}"


def _fell(death: Death) -> str:
    spread = death.before.get("std", math.nan)
    known = {"mean"} <= death.before.keys() & death.after.keys()
    mean, now = (one.get("mean", math.nan) for one in (death.before, death.after))
    if not known:
        return f"what {_its(death)} pre-activations were before was not measured"
    if mean <= now:  # it is closed since it varies by less, or by what was not measured
        means, spreads = _from_to(death, "mean"), _from_to(death, "std")
        return f"the mean pre-activation went {means}, its standard deviation {spreads}"
    within = f" (it varied by {figure(spread)})" if math.isfinite(spread) else ""
    return f"the mean pre-activation fell, {_from_to(death, 'mean')}{within}"


def _seldom(death: Death) -> str:
    share = death.before.get("open_fraction", math.nan)
    return f"they were open on {percent(share)} of the data, and " if share < 0.05 else ""


def _moved(death: Death) -> str:
    moved = death.after.get("moved")
    return (
        "" if moved is None else f", and {_its(death)} weights moved by {percent(moved)} about then"
    )


def _before(death: Death) -> str:
    """Where the layer itself did not move, another did."""
    moved = death.after.get("moved", math.nan)
    return f", those of a layer before {_it(death)} by more" if moved < SWAY else ""


def _born(death: Death) -> str:
    mean, spread = death.after.get("mean"), death.after.get("std")
    told = "never open in this run"
    if mean is not None and spread is not None:
        told += f"; {_its(death)} pre-activations are {figure(mean)} on average"
        told += f" and vary by {figure(spread)}"
    return told


def _leapt(death: Death) -> str:
    update = death.update
    assert update is not None
    peak = f"step {update.peak_step} moved {death.weight} by {percent(update.peak)} of itself"
    others = f"the steps of that window on average by {percent(update.mean)}"
    when = f"they fell silent between steps {death.steps[0]} and {death.steps[1]}"
    return f"{peak}, {others}; {when}, and {_fell(death)}"


rule(
    "DW501",
    "Dead from birth",
    reason="What was never open has learned nothing; the initialisation, or inputs off centre, "
    "put it there. See DW104, DW201, DW203 and DW401 for which.",
    source=_MEASURED,
)(_found("birth", _born))

rule(
    "DW502",
    "Killed by a large update",
    reason="One step, or each of them, carried the weights to where no data opens the gate. Clip "
    "gradients, warm the rate up or lower it, and bring the units back with new weights: the old "
    "ones are what is wrong.",
    source=_MEASURED,
)(_found("update", _leapt))

rule(
    "DW503",
    "Closed by a falling bias",
    reason="Step by step the bias fell, as under a penalty on activity or an error that a unit "
    "only ever makes worse, until no data reached the gate.",
    source=_MEASURED,
)(
    _found(
        "bias", lambda death: f"{_its(death)} bias fell, {_from_to(death, 'bias')}; {_fell(death)}"
    )
)

rule(
    "DW504",
    "Left behind by the data",
    reason="What the units were fed changed, and they did not: another task, another domain, a "
    "policy that visits other states. They keep what they had learned, for data that are gone. A "
    "unit that was seldom open anyway may merely not have met its data.",
    source=_MEASURED,
)(_found("data", lambda death: f"{_fell(death)}{_moved(death)}"))

rule(
    "DW505",
    "Closed by drifting weights",
    reason="Their weights, or those before them, moved far within a window, and no single step "
    "stands out: the learning rate is high for them over a long time.",
    source="the evidence is this run's own; no benchmark isolates this cause",
)(_found("weights", lambda death: f"{_fell(death)}{_moved(death)}{_before(death)}"))

rule(
    "DW506",
    "Dead of a cause that is not known",
    reason="Too little was measured around the windows in which they fell silent: shorter windows, "
    "or statistics on more steps (stats_every_n_steps), show more.",
    source="the evidence is this run's own",
)(_found("unknown", lambda death: f"{_seldom(death)}{_fell(death)}{_moved(death)}"))
