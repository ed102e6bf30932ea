"""Findings that someone knows of and does not want to hear again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from deadwatch.errors import ConfigError
from deadwatch.judge.advice.rule import all_rules
from deadwatch.records import Finding


def check_ignore(ignore: Sequence[str]) -> tuple[str, ...]:
    """Check patterns of findings to leave out.

    Args:
        ignore: Patterns (as in `fnmatch`) of ids, each alone or with one of sites or parameters:
            ``"DW203"``, ``"DW1*@head.*"``.

    Raises:
        ConfigError: It is no list of patterns, or a pattern matches the id of no rule.
    """
    listed = isinstance(ignore, Iterable) and not isinstance(ignore, str)
    if not listed or not all(isinstance(pattern, str) for pattern in ignore):
        raise ConfigError(
            f"ignore is {ignore!r}; expected a list of ids of findings, such as "
            "['DW203', 'DW1*@head.*']"
        )
    for pattern in ignore:
        if not any(fnmatchcase(rule.id, pattern.partition("@")[0]) for rule in all_rules()):
            known = ", ".join(rule.id for rule in all_rules())
            raise ConfigError(f"ignore has {pattern!r}, which matches no rule; the rules: {known}")
    return tuple(ignore)


def without_ignored(findings: Iterable[Finding], ignore: Sequence[str]) -> list[Finding]:
    """The findings that no pattern matches, in whole: at every place that they concern."""
    return [finding for finding in findings if not _is_ignored(finding, ignore)]


def _is_ignored(finding: Finding, ignore: Sequence[str]) -> bool:
    patterns = [pattern.partition("@") for pattern in ignore]
    places = [place for ids, _, place in patterns if fnmatchcase(finding.id, ids)]
    if "" in places:
        return True
    matched = (any(fnmatchcase(where, place) for place in places) for where in finding.where)
    return bool(finding.where and places) and all(matched)
