"""Findings → what a terminal prints of them, and plain values for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from deadwatch.records import SEVERITIES, Finding
from deadwatch.show.texts import printable

SHOWN = 3
"""Places of one rule that are told of; how many more there are is said."""

NOTHING = "Advice: none. Nothing was found that lets units die."

_INDENT = "      "


def told(findings: Sequence[Finding], *, explain: bool = False, shown: int = SHOWN) -> str:
    """What a terminal prints: the most severe first, those of one rule and severity together.

    Args:
        findings: The findings; for none there is a sentence that says so.
        explain: Tell the numbers, the reason and its source as well.
        shown: Findings of one rule and severity that are told one by one.
    """
    if not findings:
        return NOTHING
    lines = [f"Advice: {counted(findings)}."]
    for group in grouped(findings):
        lines.append(f"{group[0].id} {group[0].severity}: {group[0].title}")
        lines += _lines_of(group, explain, shown)
    return "\n".join(map(printable, lines))


def key_of(finding: Finding) -> tuple[str, ...]:
    """By what a finding is told once in a run: its figures may change, and it may get worse."""
    return finding.id, finding.severity, *finding.where


def grouped(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Those of one rule and severity together, the most severe first, then by id."""
    groups: dict[tuple[int, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((-SEVERITIES.index(finding.severity), finding.id), []).append(finding)
    return [groups[key] for key in sorted(groups)]


def counted(findings: Iterable[Finding]) -> str:
    """How many there are of each severity, in words: "1 error, 2 warnings, 3 worth knowing"."""
    severities = [finding.severity for finding in findings]
    errors, warned, known = (severities.count(name) for name in reversed(SEVERITIES))
    parts = [f"{errors} error{'s' * (errors != 1)}"] if errors else []
    parts += [f"{warned} warning{'s' * (warned != 1)}"] if warned else []
    return ", ".join(parts + [f"{known} worth knowing"] * bool(known)) or "none"


def _lines_of(group: Sequence[Finding], explain: bool, shown: int) -> Iterator[str]:
    codes, reasons = set[str](), dict[str, None]()
    for finding in group[:shown]:
        yield f"  {finding.message}"
        if explain and finding.numbers:
            yield f"    measured: {numbers_of(finding)}"
        if finding.code not in codes:  # often one fix serves them all
            yield from (_INDENT + line for line in finding.code.splitlines())
        codes.add(finding.code)
        reasons[reason_of(finding)] = None
    if len(group) > shown:
        yield f"  and {len(group) - shown} more"
    if explain:
        yield from (f"  why: {reason}" for reason in reasons if reason)


def reason_of(finding: Finding) -> str:
    """Why it matters, and where that is known from."""
    source = f"({finding.source})" if finding.source else ""
    return " ".join(filter(None, (finding.reason, source)))


def numbers_of(finding: Finding) -> str:
    """The numbers of the evidence in one line."""
    named = ((name.replace("_", " "), value) for name, value in finding.numbers.items())
    return ", ".join(f"{name} {value:.4g}" for name, value in named)


def plain(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings for programs: all of each, as JSON can hold it.

    One entry each: ``id``, ``severity``, ``where`` (sites or parameters), ``title``, ``message``,
    ``numbers`` (null where one is not finite), ``reason``, ``source``, ``code``.
    """
    return [_plain(finding) for finding in findings]


def _plain(finding: Finding) -> dict[str, Any]:
    numbers = {
        name: float(value) if math.isfinite(value) else None
        for name, value in finding.numbers.items()
    }
    return {
        **{name: getattr(finding, name) for name in ("id", "severity")},
        "where": list(finding.where),
        **{name: getattr(finding, name) for name in ("title", "message")},
        "numbers": numbers,
        **{name: getattr(finding, name) for name in ("reason", "source", "code")},
    }
