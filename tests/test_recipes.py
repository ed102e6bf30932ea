"""What `docs/dying.md` says and shows: each recipe in small, its tables, its code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import by_cause, harm
from benchmarks.quoting import quote
from benchmarks.results import load
from benchmarks.scenarios import mlp
from deadwatch import Watch, advise, scan
from deadwatch.judge.advice.rule import all_rules
from examples.recipes import (
    __main__ as recipes,
)
from examples.recipes import (
    attention_scorer,
    continual_learning,
    contrastive_encoder,
    gan_generator,
    sparse_autoencoder,
)
from examples.recipes.frame import Recipe, Run, digits, spread
from tests.fitting import lightning_remarks

ROOT = Path(__file__).parent.parent
DYING = (ROOT / "docs/dying.md").read_text()


def quick(recipe: Recipe[Any], capsys: pytest.CaptureFixture[str]) -> list[Run]:
    """One run of each arm, as the command makes them."""
    runs = recipe.main(["--quick"])
    printed = capsys.readouterr().out
    assert all(f"| {arm} " in printed for arm in recipe.arms)
    return [run for (run,) in runs.values()]


def test_a_gans_generator_loses_units_and_every_way_out_keeps_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ill, revived, slow, norm, both = quick(gan_generator.RECIPE, capsys)
    assert ill.dead > 0.12
    assert "DW601" in ill.advice
    assert max(revived.dead, slow.dead, norm.dead, both.dead) < 0.08
    assert revived.score < 1.1 * ill.score  # a distance, which so short a training leaves noisy


def test_frechet_is_0_for_the_same_and_the_shift_squared_for_a_shift() -> None:
    torch.manual_seed(0)
    real = digits()[0]
    assert gan_generator.frechet(real, real) == pytest.approx(0, abs=1e-3)
    assert gan_generator.frechet(real + 0.5, real) == pytest.approx(64 * 0.25, abs=1e-2)


def test_a_head_that_ends_in_a_relu_is_mended_by_taking_it_away(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ill, _, without, _ = quick(contrastive_encoder.RECIPE, capsys)
    assert "DW102" in ill.advice
    assert "DW102" not in without.advice
    assert without.score > ill.score + 3


def test_no_remedy_touches_an_embedding_that_the_loss_reads() -> None:
    torch.manual_seed(0)
    model, x = contrastive_encoder.encoder(ends_in_relu=True), digits()[0][:400]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    with Watch(model, optimizer=optimizer, policy="revive") as watch:
        for _ in range(2):
            loss = contrastive_encoder.contrastive(model(torch.cat([x, x])))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss)
        report = watch.close_window()
    assert report["7"].harmful
    reasons = [one.reason for one in report.refusals if one.site == "7"]
    assert any("read by code outside the forward" in reason for reason in reasons)
    assert not [one for one in report.treatments if one.site == "7"]


def test_an_attention_scorer_is_born_dead_and_comes_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ill, revived, without, both, healthy = quick(attention_scorer.RECIPE, capsys)
    assert ill.dead > 0.5
    assert max(ill.causes, key=lambda cause: ill.causes[cause]) == "birth"
    assert revived.dead < 0.3
    assert min(revived.score, both.score, healthy.score) > ill.score + 5
    assert without.dead > 0.8  # the hidden units are still closed
    assert without.score < ill.score + 2


def test_the_scorer_is_found_before_training() -> None:
    torch.manual_seed(0)
    x, _, y, _ = digits()
    model = attention_scorer.Pooling(relu=True, bias=-1.0)
    report = scan(model, [attention_scorer.bags(x, y, 500)[0]])
    found = {one.id for one in advise(model, report=report) if one.at_least("warning")}
    assert {"DW102", "DW104", "DW201", "DW203"} <= found


def test_latents_die_and_each_way_out_leaves_fewer_dead(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with lightning_remarks():
        ill, revived, grows, slow = quick(sparse_autoencoder.RECIPE, capsys)
    assert ill.dead > 0.25
    assert revived.dead < 0.7 * ill.dead
    assert grows.dead < 0.7 * ill.dead
    assert slow.dead < 0.05
    assert revived.score < ill.score  # a loss


def test_a_continual_run_loses_its_units_and_reviving_keeps_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ill, revived, leaky, _, slow = quick(continual_learning.RECIPE, capsys)
    assert ill.dead > 0.4
    assert revived.dead < 0.1
    assert leaky.dead == 0
    assert revived.score > ill.score + 1
    assert slow.score < ill.score  # in so short a time


def test_spread_is_mean_and_deviation() -> None:
    assert spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert spread([2.0]) == "2.0 ± 0.0"


def test_the_command_writes_a_recipes_table_into_the_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a recipe that takes no time."""
    run = Run(1.0, 0.5, frozenset({"DW303", "DW503"}), {"bias": 30, "data": 10, "birth": 1})
    recipe = Recipe("A name", "points", lambda arm, seed, small: run, {"one": None})
    monkeypatch.setitem(recipes.RECIPES, "gan_generator", recipe)
    written: dict[str, str] = {}
    monkeypatch.setattr(recipes, "write", written.__setitem__)
    recipes.main(["--only", "gan_generator", "--seeds", "2", "--write"])
    cells = [cell.strip() for cell in written["gan_generator"].splitlines()[-1].split("|")]
    assert cells[1:-1] == ["one", "1.0 ± 0.0", "50 ± 0 %", "bias 73%, data 24%", "DW303"]
    assert written["gan_generator"] in capsys.readouterr().out


def means(name: str, column: int = 2) -> list[float]:
    """The means of a recipe's table in the document, by default of its scores."""
    table = DYING.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]
    rows = [line.split("|") for line in table.splitlines() if "±" in line]
    return [float(row[column].split("±")[0]) for row in rows]


# ── the document ────────────────────────────────────────────────────────────────────────


def test_the_document_has_each_recipes_table_with_every_arm() -> None:
    for name, recipe in recipes.RECIPES.items():
        assert quote(DYING, name, "") != DYING
        table = DYING.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]
        rows = [line.split("|")[1].strip() for line in table.splitlines() if "|" in line]
        assert rows[2:] == list(recipe.arms)
        assert f"`examples/recipes/{name}.py`" in DYING


def test_the_measured_tables_bear_out_what_is_said_below_them() -> None:
    ill, revived, slow, norm, both = means("gan_generator")  # distances
    assert both < norm < slow < revived < ill
    assert norm < 0.5 * ill
    ill, revived, without, _ = means("contrastive_encoder")
    assert revived < ill + 1
    assert without > ill + 2
    ill, revived, without, both, healthy = means("attention_scorer")
    assert abs(without - ill) < 1
    assert min(both, healthy) > ill + 2
    ill, revived, grows, slow = means("sparse_autoencoder")  # losses
    assert slow < min(grows, revived)
    assert 0.35 < (ill - revived) / (ill - slow) < 0.65
    assert 0.35 < (ill - grows) / (ill - slow) < 0.65
    ill, revived, leaky, decay, slow = means("continual_learning")
    assert ill < min(slow, leaky) < decay < revived
    dead = means("continual_learning", column=3)
    assert dead[2] == 0
    assert abs(dead[3] - dead[0]) < 10


def harms() -> dict[int, list[tuple[float, float]]]:
    """By width, for each share: points above the whole network, left dead and revived."""
    table = DYING.partition("<!-- harm -->")[2].partition("<!-- /harm -->")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if "(" in line]
    cell = re.compile(r"([+-][\d.]+) \(([+-][\d.]+)\)")
    return {
        int(width): [(float(left), float(back)) for left, back in cell.findall("".join(cells))]
        for width, *cells in rows
    }


def test_harm_follows_the_live_units_left_and_reviving_undoes_it() -> None:
    found = harms()
    assert list(found) == list(harm.WIDTHS)
    left = {width: [points for points, _ in row] for width, row in found.items()}
    assert all(len(row) == len(harm.SHARES) for row in left.values())
    assert left[16][2] < -10 < -2 < left[64][2]  # at the same ratio
    assert min(back for row in found.values() for _, back in row) > -1.0


def test_what_is_killed_is_dead_and_stays_so() -> None:
    torch.manual_seed(0)
    x = digits()[0]
    model = mlp(nn.ReLU, (64, 16, 16, 10))
    harm.kill(model, 0.75)
    report = scan(model, [x])
    assert all(site.dead[:12].all() for site in report.values())
    assert not report["1"].dead[12:].any()
    nn.functional.cross_entropy(model(x), digits()[2]).backward()
    assert not model[0].weight.grad[:12].any()


def test_the_command_of_harm_prints_its_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, small in {"WIDTHS": (4,), "SHARES": (0.5,), "EPOCHS": 2, "KILLED_AFTER": 1}.items():
        monkeypatch.setattr(harm, name, small)
    harm.trained.cache_clear()
    harm.main(["--seeds", "1"])
    assert re.search(r"\| 4 +\| [+-][\d.]+ \([+-][\d.]+\) \|", capsys.readouterr().out)


def test_the_document_quotes_what_by_cause_prints() -> None:
    table = by_cause.table(load(by_cause.EFFICACY))
    assert quote(DYING, "causes", table) == DYING


def test_the_document_names_every_rule_and_no_other() -> None:
    assert set(re.findall(r"DW\d{3}", DYING)) == {one.id for one in all_rules()}


def test_the_links_of_the_document_lead_somewhere() -> None:
    heads = re.findall(r"^#+ (.*)$", DYING, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
    assert set(re.findall(r"\]\(#([^)]*)\)", DYING)) <= anchors
    readme = (ROOT / "README.md").read_text()
    assert "### What they do, measured" in readme
    assert "(docs/dying.md)" in readme


def test_the_code_of_the_document_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 8)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    assert isinstance(model[0], nn.Linear)
    nn.init.constant_(model[0].bias[:8], -20.0)
    scope: dict[str, Any] = {
        "model": model,
        "x": x,
        "loader": DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=50),
        "loss_function": nn.functional.cross_entropy,
        "optimizer": torch.optim.Adam(model.parameters()),
        "__name__": "dying",
    }
    blocks = re.findall(r"```python\n(.*?)```", DYING, re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        exec(compile(block, "dying.md", "exec", dont_inherit=True), scope)
    printed = capsys.readouterr().out
    assert "DW203 " in printed
    assert "DW501 " in printed
    assert "1 25% dead [" in printed
    # By hand: every dead unit reads anew and is not read yet, and no other was touched.
    dead = scope["dead"]
    assert dead.sum() == 8
    assert not model[2].weight[:, dead].any()
    assert model[2].weight[:, ~dead].all()
    assert not scan(model, [x])["1"].dead.any()
