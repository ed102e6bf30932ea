"""The reference of the rules is the one that the rules make."""

from __future__ import annotations

import re

from deadwatch.judge.advice.rule import all_rules
from tests import rules_page

WRITTEN = rules_page.FILE.read_text()


def test_the_page_is_up_to_date() -> None:
    """`python -m tests.rules_page --write` makes it so."""
    assert rules_page.page() + "\n" == WRITTEN


def test_every_rule_has_an_entry_and_no_entry_is_of_none() -> None:
    assert list(rules_page.ENTRIES) == [rule.id for rule in all_rules()]
    assert re.findall(r"^### (DW\d{3})$", WRITTEN, re.M) == list(rules_page.ENTRIES)


def test_titles_reasons_and_sources_are_those_of_the_rules() -> None:
    sections = WRITTEN.split("\n### ")[1:]
    for rule, section in zip(all_rules(), sections, strict=True):
        for told in (rule.id, rule.title, rule.reason, rule.source):
            assert told in section


def test_links_lead_somewhere() -> None:
    anchors = {name.lower() for name in rules_page.ENTRIES}
    assert set(re.findall(r"\(#(.*?)\)", WRITTEN)) == anchors
    for name in re.findall(r"\(([a-z]+\.md)\)", WRITTEN):
        assert (rules_page.FILE.parent / name).exists()
