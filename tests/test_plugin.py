"""What the tab's server answers, from real event files."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client, TestResponse

import deadwatch
from benchmarks.board import tensorboard
from deadwatch import State
from deadwatch.show import documents
from deadwatch.show import plugin as entry
from deadwatch.show import server as answers
from deadwatch.show.archive import PLUGIN
from deadwatch.show.plugin import Loader
from deadwatch.show.server import Plugin
from tests.histories import HOSTILE, decoded, history, outcome, site, treatment, window, written


class Server:
    """The plugin over a directory of event files, as TensorBoard would hold it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.multiplexer = EventMultiplexer(
            size_guidance={"tensors": 0}, tensor_size_guidance={PLUGIN: 0}
        )
        self.reload()
        provider = MultiplexerDataProvider(self.multiplexer, str(folder))
        made = Loader().load(TBContext(data_provider=provider, logdir=str(folder)))
        assert made is not None
        self.plugin = made
        apps = self.plugin.get_plugin_apps()
        self.clients = {route: Client(app) for route, app in apps.items()}

    def reload(self) -> None:
        self.multiplexer.AddRunsFromDirectory(str(self.folder))
        self.multiplexer.Reload()

    def ask(self, route: str, **query: object) -> TestResponse:
        return self.clients[route].get(route, query_string={k: str(v) for k, v in query.items()})

    def get(self, route: str, **query: object) -> Any:
        answer = self.ask(route, **query)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text)


REPORTS = [
    window(i, site("act", [2, 5, i % 6, 5], seed=i), site(HOSTILE, [5, 5]), site("idle", []))
    for i in range(5)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = tmp_path_factory.mktemp("logs")
    done = treatment(2, [0, 2])
    told = window(2, *REPORTS[2].values(), treatments=(done,), outcomes=(outcome(),))
    written(folder / "a", [*REPORTS[:2], told, *REPORTS[3:]])
    written(folder / "<b>", history(3, name="other"))
    return Server(folder)


def test_the_runs_there_are(server: Server) -> None:
    assert server.get("/runs")["runs"] == ["<b>", "a"]


def test_the_answers_are_the_documents_of_the_run(server: Server) -> None:
    overview = server.get("/overview", run="a")
    assert [known["name"] for known in overview["sites"]] == ["act", HOSTILE, "idle"]
    assert decoded(overview["dead"])[0].tolist() == [int(r["act"].dead.sum()) for r in REPORTS]
    assert decoded(overview["judged"])[0].tolist() == [r["act"].judged for r in REPORTS]
    assert overview["treatments"][0]["units"] == 2
    rows = server.get("/table", run="a")["rows"]
    assert [row["site"] for row in rows] == ["act", HOSTILE, "idle"]
    units = server.get("/units", run="a", site="act")
    states = np.stack([report["act"].state for report in REPORTS], 1)
    assert decoded(units["state"]).tolist() == states.tolist()
    unit = server.get("/unit", run="a", site="act", unit=2)
    assert unit["state"] == states[2].tolist()
    assert [done["remedy"] for done in unit["treatments"]] == ["Recycle"]
    assert server.get("/units", run="a", site=HOSTILE)["site"] == HOSTILE
    assert server.get("/units", run="a", site="idle")["units"] == 0
    assert server.get("/units", run="<b>", site="other")["windows"] == 3


def test_smaller_pictures_are_made_on_the_server(server: Server) -> None:
    assert len(server.get("/overview", run="a", cells=6)["columns"]) == 2
    part = server.get("/units", run="a", site="act", first=1, last=4, rows=2, columns=3)
    assert part["rows"] == [[1, 3], [3, 4]]
    assert len(part["columns"]) == 3


@pytest.mark.parametrize(
    ("route", "query", "sentence"),
    [
        ("/overview", {}, "run is None; runs with records of deadwatch's are: '<b>', 'a'"),
        ("/overview", {"run": "b"}, "run is 'b'; runs with"),
        ("/overview", {"run": HOSTILE}, f"run is {HOSTILE!r}; runs with"),
        ("/overview", {"run": "a", "cells": 0}, "cells is '0'; expected a whole number from 1"),
        ("/overview", {"run": "a", "cells": "-1"}, "cells is '-1'"),
        ("/overview", {"run": "a", "cells": "٣"}, "cells is '٣'"),
        ("/overview", {"run": "a", "cells": "9" * 5000}, "expected a whole number"),
        ("/table", {"run": "../a"}, "run is '../a'"),
        ("/units", {"run": "a"}, "site is None, and this run has none of that name"),
        ("/units", {"run": "a", "site": "other"}, "site is 'other'"),
        ("/units", {"run": "a", "site": "act", "first": 4}, "first is '4'; expected .* 0 to 3"),
        ("/units", {"run": "a", "site": "act", "first": 2, "last": 2}, "last is '2'; .* 3 to 4"),
        ("/units", {"run": "a", "site": "act", "last": 5}, "last is '5'"),
        ("/units", {"run": "a", "site": "act", "rows": "1e3"}, "rows is '1e3'"),
        ("/units", {"run": "a", "site": "act", "columns": "0"}, "columns is '0'"),
        ("/unit", {"run": "a", "site": "act"}, "unit is missing; expected a number from 0 to 3"),
        ("/unit", {"run": "a", "site": "act", "unit": 4}, "unit is '4'; expected .* 0 to 3"),
        ("/unit", {"run": "a", "site": "act", "unit": ""}, "unit is ''"),
        (
            "/unit",
            {"run": "a", "site": "act", "unit": "0" * 12 + "999"},
            "unit is '000000000000999'",
        ),
        ("/unit", {"run": "a", "site": "act", "unit": "0" * 12 + "9" * 5000}, "expected a whole"),
        ("/unit", {"run": "a", "site": "act", "unit": "0\n"}, "unit is '0\\n'"),
        ("/unit", {"run": "a", "site": "idle", "unit": 0}, "idle.* has no units"),
    ],
)
def test_a_bad_request_is_a_400_with_a_sentence(
    server: Server, route: str, query: dict[str, Any], sentence: str
) -> None:
    answer = server.ask(route, **query)
    assert answer.status_code == 400
    assert answer.mimetype == "application/json"
    told = json.loads(answer.text)["error"]
    assert re.search(sentence, told) if ".*" in sentence else sentence in told
    assert len(told) < 500


def test_a_wrong_run_among_hundreds_is_told_a_few_of_them(tmp_path: Path) -> None:
    for n in range(answers.NAMED + 5):
        written(tmp_path / f"{n:03}", REPORTS[:1])
    told = json.loads(Server(tmp_path).ask("/table", run="x" * 9999).text)["error"]
    assert told.endswith("'018', '019' and 5 more")
    assert len(told) < 500


def test_a_run_that_goes_on_is_read_anew(tmp_path: Path) -> None:
    written(tmp_path / "a", REPORTS[:2])
    server = Server(tmp_path)
    assert server.get("/overview", run="a")["windows"] == 2
    written(tmp_path / "a", [window(2, site("act", [5, 5, 5, 5]))], filename_suffix=".later")
    server.reload()
    assert server.get("/overview", run="a")["windows"] == 3


def test_no_more_runs_are_kept_in_memory_than_a_few(tmp_path: Path) -> None:
    for n in range(answers.KEPT + 2):
        written(tmp_path / str(n), REPORTS[:1])
    server = Server(tmp_path)
    for n in [*range(answers.KEPT + 2), 0]:
        assert server.get("/overview", run=str(n))["windows"] == 1
    assert len(server.plugin._runs) == answers.KEPT


# ── what goes wrong costs the tab, never TensorBoard ────────────────────────────────────


def run_code(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_plugin_imports_neither_torch_nor_lightning() -> None:
    heavy = "('torch', 'lightning', 'pytorch_lightning', 'matplotlib')"
    code = f"import deadwatch.show.plugin, sys; print([m for m in {heavy} if m in sys.modules])"
    assert run_code(code) == "[]"


STARTS = """
import sys; sys.path.insert(0, sys.argv[1])
import json, urllib.request
from tensorboard import default, program
from deadwatch.show import plugin
assert plugin.__file__.startswith(sys.argv[1])
loaders = [loader for loader in default.get_plugins() if loader is not plugin.Loader]
board = program.TensorBoard(plugins=[*loaders, plugin.Loader])
board.configure(["tensorboard", "--logdir", sys.argv[1], "--load_fast", "false", "--port", "0"])
print(*json.load(urllib.request.urlopen(board.launch() + "data/plugins_listing")))
"""


@pytest.mark.parametrize(
    ("file", "content"),
    [("records/__init__.py", "import nothing_of_this_name"), ("errors.py", "def (")],
)
def test_tensorboard_starts_with_an_installation_that_is_damaged(
    file: str, content: str, tmp_path: Path
) -> None:
    package = tmp_path / "deadwatch"
    shutil.copytree(Path(deadwatch.__file__).parent, package)
    (package / file).write_text(content)
    command = [sys.executable, "-c", STARTS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "scalars" in done.stdout
    assert "deadwatch" not in done.stdout
    assert "deadwatch: not installed as a whole, so there is no tab" in done.stderr


def test_the_entry_point_and_the_records_agree_on_the_name() -> None:
    assert entry.NAME == PLUGIN == Plugin.plugin_name


def test_a_front_end_that_cannot_be_read_costs_the_tab_alone(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert server.ask("/index.js").status_code == 200
    monkeypatch.setattr(answers, "files", lambda package: tmp_path)
    with caplog.at_level(logging.ERROR):
        answer = Server(server.folder).ask("/index.js")
    assert answer.status_code == 500
    assert answer.text.startswith("// deadwatch is not installed as a whole")
    assert "the front end cannot be read" in caplog.text


class Broken:
    """A data provider of which nothing works."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("out of order")


def test_a_data_provider_that_fails_costs_the_tab_alone(caplog: pytest.LogCaptureFixture) -> None:
    made = Loader().load(TBContext(data_provider=Broken()))
    assert isinstance(made, Plugin)
    assert made.is_active() is False
    assert made.frontend_metadata().tab_name == "Dead neurons"
    for route, app in made.get_plugin_apps().items():
        if route != "/index.js":
            answer = Client(app).get(route, query_string={"run": "a", "site": "act", "unit": "0"})
            assert answer.status_code == 500
            told = json.loads(answer.text)["error"]
            assert told == "deadwatch could not read this run: RuntimeError: out of order"
    assert "could not be answered" in caplog.text


def test_without_a_data_provider_there_is_no_tab() -> None:
    assert Loader().load(TBContext()) is None


@pytest.mark.parametrize(
    ("chosen", "kept"), [({}, 0), ({"images": 3}, 0), ({PLUGIN: 50}, 50), (None, None)]
)
def test_all_records_are_kept_unless_the_user_chose_a_number(chosen: Any, kept: Any) -> None:
    flags = SimpleNamespace(samples_per_plugin=chosen)
    Loader().fix_flags(flags)
    assert (flags.samples_per_plugin or {}).get(PLUGIN) == kept
    Loader().fix_flags(SimpleNamespace())


# ── a real TensorBoard, with either of its two ways to read ─────────────────────────────


def asked(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def eventually(url: str, holds: Any) -> Any:
    """What an address answers once a condition holds: TensorBoard reads in the background."""
    found: Any = None
    for _ in range(150):
        try:
            found = asked(url)
            if holds(found):
                return found
        except OSError as error:
            found = error
        time.sleep(0.2)
    raise AssertionError(f"{url} answers {found}")


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More windows than TensorBoard keeps of a tensor by default, and a resumed session."""
    folder = tmp_path_factory.mktemp("long")
    reports = [window(i, site("act", [2, 5, i % 6, 5], seed=i)) for i in range(130)]
    written(folder / "run", reports[:90])
    written(folder / "run", [window(i, site("act", [5, 2, 5, 5])) for i in range(80, 130)])
    return folder


@pytest.mark.parametrize("load_fast", ["true", "false"])
def test_every_window_arrives_and_none_twice(long_run: Path, load_fast: str) -> None:
    with tensorboard("--logdir", str(long_run), "--load_fast", load_fast) as url:
        base = f"{url}data/plugin/deadwatch"
        eventually(f"{base}/runs", lambda found: found["runs"] == ["run"])
        query = "run=run"
        found = eventually(f"{base}/overview?{query}", lambda found: found["windows"] == 130)
        dead = decoded(found["dead"])[0].tolist()
        states = decoded(asked(f"{base}/units?{query}&site=act")["state"])
    assert dead == [2 if i % 6 == 2 else 1 for i in range(80)] + [1] * 50
    assert (states[0, :80] == State.DEAD).all()
    assert (states[1, 80:] == State.DEAD).all()
    assert documents.COLUMNS >= 130
