"""``deadwatch scan`` from the terminal, and tables there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deadwatch import ConfigError, ConsoleView, scan
from deadwatch.cli import main
from deadwatch.show import tables
from deadwatch.show.tables import MOST, end_of_run, sites_table, text_of
from deadwatch.show.texts import printable
from tests import born
from tests.histories import HOSTILE, outcome, refusal, site, treatment, window


def scanned(*arguments: str) -> int:
    return main(["scan", *arguments])


@pytest.fixture(autouse=True)
def without_rich(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "rich" not in request.node.name:
        monkeypatch.setattr(tables, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("model", "batches"),
    [
        ("tests.born:model", "tests.born:batches"),
        ("tests.born:model", "tests.born:LISTED"),
        ("tests.born:both", "5"),
        ("tests.born:both", "tests.born:batches"),
    ],
)
def test_scan_prints_a_table(model: str, batches: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert scanned(model, "--batches", batches) == 0
    title, header, _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert title == "Before training"
    assert header.split()[1:4] == ["site", "|", "activation"]
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    report = scan(born.model(), list(born.batches()))
    assert cells[:4] == ["1", "ReLU", "8", str(report["1"].dead.sum())]
    assert cells[8] == f"{report['1'].open_fraction.mean():.1%}"
    assert second.startswith("| 3 ")


def test_scan_takes_as_many_of_the_factorys_batches_as_it_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert scanned("tests.born:both", "--batches", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["version"]) == ("deadwatch-scan", 1)
    assert [known["samples"] for known in found["sites"]] == [400, 400]
    assert found["sites"][0]["dead_units"][:3] == [0, 1, 2]
    report = scan(born.model(), list(born.batches())[:2])
    assert found["dead_ratio"] == pytest.approx(report.dead_ratio)


def test_what_a_factory_prints_is_no_part_of_the_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert scanned("tests.born:talking", "--batches", str(10**30), "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["sites"]
    assert told.err == "loading data\n"


def test_scan_fails_above_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["tests.born:model", "--batches", "tests.born:batches", "--fail-above"]
    assert scanned(*given, "0.9") == 0
    assert scanned(*given, "0.2") == 1
    with pytest.raises(SystemExit, match="2"):
        scanned(*given, "20%")
    assert "'20%' is no share; expected a number from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "batches", "sentence"),
    [
        ("tests.born", "3", "model is 'tests.born'; expected package.module:name"),
        ("tests.born:", "3", "expected package.module:name"),
        ("tests.no:model", "3", "there is no module 'tests.no'; run from the directory"),
        ("nowhere.no:model", "3", "there is no module 'nowhere'"),
        ("tests.born:nothing", "3", "module tests.born has no 'nothing'; it has: "),
        ("tests.born:NUMBER", "3", "tests.born:NUMBER is 'int'; expected a function"),
        ("tests.born:failing", "3", "tests.born:failing() raised RuntimeError: no licence"),
        ("tests.born:model", "3", "let it return (model, batches), or give --batches"),
        ("tests.born:both", "0", "--batches is 0; expected at least 1"),
        ("tests.born:model", "many", "--batches is 'many'; expected package.module:name"),
        ("tests.born:model", "tests.born:NUMBER", "gives 'int' for batches; expected an iterable"),
        ("tests.born:model", "tests.born:failing", "tests.born:failing() raised RuntimeError"),
        ("tests.born:model", "tests.born:WIDE", "running the batches raised RuntimeError"),
        ("tests.born:model", "tests.born:EMPTY", "batches is empty; expected at least one batch"),
        ("tests.born:batches", "tests.born:LISTED", "model is 'generator'; expected a torch.nn"),
        ("tests.born:model", "²", "--batches is '²'; expected package.module:name"),
        ("tests.ending:model", "3", "importing tests.ending raised SystemExit: 0"),
        ("tests.born:ending", "3", "tests.born:ending() raised SystemExit: 0"),
        ("tests.born:both_ending", "3", "running the batches raised SystemExit: 0"),
        ("tests.broken:model", "3", "importing tests.broken raised SyntaxError"),
        ("tests.lacking:model", "3", "importing tests.lacking raised ModuleNotFoundError"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    *,
    model: str,
    batches: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import tests

    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "ending.py").write_text("import sys; sys.exit(0)")
    (tmp_path / "lacking.py").write_text("import nowhere_to_be_found")
    monkeypatch.setattr(tests, "__path__", [*tests.__path__, str(tmp_path)])
    assert scanned(model, "--batches", batches) == 2
    told = capsys.readouterr()
    assert not told.out
    assert told.err.startswith("deadwatch: ")
    assert sentence in told.err
    assert "Traceback" not in told.err


def test_a_traceback_is_there_for_those_who_ask(capsys: pytest.CaptureFixture[str]) -> None:
    assert scanned("tests.born:failing", "--batches", "3", "--traceback") == 2
    assert 'raise RuntimeError("no licence")' in capsys.readouterr().err


def test_the_working_directory_is_looked_in(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from tests.born import both\n")
    root = str(Path(__file__).parent.parent)
    code = f"import sys; sys.path[:] = [p for p in sys.path if p] + [{root!r}]; "
    code += "from deadwatch.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "scan", "mine:both", "--batches", "1", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["sites"]


# ── names on a terminal ─────────────────────────────────────────────────────────────────

EVIL = f"{HOSTILE}[red]\x1b[2J\r\n\u202e\x9b1mx|y"


def test_names_do_not_act_on_a_terminal() -> None:
    shown = printable(EVIL + "\u2028\ud800é漢")
    assert shown.isprintable()
    assert shown.endswith("\\x9b1mx|y\\u2028\\ud800é漢")


def evil_report() -> Any:
    return window(
        *(0, site(EVIL, [2, 5])),
        treatments=(treatment(0, [0], EVIL, remedy=EVIL),),
        refusals=(refusal(0, [0], EVIL),),
        notes=(EVIL,),
        outcomes=(outcome(remedy=EVIL),),
    )


@pytest.mark.parametrize("installed", ["markdown", "rich"])
def test_names_in_tables_are_data(installed: str) -> None:
    if installed == "rich":
        pytest.importorskip("rich", reason="rich is optional; tables are Markdown without it")
    text = end_of_run(evil_report())
    assert "[red]" in text
    assert set(text.replace("\n", "")) & {"\x1b", "\r", "\u202e", "\x9b"} == set()
    assert HOSTILE.split()[0] in text


def test_names_in_a_scan_are_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert scanned("tests.born:hostile", "--batches", "tests.born:LISTED") == 0
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert f"1{born.UNDOTTED}[red]\\x1b[2J\\n" in out


def test_names_in_lines_are_data() -> None:
    lines: list[str] = []
    view = ConsoleView(lines.append)
    view(evil_report())
    view(evil_report())
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 2


LINES = """
import sys; sys.path.insert(0, sys.argv[1])
import torch
from deadwatch import ConsoleView
from deadwatch.show.tables import end_of_run
from deadwatch.show.texts import writable
from tests.histories import site, window
view = ConsoleView()
view(window(0, site("größe死", [2, 5])))
print(writable(end_of_run(window(0, site("größe死", []), site("act", [0])))))
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "utf-8"])
def test_a_terminal_without_all_characters_gets_their_codes(encoding: str) -> None:
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", LINES, root]
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, check=True, env=env)
    shown = "größe死" if encoding == "utf-8" else "\\u6b7b"
    assert done.stdout.decode(encoding).count(shown) == 2


def test_a_table_of_many_sites_shows_the_worst_and_says_so() -> None:
    sites = [site(f"s{n}", [2] * n + [5] * (50 - n)) for n in range(MOST + 5)]
    text = end_of_run(window(0, *sites))
    title, header, _, *rows = text.splitlines()
    assert title.endswith(f"({MOST} of {MOST + 5} sites, those with most dead units)")
    assert "not judged" in header
    assert [row.split()[1] for row in rows] == [f"s{n}" for n in range(MOST + 4, 4, -1)]


def test_what_was_not_measured_is_a_dash() -> None:
    (row,) = sites_table(window(0, site("act", [0, 0], measured=0.0)), "t").rows
    assert row[2:] == ["2", "0", "0", "0", "0", "2", "–", "–", "–"]
    text = end_of_run(window(0, site("act", [1, 1])))
    assert text.startswith("deadwatch, last window: no unit could be judged\n")
    assert text_of(sites_table(window(0), "t")).startswith("t\n| site")


# ── one line a window ───────────────────────────────────────────────────────────────────


def test_a_plain_loop_prints_what_is_new() -> None:
    lines: list[str] = []
    view = ConsoleView(lines.append)
    view(window(0, site("act", [2, 5, 5, 5])))
    view(window(1, site("act", [2, 5, 5, 5])))
    view(window(2, site("act", [2, 5, 5, 5]), treatments=(treatment(2, [0]),)))
    view(window(3, site("act", [5, 5, 5, 5])))
    assert lines == [
        "deadwatch window 0, step 9: 25.0% dead (1/4 units, +1), most in act (1/4)",
        "deadwatch window 2, step 29; treated after it: 1 units (Recycle on act)",
        "deadwatch window 3, step 39: 0.0% dead (0/4 units, -1)",
    ]


def test_a_line_of_a_huge_model_is_short_and_says_what_it_leaves_out() -> None:
    names = [f"block{i}.{'x' * i}" for i in range(100)]
    lines: list[str] = []
    view = ConsoleView(lines.append)
    told = {
        "treatments": tuple(treatment(0, [0, 1], name=name) for name in names),
        "refusals": tuple(refusal(0, [0], name=name) for name in names),
        "notes": tuple(f"{name} is odd" for name in names),
    }
    view(window(0, site("act", [2, 5]), **told))
    assert len(lines[0]) < 1500
    assert ", 190 units elsewhere; Swap refused on block0.: " in lines[0]
    assert lines[0].count("; and 95 more") == 2
    view(window(1, site("act", [2, 5]), **{**told, "treatments": ()}))
    assert len(lines) == 1  # all of it was said or counted


def test_a_line_of_a_window_without_evidence_has_no_ratio() -> None:
    lines: list[str] = []
    ConsoleView(lines.append)(window(0, site("act", [0, 1]), notes=("too few samples",)))
    told = "no unit could be judged (0/0 units, +0); too few samples"
    assert lines == [f"deadwatch window 0, step 9: {told}"]


def test_a_console_view_wants_something_to_write_with() -> None:
    with pytest.raises(ConfigError, match=r"write is 'out'; expected a function of a text"):
        ConsoleView("out")
