"""What a notebook shows of a report."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deadwatch import DeadwatchError, State, WindowReport
from deadwatch.show.notebook import COLOURS, MOST
from tests.histories import HOSTILE, refusal, site, treatment, window

EVIL = f"{HOSTILE}\"'$\\frac{{$&\x1b\u202e"


class Reader(HTMLParser):
    """The cells of the tables in a page, and all tags and attributes that occur."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data


def evil() -> WindowReport:
    return window(
        *(3, site(EVIL, [2, 5, 4, 5]), site("idle", []), site("few", [1, 0], measured=0.0)),
        treatments=(treatment(3, [0], EVIL, remedy=EVIL, note=EVIL),),
        refusals=(refusal(3, [0], EVIL),),
        notes=(EVIL,),
    )


def test_a_report_is_a_table_in_a_notebook() -> None:
    report = window(0, site("act", [2, 5, 5, 5]), site("idle", []))
    header, act, idle = Reader(report._repr_html_()).rows
    assert header == ["site", "units", "dead", "", "open", "mean", "std", "sparsity"]
    assert act[:3] == ["act", "4", "1 (25.0%)"]
    assert act[5] == f"{np.nanmean(report['act'].mean):.3g}"
    assert idle == ["idle", "0", "–", "did not run", "–", "–", "–", "–"]


def test_names_are_data_in_a_notebook() -> None:
    page = evil()._repr_html_()
    reader = Reader(page)
    assert reader.tags == {"div", "span", "table", "thead", "tbody", "tr", "th", "td"}
    assert reader.attributes == {"style", "title"}
    assert reader.rows[1][0] == EVIL.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert "\x1b" not in page


def test_styles_are_inline_and_leave_the_pages_colours_alone() -> None:
    page = evil()._repr_html_()
    assert "<style" not in page
    assert not re.search(r"[;\"]color:", page)


def test_many_sites_are_the_worst_ones_and_it_says_so() -> None:
    sites = [site(f"s{n}", [2] * n + [5] * (100 - n)) for n in range(MOST + 3)]
    page = window(0, *sites)._repr_html_()
    assert f"{MOST} of {MOST + 3} sites, those with most dead units" in page
    rows = Reader(page).rows[1:]
    assert [row[0] for row in rows] == [f"s{n}" for n in range(MOST + 2, 2, -1)]


def test_a_window_without_sites_or_evidence_can_be_shown() -> None:
    assert "no unit could be judged" in window(0)._repr_html_()
    assert "no unit could be judged" in window(0, site("act", [1]))._repr_html_()


def test_a_report_that_was_unpickled_alone_is_shown_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "report.pickle"
    path.write_bytes(pickle.dumps(evil()))
    code = (
        f"import pickle, sys; report = pickle.load(open({str(path)!r}, 'rb')); "
        "print(len(report._repr_html_()) > 500, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True False"


def test_a_plot_shows_the_states_of_each_site(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is optional")
    monkeypatch.setenv("MPLBACKEND", "agg")
    from matplotlib import pyplot

    report = evil()
    figure = report.plot()
    figure.canvas.draw()  # names with $ are no formulas
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [EVIL.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e"), "idle", "few"]
    shown = {
        container.get_label(): [bar.get_width() for bar in container]
        for container in axes.containers
    }
    assert shown == {
        "dead": [0.25, 0, 0],
        "rare": [0.25, 0, 0],
        "alive": [0.5, 0, 0],
        "uncertain": [0, 0, 0.5],
        "unseen": [0, 0, 0.5],
    }
    assert not pyplot.get_fignums()  # else a notebook would show it twice
    window(0).plot().canvas.draw()


def test_without_matplotlib_a_plot_says_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DeadwatchError, match=r"pip install 'deadwatch\[notebook\]'"):
        evil().plot()


def test_every_state_has_a_colour_of_its_own() -> None:
    assert set(COLOURS) == set(State)
    assert len(set(COLOURS.values())) == len(State)


def test_a_report_of_a_huge_model_is_short_in_a_notebook() -> None:
    names = [f"block{i}.act" for i in range(3000)]
    report = window(
        0,
        *(site(name, [2, 5]) for name in names),
        treatments=tuple(treatment(0, [0], name=name) for name in names),
        refusals=tuple(refusal(0, [0], name=name) for name in names),
        notes=tuple(names),
    )
    html = report._repr_html_()
    assert len(html) < 80_000
    assert "and 8,940 more treatments, refusals and notes" in html
