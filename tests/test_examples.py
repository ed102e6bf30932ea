"""What the README tells people to run does run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import overhead, passes, scale
from examples import born_dead, digits, own_remedy, transformer
from tests.clinic import DEAD, Patient
from tests.fitting import lightning_remarks

ROOT = Path(__file__).parent.parent


def test_the_demo_trains_prints_its_table_and_writes_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lightning_remarks():
        for _ in range(2):  # the second run replaces the first one's curves
            runs = digits.main(["--seeds", "1", "--epochs", "8", "--out", str(tmp_path)])
    (watched,), (treated,) = runs["watched"], runs["revive"]
    assert treated.accuracy > watched.accuracy + 0.2
    assert treated.treated
    assert not watched.treated
    printed = capsys.readouterr().out
    assert "| held-out accuracy" in printed
    assert f"tensorboard --logdir {tmp_path}" in printed
    written = sorted(path.parent.parent.name for path in tmp_path.rglob("events.*"))
    assert written == ["revive", "watched"]


def test_the_transformer_shows_its_sites(capsys: pytest.CaptureFixture[str]) -> None:
    _, report = transformer.main(["--epochs", "1"])
    assert list(report) == ["encoder.layers.0-relu", "encoder.layers.1-relu", "act"]
    assert all(site.site.producers and site.site.consumers for site in report.values())
    assert "read by     <linear out.weight" in capsys.readouterr().out


def test_the_born_dead_are_found_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    results = born_dead.main(["--draws", "5"])
    assert set(results) == {"taken as it came", "drawn until alive"}
    assert "| 3 | 73.7% |" in capsys.readouterr().out


def test_a_remedy_and_a_policy_of_your_own(capsys: pytest.CaptureFixture[str]) -> None:
    reports = own_remedy.main(["--epochs", "5"])
    assert reports["watched"]["1"].dead.sum() >= 14
    assert reports["mirrored"]["1"].dead.sum() <= 2
    assert re.search(r"Mirror: 1\d of 1\d units are alive", capsys.readouterr().out)


def test_the_overhead_table_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "overhead.json"
    given = ["--rounds", "1", "--steps", "2", "--networks", "MLP", "--out", str(file)]
    overhead.main([*given, "--parts", "eager", "compiled"])
    table = capsys.readouterr().out
    assert "| MLP" in table
    overhead.main(["--show", str(file)])
    assert capsys.readouterr().out == table


def test_the_table_of_passes_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    passes.main(["--shapes", "1"])
    assert "| (128, 512) |" in capsys.readouterr().out


def test_the_tables_of_scale_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scale.json"
    tiny = ["--rounds", "1", "--sites", "2", "3", "--large", "2", "8"]
    scale.main([*tiny, "--out", str(out)])
    printed = capsys.readouterr().out
    assert "| 3 |" in printed
    assert "| close_window |" in printed
    assert list(json.loads(out.read_text())["curve"]) == ["2", "3"]


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_readme_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 8)
    data = TensorDataset(x, x[:, :3].argmax(1))
    scope: dict[str, Any] = {
        "model": nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)),
        "loader": DataLoader(data, batch_size=50),
        "loss_function": nn.functional.cross_entropy,
        "__name__": "readme",
    }
    scope["optimizer"] = torch.optim.Adam(scope["model"].parameters())
    plain = [block for block in blocks("python") if "lightning" not in block]
    assert len(plain) >= 2
    for block in plain:
        exec(compile(block, "README.md", "exec", dont_inherit=True), scope)
    assert scope["report"].dead_ratio >= 0
    assert scope["watch"]._policy.ladder[0].name == "Mirror"


def test_the_mirror_of_the_readme_revives_its_units() -> None:
    scope: dict[str, Any] = {"model": None, "optimizer": None, "__name__": "readme"}
    (source,) = [block for block in blocks("python") if "class Mirror" in block]
    own = source.rpartition("watch =")[0]
    exec(compile(own, "README.md", "exec", dont_inherit=True), scope)
    patient = Patient.of()
    before = patient.model(patient.x)
    report, watch = patient.treated(scope["Mirror"]())
    assert report.treatments[0].units.tolist() == DEAD
    torch.testing.assert_close(patient.model(patient.x), before)
    assert not watch.peek()["1"].dead.any()


def test_the_readme_quotes_what_the_scripts_wrote() -> None:
    text = (ROOT / "README.md").read_text()
    results = json.loads((ROOT / "benchmarks/overhead.json").read_text())
    for line in overhead.tables(results):
        assert line in text
        assert line in (ROOT / "benchmarks/README.md").read_text()
    for picture in (ROOT / "docs").glob("*.png"):
        assert f"docs/{picture.name}" in text
        assert picture.stat().st_size < 300_000
