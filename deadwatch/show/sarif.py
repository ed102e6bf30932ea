"""Findings → SARIF 2.1.0, which code hosts show beside the code (OASIS standard, 2020).

A finding is about a layer and not about a line, so it stands where the model is made: at the
factory that the command was given. Its logical location names the site or the parameter.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from deadwatch.records import Finding, Severity

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
VERSION = "2.1.0"

_LEVELS: dict[Severity, str] = {"info": "note", "warning": "warning", "error": "error"}


class Described(Protocol):
    """What is told of a rule: `deadwatch.judge.advice.Rule` has it."""

    @property
    def id(self) -> str:
        """Its stable id."""

    @property
    def title(self) -> str:
        """What it is about, in a few words."""

    @property
    def reason(self) -> str:
        """Why it matters."""

    @property
    def source(self) -> str:
        """Where that is known from."""


@dataclass(frozen=True)
class Place:
    """Where a model is made.

    Attributes:
        file: The source file, relative to the working directory, with ``/`` between its parts.
        line: The line of the factory, from 1.
    """

    file: str
    line: int


def sarif(
    findings: Iterable[Finding], rules: Iterable[Described], place: Place | None, version: str
) -> dict[str, Any]:
    """A log of one run of the tool.

    Args:
        findings: What was found.
        rules: All rules there are, also those that found nothing.
        place: Where the model is made; None where no file of the working directory makes it.
        version: The version of deadwatch.
    """
    described = [_rule(rule) for rule in rules]
    index = {rule["id"]: at for at, rule in enumerate(described)}
    seen: Counter[str] = Counter()
    results = [_result(finding, index, place, seen) for finding in findings]
    driver = {"name": "deadwatch", "version": version, "rules": described}
    run = {"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints"}
    return {"$schema": SCHEMA, "version": VERSION, "runs": [run]}


def _rule(rule: Described) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.reason},
        "help": {"text": f"{rule.reason}\n\nSource: {rule.source}"},
    }


def _result(
    finding: Finding, index: dict[str, int], place: Place | None, seen: Counter[str]
) -> dict[str, Any]:
    mark = fingerprint(finding)
    seen[mark] += 1
    known = {"ruleIndex": index[finding.id]} if finding.id in index else {}
    return {
        "ruleId": finding.id,
        **known,
        "level": _LEVELS[finding.severity],
        "message": {"text": _message(finding)},
        "locations": [_location(finding, place)],
        # The first is the one that GitHub tells alerts apart by; of its own it would take the line,
        # which all findings share.
        "partialFingerprints": {
            "primaryLocationLineHash": f"{mark[:16]}:{seen[mark]}",
            "deadwatch/v1": f"{mark}:{seen[mark]}",
        },
    }


def _message(finding: Finding) -> str:
    fix = f"Fix:\n{finding.code}" if finding.code else ""
    return "\n".join(filter(None, (finding.message, fix)))


def _location(finding: Finding, place: Place | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if place is not None:
        found["physicalLocation"] = {
            "artifactLocation": {"uri": quote(place.file), "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": place.line},
        }
    if finding.where:
        found["logicalLocations"] = [
            {"fullyQualifiedName": name} for name in dict.fromkeys(finding.where)
        ]
    return found


def fingerprint(finding: Finding) -> str:
    """What stays the same of a finding from run to run: its rule, and where it applies."""
    text = json.dumps([finding.id, *finding.where])
    return hashlib.sha256(text.encode()).hexdigest()
