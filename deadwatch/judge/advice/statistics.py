"""Data and statistics: what flows through the layers, forward and back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from deadwatch.judge.advice.facts import Facts, figure, one_sided, percent, rectifies
from deadwatch.judge.advice.rule import Hit, rule
from deadwatch.records import Severity, Site, SiteReport, State

OFF_CENTRE = (1.5, 3.0)
"""‖mean‖ / ‖std‖ of a layer's inputs from which on it is told, and is a warning where they are the
data: of a thousand samples, a random unit is closed for all with 2% and 14%."""

OFF_CENTRE_WITHIN = 10.0
"""The same for what other layers make; with depth, it grows in healthy networks."""

_FEW = 16  # samples of each feature that make a mean

GROWTH = 4.0
"""Times by which pre-activations may grow, or shrink, from layer to layer of a chain."""

LARGE = 1e3
"""A usual pre-activation that is too large; in healthy networks it is below 10, and half precision
ends at 65 504."""

SHUT = (0.1, 0.3)
"""Share of a sigmoid's or tanh's gates that are closed from which on it is told, and a warning."""

COMA = (0.1, 0.3)
"""The same for the share of units that never leave a flat tail."""

FADED = 1e-5
"""Gradient at one end of a network, relative to the other, from which on it is a warning."""


@rule(
    "DW401",
    "Inputs far off centre",
    reason="What all inputs have in common shifts the pre-activations of a unit in one direction "
    "for all data: it is open for all, or closed for all. Subtract the mean of each feature, and "
    "divide by its standard deviation.",
    source="LeCun et al. 1998, Efficient BackProp, section 4.3",
)
def off_centre(facts: Facts) -> Iterator[Hit]:
    """Layers whose inputs vary far less than they are away from zero."""
    for name, one in facts.gauges.inputs.items():
        least = OFF_CENTRE[0] if one.raw else OFF_CENTRE_WITHIN
        if one.centre < least or one.samples < _FEW:
            continue
        if math.isinf(one.centre) and not one.raw:
            continue  # behind a dead layer, which is told of
        what = "the data that" if one.raw else "what"
        message = (
            f"{what} {name} reads has a mean of {one.centre:.2g} times its standard deviation "
            f"(norms over {one.features} features)"
        )
        severity: Severity = "warning" if one.raw and one.centre >= OFF_CENTRE[1] else "info"
        code = "x = (x - mean) / std  # of each feature, over the training data"
        code = code if one.raw else "# a norm between the layers"
        if math.isinf(one.centre):
            message = f"{what} {name} reads does not vary: {one.samples} samples are all the same"
            code = "# look at what makes it: nothing can be told apart by what does not vary"
        yield Hit(severity, (name,), message, {"centre": one.centre}, code)


@rule(
    "DW402",
    "Pre-activations that explode or vanish",
    reason="Where each layer multiplies what it is given, the last ones see values that no bias "
    "matters for, or nothing but biases; the gradient does the same on its way back. ReLU and its "
    "like have no upper end that would stop it.",
    source="Glorot & Bengio 2010, AISTATS; He et al. 2015, arXiv:1502.01852, section 2.2",
)
def growing(facts: Facts) -> Iterator[Hit]:
    """Chains along which pre-activations grow or shrink, and values that are too large by far."""
    for chain in facts.chains:
        sizes = [(site, size) for site in chain if (size := _size(facts, site)) > 0]
        if len(sizes) >= 3:
            yield from _growing(sizes)
    for site in facts.sites:
        size = _size(facts, site)
        if size >= LARGE and math.isfinite(size):
            message = f"the pre-activations of {site.name} are {figure(size)} on average"
            code = "# a norm before it, a smaller gain of its layer, or a lower learning rate"
            yield Hit("warning", (site.name,), message, {"size": size}, code)


def _growing(sizes: list[tuple[Site, float]]) -> Iterator[Hit]:
    (first, begin), (last, end) = sizes[0], sizes[-1]
    growth = (end / begin) ** (1 / (len(sizes) - 1))
    if 1 / GROWTH < growth < GROWTH:
        return
    how = "grow" if growth > 1 else "shrink"
    factor = growth if growth > 1 else 1 / growth
    message = (
        f"pre-activations {how} by a factor of {factor:.2g} from layer to layer, from "
        f"{figure(begin)} at {first.name} to {figure(end)} at {last.name}"
    )
    code = "# torch.nn.init.kaiming_normal_ for the weights, or norms between the layers"
    where = tuple(site.name for site, _ in sizes)
    yield Hit("warning", where, message, {"growth": growth, "layers": len(sizes)}, code)


def _size(facts: Facts, site: Site) -> float:
    """Root mean square of a site's pre-activations; NaN if they were not measured."""
    found = facts.seen(site)
    if found is None:
        return math.nan
    squares = np.square(found.mean) + np.square(found.std)
    known = squares[np.isfinite(squares)]
    return math.sqrt(float(known.mean())) if len(known) else math.nan


@rule(
    "DW403",
    "Values that are not finite",
    reason="NaN and infinity spread: to all that reads them, and with the next step to the "
    "weights. No unit behind them can be judged, and none learns.",
    source="the definition of a gate: NaN opens none",
)
def not_finite(facts: Facts) -> Iterator[Hit]:
    """Sites with NaN or infinite pre-activations."""
    for site in facts.sites:
        found = facts.seen(site)
        bad = np.nansum(found.nonfinite) if found is not None else 0
        if found is not None and bad:
            units = int((found.nonfinite > 0).sum())
            message = f"{int(bad)} pre-activations of {units} units of {site.name} are not finite"
            code = "torch.autograd.set_detect_anomaly(True)  # names the operation"
            yield Hit("error", (site.name,), message, {"values": float(bad)}, code)


@rule(
    "DW404",
    "Saturated sigmoid or tanh",
    reason="In its flat ends a sigmoid or tanh passes less than a thousandth of the gradient: "
    "weights that have grown, or inputs that are too large, have driven it there.",
    source="Glorot & Bengio 2010, AISTATS, section 3",
)
def saturated(facts: Facts) -> Iterator[Hit]:
    """Two-sided activations most of whose gates are closed."""
    for site in facts.sites:
        found, gate = facts.seen(site), site.gate
        two_sided = gate.inside and math.isfinite(gate.low) and math.isfinite(gate.high)
        if found is None or not two_sided or rectifies(gate) or not found.sparsity >= SHUT[0]:
            continue
        message = (
            f"{percent(found.sparsity)} of the elements of {site.name} ({site.activation}) are in "
            "its flat ends"
        )
        # An output may well be certain: pixels that are black, classes that are told apart.
        output = ("return",) in site.trails
        warn = found.sparsity >= SHUT[1] and not output
        severity: Severity = "warning" if warn else "info"
        code = "# smaller initial weights (torch.nn.init.xavier_uniform_), or a norm before it"
        yield Hit(severity, (site.name,), message, {"closed": found.sparsity}, code)


@rule(
    "DW405",
    "Units in a coma",
    reason="ELU, GELU, SiLU and their like still pass a gradient where they are closed, but far "
    "down it is tiny: such a unit is not dead, and does not come back in any time worth waiting.",
    source="Clevert et al. 2016, arXiv:1511.07289, section 3; GELU saved little once units were "
    "deep in its tail: 51% of 92% on permuted tasks",
)
def coma(facts: Facts) -> Iterator[Hit]:
    """Units of smooth activations that never leave the flat tail."""
    for site in facts.sites:
        found = facts.seen(site)
        if found is None or not found.judged or site.gate.flat or not one_sided(site.gate):
            continue
        units = int((found.state == State.SATURATED).sum())
        share = units / found.judged
        if share >= COMA[0]:
            message = f"{units} of {found.judged} units of {site.name} ({site.activation}) never "
            message += "leave the flat tail"
            severity: Severity = "warning" if share >= COMA[1] else "info"
            code = 'Policy(Recycle(), when=0.3, measure="saturated")'
            yield Hit(severity, (site.name,), message, {"units": units, "share": share}, code)


@rule(
    "DW406",
    "Gradients that vanish or explode",
    reason="Layers at one end learn a thousand times slower than those at the other, or not at "
    "all; a rate that suits one end kills units at the other.",
    source="Hochreiter 1991; Glorot & Bengio 2010, AISTATS",
)
def fading(facts: Facts) -> Iterator[Hit]:
    """What the gradient gauge has measured, from the first layers to the last."""
    norms = [(site, _norm(facts, site)) for site in facts.sites]
    known = [(site, norm) for site, norm in norms if norm is not None]
    for site, norm in known:
        if norm == 0:
            # Layers that begin at zero let nothing through in the very first steps.
            severity: Severity = "info" if facts.fresh else "warning"
            code = "# look at the layers behind it: one of them passes nothing on"
            message = f"no gradient comes back to {site.name}"
            yield Hit(severity, (site.name,), message, {"norm": norm}, code)
    alive = [(site, norm) for site, norm in known if norm]
    if len(alive) > 2:
        yield from _fading(alive)


def _fading(norms: list[tuple[Site, float]]) -> Iterator[Hit]:
    (first, begin), (last, end) = norms[0], norms[-1]
    steps = [later / earlier for (_, earlier), (_, later) in pairwise(norms)]
    if FADED < begin / end < 1 / FADED:
        return
    how = "vanishes" if begin < end else "explodes"
    message = f"the gradient {how} on its way back: {figure(end)} at {last.name}, "
    message += f"{figure(begin)} at {first.name}"
    numbers = {"ratio": begin / end, "largest_step": max(steps)}
    code = "# norms or skips between the layers, kaiming_normal_ weights, or clip_grad_norm_"
    yield Hit("warning", (first.name, last.name), message, numbers, code)


def _norm(facts: Facts, site: Site) -> float | None:
    """The norm of the gradient at a site's pre-activations, in units that all sites share."""
    found: SiteReport | None = facts.seen(site)
    rms = facts.gauges.gradients.get(site.name)
    if found is None or rms is None:
        return None
    return rms * math.sqrt(found.units * found.samples)
