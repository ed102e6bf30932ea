"""`docs/rules.md`: every rule of the advice, with the thresholds that the code has.

    python -m tests.rules_page            # print the page
    python -m tests.rules_page --write    # accept it as the new one

Titles, reasons and sources are those of the rules, and every threshold is that of the module that
uses it; what else there is to say of a rule stands here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from deadwatch import Rules
from deadwatch.judge.advice import deaths, initialisation, optimizer, statistics, structure
from deadwatch.judge.advice.facts import costly
from deadwatch.judge.advice.rule import Rule, all_rules
from deadwatch.judge.causes import LEAP, RUSH
from deadwatch.records import SEVERITIES, Cause, Severity
from deadwatch.treat.mending import _FIXERS

FILE = Path(__file__).parent.parent / "docs" / "rules.md"

HUNDREDS = {
    "1": ("Structure", "What the order of layers does to units."),
    "2": (
        "Initialisation",
        "What parameters are before the first step: judged by `scan`, and in the first window of "
        "a run.",
    ),
    "3": ("Optimizer", "What its steps do to units."),
    "4": ("Data and statistics", "What flows through the layers, forward and back."),
    "5": (
        "Causes of death",
        "How the units died that are dead now, by `Watch(…, advice=True)`. The evidence is that of "
        "the windows before and after, so shorter windows tell more.",
    ),
    "6": ("Cost", "What dead units cost, and whether that does harm."),
}


@dataclass(frozen=True)
class Entry:
    """What is to say of a rule that the rule itself does not say.

    Attributes:
        when: When it fires.
        grades: When it is of which severity, the mildest first.
        do: What to do.
        needs: What has to be given for it to be looked for.
        place: An example of where it fires, for ``ignore``.
    """

    when: str
    grades: dict[Severity, str]
    do: str
    needs: str
    place: str


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _from(share: float) -> dict[Severity, str]:
    return {"info": f"below {_percent(share)}", "warning": f"{_percent(share)} or more"}


_LIMITS = Rules()
_SITE, _WEIGHT, _BIAS = "block.act", "block.weight", "block.bias"
_ORDER = "the model alone, if the layers stand in an `nn.Sequential`; else a report"
_REPORT = "a report: of `scan`, or of a window"
_FIRST = "a report of `scan`, or of the first window of a run"
_WINDOW = "a window of `Watch(…, advice=True)`"
_HARMFUL = "the site's dead units do harm (DW601)"


def _died(cause: Cause, when: str, do: str) -> Entry:
    grades: dict[Severity, str] = {
        "info": "otherwise",
        "warning": f"{_HARMFUL}, and {_percent(deaths._MANY)} of its units or more died of this",
    }
    if cause in deaths.BEST:
        remedy, points = deaths.BEST[cause]
        do += f" Of all remedies `{remedy}` helped most where units died so: by {points:g} points."
    return Entry(when, grades, do, _WINDOW, _SITE)


ENTRIES: dict[str, Entry] = {
    "DW101": Entry(
        "The output of an activation goes into a norm (pooling and dropout in between do not "
        "count), and no norm stands between its layer and itself.",
        {"info": "otherwise", "warning": _HARMFUL},
        "Layer, norm, activation, in this order.",
        _ORDER,
        _SITE,
    ),
    "DW102": Entry(
        "The output of an activation goes to softmax, or to a loss that applies one (pooling, "
        "dropout and scaling in between do not count); or a ReLU is the last thing in the model.",
        {
            "info": "it is no ReLU, which bounds logits and closes none; or it is the output, and "
            "no unit of it is dead, or few are and training has not begun",
            "warning": "a ReLU before softmax; or dead units of the output, always 0: any "
            "once training is under way, before it "
            f"{_percent(structure.MANY_OUTPUTS)} of them or more",
        },
        "Leave the activation out, or take softplus where outputs must be positive.",
        _ORDER,
        _SITE,
    ),
    "DW103": Entry(
        "A layer with a bias stands right before a batch norm.",
        {"info": "always"},
        "Make the layer with `bias=False`.",
        _ORDER,
        _BIAS,
    ),
    "DW104": Entry(
        "Two or more ReLU layers in a row, without a norm or a skip between them, in which one is "
        "closed with a probability of up to 1 − Π (1 − 2^−N) ≥ 1%, N the units of each. Once "
        "training is under way: only where one of them is closed as a whole.",
        {
            "info": "the probability is below 10%",
            "warning": "it is 10% or more",
            "error": "one of the layers is closed for all data: nothing gets a gradient",
        },
        "Wider layers, fewer of them, norms or skips in between, or a leaky activation.",
        _ORDER,
        _SITE,
    ),
    "DW105": Entry(
        "Dropout, or pooling by averages, stands between a layer and its ReLU.",
        {"info": "otherwise", "warning": _HARMFUL},
        "Let the activation come right behind its layer.",
        _ORDER,
        _SITE,
    ),
    "DW106": Entry(
        "Dropout stands right before a batch norm.",
        {"info": "always"},
        "Move dropout behind the last norm.",
        _ORDER,
        _SITE,
    ),
    "DW201": Entry(
        "Half of the biases (behind a norm: of its shifts) lie more than "
        f"{-initialisation.LOW:g} standard deviation of the pre-activation below zero. Only before "
        "activations that close on the negative side alone.",
        {"info": "the units do no harm so far", "warning": _HARMFUL + ", or they were not judged"},
        "Set the biases to zero.",
        _FIRST,
        _BIAS,
    ),
    "DW202": Entry(
        "Two or more layers in a row, without a norm or a skip between them, whose gains "
        "√(fan_in · mean of w² · what the activation passes on of the power) have a product below "
        f"{initialisation.FAINT**0.5:g} or above {initialisation.FAINT**-0.5:g}. Or a SELU whose "
        "weights have a variance of less than 0.5 or more than 2 over fan_in.",
        {
            "info": f"the product lies between {initialisation.FAINT:g} and "
            f"{1 / initialisation.FAINT:g}; or it is a SELU",
            "warning": "it lies beyond",
        },
        "Draw the weights by He et al. (for SELU: by LeCun et al.), or put norms in between.",
        f"the model alone, if the layers stand in an `nn.Sequential`; else {_FIRST}",
        _WEIGHT,
    ),
    "DW203": Entry(
        "A unit is dead in a scan, or in the first window of a run that does not tell how its "
        "units died. Told with the share that is open for all data, and the share that theory "
        "expects: Φ(−max / ρ), for max the largest of n standard normal values and ρ = ‖mean‖ / "
        "‖std‖ of the layer's inputs.",
        {
            "info": "as many units are open for all data as are closed for all, give or take three "
            "standard errors: the inputs do that",
            "warning": "more are closed, and so many that `Rules` calls them harmful",
            "error": "all units of the layer are dead",
        },
        "Where only closed ones are many: set the biases to zero. Where both are: centre the "
        "inputs (DW401).",
        _FIRST,
        _SITE,
    ),
    "DW301": Entry(
        "The group of a bias, or of a scale or shift of a norm, has a weight decay. Told with what "
        f"SGD or AdamW takes off in {optimizer.HORIZON} steps, 1 − (1 − lr · decay)^"
        f"{optimizer.HORIZON}, gradients aside (momentum makes that more); below "
        f"{_percent(optimizer.TOLD)} nothing is said.",
        {
            "info": f"that is below {_percent(optimizer.PULL)}, or the optimizer is another one; "
            "or decay pulls up the negative biases of dead units: leave it until they live",
            "warning": f"that is {_percent(optimizer.PULL)} or more",
        },
        "`deadwatch.NoBiasDecay().exempt(model, optimizer)`, in a live optimizer, whose groups "
        "and state stay as they are.",
        "an optimizer",
        _BIAS,
    ),
    "DW302": Entry(
        f"The steps of a window moved a weight by {_percent(RUSH)} of itself or more on average; "
        f"or by {_percent(optimizer.MOST)} or more, and {optimizer.ABOVE:g} times as far as the "
        f"median weight; or one step did by {_percent(RUSH)} or more, and {LEAP:g} times as far "
        "as the others.",
        {
            "info": "in the first window, in which healthy networks may move so far; or it only "
            "stands out against the other weights",
            "warning": "units died of updates (DW502); or in a later window",
        },
        "Clip gradients, warm the rate up, or lower it.",
        _WINDOW,
        _WEIGHT,
    ),
    "DW303": Entry(
        "Units that had lived died of an update, of drifting weights or of a falling bias. Told "
        "with the first window in which that happened, its steps and its learning rate.",
        {"info": "the dead units of these sites do no harm", "warning": "they do (DW601)"},
        "A lower rate, or a warm-up.",
        _WINDOW,
        _SITE,
    ),
    "DW401": Entry(
        f"‖mean‖ / ‖std‖ of what a layer reads, over its features, is {statistics.OFF_CENTRE[0]:g} "
        f"or more where that are the data, {statistics.OFF_CENTRE_WITHIN:g} or more where other "
        f"layers make it. Of fewer than {statistics._FEW} samples nothing is said.",
        {
            "info": f"the data, below {statistics.OFF_CENTRE[1]:g}; what other layers make",
            "warning": f"the data, at {statistics.OFF_CENTRE[1]:g} or more",
        },
        "Subtract the mean of each feature, and divide by its standard deviation.",
        _REPORT,
        _WEIGHT,
    ),
    "DW402": Entry(
        "Along three or more layers in a row pre-activations grow or shrink by "
        f"{statistics.GROWTH:g} times a layer or more; or those of a site have a root mean square "
        f"of {statistics.LARGE:g} or more.",
        {"warning": "always"},
        "Weights by He et al., norms in between, or a lower learning rate.",
        _REPORT,
        _SITE,
    ),
    "DW403": Entry(
        "A pre-activation is NaN or infinite.",
        {"error": "always"},
        "`torch.autograd.set_detect_anomaly(True)` names the operation.",
        _REPORT,
        _SITE,
    ),
    "DW404": Entry(
        f"{_percent(statistics.SHUT[0])} of the elements or more of an activation that is flat at "
        "both ends (sigmoid, tanh and their like) lie in its flat ends.",
        {
            "info": "otherwise, and always where the model returns it: outputs may be certain",
            "warning": f"{_percent(statistics.SHUT[1])} or more",
        },
        "Smaller initial weights, or a norm before it.",
        _REPORT,
        _SITE,
    ),
    "DW405": Entry(
        f"{_percent(statistics.COMA[0])} of the units or more of an ELU, GELU, SiLU or their like "
        "are saturated: never outside of the flat tail.",
        _from(statistics.COMA[1]),
        'Recycle them: `Policy(Recycle(), when=0.3, measure="saturated")`.',
        _REPORT,
        _SITE,
    ),
    "DW406": Entry(
        "The norms of the loss's gradient at the first and the last site, in the order of the "
        f"data, have a ratio below {statistics.FADED:g} or above {1 / statistics.FADED:g}; or no "
        "gradient at all comes back to a site.",
        {
            "info": "no gradient, in the first window: layers that begin at zero let none through",
            "warning": "the ratio; or no gradient later on",
        },
        "Norms or skips between the layers, weights by He et al., or clipping.",
        _WINDOW + " with `gradients=True`",
        _SITE,
    ),
    "DW501": _died(
        "birth",
        "Units were never open in this run.",
        "Mend what put them there.",
    ),
    "DW502": _died(
        "update",
        "Units fell silent about when one step moved their layer, or one before it, by "
        f"{_percent(RUSH)} or more and {LEAP:g} times as far as the others of its window; or when "
        f"all steps moved it by {_percent(RUSH)} or more on average.",
        "Clip gradients, warm the rate up or lower it.",
    ),
    "DW503": _died(
        "bias",
        "The bias of units that had lived fell, by at least half of what their mean pre-activation "
        "fell.",
        "A milder penalty on activity, or one that grows slowly; a lower rate.",
    ),
    "DW504": _died(
        "data",
        "The mean pre-activation of units that had lived fell, and neither their weights nor a "
        "layer before them moved much.",
        "Give them new weights: what they had learned is for data that are gone.",
    ),
    "DW505": _died(
        "weights",
        "The weights of units that had lived, or a layer before them, moved far within a window, "
        "and no single step stands out.",
        "A lower rate.",
    ),
    "DW506": _died(
        "unknown",
        "Units that had lived died, and the evidence speaks for none of the other causes.",
        "Shorter windows, or statistics on more steps (`stats_every_n_steps`).",
    ),
    "DW601": Entry(
        f"`Rules` calls the dead units of a site harmful ({_percent(_LIMITS.harmful_ratio_narrow)} "
        f"or more where fewer than {_LIMITS.enough_live} live, else "
        f"{_percent(_LIMITS.harmful_ratio)} or more). And either so many are dead as have cost "
        f"accuracy where that was measured ({_percent(costly(16))} of 16 units, "
        f"{_percent(costly(32))} of 32, {_percent(costly(64))} of 64 and more), and before any "
        "training also more than the symmetry of the initialisation makes; or more than half of "
        "them died in this run.",
        {"warning": "always"},
        'Find the cause (DW5xx), and bring them back: `policy="revive"`.',
        _REPORT,
        _SITE,
    ),
    "DW602": Entry(
        "A site has dead units, and DW601 does not find harm.",
        {"info": "always"},
        "Nothing. Pruning them saves memory and time; the finding counts how much.",
        _REPORT,
        _SITE,
    ),
}

_HEAD = """# Rules of the advice

What `deadwatch.advise`, `deadwatch scan` and `advice=True` look for. [My units are dying, what \
now?](dying.md) leads from what you see to these rules; this page is the reference. It is written \
by `python -m tests.rules_page --write` from the rules themselves, and a test keeps it up to date.

**Severities.** *info*: worth knowing, harmless by itself. *warning*: there is evidence of harm. \
*error*: units certainly cannot learn, or values are not finite. What was not measured leads to \
no finding.

**Fixes.** `finding.code` is the fix to paste. Where *fix* stands below, `finding.fix()` applies \
it to the model or optimizer that was advised on; all other fixes take an edit of your code, and \
`fix()` says which.

**Silence.** `ignore=["DW103"]` leaves a rule out, `ignore=["DW1*@head.*"]` findings of which all \
sites or parameters match; of a terminal, `--ignore`, or `--baseline` for what is known. \
`ignore` is an argument of `advise`, `Watch` and `DeadWatch`; a pattern that matches no rule is \
refused.
"""


def page() -> str:
    """The whole page."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield _HEAD
    yield from ("| rule | | severities | |", "|---|---|---|---|")
    for rule in all_rules():
        fix = "fix" if rule.id in _FIXERS else ""
        grades = ", ".join(ENTRIES[rule.id].grades)
        yield f"| [{rule.id}](#{rule.id.lower()}) | {rule.title} | {grades} | {fix} |"
    for hundred, rules in groupby(all_rules(), lambda rule: rule.id[2]):
        title, about = HUNDREDS[hundred]
        yield f"\n## {title}\n\n{about}"
        for rule in rules:
            yield from _section(rule, ENTRIES[rule.id])


def _section(rule: Rule, entry: Entry) -> Iterator[str]:
    yield f"\n### {rule.id}\n\n**{rule.title}**\n"
    yield f"- *When*: {entry.when}"
    assert list(entry.grades) == [name for name in SEVERITIES if name in entry.grades]
    yield f"- *Severity*: {'; '.join(f'**{k}**: {v}' for k, v in entry.grades.items())}."
    yield f"- *Why*: {rule.reason}"
    yield f"- *Source*: {rule.source}."
    applied = " `finding.fix()` does it." if rule.id in _FIXERS else ""
    yield f"- *What to do*: {entry.do}{applied}"
    yield f"- *Needs*: {entry.needs}."
    yield f'- *Silence*: `ignore=["{rule.id}"]`, or in one place `["{rule.id}@{entry.place}"]`.'


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(page() + "\n")
    else:
        print(page())
