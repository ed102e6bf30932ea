"""``deadwatch report``: one file from event files alone."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from torch.utils.tensorboard import SummaryWriter

from deadwatch import DeadwatchError
from deadwatch.cli import main
from deadwatch.show.bundle import bundle, left_out
from deadwatch.show.events import runs
from deadwatch.show.page import harmless
from deadwatch.show.summary import summary
from tests.histories import HOSTILE, Log, history, outcome, site, treatment, window, written

NAMES = [HOSTILE, "</script><script>window.hacked=1</script>", "<!--", "a&amp;b\u2028\u2029", "é"]
HALF = "half\ud800"  # of a character


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def data(page: str) -> Any:
    (text,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)
    return json.loads(text)


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, of which one was resumed, and one that deadwatch did not watch."""
    folder = tmp_path_factory.mktemp("logs")
    written(folder / "a" / "deep", history(6, seed=1))
    told = window(6, site("act", [2, 5] * 4), notes=("told",), treatments=(treatment(6, [0]),))
    written(folder / "a" / "deep", [told], filename_suffix=".later")
    written(folder / "b", history(3, seed=2))
    with SummaryWriter(folder / "other") as writer:
        writer.add_scalar("loss", 1.0, 0)
    return folder


def test_a_report_needs_neither_torch_nor_lightning(logdir: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from deadwatch.cli import main; "
        f"code = main(['report', {str(logdir)!r}, '-o', {str(tmp_path / 'r.html')!r}]); "
        "print(code, [m for m in ('torch', 'pytorch_lightning', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert (tmp_path / "r.html").exists()


def test_python_dash_m_is_the_command(logdir: Path) -> None:
    command = [sys.executable, "-m", "deadwatch", "report", str(logdir), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["format"] == "deadwatch-report"


def test_runs_are_found_and_named_as_tensorboard_does(logdir: Path) -> None:
    found = runs(logdir)
    assert list(found) == ["a/deep", "b"]
    assert [w.index for w in found["a/deep"].run.windows] == list(range(7))
    assert list(runs(logdir / "b")) == ["."]


def test_the_report_holds_the_documents_of_all_runs(
    logdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.html"
    assert report(logdir, "-o", path) == 0
    told = capsys.readouterr().out
    assert re.fullmatch(rf"{re.escape(str(path))}: 2 runs, 10 windows, 0\.\d MB\n", told)
    page = path.read_text("utf-8")
    expected = bundle({name: found.run for name, found in runs(logdir).items()})
    assert data(page) == json.loads(json.dumps(expected))
    assert expected["runs"] == ["a/deep", "b"]
    assert expected["overview"]["b"]["windows"] == 3
    assert set(expected["units"]["a/deep"]) == {"act"}
    assert "0" in expected["unit"]["a/deep"]["act"]


def test_without_a_name_the_report_is_report_html(
    logdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report(logdir, "--run", "b") == 0
    assert data((tmp_path / "report.html").read_text("utf-8"))["runs"] == ["b"]


def test_the_summary_for_programs(logdir: Path, tmp_path: Path) -> None:
    assert report(logdir, "--json", "-o", tmp_path / "r.json") == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["format"], found["version"]) == ("deadwatch-report", 1)
    run = found["runs"]["a/deep"]
    assert set(run) == {
        *("windows", "steps", "dead", "judged", "dead_ratio", "sites", "treatments", "outcomes"),
        *("notes", "findings", "damaged", "cut"),
    }
    assert (run["windows"], run["steps"], run["dead_ratio"]) == (7, [0, 69], 0.5)
    (act,) = run["sites"]
    assert set(act) >= {
        *("site", "units", "activation", "producers", "consumers", "now", "worst", "states"),
        *("open_fraction", "mean", "std", "sparsity", "dormant", "treated", "last"),
    }
    assert act["states"] == {
        **dict.fromkeys(("unseen", "uncertain", "saturated", "rare"), 0),
        "dead": 4,
        "alive": 4,
    }
    assert [done["units"] for done in run["treatments"]] == [[0]]
    assert (run["damaged"], run["cut"]) == (0, [])


# ── what can be wrong ───────────────────────────────────────────────────────────────────


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert report(*arguments) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("deadwatch: ")
    return captured.err


def test_no_such_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist; expected the directory" in refused(capsys, tmp_path / "no")
    (tmp_path / "file").touch()
    assert "file is a file; expected the directory" in refused(capsys, tmp_path / "file")


def test_no_event_files_or_none_with_records(
    logdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no event files" in refused(capsys, tmp_path)
    told = refused(capsys, logdir / "other")
    assert "1 directories of runs, and none has records" in told
    assert "deadwatch.TensorBoardView(SummaryWriter" in told


def test_a_directory_whose_name_is_no_text_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        (tmp_path / os.fsdecode(b"run\xff")).mkdir()
    except OSError:
        pytest.skip("this file system has names of text only")
    assert main(["report", str(tmp_path)]) == 2
    assert "run\\udcff' is a name that is no UTF-8" in capsys.readouterr().err


def test_no_such_run(logdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, logdir, "--run", "c")
    assert "there is no run 'c'; runs with records are: 'a/deep', 'b'" in told


def test_a_file_that_cannot_be_written(
    logdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "No such file or directory" in refused(capsys, logdir, "-o", tmp_path / "no" / "r.html")


def test_a_file_that_was_cut_short_is_read_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, history(9))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert report(tmp_path, "-o", tmp_path / "r.html") == 0
    found = runs(tmp_path)["."]
    assert found.cut == (path.name,)
    assert 0 < len(found.run.windows) < 9
    expected = f"Run .: read as far as these files are whole: {path.name}."
    assert expected in capsys.readouterr().out
    assert expected in (tmp_path / "r.html").read_text("utf-8")


@pytest.mark.parametrize("length", [1 << 40, (1 << 64) - 1])
def test_a_file_whose_next_event_claims_to_be_huge(length: int, tmp_path: Path) -> None:
    path = written(tmp_path, history(2))
    header = struct.pack("<Q", length)
    with path.open("ab") as file:
        file.write(header + struct.pack("<I", masked_crc32c(header)) + b"hello")
    found = runs(tmp_path)["."]
    assert found.cut == (path.name,)
    assert len(found.run.windows) == 2


def test_events_that_are_none_and_tensors_that_hold_no_record(tmp_path: Path) -> None:
    path = written(tmp_path, history(2))
    with SummaryWriter(tmp_path, filename_suffix=".odd") as writer:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto

        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="deadwatch"))
        odd = [TensorProto(dtype=d) for d in (0, 1, 7, 20, 99)]
        odd.append(TensorProto(dtype=3, int_val=[1, 2, 3]))
        for tensor in odd:
            tag = "deadwatch/record/counts"
            value = Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
            writer._get_file_writer().add_summary(Summary(value=[value]), 0)
    with path.open("ab") as file:
        body = b"deadwatch\xff\xff\xff"
        header = struct.pack("<Q", len(body))
        crcs = [struct.pack("<I", masked_crc32c(part)) for part in (header, body)]
        file.write(header + crcs[0] + body + crcs[1])
    found = runs(tmp_path)["."]
    assert len(found.run.windows) == 2
    assert found.run.damaged == len(odd)
    assert found.cut == (path.name,)


# ── the page ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which every name is an attack."""
    folder = tmp_path_factory.mktemp("hostile")
    sites = [site(name, [2, 5]) for name in NAMES]
    done = [treatment(0, [0], name, remedy=name, note=name) for name in NAMES]
    came = [outcome(remedy=name) for name in NAMES]
    told = {"treatments": tuple(done), "notes": tuple(NAMES), "outcomes": tuple(came)}
    run = folder / "<b onclick=alert(1)>&"
    written(run, [window(0, *sites, **told)])
    path = folder / "r.html"
    assert report(folder, "-o", path) == 0
    return path


def test_names_are_data_in_the_page(hostile: Path) -> None:
    page = hostile.read_text("utf-8")
    assert page.count("</script") == page.count("<script") == 2
    assert "<img" not in page
    assert "<b onclick" not in page
    assert "<!--" not in page
    assert "\u2028" not in page
    found = data(page)
    assert found["runs"] == ["<b onclick=alert(1)>&"]
    assert [s["name"] for s in found["overview"][found["runs"][0]]["sites"]] == NAMES


def test_no_character_that_html_looks_for_is_left_in_the_data() -> None:
    value = {name: [name, 1.5, None, True] for name in (*NAMES, HALF)}
    text = harmless(value)
    assert text.isascii()
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_a_name_that_no_file_can_hold_reaches_the_report(tmp_path: Path) -> None:
    told = {"treatments": (treatment(0, [0], HALF),), "outcomes": (outcome(remedy=HALF),)}
    written(tmp_path, [window(0, site(HALF, [2, 5]), notes=(HALF,), **told)])
    assert report(tmp_path, "-o", tmp_path / "r.html") == 0
    found = data((tmp_path / "r.html").read_text("utf-8"))
    assert list(found["units"]["."]) == [HALF]


def test_the_page_forbids_itself_all_network_and_all_other_scripts(hostile: Path) -> None:
    page = hostile.read_text("utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    (script,) = re.findall(r'<script type="module">(.*?)</script>', page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}'; ")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert set(rules) == {
        *("default-src", "script-src", "style-src", "img-src", "base-uri", "form-action")
    }
    assert "http" not in policy
    assert "import" not in re.findall(r"^\s*(\w+)", script, re.M)
    assert not re.search(r"<(link|img|iframe|base|object|embed)\b", page)


def opened(page: Path, folder: Path) -> tuple[str, set[str]]:
    """The document of a page as Chromium draws it from disk, and who asked for what over a net."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's chromium, which .ci/run installs")
    log = folder / "net.json"
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=5000"]
    command += [f"--log-net-log={log}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    # What the browser asks for on its own account has "not an origin" as its initiator.
    asked = set(re.findall(r'"initiator":"([^"]*)"', log.read_text(errors="replace")))
    return done.stdout.decode("utf-8", "replace"), asked - {"not an origin"}


def test_the_report_opens_from_disk_without_network(hostile: Path, tmp_path: Path) -> None:
    page, asked = opened(hostile, tmp_path)
    drawn = page[page.index('<main id="deadwatch"') : page.index("</main>")]
    assert "&lt;img src=x onerror=window.hacked=1&gt;" in drawn
    assert "<img" not in drawn
    assert asked == set()


def test_a_page_that_asks_for_something_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('<img src="http://127.0.0.1:9/x.png">')
    assert opened(tmp_path / "page.html", tmp_path)[1]


# ── within a budget ─────────────────────────────────────────────────────────────────────


def test_what_matters_most_comes_first_and_what_is_left_out_is_named() -> None:
    sites = [[site(f"calm{n}", [5] * 200) for n in range(8)] for _ in range(20)]
    sites = [
        [*calm, site("dead", [2, *[5] * 199]), site("treated", [5] * 200), site("rare", [4] * 200)]
        for calm in sites
    ]
    reports = [window(i, *each) for i, each in enumerate(sites)]
    reports[3] = window(3, *sites[3], treatments=(treatment(3, [7, 9], "treated"),))
    run = Log().write(reports).run()
    whole = bundle({"r": run})
    assert left_out(whole) == []
    assert set(whole["units"]["r"]) == {known["name"] for known in run.sites}
    assert set(whole["unit"]["r"]) == {"dead", "treated"}
    assert set(whole["unit"]["r"]["treated"]) == {"7", "9"}
    small = bundle({"r": run}, budget=60_000)
    assert list(small["units"]["r"])[:3] == ["dead", "treated", "rare"]
    pictures = len(small["units"]["r"])
    assert 3 <= pictures < 11
    assert left_out(small)[0] == (
        f"Run r: {11 - pictures} of 11 pictures of layers are left out to save space."
    )
    assert len(json.dumps(small)) <= 60_000
    least = bundle({"r": run}, budget=0)
    assert least["units"]["r"] == least["unit"]["r"] == {}
    assert len(least["table"]["r"]["rows"]) == len(least["overview"]["r"]["sites"]) == 11


# ── files from anywhere ─────────────────────────────────────────────────────────────────

KEPT = Path(__file__).parent / "data" / "version1"


ANYWHERE = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ANYWHERE
@given(draws=st.data())
def test_no_damage_of_an_event_file_raises_but_in_a_sentence(
    draws: st.DataObject, tmp_path: Path
) -> None:
    for path in KEPT.glob("events*"):
        raw = bytearray(path.read_bytes())
        for _ in range(draws.draw(st.integers(0, 3))):
            raw[draws.draw(st.integers(0, len(raw) - 1))] = draws.draw(st.integers(0, 255))
        end = draws.draw(st.integers(0, len(raw)) | st.none())
        (tmp_path / path.name).write_bytes(bytes(raw[:end]))
    found = {}
    with suppress(DeadwatchError):  # nothing is left of it
        found = runs(tmp_path)
    bundle({name: one.run for name, one in found.items()})
    json.dumps(summary(found), allow_nan=False)


def test_the_command_is_installed_with_the_package() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    home, _, name = project["project"]["scripts"]["deadwatch"].partition(":")
    assert getattr(importlib.import_module(home), name) is main
