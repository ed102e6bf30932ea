"""Event files of a plain loop, read back with TensorBoard's own reader."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from benchmarks.board import tensorboard, wait_for
from deadwatch import ConfigError, Recycle, Rules, TensorBoardView, Watch
from deadwatch.errors import UnseenSiteWarning
from deadwatch.show.archive import tag
from deadwatch.show.console import ConsoleView
from deadwatch.show.tensorboard import LAYOUT, outcomes_text, rows_text, scalars, treatments_text
from deadwatch.show.texts import printable
from tests.clinic import Patient
from tests.histories import outcome, refusal, site, treatment, window


def write(tmp_path: Path, patient: Patient, watch: Watch, windows: int = 2) -> EventAccumulator:
    with SummaryWriter(tmp_path) as writer, watch:
        view = TensorBoardView(writer)
        for _ in range(windows):
            patient.train(5, watch)
            view(watch.close_window())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    return events


def test_a_plain_loop_writes_curves_layout_and_treatments(tmp_path: Path) -> None:
    patient = Patient.of()
    events = write(tmp_path, patient, patient.watch(Recycle(), cooldown=9))
    tags = ["deadwatch/dead_ratio"]
    tags += [f"deadwatch/{kind}/1" for kind in ("dead_ratio_of", "mean", "open_fraction", "std")]
    assert sorted(events.Tags()["scalars"]) == tags
    for name in tags:
        assert [event.step for event in events.Scalars(name)] == [4, 9]
    values = [event.value for event in events.Scalars("deadwatch/dead_ratio_of/1")]
    assert values == pytest.approx([3 / 16, 0])
    assert len(events.Tensors("custom_scalars__config__")) == 1
    assert [event.step for event in events.Tensors("deadwatch/treatments/text_summary")] == [4]


def test_what_was_not_measured_has_no_point() -> None:
    model = nn.ModuleList([nn.Sequential(nn.Linear(3, 4), nn.ReLU()) for _ in range(2)])
    with Watch(model) as watch:
        model[0](torch.randn(400, 3))
        with pytest.warns(UnseenSiteWarning, match=r"1\.1"):
            points = scalars(watch.close_window())
    assert "deadwatch/dead_ratio_of/0.1" in points
    assert not [name for name in points if name.endswith("/1.1")]
    assert all(math.isfinite(value) for value in points.values())


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("layer1.0.relu-2", "layer1.0.relu-2"),
        ("<img onerror=x>", "_3c_img_20_onerror_3d_x_3e_"),
        ("a b", "a_20_b"),
        ("größe", "größe"),
    ],
)
def test_any_module_name_becomes_a_legal_tag(name: str, legal: str) -> None:
    assert tag(name) == legal


def test_odd_module_names_reach_the_event_file(tmp_path: Path) -> None:
    patient = Patient.of()
    odd = nn.Sequential()
    for name, child in zip(("in", "<img onerror=x>", "h"), patient.model[:3], strict=True):
        odd.add_module(name, child)
    patient.model = odd
    patient.optimizer = torch.optim.SGD(odd.parameters(), lr=0.1)
    patient.site = "<img onerror=x>"
    events = write(tmp_path, patient, patient.watch(Recycle()), windows=1)
    assert "deadwatch/mean/_3c_img_20_onerror_3d_x_3e_" in events.Tags()["scalars"]


def test_the_charts_of_the_layout_show_every_site_in_a_real_tensorboard(tmp_path: Path) -> None:
    """Asks a running TensorBoard's custom-scalars plugin, as its page does."""
    patient = Patient.of()
    watch = Watch(patient.model, rules=Rules(min_samples=1))
    write(tmp_path / "run", patient, watch)
    with tensorboard("--logdir", str(tmp_path)) as url:
        layout = json.loads(wait_for(f"{url}data/plugin/custom_scalars/layout", b"dead ratio"))
        charts = {c["title"]: c["multiline"]["tag"] for c in layout["category"][0]["chart"]}
        shown = {}
        for title, (pattern,) in charts.items():
            query = urllib.parse.urlencode({"run": "run", "tag": pattern})
            answer = _get(f"{url}data/plugin/custom_scalars/scalars?{query}")
            shown[title] = set(answer["tag_to_events"])
    assert set(charts) == set(LAYOUT["deadwatch"])
    assert shown == {
        "dead ratio": {
            "deadwatch/dead_ratio",
            "deadwatch/dead_ratio_of/1",
            "deadwatch/dead_ratio_of/3",
        },
        "open fraction": {"deadwatch/open_fraction/1", "deadwatch/open_fraction/3"},
        "pre-activation mean": {"deadwatch/mean/1", "deadwatch/mean/3"},
        "pre-activation std": {"deadwatch/std/1", "deadwatch/std/3"},
    }


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def test_treatments_read_as_markdown() -> None:
    patient = Patient.of()
    report, _ = patient.treated(Recycle())
    text = treatments_text(report)
    assert text.startswith("- **Recycle** on 3 units of `1` (quiet): rows of 0 drawn afresh.")
    assert text.endswith("Units 0, 1, 2")


def test_names_are_data_in_markdown() -> None:
    patient = Patient.of()
    report, _ = patient.treated(Recycle())
    treatment = report.treatments[0]
    object.__setattr__(treatment, "site", "a`b")
    assert "`a'b`" in treatments_text(report)


EVIL = (
    "<img src=http://x/y onerror=alert(1)>",
    "[a](http://x) ![b](http://x) <http://x>",
    "**b** __c__ _d_ `e` ~~f~~ &lt;g&gt; &amp; \\\\* \\",
    "# h",
    "- - 1. x",
    "12) a | b |",
    "    code\n\n<script>alert(1)</script>\n\n| a | b |\n|---|---|",
    "\x1b]0;t\x07 \u202eevil\u202c [red]x[/red] größe 死",
)


class Parts(HTMLParser):
    """The text and the tags of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", set[str]()
        self.feed(html)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
@pytest.mark.parametrize("evil", EVIL)
def test_names_and_notes_are_no_markup_in_the_text_tab(evil: str) -> None:
    """As TensorBoard's own text tab renders them."""
    told = window(
        0,
        site(evil, [2]),
        treatments=(replace(treatment(0, [0]), remedy=evil, site=evil, note=evil),),
        refusals=(replace(refusal(0, [0]), remedy=evil, site=evil, reason=evil),),
        notes=(evil,),
        outcomes=(replace(outcome(), remedy=evil),),
    )
    shown = printable(evil).strip()
    for text, often, tags in (
        (treatments_text(told), 7, {"ul", "li", "p", "strong", "code"}),
        (outcomes_text(told), 1, {"table", "thead", "tbody", "tr", "th", "td"}),
        (rows_text([evil]), 1, {"p", "code"}),
    ):
        parts = Parts(markdown_to_safe_html(text))
        assert parts.tags <= tags
        # Only what is shown as code has another quotation mark.
        assert parts.text.replace("`", "'").count(shown.replace("`", "'")) == often


def test_a_view_wants_a_writer() -> None:
    with pytest.raises(ConfigError, match=r"writer is 'runs'; expected a .*SummaryWriter"):
        TensorBoardView("runs")


def test_the_console_tells_each_refusal_once() -> None:
    patient = Patient.of()
    patient.model[2].weight.requires_grad_(False)
    watch = patient.watch(Recycle(), cooldown=0)
    view = ConsoleView()
    lines = []
    with watch:
        for window in range(3):
            patient.model(patient.x)
            report = watch.close_window()
            lines.append(view.line(report, f"window {window}"))
            view.treated(report)
    assert lines[1] is not None
    assert lines[1].endswith("; Recycle refused on 1: 2.weight is frozen")
    assert lines[2] is None


def test_the_console_is_silent_when_nothing_changes() -> None:
    patient = Patient.of()
    watch = patient.watch(Recycle(), when=1.0)
    view = ConsoleView()
    with watch:
        lines = []
        for window in range(3):
            patient.model(patient.x)
            lines.append(view.line(watch.close_window(), f"window {window}"))
    assert lines[0] is not None
    assert re.match(r"deadwatch window 0: 18\.8% dead \(3/16 units, \+3\)", lines[0])
    assert lines[1:] == [None, None]
