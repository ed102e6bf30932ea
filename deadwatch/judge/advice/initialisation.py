"""Initialisation: what parameters are before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np

from deadwatch.judge.advice.facts import (
    Facts,
    are,
    layer_of,
    one_sided,
    percent,
    rectifies,
    shift_of,
)
from deadwatch.judge.advice.rule import Hit, rule
from deadwatch.records import Parameter, Severity, Site, SiteReport, Wire

LOW = -1.0
"""Biases of which half are lower, in standard deviations of the pre-activation, are too low: a
normal pre-activation is open on less than 16% of the data there."""

FAINT = 1e-4
"""What is left of a signal's amplitude, or its inverse what it grows to, behind a chain of layers,
from which on a warning is due. A chain of eight layers as torch initialises them, such as
AlexNet's, leaves 2e-3 and trains."""

POWER = {
    **dict.fromkeys(("ReLU", "ReLU6", "LeakyReLU", "PReLU", "RReLU"), 0.5),
    **dict.fromkeys(("GELU", "Mish"), 0.43),
    "SiLU": 0.36,
    "Hardswish": 0.33,
    "ELU": 0.65,
    "CELU": 0.65,
    "SELU": 1.0,
    "Tanh": 0.39,
    "Hardtanh": 0.52,
}
"""E f(z)² of a standard normal z: how much of a pre-activation's power an activation passes on."""


@rule(
    "DW201",
    "Biases that begin far below zero",
    reason="A bias that lies lower than the pre-activation varies keeps the gate closed for most "
    "data from the first step on, and what is never open never learns.",
    source="He et al. 2015, arXiv:1502.01852, section 2.2 (biases are zero); the scenario "
    "'biases −3' of benchmarks/efficacy.py",
)
def negative_biases(facts: Facts) -> Iterator[Hit]:
    """A layer of which most biases are lower than their pre-activations vary."""
    for site in () if facts.trained else facts.sites:
        rows, last = facts.gauges.rows.get(site.name), shift_of(site)
        if rows is None or last is None or last.bias is None or not one_sided(site.gate):
            continue
        found = facts.seen(site)
        spread = rows.size if found is None or rows.normed else found.std
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = rows.bias / spread
        known = ratio[np.isfinite(ratio)]
        if len(known) and float(np.median(known)) < LOW:
            yield _negative(facts, site, last, float(np.median(known)), rows.bias)


def _negative(facts: Facts, site: Site, last: Wire, median: float, bias: object) -> Hit:
    share = float((np.asarray(bias) < 0).mean())
    message = (
        f"{percent(share)} of {last.bias} is negative, half of it lower than {median:.2g} standard "
        f"deviations of what {site.name} reads"
    )
    found = facts.seen(site)
    harmless = found is not None and found.judged > 0 and not facts.harmful(site)
    if found is not None and found.judged:
        dead = int(found.dead.sum())
        message += f"; {dead} of {found.judged} units {are(dead)} dead"
    numbers = {"median": median, "negative": share}
    code = f"torch.nn.init.zeros_(model.get_parameter({last.bias!r}))"
    return Hit("info" if harmless else "warning", (str(last.bias),), message, numbers, code)


@rule(
    "DW202",
    "Weights whose gain does not fit the activation",
    reason="Each layer multiplies the signal by its gain, and the activation keeps a part of it. "
    "Where the product over the layers is far from 1, what reaches the last ones, and the "
    "gradient that comes back, vanishes or explodes, and biases alone decide which gates open.",
    source="He et al. 2015, arXiv:1502.01852, section 2.2; Klambauer et al. 2017, arXiv:1706.02515",
)
def misfit_gain(facts: Facts) -> Iterator[Hit]:
    """A chain of layers behind which hardly anything is left of the signal, or far too much."""
    for chain in () if facts.trained else facts.chains:
        gains = [(site, gain) for site in chain if (gain := _gain(facts, site)) is not None]
        if len(gains) < 2:
            continue
        product = math.prod(gain for _, gain in gains)
        if not math.sqrt(FAINT) < product < 1 / math.sqrt(FAINT):
            yield _misfit([site for site, _ in gains], product)
    yield from _misfit_selu(facts)


def _gain(facts: Facts, site: Site) -> float | None:
    """By how much a layer and its activation multiply the amplitude of a signal."""
    squared, power = _squared(facts, site), POWER.get(site.activation)
    return None if squared is None or power is None else math.sqrt(squared * power)


def _squared(facts: Facts, site: Site) -> float | None:
    """``fan_in × rms²`` of the weights that make a site's units."""
    layer = layer_of(site)
    weight = facts.parameters.get(layer.weight or "") if layer is not None else None
    if layer is None or weight is None or not weight.rms > 0:
        return None
    return fan_in(layer, weight) * weight.rms**2


def fan_in(layer: Wire, weight: Parameter) -> int:
    """How many values one unit sums up."""
    groups = layer.groups if layer.axis == 1 else 1
    return math.prod(weight.shape) // max(1, weight.shape[layer.axis] * groups)


def _misfit(sites: list[Site], product: float) -> Hit:
    message = (
        f"the {len(sites)} layers from {sites[0].name} to {sites[-1].name} multiply the signal's "
        f"amplitude by {product:.1g}"
    )
    severity: Severity = "info" if FAINT < product < 1 / FAINT else "warning"
    weights = tuple(str(site.producers[0].weight) for site in sites)
    code = f"for name in {list(weights)!r}:\n    torch.nn.init.kaiming_normal_("
    code += 'model.get_parameter(name), nonlinearity="relu")'
    return Hit(severity, weights, message, {"gain": product, "layers": len(sites)}, code)


def _misfit_selu(facts: Facts) -> Iterator[Hit]:
    for site in facts.sites:
        squared = _squared(facts, site) if site.activation == "SELU" else None
        if squared is not None and not 0.5 < squared < 2:
            weight = str(site.producers[0].weight)
            message = (
                f"SELU keeps mean 0 and variance 1 if its weights have a variance of 1 / fan_in; "
                f"{weight} has {squared:.2g} / fan_in"
            )
            code = f"torch.nn.init.kaiming_normal_(model.get_parameter({weight!r}), "
            code += 'nonlinearity="linear")'
            yield Hit("info", (weight,), message, {"variance": squared}, code)


@rule(
    "DW203",
    "Dead on arrival",
    reason="What is closed for all data gets no gradient, and no step opens it. With symmetric "
    "weights and no bias, w and −w are equally likely: about as many units are open for all data "
    "as are closed for all. Where both are many, the inputs lie far off centre; where only closed "
    "ones are, biases or weights lean to one side.",
    source="LeCun et al. 1998, Efficient BackProp, section 4.3; Lu et al. 2019, arXiv:1903.06733; "
    "the symmetry of w and −w",
)
def dead_on_arrival(facts: Facts) -> Iterator[Hit]:
    """Units that no data have opened before, or within, the first window."""
    if facts.report is None or facts.report.window.index > 0 or facts.report.deaths:
        return
    for site in facts.sites:
        found = facts.seen(site)
        if found is not None and found.dead.any():
            yield _arrived_dead(facts, site, found)


_MANY = 32  # features


def _expected(facts: Facts, site: Site, found: SiteReport, symmetric: float) -> float:
    """The share of units that a symmetric initialisation closes for all of n samples.

    For a random direction w, mean over standard deviation of w · x is normal with the standard
    deviation ρ = ‖mean‖ / ‖std‖ of the inputs; it is closed for all if that is below minus the
    largest of n standard normal values: with probability Φ(−max / ρ). Where the inputs are not
    known, or few, as many as are closed or open for all, halved.
    """
    layer = layer_of(site)
    inputs = facts.gauges.inputs.get(layer.weight or "") if layer is not None else None
    if inputs is None or layer is None or not rectifies(site.gate) or found.samples < 2:
        return symmetric
    if inputs.features < _MANY:  # a sum of fewer is not normal
        return symmetric
    if inputs.features != layer.shape[1 - layer.axis] or layer.groups > 1:  # each reads a part
        return symmetric
    normal = NormalDist()
    largest = normal.inv_cdf((found.samples - 0.375) / (found.samples + 0.25))
    return normal.cdf(-largest / inputs.centre) if inputs.centre > 0 else 0.0


def _arrived_dead(facts: Facts, site: Site, found: SiteReport) -> Hit:
    dead, judged = int(found.dead.sum()), found.judged
    share, always = dead / judged, float((found.open_fraction >= 1).mean())
    expected = _expected(facts, site, found, (share + always) / 2)
    message = (
        f"{dead} of {judged} units of {site.name} {are(dead)} closed for all {found.samples} "
        f"elements ({percent(share)}), and {percent(always)} are open for all; by theory a "
        f"symmetric initialisation gives {percent(expected)} of each"
    )
    warn = facts.harmful(site)
    severity: Severity = "error" if dead == judged else "warning" if warn else "info"
    numbers = {"dead": share, "always_open": always, "expected": expected, "units": judged}
    code = 'Watch(model, optimizer=optimizer, policy="revive")'
    if severity == "info":
        code = "# nothing: healthy networks are born with as many, and train"
    layer = layer_of(site)
    if always < share / 4 and layer is not None and layer.bias is not None:
        code = f"torch.nn.init.zeros_(model.get_parameter({layer.bias!r}))"
    return Hit(severity, (site.name,), message, numbers, code)
