"""The view "Advice" of the tab and of the report, as headless Chromium shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from benchmarks.board import tensorboard, wait_for
from deadwatch import Finding, TensorBoardView, WindowReport
from deadwatch.cli import main
from tests.browser import Browser, browser, driver, needs_chromium
from tests.findings import finding
from tests.histories import site, window, written

pytestmark = needs_chromium

EVIL = "<img src=x onerror=hacked=1>"
CODE = "first(\n    'act')"
FOUND = (
    finding("DW103"),
    finding("DW401", "error", "act", code=CODE, numbers={"how_far": float("inf"), "std": 0.25}),
    finding("DW203", "warning", "act", "late", code=""),
)


def told(index: int, *findings: Finding, **given: Any) -> WindowReport:
    sites = site("act", [2, 5, 5, 5]), site("late", [5, 5])
    return window(index, *sites, findings=findings, **{"advised": bool(findings)} | given)


def evil(index: int) -> WindowReport:
    given = dict.fromkeys(("title", "message", "reason", "source", "code"), EVIL)
    found = finding("DW401", "error", EVIL, f"a\u202eb{EVIL}", numbers={EVIL: 1.0}, **given)
    return window(index, site(EVIL, [2, 5]), findings=(found,), advised=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the report on some runs is."""
    folder = tmp_path_factory.mktemp("logs")
    written(folder / "advised", [told(0), told(1, FOUND[0]), told(2, *FOUND)])
    written(folder / "healthy", [told(0, advised=True), told(1, advised=True)])
    written(folder / "plain", [told(0)])
    written(folder / "evil", [evil(0)])
    many = [finding("DW103", "info", f"s{n}") for n in range(250)]
    written(folder / "many", [told(0, *many, *FOUND)])
    path = folder / "report.html"
    assert main(["report", str(folder), "-o", str(path)]) == 0
    return path.as_uri()


@pytest.fixture(scope="module")
def window_() -> Iterator[Browser]:
    with driver() as address, browser(address) as opened:
        yield opened


@pytest.fixture
def page(report: str, window_: Browser) -> Iterator[Browser]:
    window_.open(report)
    window_.wait("return window.deadwatch?.layers.rows().length")
    choose(window_, "advised")
    yield window_
    assert window_.errors() == []
    assert not window_.run("return 'hacked' in window")


def choose(page: Browser, *runs: str) -> None:
    page.run("return deadwatch.app.choose(arguments[0])", list(runs))


def turn(page: Browser) -> str:
    """Turn to the advice; what is shown of it."""
    page.click("[data-view=advice]")
    return str(page.run("return document.querySelector('.dw > section:not([hidden])').innerText"))


def ids(page: Browser) -> Any:
    return page.run("return deadwatch.findings().map((finding) => finding.id)")


def test_advice_is_a_view_beside_the_layers(page: Browser) -> None:
    names = "return [...document.querySelectorAll('[data-view]')].map((b) => b.innerText)"
    assert page.run(names) == ["Layers", "Advice (2)"]  # what is only worth knowing does not count
    turn(page)
    assert page.run("return deadwatch.view()") == "advice"
    assert page.run("return document.querySelectorAll('.dw > section:not([hidden])').length") == 1
    pressed = "return [...document.querySelectorAll('[data-view]')].map((b) => b.ariaPressed)"
    assert page.run(pressed) == ["false", "true"]
    page.click("[data-view=layers]")
    assert page.run("return deadwatch.view()") == "layers"
    assert page.run("return deadwatch.layers.rows()") == ["act", "late"]


def test_a_finding_has_its_numbers_reason_source_and_fix(page: Browser) -> None:
    turn(page)
    assert ids(page) == ["DW401", "DW203", "DW103"]
    items = page.run(
        "return [...document.querySelectorAll('.dw-findings li')].map(l => l.innerText)"
    )
    assert [line for line in items[0].splitlines() if line] == [
        "■ DW401 error: Title of DW401",
        "DW401 is so at act",
        "at",
        "act",
        "since window 2 · how far not finite · std 0.25",
        "Reason of DW401. (Source of DW401, 2015)",
        "first(",
        "    'act')",
        "Copy",
    ]
    assert "▲ DW203 warning: Title of DW203" in items[1]
    assert "Copy" not in items[1]
    assert "since window 1" in items[2]


def test_severities_are_told_without_colours_and_filtered(page: Browser) -> None:
    turn(page)
    words = "return [...document.querySelectorAll('button[data-severity]')].map(b => b.innerText)"
    assert page.run(words) == ["■ 1 error", "▲ 1 warning", "○ 1 worth knowing"]
    page.click("button[data-severity=info]")
    assert ids(page) == ["DW401", "DW203"]
    assert page.run("return document.querySelectorAll('.dw-findings li').length") == 2
    assert page.run("return document.activeElement.dataset.severity") == "info"
    assert "2 of 3 findings" in page.run("return document.body.innerText")
    assert (
        page.run("return document.querySelector('[aria-live]').textContent") == "2 findings shown."
    )
    page.click("button[data-severity=info]")
    assert len(ids(page)) == 3


def test_a_site_opens_its_layer_and_escape_comes_back(page: Browser) -> None:
    turn(page)
    links = "return [...document.querySelectorAll('.dw-where button')].map((b) => b.innerText)"
    assert page.run(links) == ["act", "act", "late"]  # a parameter is no layer to open
    page.run("[...document.querySelectorAll('.dw-where button')].at(-1).click()")
    page.wait("return deadwatch.view() === 'units' && deadwatch.units.rows().length === 2")
    page.press("Escape")
    assert page.run("return deadwatch.view()") == "advice"
    assert page.run("return document.activeElement.dataset.view") == "advice"
    page.press("Escape")
    assert page.run("return deadwatch.view()") == "layers"


def test_all_of_it_is_reached_by_keys(page: Browser) -> None:
    page.run("document.querySelector('[data-view=layers]').focus()")
    page.press("Tab", "Enter")
    assert page.run("return deadwatch.view()") == "advice"
    for _ in range(40):
        page.press("Tab")
        if page.run("return document.activeElement.closest('.dw-where') !== null"):
            break
    page.press("Enter")
    page.wait("return deadwatch.view() === 'units' && deadwatch.units.rows().length === 4")


@pytest.mark.parametrize("secure", [True, False], ids=["clipboard", "no clipboard"])
def test_the_fix_is_copied_as_it_is_shown(secure: bool, page: Browser) -> None:
    granted = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.devtools("Browser.grantPermissions", granted)
    turn(page)
    if not secure:
        page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.click(".dw-fix button")
    page.wait("return document.querySelector('[aria-live]').textContent === 'Copied.'")
    page.run(
        "const box = document.createElement('textarea'); box.id = 'box';"
        "document.body.append(box); box.focus()"
    )
    page.devtools(
        "Input.dispatchKeyEvent", {"type": "rawKeyDown", "key": "v", "commands": ["paste"]}
    )
    assert page.wait("return document.getElementById('box').value") == CODE


def test_nothing_found_is_told_with_what_was_looked_at(page: Browser) -> None:
    choose(page, "healthy")
    assert (
        "Nothing was found that lets units die. Looked at were 2 layers with 6 judged units in "
        in (turn(page))
    )
    assert ids(page) == []
    choose(page, "plain")
    assert "No advice was asked for in this run." in turn(page)
    choose(page, "advised", "healthy")
    text = turn(page)
    assert "healthy: Nothing was found" in text
    assert "advised · since window 2" in text


def test_many_findings_are_the_most_severe_ones_and_it_says_so(page: Browser) -> None:
    choose(page, "many")
    assert "The first 100 are shown." in turn(page)
    items = "return document.querySelectorAll('.dw-findings li').length"
    assert page.run(items) == 100
    assert ids(page)[:2] == ["DW401", "DW203"]
    page.run(
        "[...document.querySelectorAll('button')].find(b => b.innerText === 'Show all').click()"
    )
    assert page.run(items) == 253


def test_names_in_findings_are_text(page: Browser) -> None:
    choose(page, "evil")
    text = turn(page)
    assert text.count(EVIL) == 8
    assert "a\\u202eb<img" in text
    assert page.run("return document.querySelectorAll('img').length") == 0
    page.click(".dw-where button")
    page.wait("return deadwatch.view() === 'units'")


def test_the_table_names_the_findings_at_a_layer(page: Browser) -> None:
    page.wait("return document.querySelectorAll('tbody tr').length === 2")
    first, second = page.run(
        "return [...document.querySelectorAll('tbody tr')].map((row) => row.innerText)"
    )
    assert "See Advice: DW401, DW203." in first
    assert "See Advice: DW203." in second


def test_severities_stand_out_in_both_themes(page: Browser) -> None:
    """Their shapes tell them apart; their lines differ by luminance too."""
    turn(page)
    script = """return ['error', 'warning', 'info'].map((severity) => getComputedStyle(
        document.querySelector(`li[data-severity=${severity}]`)).borderLeftColor)"""
    for value in ("dark", "light"):
        media = {"features": [{"name": "prefers-color-scheme", "value": value}]}
        page.devtools("Emulation.setEmulatedMedia", media)
        page.wait(f"return document.querySelector('.dw').dataset.theme === '{value}'")
        colours = [[int(part) for part in found[4:-1].split(",")] for found in page.run(script)]
        levels = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colours]
        error, warning, line = levels if value == "dark" else [-level for level in levels]
        assert error > warning + 30
        assert warning > line + 30


def test_the_tab_shows_new_advice_without_a_reload(tmp_path: Path, window_: Browser) -> None:
    with SummaryWriter(tmp_path / "run", flush_secs=1) as writer:
        view = TensorBoardView(writer)
        view(told(0, FOUND[0]))
        writer.flush()
        with tensorboard("--logdir", str(tmp_path), "--load_fast", "false") as url:
            wait_for(f"{url}data/plugin/deadwatch/runs", b'"run"]')
            window_.open(f"{url}data/plugin_entry.html?name=deadwatch")
            window_.wait("return window.deadwatch?.layers.rows().length")
            window_.wait("return deadwatch.app.docs.get('run').findings")
            turn(window_)
            assert ids(window_) == ["DW103"]
            window_.run("window.same = true; return deadwatch.poll(200)")
            view(told(1, *FOUND))
            writer.flush()
            window_.wait("return deadwatch.findings().length === 3")
            label = window_.run("return document.querySelector('[data-view=advice]').innerText")
            assert label == "Advice (2)"
            assert window_.run("return window.same")
            assert window_.errors() == []
