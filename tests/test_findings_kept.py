"""Findings in event files and in what is read from them; in lines, tables, texts and notebooks."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from deadwatch import ConsoleView, Finding, Watch, WindowReport, scan
from deadwatch.advising import advise
from deadwatch.cli import main
from deadwatch.records import Gauges
from deadwatch.show import documents, tables
from deadwatch.show.archive import EVENTS, Archivist, pack, unpack
from deadwatch.show.events import runs
from deadwatch.show.findings import NOTHING, counted, plain
from deadwatch.show.summary import summary
from deadwatch.show.tables import end_of_run
from deadwatch.show.tensorboard import findings_text
from tests import born
from tests.findings import finding
from tests.histories import HOSTILE, Log, site, treatment, window, written
from tests.make_version1 import FOLDER

EVIL = f"{HOSTILE}`[red]*b*</pre>\x1b[2J\u202e"


def told(index: int, *findings: Finding, **given: Any) -> WindowReport:
    """A window of two sites with findings."""
    sites = site("act", [2, 5, 5, 5]), site("late", [5, 5])
    return window(index, *sites, findings=findings, **{"advised": bool(findings)} | given)


def written_in(log: Log) -> list[Any]:
    """In which windows which findings were written."""
    heads = [unpack(record.data).head for record in log.tags.get(EVENTS, ())]
    return [
        (head["window"], [f["id"] for f in head["findings"]])
        for head in heads
        if "findings" in head
    ]


def without(run_finding: Any) -> Any:
    return {name: value for name, value in run_finding.items() if name != "window"}


# ── event files ─────────────────────────────────────────────────────────────────────────


def test_findings_are_read_back_as_they_were() -> None:
    found = [
        finding("DW401", "error", "act", numbers={"centre": float("inf"), "std": 2.5}),
        finding(),
    ]
    run = Log().write([told(0), told(1, *found)]).run()
    assert run.findings is not None
    assert [without(one) for one in run.findings] == plain(found)
    assert [one["window"] for one in run.findings] == [1, 1]


def test_findings_are_written_when_they_change_and_not_again() -> None:
    one, other = finding("DW103"), finding("DW203", "warning")
    reports = [told(0), told(1, one), told(2, one), told(3, one, other), told(4, other)]
    reports.append(told(5, advised=True))
    log = Log().write(reports)
    assert written_in(log) == [
        (1, ["DW103"]),
        (3, ["DW103", "DW203"]),
        (4, ["DW203"]),
        (5, []),
    ]
    assert log.run().findings == []
    assert Log().write(reports[:4]).run().findings == [
        {**plain([one])[0], "window": 1},
        {**plain([other])[0], "window": 3},
    ]


def test_a_finding_is_the_same_when_its_figures_change() -> None:
    one = finding("DW401", "warning", "act")
    worse = replace(one, message="9 of 64", numbers={"dead": 9.0}, severity="error")
    (found,) = Log().write([told(0, one), told(1, worse), told(2, worse)]).run().findings or []
    assert found == {**plain([worse])[0], "window": 0}


def test_a_run_without_advice_has_none_and_one_that_was_advised_has_no_findings() -> None:
    log = Log().write([told(0), told(1)])
    assert written_in(log) == []
    assert log.run().findings is None
    advised = Log().write([told(0, advised=True), told(1, advised=True)])
    assert written_in(advised) == [(0, [])]
    assert advised.run().findings == []


def test_findings_stand_when_advice_is_given_up() -> None:
    """A window about which advice said nothing is none without findings."""
    log = Log().write([told(0, finding()), told(1), told(2, gauges=Gauges())])
    assert written_in(log) == [(0, ["DW103"])]
    assert len(log.run().findings or []) == 1


def test_a_run_with_advice_keeps_what_it_finds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = born.normed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(400, 4)
    reports = []
    with Watch(model, optimizer=optimizer, advice=True) as watch:
        for _ in range(3):
            model(x).square().mean().backward()
            optimizer.step()
            watch.step()
            reports.append(watch.close_window())
    written(tmp_path, reports)
    found = runs(tmp_path)["."].run.findings or []
    assert "DW103" in [one["id"] for one in found]
    assert [without(one) for one in found] == plain(reports[-1].findings)
    assert f"Advice: {counted(reports[-1].findings)}." in end_of_run(reports[-1])


def test_what_is_told_later_of_a_window_keeps_its_findings() -> None:
    archivist, log = Archivist(), Log()
    verdict = told(0, finding())
    log.add(archivist.records(verdict))
    log.add(archivist.events(replace(verdict, treatments=(treatment(0, [0]),))))
    whole = log.run()
    del log.tags[EVENTS][0]  # a reader may keep one record a step
    for run in (whole, log.run()):
        assert [one["id"] for one in run.findings or []] == ["DW103"]
        assert len(run.treatments) == 1


def test_a_resumed_run_has_the_findings_of_its_last_session() -> None:
    log = Log().write([told(0, finding()), told(1, finding("DW203")), told(2, finding("DW601"))])
    log.write([told(1, finding("DW203")), told(2, finding("DW203"))])
    (found,) = log.run().findings or []
    assert (found["id"], found["window"]) == ("DW203", 1)


def test_a_record_of_version_1_has_no_findings() -> None:
    run = runs(FOLDER)["."].run
    assert run.findings is None
    assert documents.findings(run)["asked"] is False


def test_a_severity_that_a_later_version_knows_is_left_out() -> None:
    log = Log().write([told(0, finding())])
    head = unpack(log.tags[EVENTS][0].data).head
    later = [{**head["findings"][0], "severity": "fatal", "new": [1]}, *head["findings"]]
    log.tags[EVENTS].clear()
    log.add([(EVENTS, pack({**head, "findings": later}, {}))])
    run = log.run()
    assert [one["severity"] for one in run.findings or []] == ["info"]
    assert run.damaged == 0


# ── documents ───────────────────────────────────────────────────────────────────────────


def test_a_document_of_findings_has_the_most_severe_first_and_what_was_looked_at() -> None:
    found = [
        finding("DW203"),
        finding("DW103"),
        finding("DW401", "error"),
        finding("DW5", "warning"),
    ]
    document = documents.findings(Log().write([told(0, *found), told(1, *found)]).run())
    json.dumps(document, allow_nan=False)
    ids = [one["id"] for one in document.pop("findings")]
    assert ids == ["DW401", "DW5", "DW103", "DW203"]
    assert document == {"asked": True, "sites": 2, "judged": 6, "windows": 2}
    assert documents.findings(Log().run()) == {
        "asked": False,
        "findings": [],
        "sites": 0,
        "judged": 0,
        "windows": 0,
    }


def test_rows_of_the_table_carry_the_findings_at_their_site() -> None:
    found = [finding("DW401", "error", "act", "late"), finding("DW203", "info", "act"), finding()]
    run = Log().write([told(0, *found)]).run()
    rows = documents.table(run)["rows"]
    assert [row["findings"] for row in rows] == [["DW401", "DW203"], ["DW401"]]
    assert [row["findings"] for row in documents.table(Log().write([told(0)]).run())["rows"]] == [
        [],
        [],
    ]


def test_the_summary_for_programs_has_the_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "advised", [told(0, finding("DW401", "error", "act"))])
    written(tmp_path / "not", [told(0)])
    assert main(["report", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    ((one,), nothing) = (found[name]["findings"] for name in ("advised", "not"))
    assert (one["id"], one["window"]) == ("DW401", 0)
    assert nothing is None  # and not an empty list: nobody looked
    assert found["advised"]["sites"][0]["findings"] == ["DW401"]
    assert summary(runs(tmp_path))["runs"] == found


# ── TensorBoard's own tabs ──────────────────────────────────────────────────────────────


def test_new_findings_are_texts_in_tensorboard(tmp_path: Path) -> None:
    one, other = finding(), finding("DW401", "error", "act")
    again = replace(one, message="with other figures")
    written(tmp_path, [told(0, one), told(1, again), told(2, one, other), told(3), told(4, one)])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    texts = events.Tensors("deadwatch/findings/text_summary")
    assert [text.step for text in texts] == [9, 29]
    first, second = (text.tensor_proto.string_val[0].decode() for text in texts)
    assert "**DW103 info: Title of DW103**" in first
    assert "DW103" not in second
    assert second.endswith("    fix('act')")


def test_names_in_a_text_on_findings_are_data() -> None:
    given = {"title": EVIL, "message": EVIL, "reason": EVIL, "source": EVIL, "numbers": {EVIL: 1.0}}
    page = markdown_to_safe_html(findings_text([finding("DW1", "info", EVIL, **given, code=EVIL)]))
    assert set(re.findall(r"<(\w+)", page)) == {"p", "strong", "pre", "code"}
    assert html.unescape(re.sub(r"<[^>]*>", "", page)).count(HOSTILE) == 6
    assert "\x1b" not in page


def test_a_text_on_many_findings_is_short_and_says_so() -> None:
    text = findings_text([finding("DW1", "info", f"s{n}") for n in range(60)])
    assert text.count("Title of DW1") == 50
    assert text.endswith("and 10 more")


# ── a terminal ──────────────────────────────────────────────────────────────────────────


def test_findings_of_harm_are_told_once_in_a_run() -> None:
    lines: list[str] = []
    view = ConsoleView(lines.append)
    torn = finding("DW301", "warning", "act", message="act is torn by 0.5")
    view(told(0, torn, finding("DW103")))
    view(told(1, replace(torn, message="act is torn by 0.7")))
    view(told(2))
    view(told(3, torn, finding("DW301", "warning", "late")))
    view(told(4, replace(torn, severity="error")))
    ratio = "16.7% dead (1/6 units, "
    assert lines == [
        f"deadwatch window 0, step 9: {ratio}+1), most in act (1/4)\n"
        "  advice: DW301 warning: act is torn by 0.5",
        f"deadwatch window 3, step 39: {ratio}+0), most in act (1/4)\n"
        "  advice: DW301 warning: DW301 is so at late",
        f"deadwatch window 4, step 49: {ratio}+0), most in act (1/4)\n"
        "  advice: DW301 error: act is torn by 0.5",
    ]


def test_findings_of_one_rule_take_one_line_of_the_terminal() -> None:
    lines: list[str] = []
    ConsoleView(lines.append)(told(0, *(finding("DW1", "error", f"s{n}{EVIL}") for n in range(9))))
    first, advice = lines[0].split("\n")
    assert advice.startswith("  advice: DW1 error: DW1 is so at s0")
    assert advice.endswith(" (and 8 more)")
    assert (first + advice).isprintable()


def test_the_end_of_a_run_tells_the_advice_that_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    text = end_of_run(told(3, finding()))
    assert text.endswith(
        "\nAdvice: 1 worth knowing.\nDW103 info: Title of DW103\n  DW103 is so at conv1.bias\n"
        "      fix('conv1.bias')"
    )
    assert end_of_run(told(3, advised=True)).endswith(f"\n{NOTHING}")
    assert "Advice" not in end_of_run(told(3))


# ── a notebook ──────────────────────────────────────────────────────────────────────────


def test_a_notebook_shows_the_findings() -> None:
    page = told(0, finding(), finding("DW401", "error", code="a < b\nthen()"))._repr_html_()
    assert "Advice: 1 error, 1 worth knowing." in page
    assert page.index("DW401 error") < page.index("DW103 info")
    assert "a &lt; b\nthen()</pre>" in page
    assert "Reason of DW103. (Source of DW103, 2015)" in page
    assert NOTHING in told(0, advised=True)._repr_html_()
    assert "Advice" not in told(0)._repr_html_()
    many = [finding("DW1", "info", f"s{n}") for n in range(70)]
    assert "and 10 more" in told(0, *many)._repr_html_()


def test_names_in_findings_are_data_in_a_notebook() -> None:
    given = {"title": EVIL, "message": EVIL, "reason": EVIL, "source": EVIL, "code": EVIL}
    page = told(0, finding("DW1", "info", EVIL, **given))._repr_html_()
    tags = {"div", "span", "table", "thead", "tbody", "tr", "th", "td", "b"}
    assert set(re.findall(r"<(\w+)", page)) == tags | {"details", "summary", "pre"}
    assert page.count(html.escape(HOSTILE)) == 4
    assert "\x1b" not in page


def test_what_advise_finds_is_shown_everywhere(tmp_path: Path) -> None:
    model = born.normed()
    report = scan(model, born.LISTED)
    report = replace(report, findings=tuple(advise(model, report=report)), advised=True)
    assert "DW103" in [one.id for one in report.findings]
    written(tmp_path, [report])
    found = runs(tmp_path)["."].run.findings or []
    assert [without(one) for one in found] == plain(report.findings)
    for text in (end_of_run(report), report._repr_html_(), findings_text(report.findings)):
        assert "is added right before 1, which takes it out" in text
