"""Findings that were there when someone began to look, so that only new ones are told of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deadwatch.errors import ConfigError
from deadwatch.records import SEVERITIES, Finding, Severity

FORMAT, VERSION = "deadwatch-baseline", 1

Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Baseline:
    """What is known.

    Attributes:
        known: How severe each known finding is, by its rule and the places that it concerns.
    """

    known: Mapping[Key, Severity]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Baseline:
        """All of these are known."""
        known: dict[Key, Severity] = {}
        for finding in findings:
            before = known.get(key_of(finding))
            if before is None or finding.at_least(before):
                known[key_of(finding)] = finding.severity
        return cls(known)

    def new(self, findings: Iterable[Finding]) -> list[Finding]:
        """Those findings that are not known, or were known as less severe."""
        return [finding for finding in findings if not self._knows(finding)]

    def _knows(self, finding: Finding) -> bool:
        severity = self.known.get(key_of(finding))
        return severity is not None and SEVERITIES.index(severity) >= SEVERITIES.index(
            finding.severity
        )

    def gone(self, findings: Iterable[Finding]) -> list[str]:
        """What is known and no longer found, in words."""
        there = {key_of(finding) for finding in findings}
        return [_told(key) for key in self.known if key not in there]


def key_of(finding: Finding) -> Key:
    """By what a finding is known again: its rule and where, never its figures."""
    return finding.id, finding.where


def _told(key: Key) -> str:
    return f"{key[0]} at {', '.join(key[1])}" if key[1] else key[0]


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline as JSON that is easy to read, and to compare line by line."""
    entries = [
        {"id": key[0], "where": list(key[1]), "severity": severity}
        for key, severity in sorted(baseline.known.items())
    ]
    document = {"format": FORMAT, "version": VERSION, "findings": entries}
    path.write_text(f"{json.dumps(document, indent=2)}\n", "utf-8")


def read_baseline(path: Path) -> Baseline:
    """What `write_baseline` wrote.

    Raises:
        ConfigError: There is no such file, or it is no baseline of this version.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no baseline {path}; write one by --write-baseline") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no baseline: {error}; {_WAY_OUT}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ConfigError(f"{path} is no baseline of deadwatch's; {_WAY_OUT}")
    if document.get("version") != VERSION:
        raise ConfigError(
            f"baseline {path} has version {document.get('version')!r}, and this deadwatch reads "
            f"version {VERSION}; {_WAY_OUT}"
        )
    entries = document.get("findings")
    if not isinstance(entries, list):
        raise ConfigError(f"baseline {path} has no list of findings; {_WAY_OUT}")
    return Baseline(dict(_entry(path, entry) for entry in entries))


_WAY_OUT = "write it anew by --write-baseline"


def _entry(path: Path, entry: Any) -> tuple[Key, Severity]:
    if isinstance(entry, dict):
        name, where, severity = (entry.get(key) for key in ("id", "where", "severity"))
        listed = isinstance(where, list) and all(isinstance(place, str) for place in where)
        if isinstance(name, str) and listed and severity in SEVERITIES:
            return (name, tuple(where or ())), severity
    raise ConfigError(
        f"baseline {path} holds {entry!r:.99}; expected entries with id, where and severity; "
        f"{_WAY_OUT}"
    )
