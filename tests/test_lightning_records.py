"""What a Lightning fit leaves in event files and on the terminal."""

from __future__ import annotations

import io
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from deadwatch import DeadWatch, Policy, Recycle, Rules
from deadwatch.show.events import runs
from deadwatch.show.run import Run
from tests.fitting import Module, fit
from tests.histories import decoded


def callback(**given: Any) -> DeadWatch:
    policy = Policy(Recycle(), when=0.0, patience=1, cooldown=0)
    return DeadWatch(policy, rules=Rules(min_samples=1), **given)


def recorded(tmp_path: Path) -> Run:
    return runs(tmp_path)["run"].run


@pytest.mark.parametrize(
    ("given", "ends"), [({}, [3, 7, 11]), ({"window": 5}, [4, 9, 11])], ids=["epochs", "steps"]
)
def test_every_window_of_a_fit_is_recorded_with_its_treatments(
    given: dict[str, Any], ends: list[int], tmp_path: Path
) -> None:
    watcher = callback(**given)
    fit([watcher], tmp_path)
    run = recorded(tmp_path)
    assert [window.last_step for window in run.windows] == ends
    assert [known["name"] for known in run.sites] == ["net.1", "net.3"]
    assert watcher.watch is not None
    first = run.treatments[0]
    assert (first["remedy"], first["site"], first["window"]) == ("Recycle", "net.1", 0)
    assert first["units"] == list(range(6))
    assert run.dead[0, 0] == 6
    assert run.outcomes[0]["units"] == sum(len(done["units"]) for done in run.treatments)
    assert run.damaged == 0


def test_a_resumed_fit_joins_its_first_part(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, filename="{epoch}")
    fit([callback(), checkpoint], tmp_path, max_epochs=3)
    before = recorded(tmp_path)
    (path,) = (tmp_path / "kept").glob("epoch=1*")
    watcher = callback()
    fit([watcher, ModelCheckpoint(tmp_path / "more")], tmp_path, max_epochs=5, ckpt_path=path)
    run = recorded(tmp_path)
    assert [window.index for window in run.windows] == list(range(5))
    assert [window.last_step for window in run.windows] == [3, 7, 11, 15, 19]
    assert (run.counts[:, :3] == before.counts).all()
    assert [t for t in run.treatments if t["window"] < 3] == before.treatments


def test_a_fit_ends_with_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watcher = callback()
    fit([watcher], tmp_path)
    out = capsys.readouterr().out
    assert watcher.report is not None
    assert "deadwatch, last window: " in out
    assert "deadwatch, what came of each remedy:" in out
    assert {"net.1", "net.3", "Recycle"} <= set(out.replace("│", " ").split())


def test_a_terminal_that_lacks_a_character_ends_no_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Module()
    module.net = nn.Sequential(OrderedDict(zip(("a", "größe死", "c"), module.net[:3], strict=True)))
    module.net.append(nn.Linear(16, 3))
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    fit([callback()], tmp_path, module)
    terminal.flush()
    assert b"net.gr\\xf6\\xdfe\\u6b7b" in terminal.buffer.getvalue()


def test_the_documents_of_a_fit_are_those_of_its_last_report(tmp_path: Path) -> None:
    from deadwatch.show import documents

    watcher = callback()
    fit([watcher], tmp_path)
    run, report = recorded(tmp_path), watcher.report
    assert report is not None
    for name, there in report.items():
        states = decoded(documents.units(run, name)["state"])
        assert states[:, -1].tolist() == there.state.tolist()
