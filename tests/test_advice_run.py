"""Advice in a run: it breaks nothing, is told once, is logged, and is the same on all ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deadwatch import DeadWatch, Rules, Watch, advising
from deadwatch.errors import AdviceFailedWarning, ConfigError
from tests.fitting import fit
from tests.nets import mlp, vectors
from tests.ranks import run_ranks


def born_dead() -> nn.Sequential:
    model = mlp()
    with torch.no_grad():
        model.get_parameter("0.bias")[:10] = -50.0
    return model


def windows(model: nn.Module, count: int = 2, **arguments: Any) -> list[Any]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    reports = []
    with Watch(model, optimizer=optimizer, **arguments) as watch:
        for _ in range(count):
            for _ in range(6):
                loss = model(vectors().repeat(60, 1)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss)
            reports.append(watch.close_window())
    return reports


def test_advice_that_fails_is_given_up_with_a_warning_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a rule with a mistake")

    monkeypatch.setattr(advising, "findings", broken)
    with pytest.warns(AdviceFailedWarning, match="given up; watching goes on.*a mistake") as caught:
        reports = windows(born_dead(), 3, advice=True)
    assert len(caught) == 1
    assert all(report.dead >= 10 for report in reports)
    assert len(reports) == 3
    assert not any(report.findings for report in reports)


def test_what_is_ignored_is_not_in_the_windows_of_a_run() -> None:
    model = born_dead()
    told = {finding.id for finding in windows(model, advice=True)[-1].findings}
    assert {"DW501", "DW601", "DW301"} <= told
    left = windows(model, advice=True, ignore=["DW5*", "DW601@1", "DW301@other"])[-1].findings
    assert "DW301" in {finding.id for finding in left}
    assert not any(finding.id.startswith("DW5") for finding in left)
    assert ("DW601", ("1",)) not in {(finding.id, finding.where) for finding in left}


@pytest.mark.parametrize("kind", [Watch, DeadWatch])
def test_an_unknown_id_is_refused_at_construction(kind: Any) -> None:
    model = () if kind is DeadWatch else (mlp(),)
    with pytest.raises(ConfigError, match="'DW999', which matches no rule; the rules: DW101"):
        kind(*model, advice=True, ignore=["DW999"])


def test_a_fix_of_a_finding_of_a_window_is_applied_to_the_live_optimizer() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    with Watch(model, optimizer=optimizer, advice=True) as watch:
        for expected in (1, 0):
            loss = model(vectors()).square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss)
            found = [one for one in watch.close_window().findings if one.id == "DW301"]
            assert len(found) == expected
            for one in found:
                assert "no weight decay on 3 biases" in one.fix()


def test_how_weights_were_initialised_is_told_as_it_was_and_not_mended_in_a_run() -> None:
    model = mlp()
    with torch.no_grad():
        model.get_parameter("0.bias").fill_(-3.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    told = []
    with Watch(model, optimizer=optimizer, advice=True) as watch:
        for _ in range(2):
            for _ in range(30):
                loss = model(torch.randn(50, 12)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss)
            told.append([one for one in watch.close_window().findings if one.id == "DW201"])
    assert len(told[0]) == 1
    assert told[0][0].message == told[1][0].message
    assert told[0][0].severity == "warning"
    assert not told[0][0].fixable


# ── Lightning ───────────────────────────────────────────────────────────────────────────


def test_a_fit_prints_each_warning_once_and_logs_it_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = DeadWatch(advice=True, rules=Rules(min_samples=50))
    fit([callback], tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("  advice: DW501 warning: ") == 1
    assert "\nAdvice: " in printed
    assert callback.report is not None
    assert "DW501" in {finding.id for finding in callback.report.findings}
    files = [path.read_bytes() for path in tmp_path.rglob("events*")]
    assert any(b"deadwatch/findings/text_summary" in content for content in files)


# ── several processes ───────────────────────────────────────────────────────────────────

SCRIPT = """
import json, sys, torch
import torch.distributed as dist
from pathlib import Path
from tests.test_advice_run import told_by_rank
rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
(folder / f"{rank}.json").write_text(json.dumps(told_by_rank(rank)))
dist.destroy_process_group()
"""


def told_by_rank(rank: int) -> list[Any]:
    """Findings and deaths of a run of which each rank has its own data; some units die in it."""
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(born_dead())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    source = torch.Generator().manual_seed(rank)
    told = []
    with Watch(model, optimizer=optimizer, advice=True, gradients=True) as watch:
        for window in range(4):
            for _ in range(5):
                x = torch.randn(120, 12, generator=source)
                loss = F.mse_loss(model(x), x[:, :5])
                if window == 2:
                    loss = loss + 20 * model.module[0](x).sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss)
            report = watch.close_window()
            told.append([list(map(str, report.findings)), list(map(repr, report.deaths))])
    return told


def test_all_ranks_hold_the_same_advice(tmp_path: Path) -> None:
    run_ranks(SCRIPT, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    findings, deaths = first[-1]
    assert any("DW501" in text for text in findings)
    assert len(deaths) > 1
