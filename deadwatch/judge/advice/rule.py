"""What a rule is, and how all of them are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module

from deadwatch.judge.advice.facts import Facts
from deadwatch.records import SEVERITIES, Finding, Severity


@dataclass(frozen=True)
class Hit:
    """One place where a rule applies.

    Attributes:
        severity: How much it matters there.
        where: The sites or parameters concerned.
        message: What was found, in a sentence with its numbers.
        numbers: The numbers, by name.
        code: The fix, as code to paste.
        reason: Why it matters, where it is not the rule's own reason.
        source: Where that is known from, where it is not the rule's own source.
    """

    severity: Severity
    where: tuple[str, ...]
    message: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    code: str = ""
    reason: str = ""
    source: str = ""


@dataclass(frozen=True)
class Rule:
    """One thing to look for.

    Attributes:
        id: Its stable id.
        title: What it is about, in a few words.
        reason: Why it matters.
        source: Where that is known from.
        find: Looks for it.
    """

    id: str
    title: str
    reason: str
    source: str
    find: Callable[[Facts], Iterator[Hit]]

    def findings(self, facts: Facts) -> Iterator[Finding]:
        """All places where it applies."""
        for hit in self.find(facts):
            reason, source = hit.reason or self.reason, hit.source or self.source
            found = hit.severity, hit.where, self.title, hit.message, dict(hit.numbers)
            yield Finding(self.id, *found, reason, source, hit.code)


RULES: dict[str, Rule] = {}
"""All rules by id, once the modules that define them are imported."""

Find = Callable[[Facts], Iterator[Hit]]


def rule(name: str, title: str, *, reason: str, source: str) -> Callable[[Find], Find]:
    """Make a function that yields hits a rule."""

    def register(find: Find) -> Find:
        assert name not in RULES, f"{name} is taken"
        RULES[name] = Rule(name, title, reason, source, find)
        return find

    return register


_HOMES = ("structure", "initialisation", "optimizer", "statistics", "deaths", "cost")


def all_rules() -> list[Rule]:
    """Every rule, by id."""
    for home in _HOMES:
        import_module(f"deadwatch.judge.advice.{home}")
    return [RULES[name] for name in sorted(RULES)]


def findings(facts: Facts) -> list[Finding]:
    """What all rules find, the most severe first, then by id."""
    return most_severe_first(found for one in all_rules() for found in one.findings(facts))


def most_severe_first(findings: Iterable[Finding]) -> list[Finding]:
    """Findings by severity, then by id."""
    return sorted(findings, key=lambda finding: (-SEVERITIES.index(finding.severity), finding.id))
