"""Structure: what the order of layers does to units."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from deadwatch.judge.advice.facts import NORMS, POOLING, Facts, are, is_a, percent, rectifies
from deadwatch.judge.advice.rule import Hit, rule
from deadwatch.records import Severity, Site

_SOFTMAX = ("softmax", "log_softmax", "gumbel_softmax", "cross_entropy", "nll_loss")
_DROPOUT = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_SCALING = ("div", "mul", "__truediv__", "__mul__", "__rmul__", "div_", "mul_")


def _skipping(steps: tuple[str, ...], *kinds: str) -> tuple[str, ...]:
    """The steps from the first on that is of none of these kinds."""
    for index, step in enumerate(steps):
        if not is_a(step, kinds):
            return steps[index:]
    return ()


def _graded(facts: Facts, site: Site) -> Severity:
    """A warning where the site's dead units do harm, else merely worth knowing."""
    return "warning" if facts.harmful(site) else "info"


def _with_dead(facts: Facts, site: Site, message: str) -> str:
    found = facts.seen(site)
    if found is None or not found.dead.any():
        return message
    dead = int(found.dead.sum())
    return f"{message}; {dead} of its {found.judged} units {are(dead)} dead"


@rule(
    "DW101",
    "Activation before the norm",
    reason="Behind the norm, the norm's shift decides how much of a unit passes; before it, only "
    "the weights do, and the norm makes up for units that die by scaling the rest. Put the norm "
    "between layer and activation, where it centres what the gates see.",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.2",
)
def activation_before_norm(facts: Facts) -> Iterator[Hit]:
    """An activation whose output is normalised, and that has no norm before it."""
    for site in facts.sites:
        followed = [_skipping(trail, *POOLING, *_DROPOUT) for trail in site.trails]
        norms = [trail[0] for trail in followed if trail and trail[0] in NORMS]
        if norms and not any(step in NORMS for step in site.path):
            message = f"the output of {site.name} ({site.activation}) goes into {norms[0]}, and "
            message = _with_dead(facts, site, f"{message}nothing normalises its input")
            code = "# in the forward, and in every nn.Sequential: layer, norm, activation"
            yield Hit(_graded(facts, site), (site.name,), message, code=code)


@rule(
    "DW102",
    "An activation right before softmax or the output",
    reason="Logits need both signs. Behind a ReLU every negative one becomes the same 0, without "
    "gradient: a class, or a token to attend to, that is wrongly below 0 cannot come back, and a "
    "head with few units is often born with some of them closed.",
    source="Goodfellow, Bengio & Courville 2016, Deep Learning, section 6.2.2; "
    "the scenario 'attention −3' of benchmarks/efficacy.py",
)
def activation_before_softmax(facts: Facts) -> Iterator[Hit]:
    """An activation whose output goes to softmax or a loss, or, rectified, out of the model."""
    for site in facts.sites:
        ends = {_skipping(trail, *POOLING, *_DROPOUT, *_SCALING) for trail in site.trails}
        softmax = next((end[0] for end in ends if end and is_a(end[0], _SOFTMAX)), "")
        if softmax:
            yield _before_softmax(facts, site, softmax)
        elif ends == {("return",)} and rectifies(site.gate) and site is facts.sites[-1]:
            yield _before_output(facts, site)


MANY_OUTPUTS = 0.2
"""Share of a model's outputs that have to be dead for a warning before it is trained."""


def _before_softmax(facts: Facts, site: Site, softmax: str) -> Hit:
    message = f"{site.name} ({site.activation}) stands right before {softmax}"
    severity: Severity = "warning" if rectifies(site.gate) else "info"
    reason = "" if rectifies(site.gate) else "It bounds the logits, and so the confidence."
    code = f"model.set_submodule({site.module!r}, torch.nn.Identity())"
    if site.functional:
        code = f"# in the forward of {site.module or 'the model'}: leave the activation out"
    message = _with_dead(facts, site, message)
    return Hit(severity, (site.name,), message, code=code, reason=reason)


def _before_output(facts: Facts, site: Site) -> Hit:
    found = facts.seen(site)
    dead = int(found.dead.sum()) if found is not None else 0
    message = f"{site.name} ({site.activation}) is the last thing in the model"
    message += f", and {dead} of its units {are(dead)} dead: always 0" if dead else ""
    reason = (
        "An output that should be negative, or a logit, cannot be; one that is closed for all "
        "data gets no gradient. Leave it out where the outputs are logits or targets of both "
        "signs; softplus keeps a gradient where they must be positive."
    )
    code = f"model.set_submodule({site.module!r}, torch.nn.Softplus())  # or torch.nn.Identity()"
    if site.functional:
        code = f"# in the forward of {site.module or 'the model'}: softplus, or no activation"
    many = found is not None and dead >= MANY_OUTPUTS * found.judged
    severity: Severity = "warning" if dead and (many or not facts.fresh) else "info"
    return Hit(severity, (site.name,), message, code=code, reason=reason)


@rule(
    "DW103",
    "A bias before a norm",
    reason="Batch norm subtracts its mean, and with it whatever a bias adds: the bias has no "
    "effect, gets no gradient, and warming it brings nothing back. The norm's own shift does.",
    source="Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.2",
)
def bias_before_norm(facts: Facts) -> Iterator[Hit]:
    """A layer with a bias right before a batch norm."""
    for site in facts.sites:
        for layer, norm in pairwise(site.producers):
            if norm.kind == "batch_norm" and layer.bias and layer.branch == norm.branch:
                message = f"{layer.bias} is added right before {norm.module}, which takes it out"
                code = f"model.get_submodule({layer.module!r}).bias = None  # before the optimizer"
                yield Hit("info", (layer.bias,), message, code=code)


@rule(
    "DW104",
    "Depth and width at which a network is born dead",
    reason="With symmetric weights and no bias a ReLU layer of N units is closed for an input with "
    "probability 2^−N, and one closed layer closes all behind it: then nothing gets a gradient, "
    "and no training brings it back. Make it wider or shallower, put norms or skips between, or "
    "use a leaky activation.",
    source="Lu et al. 2019, arXiv:1903.06733, theorem 3.2",
)
def born_dead(facts: Facts) -> Iterator[Hit]:
    """A chain of ReLU layers so deep and narrow that one of them is likely closed."""
    for chain in facts.chains:
        for run in _rectified(chain):
            widths = [_units(facts, site) for site in run]
            if len(run) < 2 or not all(widths):
                continue
            chance = -math.expm1(sum(math.log1p(-(2.0**-width)) for width in widths))
            if chance >= 0.01 and (facts.fresh or any(_all_dead(facts, s) for s in run)):
                yield _born_dead(facts, run, widths, chance)


def _rectified(chain: tuple[Site, ...]) -> Iterator[list[Site]]:
    run: list[Site] = []
    for site in chain:
        if rectifies(site.gate):
            run.append(site)
        else:
            yield run
            run = []
    yield run


def _units(facts: Facts, site: Site) -> int:
    found = facts.seen(site)
    return found.units if found is not None else len(site.producers[0].units)


def _born_dead(facts: Facts, run: list[Site], widths: list[int], chance: float) -> Hit:
    closed = [site.name for site in run if _all_dead(facts, site)]
    severity: Severity = "error" if closed else "warning" if chance >= 0.1 else "info"
    message = (
        f"{len(run)} ReLU layers in a row, the narrowest {min(widths)} wide, from "
        f"{run[0].name} to {run[-1].name}: born dead with a probability of up to {percent(chance)}"
    )
    message += f"; {closed[0]} is closed for all data" if closed else ""
    numbers = {"probability": chance, "layers": len(run), "narrowest": min(widths)}
    swaps = [f"model.set_submodule({s.module!r}, torch.nn.LeakyReLU())" for s in run]
    code = "\n".join(
        swaps if not any(s.functional for s in run) else ["F.leaky_relu  # not F.relu"]
    )
    return Hit(severity, tuple(site.name for site in run), message, numbers, code)


def _all_dead(facts: Facts, site: Site) -> bool:
    found = facts.seen(site)
    return found is not None and found.judged == found.units == int(found.dead.sum())


@rule(
    "DW105",
    "Dropout or pooling between a layer and its activation",
    reason="What dropout takes out is 0 there, for which a ReLU's gate is closed; and an average "
    "over positions hides those few at which a unit would be open. Units seem, and some are, less "
    "alive than behind the activation. Let the activation come right behind its layer.",
    source="the definition of a gate; Srivastava et al. 2014, JMLR 15, section 4",
)
def hidden_units(facts: Facts) -> Iterator[Hit]:
    """Dropout, or pooling by averages, on what a gate is judged by."""
    for site in facts.sites:
        hiding = [s for s in site.path if is_a(s, (*_DROPOUT, "avg_pool", "adaptive_avg_pool"))]
        if hiding and rectifies(site.gate):
            message = f"{hiding[0]} stands between {site.name} and the layer that makes its units"
            message = _with_dead(facts, site, message)
            code = f"# layer, activation, {hiding[0]}"
            yield Hit(_graded(facts, site), (site.name,), message, code=code)


@rule(
    "DW106",
    "Dropout before a batch norm",
    reason="Dropout changes the variance that the norm measures while training, and not in "
    "evaluation, so that the units behind it see other values there than they have learned with. "
    "Put dropout behind the last norm.",
    source="Li et al. 2019, CVPR, arXiv:1801.05134",
)
def dropout_before_norm(facts: Facts) -> Iterator[Hit]:
    """Dropout directly in front of a batch norm."""
    for site in facts.sites:
        for steps in (site.path, *site.trails):
            pairs = [(a, b) for a, b in pairwise(steps) if is_a(a, _DROPOUT) and b == "batch_norm"]
            if pairs:
                message = f"{pairs[0][0]} right before a batch norm, at {site.name}"
                code = "# move the dropout behind the norm and its activation"
                yield Hit("info", (site.name,), message, code=code)
                break
