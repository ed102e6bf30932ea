"""A scan finds what theory says is dead at birth, and leaves no trace on what it looks at."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deadwatch import ConfigError, Rules, State, Watch, WindowReport, scan

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
ONCE = Rules(min_samples=1)


class Net(nn.Module):
    """Counts its batches, normalises, drops out, and draws from every random stream."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.norm, self.relu = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU()
        self.drop, self.down = nn.Dropout(), nn.Linear(16, 5)
        self.register_buffer("calls", torch.zeros(1))
        self.fail_at = -1

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        random.random()
        np.random.rand()
        self.calls = self.calls + 1  # a new tensor, where batch norm writes in place
        h = F.gelu(self.down(self.drop(self.relu(self.norm(self.up(scale * x))))))
        if self.calls == self.fail_at:
            raise RuntimeError("on purpose")
        return h


pytestmark = pytest.mark.usefixtures("nothing_stays_behind")


def samples(report: WindowReport) -> dict[str, int]:
    return {name: site.samples for name, site in report.items()}


# ── nothing changes ─────────────────────────────────────────────────────────────────────


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a scan might change; tensors by value, identity and history."""
    kept: dict[str, Any] = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "gradients": torch.is_grad_enabled(),
    }
    for path, module in model.named_modules():
        kept[f"{path}: mode"] = module.training
        kept[f"{path}: attributes"] = list(vars(module))
        kept[f"{path}: hooks"] = (len(module._forward_hooks), len(module._forward_pre_hooks))
    for name, p in model.named_parameters():
        kept[name] = (id(p), p.tolist(), p._version, p.requires_grad, id(p.grad))
        kept[f"{name}.grad"] = None if p.grad is None else p.grad.tolist()
    for name, buffer in model.named_buffers():
        kept[name] = (id(buffer), buffer.tolist())
    return kept


def trained() -> Net:
    """With gradients, a frozen layer, and a part in evaluation mode."""
    model = Net()
    model(X).sum().backward()
    model.up.weight.requires_grad_(False)
    model.norm.eval()
    return model


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_a_scan_leaves_no_trace(mode: str, context: Callable[[], Any]) -> None:
    model = trained()
    if mode != "mixed":
        model.train(mode == "train")
    before = everything(model)
    with context():
        report = scan(model, [X, X[:5]])
    assert samples(report) == {"relu": 13, "gelu": 13}
    assert everything(model) == before
    model.train()(X).sum().backward()
    after = everything(model)
    assert {name for name in before if after[name] != before[name]} >= {
        *("torch", "numpy", "python", "calls", "down.weight.grad"),  # so the comparison can fail
    }


@pytest.mark.parametrize("fail_at", [1, 2])
def test_neither_does_one_that_fails(fail_at: int) -> None:
    model = trained()
    model.fail_at = fail_at + 1  # it was called once already
    before = everything(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        scan(model, [X, X, X])
    assert everything(model) == before


def test_batches_that_are_drawn_do_not_move_the_random_streams() -> None:
    model = Net()
    before = everything(model)
    first = scan(model, (torch.randn(8, 12) for _ in range(3)))
    assert everything(model) == before
    second = scan(model, (torch.randn(8, 12) for _ in range(3)))
    assert (first["relu"].mean == second["relu"].mean).all()


def test_batches_that_fail_and_change_modes_leave_no_trace() -> None:
    model = trained()

    def batches() -> Iterator[Tensor]:
        model.eval()
        yield X
        raise OSError("disk")

    before = everything(model)
    with pytest.raises(OSError, match="disk"):
        scan(model, batches())
    assert everything(model) == before


def test_a_watch_does_not_count_a_scan() -> None:
    model = Net()
    with Watch(model) as watch:
        model(X)
        scan(model, [X, X])
        model(X)
        assert samples(watch.peek()) == {"relu": 16, "gelu": 16}


# ── what can be scanned ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "batch",
    [X, (X, torch.zeros(8)), [X, torch.zeros(8)], {"x": X}, {"x": X, "scale": 1.0}],
    ids=["tensor", "tuple", "list", "mapping", "mapping of two"],
)
def test_kinds_of_batches(batch: Any) -> None:
    model = Net()
    report = scan(model, [batch, batch])
    expected = scan(model, [X, X])
    assert samples(report) == {"relu": 16, "gelu": 16}
    assert (report["relu"].mean == expected["relu"].mean).all()
    assert (report.window.index, report.window.first_step, report.window.last_step) == (0, 0, 1)


def test_a_forward_of_ones_own() -> None:
    model = Net().eval()
    report = scan(model, [{"input": X}], forward=lambda net, batch: net(batch["input"], scale=0.0))
    assert (report["relu"].std < 1e-6).all()


def test_all_statistics_are_taken_of_every_batch() -> None:
    model = nn.Sequential(nn.ReLU())
    report = scan(model, [X + index for index in range(12)])
    z = torch.cat([X + index for index in range(12)]).double().numpy()
    np.testing.assert_allclose(report["0"].mean, z.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(report["0"].open_fraction, (z > 0).mean(0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", ["wrapped", "in place", "a part"])
def test_compiled_models(way: str, training: bool) -> None:
    gc.collect()  # watches that other tests have left attached
    torch._dynamo.reset()
    model = Net().train(training)
    call: Any = model
    if way == "wrapped":
        call = torch.compile(model, backend="eager")
    elif way == "in place":
        model.compile(backend="eager")
    else:
        model.relu = torch.compile(model.relu, backend="eager")
    call(X)
    before = everything(model)
    report = scan(call, [X, X, X])
    assert samples(report) == {"relu": 24, "gelu": 24}
    assert everything(model) == before
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    call(X)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # its own graphs
    torch._dynamo.reset()


def test_include_and_rules_are_those_of_a_watch() -> None:
    model = Net()
    with torch.no_grad():
        model.norm.bias[:2] = -100
    assert set(scan(model, [X], include="relu")) == {"relu"}
    assert (scan(model, [X])["relu"].state[:2] == State.UNCERTAIN).all()
    assert scan(model, [X], rules=ONCE)["relu"].dead[:2].all()


def test_arguments_that_are_refused() -> None:
    model = Net()
    with pytest.raises(ConfigError, match="batches is empty; expected at least one batch"):
        scan(model, [])
    with pytest.raises(ConfigError, match=r"model is 'function'; expected a torch\.nn\.Module"):
        scan(scan, [X])
    with pytest.raises(ConfigError, match="forward is 'model'; expected a function of the model"):
        scan(model, [X], forward="model")
    with pytest.raises(ConfigError, match="lazy parameters, which its first forward would init"):
        scan(nn.Sequential(nn.LazyLinear(3), nn.ReLU()), [X])
    with pytest.raises(ConfigError, match="include pattern 'nothing' matches no activation"):
        scan(model, [X], include="nothing")
    with pytest.raises(ConfigError, match=r"rules is 3; expected deadwatch\.Rules"):
        scan(model, [X], rules=3)


# ── theory ──────────────────────────────────────────────────────────────────────────────
# Symmetric weights, no biases. On one input a unit is closed with probability 1/2.


def assert_binomial(found: int, draws: int, probability: float) -> None:
    spread = math.sqrt(draws * probability * (1 - probability))
    assert abs(found - draws * probability) <= 4 * spread
    assert 2 < 4 * spread < draws / 3  # the interval excludes something


@pytest.mark.parametrize(("inputs", "dim"), [(1, 3), (2, 1), (3, 5), (5, 2), (6, 8)])
def test_units_with_inputs_of_their_own_are_dead_by_chance(inputs: int, dim: int) -> None:
    """M symmetric inputs are all on the closed side of a unit with probability 2^−M."""
    units = 8000
    torch.manual_seed(inputs)
    layer = nn.Conv1d(units * dim, units, 1, groups=units, bias=False)
    nn.init.normal_(layer.weight)
    report = scan(
        nn.Sequential(layer, nn.ReLU()), [torch.randn(inputs, units * dim, 1)], rules=ONCE
    )
    assert report["1"].samples == inputs
    assert_binomial(int(report["1"].dead.sum()), units, 2.0**-inputs)


@pytest.mark.parametrize(("inputs", "dim"), [(4, 2), (5, 3), (4, 4), (3, 1)])
def test_units_that_share_inputs_die_as_wendel_and_cover_count(inputs: int, dim: int) -> None:
    """M inputs in general position, under all 2^M flips of their signs.

    Each unit is dead under one flip exactly, and a layer wide enough holds dead units under
    2 Σ_{k<d} C(M−1, k) flips (Wendel 1962, Cover 1965).
    """
    torch.manual_seed(0)
    units = 4096
    model = nn.Sequential(nn.Linear(dim, units, bias=False), nn.ReLU())
    nn.init.normal_(model[0].weight)
    x = torch.randn(inputs, dim)
    flips = torch.tensor(list(product((1.0, -1.0), repeat=inputs)))
    dead = np.stack([scan(model, [flip[:, None] * x], rules=ONCE)["1"].dead for flip in flips])
    assert (dead.sum(0) == 1).all()
    assert dead.any(1).sum() == 2 * sum(math.comb(inputs - 1, k) for k in range(dim))


@pytest.mark.parametrize(("width", "depth"), [(1, 2), (2, 4), (3, 6), (5, 10)])
def test_networks_are_born_dead_as_often_as_theory_says(width: int, depth: int) -> None:
    """One input through H layers of N units: 1 − (1 − 2^−N)^H (after Lu et al. 2019)."""
    networks = 3000  # side by side, as the groups of convolutions
    torch.manual_seed(width)
    layers: list[nn.Module] = []
    for _ in range(depth):
        channels = networks * width
        layer = nn.Conv1d(channels, channels, 1, groups=networks, bias=False)
        nn.init.normal_(layer.weight)
        layers += [layer, nn.ReLU()]
    report = scan(nn.Sequential(*layers), [torch.randn(1, channels, 1)], rules=ONCE)
    last = report[str(2 * depth - 1)].dead.reshape(networks, width).all(1)
    assert_binomial(int(last.sum()), networks, 1 - (1 - 2.0**-width) ** depth)
    some = [report[str(i)].dead.reshape(networks, width).all(1) for i in range(1, 2 * depth, 2)]
    np.testing.assert_array_equal(np.any(some, 0), last)  # what is dead stays dead


def test_so_are_networks_drawn_one_by_one() -> None:
    born_dead = 0
    for seed in range(64):
        torch.manual_seed(seed)
        layers = [nn.Linear(2, 2) for _ in range(3)]
        for layer in layers:
            nn.init.zeros_(layer.bias)
        model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
        report = scan(model, [torch.randn(1, 2)], rules=ONCE)
        born_dead += any(site.dead.all() for site in report.values())
    assert_binomial(born_dead, 64, 1 - (1 - 2.0**-2) ** 3)


def test_a_bare_tensor_is_not_taken_for_batches() -> None:
    with pytest.raises(ConfigError, match=r"batches is a tensor of shape \(4, 2\).*such as \[x\]"):
        scan(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(4, 2))


def test_too_few_samples_are_said_to_be_too_few() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU())
    with torch.no_grad():
        model[0].bias[:3] = -99
    report = scan(model, [torch.ones(64, 2)])
    assert report.dead == 0
    (note,) = report.notes
    assert note.startswith("1: ")
    assert note.endswith("on 64 elements so far; they are judged from 300 on")
