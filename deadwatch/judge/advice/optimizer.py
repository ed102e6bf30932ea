"""The optimizer: what its steps do to units."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from deadwatch.judge.advice.facts import Facts, listed, percent, shift_of
from deadwatch.judge.advice.rule import Hit, rule
from deadwatch.judge.causes import RUSH, is_leap
from deadwatch.records import Death, Parameter, Severity, Update

HORIZON = 1000
"""Steps over which the pull of weight decay is told."""

PULL = 0.5
"""Share of a bias that decay takes in `HORIZON` steps from which on it is a warning."""

TOLD = 0.05
"""The same from which on it is told at all: at the decay that AdamW is mostly used with, neither
harm nor help was seen."""

_PULLING = {"SGD": "at least ", "AdamW": ""}
"""Optimizers of which decay takes a share of a parameter off in each step; momentum, of which rules
know nothing, makes that more. The others divide it by the size of the gradient."""

ABOVE = 10.0
"""Times the median of all weights by which one has to be updated more to stand out."""

MOST = 0.05
"""Mean update of a weight, relative to it, that training mostly keeps below: it is about 1e-3, and
in the first steps of 75 healthy networks it was 0.09 at most."""


@rule(
    "DW301",
    "Weight decay on biases and norms",
    reason="Decay pulls biases and norm shifts to zero: a positive one that keeps a unit open is "
    "lost, and so is a negative one that closes it, which revives the unit. It helps no "
    "generalisation there, so leave them out, unless dead units have biases that it pulls up.",
    source="Goodfellow, Bengio & Courville 2016, Deep Learning, section 7.1; measured with SGD and "
    "a decay of 0.1 on biases that had been pushed down: 91% dead fell to 0%",
)
def decay_on_biases(facts: Facts) -> Iterator[Hit]:
    """Biases and norm parameters that an optimizer decays."""
    decayed = {
        name: one for name, one in facts.parameters.items() if one.kind != "weight" and one.decay
    }
    for optimizer in dict.fromkeys(one.optimizer for one in decayed.values()):
        own = {name: one for name, one in decayed.items() if one.optimizer == optimizer}
        hit = _decayed(facts, optimizer, own)
        if hit.numbers.get("pull", 1.0) >= TOLD:
            yield hit


def _decayed(facts: Facts, optimizer: str, own: dict[str, Parameter]) -> Hit:
    numbers = {"decay": max(one.decay for one in own.values())}
    helped = _held_down(facts, own)
    message = (
        f"{optimizer} decays {len(own)} {_biases(len(own))} by {numbers['decay']:.2g} "
        f"({listed(list(own))})"
    )
    pulls = [one.lr * one.decay for one in own.values() if math.isfinite(one.lr)]
    if optimizer in _PULLING and pulls:
        pull = numbers["pull"] = -math.expm1(HORIZON * math.log1p(-min(max(pulls), 0.999)))
        least = _PULLING[optimizer]
        message += f", which takes {least}{percent(pull)} off in {HORIZON} steps, gradients aside"
    if helped:
        message += (
            f"; it pulls up the negative biases of {helped} dead units: leave it until they live"
        )
    warn = numbers.get("pull", 0) >= PULL and not helped
    severity: Severity = "warning" if warn else "info"
    code = "deadwatch.NoBiasDecay().exempt(model, optimizer)  # or build it from .groups(model)"
    return Hit(severity, tuple(own), message, numbers, code)


def _biases(count: int) -> str:
    return "bias or norm parameter" if count == 1 else "biases and norm parameters"


def _held_down(facts: Facts, decayed: dict[str, Parameter]) -> int:
    """Dead units whose negative bias is among what decays."""
    count = 0
    for site in facts.sites:
        found, last = facts.seen(site), shift_of(site)
        rows = facts.gauges.rows.get(site.name)
        if found is not None and last is not None and rows is not None and last.bias in decayed:
            count += int((found.dead & (rows.bias < 0)).sum())
    return count


@rule(
    "DW302",
    "Updates far too large for a layer",
    reason="A layer that is moved by a tenth of itself in a step is another one after ten: what "
    "its units were open for is gone, and some land where no data opens them. Updates of about a "
    "thousandth are usual. Lower the rate, warm it up, or clip the gradient.",
    source="You et al. 2017, arXiv:1708.03888 (trust ratios); the scenario 'spike' of "
    "benchmarks/efficacy.py",
)
def large_updates(facts: Facts) -> Iterator[Hit]:
    """Weights that the steps of a window moved far more than the others, or by far too much."""
    updates = {name: one for name, one in facts.gauges.updates.items() if one.steps}
    usual = median(one.mean for one in updates.values()) if updates else math.nan
    for name, one in updates.items():
        above = one.mean >= MOST and one.mean >= ABOVE * usual
        if one.mean >= RUSH or above or is_leap(one):
            yield _updated(facts, name, one, usual)


def _updated(facts: Facts, name: str, update: Update, usual: float) -> Hit:
    if update.mean >= MOST:
        message = f"each step moved {name} by {percent(update.mean)} of itself"
        message += f", and the median weight by {percent(usual)}"
    else:
        message = (
            f"step {update.peak_step} moved {name} by {percent(update.peak)} of itself, and the "
            f"others of its window by {percent(update.mean)} on average"
        )
    numbers = {"mean": update.mean, "peak": update.peak, "step": update.peak_step}
    rate = facts.parameters[name].lr if name in facts.parameters else math.nan
    code = "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # before optimizer.step()"
    if update.mean >= MOST and math.isfinite(rate) and rate > 0:
        message += f", at a learning rate of {rate:.2g}"
        slower = rate * 0.01 / update.mean
        code = f"lr={slower:.1g}  # not {rate:.2g}: for updates of about 1%"
    severity: Severity = "warning" if _is_deadly(facts, update) else "info"
    return Hit(severity, (name,), message, numbers, code)


def _is_deadly(facts: Facts, update: Update) -> bool:
    """Whether units died of updates, or a run that is well under way still moves so far.

    In its first steps a healthy network may move by a tenth of itself, more so before norms.
    """
    deaths = facts.report.deaths if facts.report is not None else ()
    killed = any(death.cause == "update" for death in deaths)
    return killed or (not facts.fresh and (update.mean >= RUSH or is_leap(update)))


@rule(
    "DW303",
    "The learning rate at which units began to die",
    reason="Units that lived, and died without their data having changed, died of the steps that "
    "were taken. Below the rate at which that began they would be alive.",
    source="the window, step and rate are this run's own",
)
def deadly_rate(facts: Facts) -> Iterator[Hit]:
    """The first window in which units died of updates."""
    report = facts.report
    deaths = [one for one in (report.deaths if report else ()) if _of_steps(one)]
    if not deaths:
        return
    first = min(deaths, key=lambda death: death.window)
    same = [death for death in deaths if death.window == first.window]
    units, later = (sum(len(one.units) for one in group) for group in (same, deaths))
    steps = min(one.steps[0] for one in same), max(one.steps[1] for one in same)
    message = (
        f"units began to fall silent in window {first.window}, between steps {steps[0]} and "
        f"{steps[1]}, at a learning rate of {first.rate:.2g}: {units} then, {later - units} since"
    )
    harm = any(facts.harmful(site) for site in facts.sites if site.name in {d.site for d in deaths})
    numbers = {"window": first.window, "step": steps[0], "rate": first.rate, "units": units}
    code = f"# a learning rate below {first.rate:.2g}, or a warm-up to it"
    sites = tuple(dict.fromkeys(one.site for one in same))
    yield Hit("warning" if harm else "info", sites, message, numbers, code)


def _of_steps(death: Death) -> bool:
    return death.cause in ("update", "weights", "bias") and math.isfinite(death.rate)
