"""``deadwatch scan`` advises: what it says, when it fails, what is known already."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deadwatch.cli import main
from deadwatch.judge.advice import RULES, Facts, Rule
from deadwatch.judge.advice.baseline import Baseline, read_baseline
from deadwatch.judge.advice.rule import Hit, all_rules
from deadwatch.show import tables
from tests import born
from tests.findings import finding
from tests.test_findings import check_log

NORMED = "tests.born:normed_with_batches"


def scanned(*arguments: str) -> int:
    return main(["scan", *arguments])


@pytest.fixture(autouse=True)
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda name: None)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert scanned(*arguments, "--json") in (0, 1)
    return json.loads(capsys.readouterr().out)


def only(*rules: str) -> list[str]:
    """Arguments that leave no findings but those of some rules."""
    others = [rule.id for rule in all_rules() if rule.id not in rules]
    return [part for other in others for part in ("--ignore", other)]


def ids(document: Any) -> list[str]:
    return [entry["id"] for entry in document["findings"]]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule by which every weight that an optimizer moves by 0.125 is an error."""

    def find(facts: Facts) -> Iterator[Hit]:
        for name, parameter in facts.parameters.items():
            if parameter.lr == 0.125:
                yield Hit("error", (name,), f"{name} is torn", {"lr": parameter.lr})

    all_rules()
    monkeypatch.setitem(RULES, "DW399", Rule("DW399", "Torn", "It hurts.", "Nobody", find))


def test_advice_is_printed_under_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert scanned(NORMED) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("DW103 info: A bias before a norm")
    assert lines[0] == "Before training"
    assert lines[at + 1] == "  0.bias is added right before 1, which takes it out"
    assert lines[at + 2].startswith("      model.get_submodule('0').bias = None")
    assert not any("why: " in line for line in lines)
    assert scanned(NORMED, "--explain") == 0
    assert "  why: Batch norm subtracts its mean" in capsys.readouterr().out


def test_a_model_without_findings_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "tests.born:healthy")["findings"] == []
    assert scanned("tests.born:healthy") == 0
    out = capsys.readouterr().out
    assert out.endswith("Advice: none. Nothing was found that lets units die.\n")


def test_findings_are_in_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, NORMED)
    assert found["format"] == "deadwatch-scan"
    entry = found["findings"][ids(found).index("DW103")]
    assert (entry["severity"], entry["where"]) == ("info", ["0.bias"])
    assert (found["ignored"], found["known"], found["gone"]) == (0, 0, [])


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("factory", "severity", "code"),
    [
        (NORMED, "info", 1),
        (NORMED, "warning", 0),
        (NORMED, "error", 0),
        ("tests.born:with_optimizer", "info", 1),
        ("tests.born:with_optimizer", "warning", 1),
        ("tests.born:with_optimizer", "error", 1),
    ],
)
def test_scan_fails_on_a_finding_at_least_as_severe(
    factory: str, severity: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scanned(factory) == 0
    assert scanned(factory, "--fail-on", severity) == code
    assert scanned(factory, "--fail-on", severity, "--ignore", "DW*") == 0
    capsys.readouterr()


def test_a_severity_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        scanned(NORMED, "--fail-on", "harmless")
    assert "invalid choice: 'harmless'" in capsys.readouterr().err


def test_the_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        scanned("--help")
    assert "Exit codes: 0 if all went well; 1 if" in " ".join(capsys.readouterr().out.split())


# ── batches and optimizers ──────────────────────────────────────────────────────────────


def test_at_most_eight_of_the_factorys_own_batches_are_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = told(capsys, "tests.born:endless")
    assert [site["samples"] for site in found["sites"]] == [8 * 50]


@pytest.mark.parametrize("factory", ["tests.born:normed", "tests.born:without_batches"])
def test_a_model_alone_is_not_run_and_that_is_said(
    factory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scanned(factory) == 0
    out = capsys.readouterr().out
    assert out.startswith("No batches were run: judged is only what the parameters")
    assert "Before training" not in out
    found = told(capsys, factory)
    assert [found[name] for name in ("dead", "judged", "dead_ratio", "sites")] == [None] * 4
    assert found["notes"][0].startswith("No batches were run")


def test_a_model_alone_cannot_fail_above_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert scanned("tests.born:normed", "--fail-above", "0.5") == 2
    assert "--fail-above needs units that were judged, and no batches" in capsys.readouterr().err


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    "given",
    [
        ["tests.born:with_optimizer"],
        ["tests.born:without_batches"],
        ["tests.born:normed", "--optimizer", "tests.born:adam"],
        ["tests.born:normed", "--batches", "tests.born:batches", "--optimizer", "tests.born:adam"],
    ],
)
def test_an_optimizer_is_judged_too(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    torn = [entry for entry in told(capsys, *given)["findings"] if entry["id"] == "DW399"]
    assert sorted(entry["where"][0] for entry in torn) == sorted(
        name for name, _ in born.normed().named_parameters()
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ["--optimizer", "tests.born:NUMBER"],
            "tests.born:NUMBER is 'int'; expected a function of",
        ),
        (["--optimizer", "tests.born:nothing"], "module tests.born has no 'nothing'"),
        (["--optimizer", "adam"], "--optimizer is 'adam'; expected package.module:name"),
        (["--optimizer", "tests.born:batches"], "tests.born:batches() raised TypeError"),
        (["--optimizer", "builtins:str"], "optimizer is or holds a 'str'; expected a torch.optim"),
        (["--ignore", "DW000"], "ignore has 'DW000', which matches no rule; the rules: DW1"),
        (["--baseline", "none.json"], "there is no baseline none.json; write one by"),
        (["--sarif", "no/such/dir.sarif"], "No such file or directory: 'no/such/dir.sarif'"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    given: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scanned("tests.born:normed", *given) == 2
    assert sentence in capsys.readouterr().err


# ── what is known ───────────────────────────────────────────────────────────────────────


def test_ignored_findings_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    twice = "tests.born:normed_twice"
    assert ids(told(capsys, twice)).count("DW103") == 2
    all_found = told(capsys, twice)["findings"]
    found = told(capsys, twice, "--ignore", "DW103@0.0.*")
    assert [e["where"] for e in found["findings"] if e["id"] == "DW103"] == [["0.3.bias"]]
    assert found["ignored"] == 1
    scanned(twice, "--ignore", "DW*", "--ignore", "DW103@0.0.*")
    out = capsys.readouterr().out
    assert out.endswith(f"Advice: nothing new.\n{len(all_found)} findings ignored.\n")


def test_a_baseline_leaves_out_what_is_known_and_fails_on_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = str(tmp_path / "known.json")
    asked = [*only("DW103"), "--fail-on", "info"]
    assert scanned(NORMED, "--write-baseline", known, *asked) == 0
    assert f"{known}: 1 finding known from now on." in capsys.readouterr().out
    assert scanned(NORMED, *asked) == 1
    assert scanned(NORMED, "--baseline", known, *asked) == 0
    out = capsys.readouterr().out
    assert "Advice: nothing new.\n" in out
    assert out.endswith(f"\n1 finding left out as known: {known}.\n")
    assert scanned("tests.born:normed_twice", "--baseline", known, *asked) == 1
    found = told(capsys, "tests.born:normed_twice", "--baseline", known, *only("DW103"))
    assert found["known"] == 0  # it was known at another place
    assert found["gone"] == ["DW103 at 0.bias"]


def test_what_a_baseline_holds_and_is_gone_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = str(tmp_path / "known.json")
    scanned("tests.born:normed_twice", "--write-baseline", known, *only("DW103"))
    assert scanned(NORMED, "--baseline", known) == 0
    out = capsys.readouterr().out
    assert "Known and not found any more: DW103 at 0.0.bias; --write-baseline takes it out." in out
    given = ["--baseline", known, "--write-baseline", known, *only("DW103")]
    assert scanned(NORMED, *given) == 0
    assert read_baseline(Path(known)).known == {("DW103", ("0.bias",)): "info"}


def test_what_became_more_severe_is_new(tmp_path: Path) -> None:
    known = Baseline.of([finding("DW103", "warning"), finding("DW103", "info")])
    assert known.new([finding("DW103", "info"), finding("DW103", "warning")]) == []
    worse = finding("DW103", "error")
    assert known.new([worse]) == [worse]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is no baseline: Expecting property name"),
        ("[" * 100_000, "is no baseline: maximum recursion depth exceeded"),
        ("[]", "is no baseline of deadwatch's; write it anew by --write-baseline"),
        ('{"format": "deadwatch-baseline", "version": 2}', "has version 2, and this deadwatch re"),
        ('{"format": "deadwatch-baseline", "version": 1}', "has no list of findings"),
        (
            '{"format": "deadwatch-baseline", "version": 1, "findings": [{"id": "DW103"}]}',
            "holds {'id': 'DW103'}; expected entries with id, where and severity",
        ),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(
    text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "known.json").write_text(text)
    assert scanned("tests.born:normed", "--baseline", str(tmp_path / "known.json")) == 2
    assert sentence in capsys.readouterr().err


# ── SARIF ───────────────────────────────────────────────────────────────────────────────

HERE = Path(__file__).parent.parent


def line_of(text: str) -> int:
    lines = Path(born.__file__).read_text().splitlines()
    return next(at for at, line in enumerate(lines, 1) if line.startswith(text))


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("factory", "starts"),
    [
        ("tests.born:normed", "def normed("),
        ("tests.born:cached", "def cached("),
        ("tests.born:ANOTHER", '"""Models and batches'),
    ],
)
def test_sarif_names_the_file_and_the_line_of_the_factory(
    factory: str,
    starts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(HERE)
    path = tmp_path / "found.sarif"
    assert scanned(factory, "--optimizer", "tests.born:adam", "--sarif", str(path)) == 0
    results = check_log(json.loads(path.read_text()))
    physical = results[0]["locations"][0]["physicalLocation"]
    assert physical["artifactLocation"]["uri"] == "tests/born.py"
    assert physical["region"]["startLine"] == line_of(starts)
    assert capsys.readouterr().err == ""


def test_sarif_holds_all_rules_and_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(HERE)
    path = tmp_path / "found.sarif"
    scanned(NORMED, "--sarif", str(path))
    capsys.readouterr()
    log = json.loads(path.read_text())
    rules = [rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]]
    assert rules == [rule.id for rule in all_rules()]
    assert [result["ruleId"] for result in check_log(log)].count("DW103") == 1
    scanned(NORMED, "--sarif", str(path), "--ignore", "DW*")
    assert check_log(json.loads(path.read_text())) == []
    capsys.readouterr()


def test_a_factory_outside_of_the_working_directory_has_no_file_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert scanned(NORMED, "--sarif", "found.sarif") == 0
    (result, *_) = check_log(json.loads(Path("found.sarif").read_text()))
    assert set(result["locations"][0]) == {"logicalLocations"}
    assert "found.sarif names no source file: the model is not made by" in capsys.readouterr().err
