"""The gauges behind the advice: updates, openings and rates, against copies of everything."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deadwatch import ConfigError, DeadWatch, Recycle, Remedy, Swap, ThermalKick, Watch
from deadwatch.observe.gauges import Gauging
from deadwatch.observe.updates import SAMPLES, Updates
from deadwatch.records import Gauges, WindowReport
from deadwatch.treat.guard import LOOK
from tests import nets
from tests.clinic import Patient
from tests.dispatches import counted
from tests.fitting import fit
from tests.resuming import same


class Oracle:
    """Full copies of all weights, before and after every step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.ratios: dict[str, dict[int, float]] = {}
        self.before = self.copied()

    def copied(self) -> dict[str, Tensor]:
        found = self.model.named_parameters()
        return {n: p.detach().double().clone() for n, p in found if p.ndim >= 2}

    def step(self, step: int) -> None:
        for name, now in self.copied().items():
            was = self.before[name]
            if not torch.equal(now, was):
                size = max(float(now.norm()), float(was.norm()))
                self.ratios.setdefault(name, {})[step] = float((now - was).norm()) / size
        self.before = self.copied()


def train(
    model: nn.Module,
    watch: Watch,
    steps: int,
    oracle: Oracle | None = None,
    optimizer: Any = None,
    each: int = 1,
    before: Callable[[int], None] = lambda step: None,
) -> None:
    """Plain training; the optimizer steps every ``each`` batches."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        step = watch.steps
        before(step)
        if oracle is not None:
            oracle.before = oracle.copied()
        generator = torch.Generator().manual_seed(step)
        loss = model(torch.randn(20, 12, generator=generator)).square().mean()
        loss.backward()
        if (step + 1) % each == 0:
            optimizer.step()
            optimizer.zero_grad()
        if oracle is not None:
            oracle.step(step)
        watch.step(loss)


def gauges_of(report: WindowReport) -> Gauges:
    assert type(report.gauges) is Gauges
    return report.gauges


def assert_updates(gauges: Gauges, oracle: Oracle, rel: float = 1e-6) -> None:
    assert gauges.updates.keys() == oracle.ratios.keys()
    for name, update in gauges.updates.items():
        ratios = oracle.ratios[name]
        assert update.steps == len(ratios)
        assert update.mean == pytest.approx(np.mean(list(ratios.values())), rel=rel)
        assert update.peak == pytest.approx(max(ratios.values()), rel=rel)
        if rel < 1e-3:
            assert ratios[update.peak_step] == pytest.approx(max(ratios.values()), rel=1e-6)


def test_without_advice_there_are_no_gauges() -> None:
    model = nets.mlp()
    with Watch(model) as watch:
        train(model, watch, 2)
        assert watch.close_window().gauges is None


@pytest.mark.parametrize("argument", ["advice", "gradients"])
def test_the_switches_are_booleans(argument: str) -> None:
    with pytest.raises(ConfigError, match=f"{argument} is 'yes'; expected True to .*, or False"):
        Watch(nets.mlp(), **{argument: "yes"})


# ── updates ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_of_small_weights_are_those_of_full_copies(each: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nets.mlp()  # 192, 256 and 80 elements
    model[2].to(dtype)
    model[2].register_forward_pre_hook(lambda module, args: (args[0].to(dtype),))
    model[2].register_forward_hook(lambda module, args, output: output.float())
    with Watch(model, advice=True) as watch:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(2):
            oracle = Oracle(model)
            train(model, watch, 9, oracle, optimizer, each)
            assert_updates(gauges_of(watch.peek()), oracle)
            assert_updates(gauges_of(watch.close_window()), oracle)
        assert not gauges_of(watch.peek()).updates


def test_updates_of_large_weights_are_about_those_of_full_copies() -> None:
    torch.manual_seed(0)
    wide = nets.mlp(width=150)
    images = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40 * 2 * 1, 5))
    images = images.to(memory_format=torch.channels_last)
    views = nn.Sequential(nn.Unflatten(1, (1, 4, 3)), images)
    for model in (wide, views):
        oracle = Oracle(model)
        with Watch(model, advice=True) as watch:
            train(model, watch, 8, oracle)
            assert_updates(gauges_of(watch.close_window()), oracle, rel=0.25)


def test_a_sample_is_spread_over_rows_and_columns() -> None:
    updates, layer = Updates(), nn.Linear(512, 512)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, 0] = 1  # a column that a stride of 1024 would look at alone
    updates.survey(layer)
    updates.step(0, layer)
    with torch.no_grad():
        layer.weight.mul_(1.5)
    updates.step(1, layer)
    (group,) = updates._groups
    assert 0 < int((group.old != 0).sum()) <= SAMPLES / 100


def test_a_weight_whose_strides_leave_gaps_is_followed() -> None:
    layer = nn.Linear(64, 64)
    layer.weight = nn.Parameter(torch.randn(64, 128)[:, ::2])
    oracle, updates = Oracle(layer), Updates()
    updates.survey(layer)
    with torch.no_grad():
        layer.weight.add_(torch.randn(64, 64) * 0.01)
    oracle.step(7)
    updates.step(7, layer)
    moved = updates.fetch()["weight"]
    assert (moved.steps, moved.peak_step) == (1, 7)
    assert moved.peak == pytest.approx(oracle.ratios["weight"][7], rel=0.2)


def test_the_smallest_updates_are_seen() -> None:
    layer, updates = nn.Linear(4, 4), Updates()
    nn.init.constant_(layer.weight, 0.5)
    updates.survey(layer)
    with torch.no_grad():
        layer.weight.mul_(1 + 1e-6)
    updates.step(0, layer)
    assert updates.fetch()["weight"].peak == pytest.approx(1e-6, rel=0.1)


def test_a_weight_that_is_close_to_zero_yet_is_compared_with_what_is_usual() -> None:
    layer, updates = nn.Linear(4, 4), Updates()  # 0.3 / √fan_in is 0.15
    nn.init.zeros_(layer.weight)
    updates.survey(layer)
    with torch.no_grad():
        layer.weight.add_(0.03)
    updates.step(0, layer)
    assert updates.fetch()["weight"].peak == pytest.approx(0.2)


def _new_data(model: Any) -> None:
    model[2].weight.data = torch.randn(16, 16)


def _swap(model: Any) -> None:
    model[2] = nn.Linear(16, 16)


def _double(model: Any) -> None:
    model[2].double()
    model[2].register_forward_pre_hook(lambda module, args: (args[0].double(),))
    model[2].register_forward_hook(lambda module, args, output: output.float())


def _freeze(model: Any) -> None:
    model[2].weight.requires_grad_(False)


@pytest.mark.parametrize("change", [_new_data, _swap, _double, _freeze])
def test_what_replaces_a_parameter_is_no_update(change: Callable[[Any], None]) -> None:
    torch.manual_seed(0)
    model = nets.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def before(step: int) -> None:
        if step == 3:
            change(model)
            optimizer.param_groups[0]["params"] = list(model.parameters())

    with Watch(model, advice=True) as watch:
        train(model, watch, 6, optimizer=optimizer, before=before)
        updates = gauges_of(watch.close_window()).updates
        assert all(update.peak < 1e-2 for update in updates.values())
        assert updates["0.weight"].steps in (5, 6)
        train(model, watch, 2, optimizer=optimizer)
        known = gauges_of(watch.close_window()).updates
        assert known.keys() == {n for n, p in model.named_parameters() if "weight" in n} - (
            {"2.weight"} if change is _freeze else set()
        )


def test_weights_that_are_made_by_the_first_forward_are_followed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 2))
    with Watch(model, advice=True) as watch:
        watch.step()
        model(torch.randn(2, 12))
        watch.step()
        train(model, watch, 3)
        updates = gauges_of(watch.close_window()).updates
    assert {name: update.steps for name, update in updates.items()} == {
        "0.weight": 3,
        "2.weight": 3,
    }


@pytest.mark.parametrize("shape", [(24, 16), (2, 3, 4), (0, 5)])
def test_data_of_another_shape_are_no_update(shape: tuple[int, ...]) -> None:
    layer, updates = nn.Linear(16, 16), Updates()
    updates.survey(layer)
    layer.weight.data = torch.ones(shape)
    updates.step(0, layer)
    updates.step(1, layer)
    assert not updates.fetch()
    layer.weight.data.mul_(2)
    updates.step(2, layer)
    moved = updates.fetch()
    assert moved == ({"weight": (0.5, 1, 0.5, 2)} if 0 not in shape else {})


def test_a_weight_that_is_no_number_any_more_says_nothing() -> None:
    layer, updates = nn.Linear(4, 4), Updates()
    updates.survey(layer)
    for step, value in enumerate((torch.inf, torch.nan, 1.0)):
        nn.init.constant_(layer.weight, value)
        updates.step(step, layer)
    assert not updates.fetch()
    nn.init.constant_(layer.weight, 2.0)
    updates.step(3, layer)
    assert updates.fetch()["weight"] == (0.5, 1, 0.5, 3)


@pytest.mark.parametrize("remedy", [Recycle(), ThermalKick(), Swap("prelu")], ids=str)
def test_treatments_and_what_the_guard_takes_back_are_no_updates(remedy: Remedy) -> None:
    patient = Patient.of()
    watch = patient.watch(remedy)
    watch._taps._gauges = Gauging(training=True)
    watch.attach()
    for loss in [1.0, 1.01, 1.02] * 7:
        patient.model(patient.x)
        watch.step(loss)
    assert watch.close_window().treatments
    for loss in (1.0, *[9.0] * LOOK):
        watch.step(loss)
    assert any("undone" in note for note in watch._clinic.told())
    assert not gauges_of(watch.peek()).updates
    with torch.no_grad():
        watch._model[0].weight.mul_(1.5)
    watch.step(1.0)
    (update,) = gauges_of(watch.peek()).updates.values()
    assert update.peak == pytest.approx(1 / 3)
    assert update.steps == 1
    watch.detach()


def test_a_step_takes_as_many_launches_whatever_the_number_of_weights() -> None:
    def launches(layers: int) -> int:
        model, updates = nn.Sequential(*(nn.Linear(9, 9) for _ in range(layers))), Updates()
        updates.survey(model)
        with counted() as tally:
            updates.step(0, model)
        return sum(operation.is_launch for operation in tally.operations)

    assert launches(2) == launches(50) <= 19


# ── openings ────────────────────────────────────────────────────────────────────────────────


class Two(nn.Module):
    """A module and a function, the second only in odd steps."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)
        self.calls = 0
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        z = self.up(x)
        y = self.down(self.act(z))
        self.kept = {"act": z.detach()}
        self.calls += 1
        if self.calls % 2 == 0:
            self.kept["relu"] = y.detach()
            y = F.relu(y)
        out: Tensor = y
        return out


@pytest.mark.parametrize("every", [1, 3])
def test_last_open_is_that_of_a_brute_force_record(every: int) -> None:
    torch.manual_seed(0)
    model = Two()
    with torch.no_grad():
        model.up.bias[0] = -100.0
        model.up.bias[1:6] = -1.1  # open now and then
    sizes = {"act": 9, "relu": 4}
    last = {name: np.full(size, -1) for name, size in sizes.items()}
    with Watch(model, advice=True, stats_every_n_steps=every) as watch:
        for _ in range(3):
            due = dict.fromkeys(sizes, -1)
            for _ in range(7):
                step = watch.steps
                train(model, watch, 1)
                for name, z in model.kept.items():
                    if due[name] < 0 or step - due[name] >= every:
                        due[name] = step
                        last[name][(z > 0).any(0).numpy()] = step
            found = gauges_of(watch.close_window()).last_open
            assert found.keys() == sizes.keys()
            for name in sizes:
                assert found[name].tolist() == last[name].tolist()
    assert last["act"][0] == -1
    assert len(set(last["act"].tolist())) > 2


def test_last_open_is_read_from_compiled_graphs_too() -> None:
    torch.manual_seed(0)
    model = nets.mlp()
    with torch.no_grad():
        model[0].bias[0] = -100.0
        model[0].bias[1:6] = -1.1
    last: dict[str, Any] = {"1": np.full(16, -1), "3": np.full(16, -1)}
    compiled = torch.compile(model, backend="eager")
    with Watch(compiled, advice=True, stats_every_n_steps=3) as watch:
        for _ in range(2):
            for step in range(7):
                x = torch.randn(20, 12, generator=torch.Generator().manual_seed(watch.steps))
                for name in last if step % 3 == 0 else ():
                    with torch.no_grad():
                        z = copy.deepcopy(model)[: int(name)].eval()(x)
                    last[name][(z > 0).any(0).numpy()] = watch.steps
                train(compiled, watch, 1)
            found = gauges_of(watch.close_window()).last_open
            for name, expected in last.items():
                assert found[name].tolist() == expected.tolist()
    assert last["1"][0] == -1
    assert len(set(last["1"].tolist())) > 2


def test_under_lightning_all_gauges_are_read(tmp_path: Path) -> None:
    callback = DeadWatch(advice=True, gradients=True, window=4)
    fit([callback], tmp_path, accumulate_grad_batches=2)
    assert callback.report is not None
    gauges = gauges_of(callback.report)
    assert {update.steps for update in gauges.updates.values()} == {2}
    assert gauges.inputs.keys() == gauges.updates.keys()
    assert gauges.rows.keys() == gauges.gradients.keys() == gauges.last_open.keys()
    assert gauges.rates == ((1e-3, 1e-3),)


def test_rates_are_the_lowest_and_the_highest_of_the_window() -> None:
    model = nets.mlp()
    groups = [{"params": model[0].parameters(), "lr": 1.0}, {"params": model[2].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    with Watch(model, optimizer=optimizer, advice=True) as watch:
        for window in range(2):
            for rate in (1.0, 8.0, 2.0):
                optimizer.param_groups[0]["lr"] = rate + window
                model(nets.vectors())
                watch.step()
            expected = (1.0 + window, 8.0 + window), (0.5, 0.5)
            assert gauges_of(watch.close_window()).rates == expected
        assert gauges_of(watch.peek()).rates == ()


# ── a good guest ────────────────────────────────────────────────────────────────────────────


def _trained(advice: bool, autocast: bool, each: int, kind: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nets.mlp()
    optimizer = kind(model.parameters(), lr=0.01)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        Watch(model, advice=advice, gradients=advice) as watch,
    ):
        for _ in range(2):
            train(model, watch, 6, optimizer=optimizer, each=each)
            watch.close_window()
    return dict(model.state_dict())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("each", [1, 2])
def test_training_is_the_same_to_the_bit(kind: Any, autocast: bool, each: int) -> None:
    bare, gauged = (_trained(advice, autocast, each, kind) for advice in (False, True))
    assert same(bare, gauged)


def test_nothing_of_the_model_is_kept_after_detach() -> None:
    model = nets.mlp()
    watch = Watch(model, advice=True, gradients=True).attach()
    train(model, watch, 3)
    model.zero_grad(set_to_none=True)
    before = weakref.ref(model[0].weight)
    watch.detach()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    del model[0].weight
    gc.collect()
    assert before() is None
    assert len(gauges_of(watch.peek()).updates) == 3  # what was measured stays


def test_the_model_can_be_forgotten() -> None:
    model = nets.mlp()
    with Watch(model, advice=True, gradients=True) as watch:
        train(model, watch, 3)
    alive = weakref.ref(model)
    del model, watch
    gc.collect()
    assert alive() is None
