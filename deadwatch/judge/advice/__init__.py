"""Advice: what lets units die here, what dead ones cost, and what to do about it.

A rule looks at plain facts (sites and their wiring, parameters, what was measured) and yields
findings. Its id is stable: DW1xx structure, DW2xx initialisation, DW3xx optimizer, DW4xx data and
statistics, DW5xx causes of death, DW6xx what dead units cost. ``docs/rules.md`` lists all.

*info* is worth knowing and does no harm by itself; a *warning* has evidence of harm, in this model
or as measured elsewhere; an *error* keeps units from learning for certain.
"""

from deadwatch.judge.advice.facts import Facts
from deadwatch.judge.advice.ignoring import check_ignore, without_ignored
from deadwatch.judge.advice.rule import RULES, Rule, findings, most_severe_first

__all__ = [
    "RULES",
    "Facts",
    "Rule",
    "check_ignore",
    "findings",
    "most_severe_first",
    "without_ignored",
]
