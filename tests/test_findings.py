"""Findings as text for a terminal, as plain values, and as SARIF."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from deadwatch import scan
from deadwatch.advising import advise
from deadwatch.judge.advice.rule import all_rules
from deadwatch.show.findings import NOTHING, counted, plain, told
from deadwatch.show.sarif import Place, fingerprint, sarif
from tests import born
from tests.findings import finding

EVIL = "<img src=x>[red]\x1b[2J\r\n\u202e\x9b1m\ud800"


def test_the_most_severe_are_told_first_and_each_with_its_fix() -> None:
    found = [finding("DW402"), finding("DW401", "error"), finding("DW203", "warning")]
    assert told(found).splitlines() == [
        "Advice: 1 error, 1 warning, 1 worth knowing.",
        "DW401 error: Title of DW401",
        "  DW401 is so at conv1.bias",
        "      fix('conv1.bias')",
        "DW203 warning: Title of DW203",
        "  DW203 is so at conv1.bias",
        "      fix('conv1.bias')",
        "DW402 info: Title of DW402",
        "  DW402 is so at conv1.bias",
        "      fix('conv1.bias')",
    ]


def test_findings_of_one_rule_and_severity_stand_together_and_the_rest_is_counted() -> None:
    many = [finding("DW103", "info", f"conv{n}.bias") for n in range(15)]
    lines = told([*many, finding("DW103", "error", "head.bias")]).splitlines()
    assert lines[0] == "Advice: 1 error, 15 worth knowing."
    assert [line for line in lines if line.startswith("DW")] == [
        "DW103 error: Title of DW103",
        "DW103 info: Title of DW103",
    ]
    assert lines[-1] == "  and 12 more"
    assert sum("DW103 is so at conv" in line for line in lines) == 3
    assert "more" not in told(many[:3])


def test_a_fix_that_serves_several_places_is_told_once() -> None:
    found = [finding("DW103", "info", name, code="first()\nthen()") for name in ("a", "b")]
    assert told(found).count("      first()\n      then()") == 1
    assert told([replace(found[0], code="")]).splitlines()[-1] == "  DW103 is so at a"


def test_reason_source_and_numbers_are_told_to_those_who_ask() -> None:
    found = [finding(), finding("DW103", "info", "b", numbers={"bias": math.nan})]
    text = told(found, explain=True)
    assert "    measured: ratio 0.5, units 12\n" in text
    assert "    measured: bias nan\n" in text
    assert text.count("  why: Reason of DW103. (Source of DW103, 2015)") == 1
    assert "Reason" not in told(found)
    assert "why" not in told([finding(reason="", source="")], explain=True)


def test_nothing_found_is_a_sentence() -> None:
    assert told([]) == NOTHING
    assert counted([]) == "none"
    assert counted([finding("DW1", "warning")] * 2 + [finding("DW2", "error")] * 2) == (
        "2 errors, 2 warnings"
    )


def test_names_in_findings_do_not_act_on_a_terminal() -> None:
    given = {"title": EVIL, "message": EVIL, "code": EVIL, "reason": EVIL, "numbers": {EVIL: 1.0}}
    text = told([finding("DW1", "info", EVIL, **given, source=EVIL)], explain=True)
    assert text.replace("\n", "").isprintable()
    assert text.count("[red]\\x1b[2J") == 6


def test_findings_for_programs_hold_all_and_what_is_not_finite_is_null() -> None:
    one = finding(numbers={"centre": math.inf, "mean": math.nan, "std": 0.25})
    (entry,) = json.loads(json.dumps(plain([one]), allow_nan=False))
    assert entry == {
        "id": "DW103",
        "severity": "info",
        "where": ["conv1.bias"],
        "title": "Title of DW103",
        "message": "DW103 is so at conv1.bias",
        "numbers": {"centre": None, "mean": None, "std": 0.25},
        "reason": "Reason of DW103.",
        "source": "Source of DW103, 2015",
        "code": "fix('conv1.bias')",
    }
    assert set(entry) == set(one.__dataclass_fields__)


# ── SARIF ───────────────────────────────────────────────────────────────────────────────

# Of the OASIS schema of SARIF 2.1.0 what we use: (required, allowed) properties of each object,
# whose "additionalProperties" are false. Objects that need one of several are checked below.
SHAPES: dict[str, tuple[set[str], set[str]]] = {
    "log": ({"version", "runs"}, {"$schema"}),
    "run": ({"tool"}, {"results", "columnKind"}),
    "tool": ({"driver"}, set()),
    "driver": ({"name"}, {"version", "rules", "informationUri"}),
    "rule": ({"id"}, {"shortDescription", "fullDescription", "help", "helpUri"}),
    "text": ({"text"}, {"markdown"}),
    "result": (
        {"message"},
        {"ruleId", "ruleIndex", "level", "locations", "partialFingerprints"},
    ),
    "location": (set(), {"physicalLocation", "logicalLocations"}),
    "physicalLocation": ({"artifactLocation"}, {"region"}),
    "artifactLocation": (set(), {"uri", "uriBaseId"}),
    "region": (set(), {"startLine"}),
    "logicalLocation": (set(), {"fullyQualifiedName"}),
}


def check(kind: str, value: Any) -> Any:
    required, allowed = SHAPES[kind]
    assert required <= set(value) <= required | allowed, (kind, set(value))
    return value


def check_log(log: Any) -> list[Any]:
    """Check a log against the standard; returns its results."""
    log = json.loads(json.dumps(log, allow_nan=False))
    check("log", log)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    check("run", run)
    rules = check("driver", check("tool", run["tool"])["driver"])["rules"]
    for rule in rules:
        check("rule", rule)
        for name in ("shortDescription", "fullDescription", "help"):
            assert check("text", rule[name])["text"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for result in run["results"]:
        check_result(result, rules)
    return list(run["results"])


def check_result(result: Any, rules: list[Any]) -> None:
    check("result", result)
    assert check("text", result["message"])["text"]
    assert result["level"] in {"none", "note", "warning", "error"}
    if "ruleIndex" in result:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    assert all(isinstance(mark, str) for mark in result["partialFingerprints"].values())
    for location in result["locations"]:
        check("location", location)
        names = [at["fullyQualifiedName"] for at in location.get("logicalLocations", ())]
        assert len(set(names)) == len(names)
        for logical in location.get("logicalLocations", ()):
            check("logicalLocation", logical)
        if "physicalLocation" in location:
            physical = check("physicalLocation", location["physicalLocation"])
            assert check("artifactLocation", physical["artifactLocation"])["uri"].isascii()
            assert check("region", physical["region"])["startLine"] >= 1


@pytest.mark.parametrize("place", [None, Place("a dir/größe.py", 7)], ids=["nowhere", "somewhere"])
def test_sarif_keeps_to_the_standard(place: Place | None) -> None:
    found = [finding("DW401", "error", "a", "b", "a"), finding("DW103"), finding("DW2", code="")]
    results = check_log(sarif([*found, finding("DW203", "warning", EVIL)], all_rules(), place, "1"))
    assert [r["level"] for r in results] == ["error", "note", "note", "warning"]
    assert [r["ruleId"] for r in results] == ["DW401", "DW103", "DW2", "DW203"]
    assert results[1]["message"]["text"] == "DW103 is so at conv1.bias\nFix:\nfix('conv1.bias')"
    (location,) = results[0]["locations"]
    assert [at["fullyQualifiedName"] for at in location["logicalLocations"]] == ["a", "b"]
    assert results[1]["ruleIndex"] == [rule.id for rule in all_rules()].index("DW103")
    if place is not None:
        uri = location["physicalLocation"]["artifactLocation"]["uri"]
        assert uri == "a%20dir/gr%C3%B6%C3%9Fe.py"
        assert location["physicalLocation"]["region"]["startLine"] == 7
    else:
        assert "physicalLocation" not in location


def test_a_log_that_breaks_the_standard_is_noticed() -> None:
    log = sarif([finding()], all_rules(), Place("a.py", 0), "1")
    with pytest.raises(AssertionError, match="assert 0 >= 1"):
        check_log(log)
    with pytest.raises(AssertionError, match="extra"):
        check_log({**log, "extra": 1})


def test_fingerprints_are_those_of_rule_and_place_and_stay() -> None:
    one = finding("DW103", "info", "a", "b")
    same = replace(one, message="other figures", numbers={}, severity="error")
    assert fingerprint(one) == fingerprint(same)
    others = [finding("DW104", "info", "a", "b"), finding("DW103", "info", "a")]
    assert len({fingerprint(other) for other in [one, *others]}) == 3
    results = check_log(sarif([one, same], [], None, "1"))
    first, second = (result["partialFingerprints"] for result in results)
    assert first["primaryLocationLineHash"].endswith(":1")
    assert second["primaryLocationLineHash"].endswith(":2")  # two alerts, not one
    assert first["deadwatch/v1"] == f"{fingerprint(one)}:1"


def test_what_advise_finds_is_told_and_keeps_to_the_standard() -> None:
    model = born.normed()
    found = advise(model, report=scan(model, born.LISTED))
    assert "0.bias is added right before 1, which takes it out" in told(found)
    results = check_log(sarif(found, all_rules(), Place("net.py", 3), "1"))
    assert "DW103" in [result["ruleId"] for result in results]
    assert [entry["id"] for entry in plain(found)] == [one.id for one in found]
