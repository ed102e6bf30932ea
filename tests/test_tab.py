"""The tab "Dead neurons", as headless Chromium shows it in a real TensorBoard."""

from __future__ import annotations

import json
import math
import urllib.parse
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import deadwatch.show
from benchmarks.board import tensorboard, wait_for
from deadwatch import BiasWarming, Policy, Recycle, Rules, TensorBoardView, Watch, WindowReport
from deadwatch.records import State
from deadwatch.show import documents
from deadwatch.show.archive import COUNTS, LAYOUT, Archivist
from deadwatch.show.run import Record, Run
from tests.browser import Browser, browser, driver, needs_chromium
from tests.histories import site as history_site
from tests.histories import window as history_window

pytestmark = needs_chromium

EVIL = "<img src=x onerror=hacked=1>"
WINDOWS = 16
MODULE = Path(deadwatch.show.__path__[0]) / "web/index.js"


class Training:
    """A network some of whose units die, are treated, and die again; window by window."""

    def __init__(self, folder: Path, rules: Rules, *names: str, treated: bool = True) -> None:
        torch.manual_seed(0)
        self.folder = folder
        self.model = nn.Sequential()
        first, second = names
        parts = (nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3))
        for name, part in zip(("in", first, "mid", second, "out"), parts, strict=True):
            self.model.add_module(name, part)
        parts[0].bias.data[:20] = -30
        parts[2].bias.data[5:9] = -30
        self.bias = parts[0].bias
        self.x, self.y = torch.randn(64, 16), torch.randint(0, 3, (64,))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        remedies = (BiasWarming(hold=2, anneal=6), Recycle())
        policy = Policy(remedies, when=0.0, patience=2, budget=0.2) if treated else None
        self.watch = Watch(
            self.model, optimizer=self.optimizer, policy=policy, rules=rules, stats_every_n_steps=2
        )
        self.writer = SummaryWriter(folder, flush_secs=1)
        self.view = TensorBoardView(self.writer)
        self.reports: list[WindowReport] = []

    def windows(self, count: int) -> None:
        with warnings.catch_warnings(), self.watch:
            warnings.simplefilter("ignore")
            for _ in range(count):
                self.window()
        self.writer.flush()

    def window(self) -> None:
        for _ in range(4):
            loss = nn.functional.cross_entropy(self.model(self.x), self.y)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.watch.step(loss.detach())
        if len(self.reports) == 10:
            self.bias.data[40:45] -= 30
        report = self.watch.close_window()
        evil = tuple(replace(t, remedy=EVIL + t.remedy) for t in report.treatments)
        report = replace(report, treatments=evil)
        self.reports.append(report)
        self.view(report)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Training]:
    folder = tmp_path_factory.mktemp("logs")
    rules = Rules(min_samples=1)
    found = {
        "treated": Training(folder / "treated", rules, "first", "second"),
        EVIL: Training(folder / EVIL, Rules(min_samples=10**9), EVIL, "second", treated=False),
        "live": Training(folder / "live", rules, "first", "second"),
    }
    for name, training in found.items():
        training.windows(3 if name == "live" else WINDOWS)
    return found


@pytest.fixture(scope="module")
def board(runs: dict[str, Training]) -> Iterator[str]:
    """A TensorBoard over all runs, by the loader that is written in Python."""
    where = ("--logdir", str(runs["treated"].folder.parent), "--load_fast", "false")
    with tensorboard(*where) as url:
        wait_for(f"{url}data/plugin/deadwatch/runs", b'"treated"]')
        yield url


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with driver() as address, browser(address) as opened:
        yield opened


@pytest.fixture
def page(board: str, window: Browser) -> Iterator[Browser]:
    """The frame of the tab by itself, with the treated run."""
    window.open(f"{board}data/plugin_entry.html?name=deadwatch")
    window.wait("return window.deadwatch?.layers.rows().length")
    window.run("return deadwatch.app.choose(['treated'])")
    yield window
    assert window.errors() == []
    assert not window.run("return 'hacked' in window")


def tip(page: Browser) -> str:
    return str(
        page.run("const t = document.querySelector('.dw-tip'); return t.hidden || t.innerText")
    )


def point(page: Browser, picture: str, row: int, at: int, run: str = "treated", **how: Any) -> None:
    script = "return deadwatch[arguments[0]].point(arguments[1], arguments[2], arguments[3])"
    where = page.run(script, picture, run, row, at)
    page.point(where["x"], where["y"], **how)


def open_site(page: Browser, site: str) -> None:
    page.run("return deadwatch.app.open(arguments[0], true)", site)


# ── the tab ─────────────────────────────────────────────────────────────────────────────


def test_the_tab_opens_in_a_running_tensorboard(board: str, window: Browser) -> None:
    window.open(f"{board}#deadwatch")
    window.enter("iframe[src*='deadwatch']")
    window.wait("return window.deadwatch?.layers.rows().length")
    assert window.run("return document.documentElement.innerText").count(EVIL) >= 1
    assert window.errors() == []
    dark = "return getComputedStyle(document.querySelector('.dw')).backgroundColor.includes('31')"
    assert not window.run(dark)
    window.run("parent.document.body.classList.add('dark-mode')")  # what TensorBoard's switch does
    window.wait(dark)
    tabs = window.run("return parent.document.querySelector('tb-webapp, app-header').innerText")
    assert "dead neurons" in tabs.lower()


def test_the_tab_opens_behind_a_path_prefix_and_with_the_fast_loader(
    runs: dict[str, Training], window: Browser
) -> None:
    where = ("--logdir", str(runs["treated"].folder.parent), "--path_prefix", "/x/y")
    with tensorboard(*where, "--load_fast", "true") as url:
        wait_for(f"{url}x/y/data/plugin/deadwatch/runs", b'"treated"]')
        window.requests()
        window.open(f"{url}x/y/#deadwatch")
        window.enter("iframe[src*='deadwatch']")
        window.wait("return window.deadwatch?.layers.rows().length")
        window.run("return deadwatch.app.choose(['treated'])")
        dead = window.run("return deadwatch.layers.cell('treated', 'first', 0).dead")
        # TensorBoard's own page looks for its fonts without the prefix.
        assert [error for error in window.errors() if "/font-roboto/" not in error] == []
        asked = [address for address in window.requests() if "deadwatch" in address]
    assert dead == int(runs["treated"].reports[0]["first"].dead.sum()) > 0
    assert [address for address in asked if "/x/y/data/plugin/deadwatch/overview" in address]
    assert all(address.startswith(f"{url}x/y") for address in asked)


def test_cells_carry_what_was_written(page: Browser, runs: dict[str, Training]) -> None:
    script = "return deadwatch.layers.cell('treated', arguments[0], arguments[1])"
    for report in runs["treated"].reports:
        for name, site in report.items():
            cell = page.run(script, name, report.window.index)
            assert (cell["dead"], cell["judged"]) == (site.dead.sum(), site.judged)
            assert cell["steps"] == [report.window.first_step, report.window.last_step]


def test_units_carry_the_states_that_were_written(page: Browser, runs: dict[str, Training]) -> None:
    open_site(page, "first")
    script = """return Array.from({length: 64}, (_, unit) =>
        Array.from({length: arguments[0]}, (_, w) => deadwatch.units.cell('treated', unit, w)))"""
    cells = page.run(script, WINDOWS)
    assert page.run("return deadwatch.units.rows().length") == 64
    for at, report in enumerate(runs["treated"].reports):
        site = report["first"]
        assert [row[at]["state"] for row in cells] == site.state.tolist()
        shares = [math.nan if row[at]["open"] is None else row[at]["open"] for row in cells]
        np.testing.assert_allclose(shares, site.open_fraction, atol=0.003)


def test_revived_and_relapsed_units_are_told_apart(
    page: Browser, runs: dict[str, Training]
) -> None:
    open_site(page, "first")
    became = page.run(
        "return Array.from({length: arguments[0]}, (_, w) =>"
        " deadwatch.units.cell('treated', 0, w).became)",
        WINDOWS,
    )
    reports = runs["treated"].reports
    done = [t.window for r in reports for t in r.treatments if t.site == "first" and 0 in t.units]
    told, back = [], False
    for at, report in enumerate(reports):
        alive = report["first"].state[0] >= State.RARE
        back = back or bool(alive and at > done[0])
        closed = "relapsed" if back else "treated"
        told.append("" if at <= done[0] else "revived" if alive else closed)
    assert became == told
    assert {"revived", "relapsed"} <= set(told)


def test_the_canvas_shows_a_dead_unit_in_its_colour(page: Browser) -> None:
    open_site(page, "first")
    script = """
        const {x, y} = deadwatch.units.point('treated', arguments[0], 0);
        const canvas = document.querySelectorAll('.dw-picture')[1].querySelector('canvas');
        const area = canvas.getBoundingClientRect(), scale = canvas.width / area.width;
        return [...canvas.getContext('2d').getImageData(
            (x - area.left) * scale, (y - area.top) * scale, 1, 1).data]"""
    assert page.run(script, 0) == [0xD5, 0x5E, 0x00, 255]
    assert page.run(script, 30)[2] > 100  # alive is blue


def test_hovering_shows_the_numbers(page: Browser, runs: dict[str, Training]) -> None:
    point(page, "layers", 0, 1)
    site = runs["treated"].reports[1]["first"]
    assert f"% dead: {site.dead.sum()} of 64 judged units" in tip(page)
    assert f"{EVIL}BiasWarming on 12 units after window 1" in tip(page)
    open_site(page, "first")
    point(page, "units", 30, 4)
    share = 100 * runs["treated"].reports[4]["first"].open_fraction[30]
    shown = tip(page)
    assert "unit 30" in shown
    assert "steps 16–19" in shown
    assert f"gate open on {share:.0f}" in shown or f"gate open on {share:.1f}" in shown


def test_a_click_pins_a_unit_and_draws_its_pre_activation(
    page: Browser, runs: dict[str, Training]
) -> None:
    point(page, "layers", 0, 3, click=True)
    page.wait("return deadwatch.view() === 'units' && deadwatch.units.rows().length")
    point(page, "units", 2, 3, click=True)
    (pin,) = page.wait("const pins = deadwatch.pins(); return pins[0]?.docs.length && pins")
    written = [report["first"] for report in runs["treated"].reports]
    for name in ("mean", "std", "min", "max"):
        shown = [math.nan if value is None else value for value in pin["docs"][0][name]]
        np.testing.assert_allclose(shown, [getattr(site, name)[2] for site in written], rtol=1e-3)
    assert pin["unit"] == 2
    drawn = """
        const canvas = document.querySelector('.dw-pin canvas'), {width, height} = canvas;
        const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
        let line = 0; // pixels in the colour of the mean
        for (let i = 0; i < data.length; i += 4)
          line += data[i] === 0x0b && data[i + 1] === 0x5c && data[i + 2] === 0xad;
        return line"""
    assert page.run(drawn) > 300
    point(page, "units", 2, 3, click=True)
    page.wait("return deadwatch.pins().length === 0")


def test_the_filter_leaves_layers_whose_name_it_is_part_of(page: Browser) -> None:
    page.type("input[type=search]", "SEC")
    assert page.run("return deadwatch.layers.rows()") == ["second"]
    assert page.run("return [...document.querySelectorAll('tbody tr')].length") == 1
    assert "1 of 2 layers" in page.run("return document.body.innerText")


def test_the_worst_layer_comes_first_if_asked(page: Browser, runs: dict[str, Training]) -> None:
    page.click("[data-order=severity]")
    last = runs["treated"].reports
    key = {n: (last[-1][n].dead_ratio, max(r[n].dead_ratio for r in last)) for n in last[-1]}
    assert page.run("return deadwatch.layers.rows()") == sorted(key, key=key.get, reverse=True)


def test_the_table_is_sorted_by_a_click(page: Browser, runs: dict[str, Training]) -> None:
    page.wait("return document.querySelectorAll('tbody tr').length === 2")
    page.click("[data-column='1']")
    read = "return [...document.querySelectorAll('tbody tr')].map((row) => row.innerText)"
    first, second = page.run(read)
    assert "64" in first
    assert "48" in second
    worst = max(report["first"].dead.sum() for report in runs["treated"].reports)
    assert f"({worst}/64)" in first
    assert "5 not judged yet" in first  # they were treated after the last window
    page.click("[data-column='1']")
    assert page.run(read) == [second, first]
    assert page.run("return document.querySelector('th[aria-sort]').innerText") == "Units ↑"


def test_runs_are_switched_and_set_side_by_side_on_the_same_axes(page: Browser) -> None:
    page.click("input[data-run='live']")
    page.wait("return deadwatch.layers.runs().length === 2")
    assert page.run("return deadwatch.layers.runs()") == ["live", "treated"]
    assert page.run("return deadwatch.layers.domain()") == [0, WINDOWS]
    rows = [
        page.run("return deadwatch.layers.point(arguments[0], 1, 1).y", r)
        for r in ("live", "treated")
    ]
    assert rows[0] == rows[1]
    page.click("button[title='Show only live']")
    page.wait("return deadwatch.layers.runs().length === 1")
    assert page.run("return deadwatch.layers.runs()") == ["live"]


def test_a_window_that_is_written_appears_without_a_reload(
    page: Browser, runs: dict[str, Training]
) -> None:
    live = runs["live"]
    page.run("window.same = true; return deadwatch.app.choose(['live'])")
    open_site(page, "first")
    point(page, "units", 1, 1, "live", click=True)
    page.wait("return deadwatch.pins()[0]?.docs.length")
    page.run("scrollTo(0, 40); return deadwatch.poll(200)")
    live.windows(1)
    script = "return deadwatch.units.domain()[1] === arguments[0]"
    page.wait(script, len(live.reports))
    state = page.run(
        "return deadwatch.units.cell('live', 1, arguments[0]).state", len(live.reports) - 1
    )
    assert state == live.reports[-1]["first"].state[1]
    assert page.run("return [window.same, deadwatch.view(), scrollY]") == [True, "units", 40]
    (pin,) = page.run("return deadwatch.pins()")
    assert len(pin["docs"][0]["state"]) == len(live.reports)


def test_names_are_text_everywhere(page: Browser) -> None:
    page.run("return deadwatch.app.choose(arguments[0])", [EVIL, "treated"])
    page.wait("return document.querySelectorAll('tbody tr').length >= 4")
    assert page.run("return deadwatch.layers.rows()") == [EVIL, "first", "second"]
    row = page.run("return deadwatch.layers.rows().indexOf(arguments[0])", EVIL)
    point(page, "layers", row, 2, EVIL)
    assert tip(page).startswith(EVIL)
    text = page.run("return document.body.innerText")
    assert text.count(EVIL) >= 4  # the run, the layer in the table, the remedies
    open_site(page, EVIL)
    assert page.run("return document.querySelectorAll('h2')[0].textContent") == EVIL
    assert page.run("return document.querySelectorAll('img').length") == 0


def test_what_is_not_judged_never_looks_like_zero(page: Browser, runs: dict[str, Training]) -> None:
    page.run("return deadwatch.app.choose(arguments[0])", [EVIL])
    report = runs[EVIL].reports[0]
    zero = page.run("return deadwatch.layers.pixel(arguments[0], 1, 0)", EVIL)
    assert report["second"].dead_ratio == 0.0 or math.isnan(report["second"].dead_ratio)
    open_site(page, EVIL)
    cell = page.run("return deadwatch.units.cell(arguments[0], 0, 0)", EVIL)
    assert cell["name"] == "uncertain"
    assert page.run("return deadwatch.units.pixel(arguments[0], 0, 0)", EVIL) == 0  # hatched
    assert zero != 0


def test_everything_is_reached_by_keys(page: Browser) -> None:
    page.run("document.querySelector('.dw-picture').focus()")
    page.press("Right", "Down")
    assert page.run("return deadwatch.layers.cursor()") == {"plot": 0, "row": 1, "column": 1}
    said = page.run("return document.querySelector('[aria-live]').textContent")
    assert said.startswith("second. window 1, steps 4–7. ")
    page.press("Enter")
    page.wait("return deadwatch.view() === 'units' && deadwatch.units.rows().length === 48")
    page.press("Down", "Enter")
    page.wait("return deadwatch.pins()[0]?.unit === 1")
    page.press("+")
    page.wait("return deadwatch.units.rows().length < 48")
    page.press("Escape")
    page.wait("return deadwatch.units.rows().length === 48")
    page.press("Escape")
    assert page.run("return deadwatch.view()") == "layers"
    assert page.run("return document.activeElement.getAttribute('role')") == "application"
    assert page.run("return deadwatch.layers.cursor().row") == 1


def test_rows_are_zoomed_by_dragging(page: Browser) -> None:
    open_site(page, "first")
    ys = [
        page.run("return deadwatch.units.point('treated', arguments[0], 2).y", row)
        for row in (10, 20)
    ]
    point(page, "units", 10, 2, drag=ys[1] - ys[0])
    page.wait("return deadwatch.units.rows().length === 11")
    assert page.run("return deadwatch.units.rows()[0]") == "10"


def test_an_answer_that_comes_late_does_not_replace_a_later_one(page: Browser) -> None:
    open_site(page, "first")
    script = """
        const {app} = deadwatch, ask = app.source.units;
        let wait = 300;
        app.source.units = async (...given) => {
            await new Promise((done) => setTimeout(done, wait, (wait = 0)));
            return ask(...given);
        };
        return Promise.all([app.zoomUnits([8, 12]), app.zoomUnits(null)]).then(() => {
            app.source.units = ask;
            return [app.unitDocs.get('treated').rows.length, deadwatch.units.rows().length];
        });"""
    assert page.run(script) == [64, 64]


def test_a_run_that_is_gone_is_not_shown_any_more(page: Browser) -> None:
    page.run("return deadwatch.app.choose(['treated', 'live'])")
    script = """
        const {app} = deadwatch, ask = app.source.runs;
        app.source.runs = async () => ({...(await ask()), runs: ['treated']});
        return app.refresh().then(() => { app.source.runs = ask; })"""
    page.run(script)
    assert page.run("return deadwatch.layers.runs()") == ["treated"]


def test_dark_pages_are_dark(page: Browser) -> None:
    script = (
        "return getComputedStyle(document.querySelector('.dw')).backgroundColor === arguments[0]"
    )
    for value, colour in (("dark", "rgb(31, 35, 39)"), ("light", "rgb(255, 255, 255)")):
        media = {"features": [{"name": "prefers-color-scheme", "value": value}]}
        page.devtools("Emulation.setEmulatedMedia", media)
        page.wait(script, colour)


def test_a_server_that_is_gone_is_told_and_the_picture_stays(page: Browser) -> None:
    gone = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    page.devtools("Network.emulateNetworkConditions", gone)
    page.run("return deadwatch.app.refresh()")
    back = gone | {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
    page.devtools("Network.emulateNetworkConditions", back)
    told = page.run("return document.querySelector('.dw-status').textContent")
    assert told.startswith("The server does not answer. What is shown is from ")
    assert page.run("return deadwatch.layers.rows()") == ["first", "second"]
    assert len(page.errors()) == 1  # Chromium's own line on the failed request
    page.run("return deadwatch.app.refresh()")
    assert page.run("return document.querySelector('.dw-status').textContent") == ""


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
def test_what_tensorboard_cannot_hand_over_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The one provider that is made up: a real one would have to be asked for 256 MiB."""
    from tensorboard.plugins.base_plugin import TBContext
    from werkzeug.test import Client

    from deadwatch.show.server import Plugin

    class Provider:
        def list_tensors(self, *_: Any, **__: Any) -> Any:
            series = type("Series", (), {"max_step": 1, "max_wall_time": 1.0})
            return {"run": {COUNTS: series}}

        def read_tensors(self, *_: Any, **__: Any) -> Any:
            raise ValueError("received message larger than max")

    context = TBContext(data_provider=Provider())
    overview = Plugin(context).get_plugin_apps()["/overview"]
    answer = Client(overview).get("/overview?run=run")
    assert answer.status_code == 500
    told = f"TensorBoard could not read all of {LAYOUT}. Its fast loader hands over at most 256 MiB"
    assert answer.json["error"].startswith(told)
    assert "received message larger than max" in caplog.text


# ── documents that a page carries along ─────────────────────────────────────────────────


def carried(folder: Path, docs: Any) -> str:
    """A page with the module and documents in it, as the report is."""
    data = json.dumps(docs).replace("<", "\\u003c")
    script = f"{MODULE.read_text('utf-8')}\nshow(document.body, embedded({data}));"
    page = f'<!doctype html><meta charset="utf-8"><body><script type="module">{script}</script>'
    path = folder / "report.html"
    path.write_text(page, "utf-8")
    return f"file://{urllib.parse.quote(str(path))}"


def records(training: Training) -> Run:
    archivist = Archivist()
    kept: dict[str, list[Record]] = {}
    for at, report in enumerate(training.reports):
        for tag, data in archivist.records(report):
            kept.setdefault(tag, []).append(Record(float(at), data))
    return Run(lambda tag: kept.get(tag, []))


def test_the_same_module_draws_documents_that_a_page_carries(
    runs: dict[str, Training], window: Browser, tmp_path: Path
) -> None:
    run = records(runs["treated"])
    docs = {
        "runs": [EVIL],
        "overview": {EVIL: documents.overview(run)},
        "table": {EVIL: documents.table(run)},
        "findings": {EVIL: documents.findings(run)},
        "units": {EVIL: {"first": documents.units(run, "first")}},
        "unit": {EVIL: {"first": {"3": documents.unit(run, "first", 3)}}},
    }
    window.requests()
    window.open(carried(tmp_path, docs))
    window.wait("return window.deadwatch?.layers.rows().length")
    open_site(window, "first")
    state = window.run("return deadwatch.units.cell(arguments[0], 0, 0).name", EVIL)
    assert state == "dead"
    for unit in (3, 4):
        window.run("return deadwatch.app.pick({row: arguments[0]})", unit)
    text = window.run("return document.body.innerText")
    assert f"This file does not hold the figures of a unit of {EVIL}, first, 4." in text
    open_site(window, "second")
    text = window.run("return document.body.innerText")
    assert f"This file does not hold the units of {EVIL}, second." in text
    assert not [address for address in window.requests() if address.startswith("http")]
    assert window.errors() == []


def test_names_that_turn_or_break_text_are_shown_as_codes(window: Browser, tmp_path: Path) -> None:
    odd = "a\u202eb\nc\x1bd\udc80\U000e0041"
    shown = "a\\u202eb\\x0ac\\x1bd\\udc80\\U000e0041"
    kept = {}
    told = replace(history_window(0, history_site(odd, [2, 5])), notes=(odd,))
    for tag, data in Archivist().records(told):
        kept[tag] = [Record(0.0, data)]
    run = Run(lambda tag: kept.get(tag, []))
    docs = {
        "runs": [odd],
        "overview": {odd: documents.overview(run)},
        "table": {odd: documents.table(run)},
        "findings": {odd: documents.findings(run)},
        "units": {odd: {odd: documents.units(run, odd)}},
    }
    window.open(carried(tmp_path, docs))
    window.wait("return document.querySelectorAll('tbody tr').length")
    window.run("document.querySelector('details').open = true")
    assert (
        window.run("return document.body.innerText").count(shown) == 4
    )  # run, caption, table, note
    window.run(
        "return deadwatch.app.open(deadwatch.app.docs.values().next().value.overview.sites[0].name)"
    )
    assert (
        window.run("return document.querySelector('section:not([hidden]) h2').innerText") == shown
    )
    assert window.errors() == []


def test_a_figure_that_is_missing_is_not_drawn_as_zero(window: Browser, tmp_path: Path) -> None:
    told = history_window(0, history_site("act", [5]))
    kept = {tag: [Record(0.0, data)] for tag, data in Archivist().records(told)}
    run = Run(lambda tag: kept.get(tag, []))
    unit = documents.unit(run, "act", 0)
    unit |= {"columns": [{"windows": [w, w], "steps": [w, w]} for w in range(3)]}
    unit |= {"mean": [5.0] * 3, "std": [None] * 3, "max": [9.0] * 3, "min": [None] * 3}
    unit |= {"state": [5] * 3, "fate": [0] * 3, "open_fraction": [1.0] * 3}
    docs = {
        "runs": ["r"],
        "overview": {"r": documents.overview(run)},
        "table": {"r": documents.table(run)},
        "findings": {"r": documents.findings(run)},
        "units": {"r": {"act": documents.units(run, "act")}},
        "unit": {"r": {"act": {"0": unit}}},
    }
    window.open(carried(tmp_path, docs))
    window.wait("return window.deadwatch?.layers.rows().length")
    open_site(window, "act")
    script = """
        const drawn = [], own = CanvasRenderingContext2D.prototype.lineTo;
        CanvasRenderingContext2D.prototype.lineTo = function (x, y) {
            drawn.push(y); return own.call(this, x, y); };
        return deadwatch.app.pick({row: 0}).then(() => {
            CanvasRenderingContext2D.prototype.lineTo = own;
            const {app} = deadwatch, zero = app.pins[0].y(0);
            return drawn.filter((y) => Math.abs(y - zero) < 1e-6).length;
        });"""
    assert window.run(script) == 0
    assert window.errors() == []


def test_one_dead_unit_in_16384_is_seen_among_2000_layers(window: Browser, tmp_path: Path) -> None:
    sites, columns = 2000, 3
    dead = np.zeros((sites, columns), np.int64)
    dead[1234, 1] = 1
    site = {"units": 16384, "activation": "ReLU", "producers": "", "consumers": ""}
    overview = {
        "sites": [site | {"name": f"layer{i}"} for i in range(sites)],
        "columns": [{"windows": [w, w], "steps": [w, w]} for w in range(columns)],
        "windows": columns,
        "dead": documents.encoded(dead, "<i4"),
        "judged": documents.encoded(np.full_like(dead, 16384), "<i4"),
        "seen": documents.encoded(np.ones_like(dead), "|u1"),
        "at": documents.encoded(np.zeros_like(dead) + np.arange(columns), "<i4"),
        "treatments": [],
        "notes": [],
        "outcomes": [],
        "damaged": 0,
    }
    docs = {"runs": ["big"], "overview": {"big": overview}, "table": {"big": {"rows": []}}}
    docs["findings"] = {"big": {"asked": False, "findings": []}}
    window.open(carried(tmp_path, docs))
    window.wait("return window.deadwatch?.layers.rows().length")
    point(window, "layers", 1234, 1, "big")
    assert "<0.1% dead: 1 of 16\u202f384 judged units" in tip(window)
    script = """
        const {x, y} = deadwatch.layers.point('big', 1234, 1);
        const canvas = document.querySelector('.dw-picture canvas');
        const area = canvas.getBoundingClientRect(), scale = canvas.width / area.width;
        return [0, -40].map((up) => canvas.getContext('2d').getImageData(
            (x - area.left) * scale, (y + up - area.top) * scale, 1, 1).data.join())"""
    seen, healthy = window.run(script)
    assert seen != healthy
    assert "shows the worst" in window.run("return document.body.innerText")
