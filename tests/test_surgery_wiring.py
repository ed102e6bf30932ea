"""Surgery on groups, sums, tied parameters and whole dead chains: exactly these rows, or none."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torch.nn.utils.parametrizations import spectral_norm

from deadwatch import (
    BiasWarming,
    Policy,
    Recycle,
    Remedy,
    Restandardize,
    Rules,
    State,
    ThermalKick,
    Watch,
    WindowReport,
)
from tests.clinic import changed
from tests.surgeon import Theatre
from tests.wired import WIRED, Net, sums


def treated(
    model: nn.Module, x: Tensor, remedy: Remedy, parameters: Any = None, **policy: Any
) -> WindowReport:
    """The report of one window, with a remedy for whatever is dead."""
    optimizer = torch.optim.SGD(parameters or list(model.parameters()), lr=0.1)
    options = {"when": 0.0, "guard": False} | policy
    rules = Rules(min_samples=1)
    with Watch(model, optimizer=optimizer, policy=Policy(remedy, **options), rules=rules) as watch:
        model(x)
        return watch.close_window()


def kill(model: nn.Module, bias: str, units: list[int]) -> None:
    with torch.no_grad():
        model.get_parameter(bias)[units] = -99


def clones(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def conv_pair(first: nn.Module, last: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, nn.ReLU(), last)


SIGNALS = torch.randn(30, 4, 6, generator=torch.Generator().manual_seed(1))
X = torch.randn(200, 12, generator=torch.Generator().manual_seed(1))


# ── groups ──────────────────────────────────────────────────────────────────────────────────


def test_a_reader_in_groups_is_silenced_in_the_rows_of_each_group_alone() -> None:
    torch.manual_seed(0)
    model = conv_pair(nn.Conv1d(4, 8, 1), nn.Conv1d(8, 6, 2, groups=2))
    kill(model, "0.bias", [1, 5, 6])
    before = clones(model)
    (treatment,) = treated(model, SIGNALS, Recycle()).treatments
    expected = torch.zeros(6, 4, 2, dtype=torch.bool)
    expected[:3, 1] = True  # unit 1 is input 1 of the first group
    expected[3:, [1, 2]] = True  # units 5 and 6 are inputs 1 and 2 of the second
    assert torch.equal(model[2].weight.detach() != before["2.weight"], expected)
    assert not model[2].weight[expected].any()
    silenced = [c for c in treatment.changes if c.tensor == "2.weight" and not c.state]
    assert [(c.rows, c.index.tolist()) for c in silenced] == [
        (range(3), [1]),
        (range(3, 6), [1, 2]),
    ]


def test_a_transposed_convolution_in_groups_gets_new_columns_in_its_groups_alone() -> None:
    torch.manual_seed(0)
    model = conv_pair(nn.ConvTranspose1d(4, 8, 2, groups=2), nn.Conv1d(8, 3, 1))
    kill(model, "0.bias", [1, 4])
    before = clones(model)
    treated(model, SIGNALS, Recycle())
    expected = torch.zeros(4, 4, 2, dtype=torch.bool)
    expected[:2, 1] = expected[2:, 0] = True
    assert torch.equal(model[0].weight.detach() != before["0.weight"], expected)


def test_a_restart_takes_live_slices_of_the_same_group_for_its_model() -> None:
    setting = next(setting for setting in WIRED if setting.name == "grouped-reader")
    with Theatre(setting) as theatre:
        report = theatre.reports["1"]
        assert report.state.tolist() == [State.DEAD] * 2 + [State.ALIVE] * 6
        _, restarts, _ = theatre.case(report, [0, 1]).silence(True)
    (restart,) = restarts
    assert (restart.tensor, restart.axis, restart.rows) == ("2.weight", 1, range(3))
    assert (restart.index.tolist(), restart.live.tolist()) == ([0, 1], [2, 3])


# ── sums ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("remedy", [Recycle(), ThermalKick(), Restandardize()], ids=str)
def test_the_rows_of_all_summands_are_treated(remedy: Remedy) -> None:
    torch.manual_seed(0)
    model = sums()()
    kill(model, "up1.bias", [2])
    before = clones(model)
    out = model(X)
    (treatment,) = treated(model, X, remedy).treatments
    torch.testing.assert_close(model(X), out)
    masks = changed(before, clones(model))
    assert set(masks) == {"up1.weight", "up1.bias", "up2.weight", "up2.bias", "down.weight"}
    for name in set(masks) - {"down.weight"}:
        assert np.flatnonzero(masks[name].reshape(8, -1).any(1)).tolist() == [2], name
    assert treatment.quiet


def test_summands_of_the_same_shape_are_not_drawn_alike() -> None:
    torch.manual_seed(0)
    model = sums()()
    kill(model, "up1.bias", [2])
    treated(model, X, Recycle())
    one, other = model.get_parameter("up1.weight"), model.get_parameter("up2.weight")
    assert not torch.equal(one[2], other[2])


def pre_activation(model: nn.Module) -> Tensor:
    up1, up2 = model.get_submodule("up1"), model.get_submodule("up2")
    total: Tensor = up1(X) + up2(X)
    return total.detach()


def test_warming_a_sum_lifts_one_bias_by_gamma() -> None:
    torch.manual_seed(0)
    model = sums()()
    kill(model, "up1.bias", [2])
    before = pre_activation(model)
    with pytest.warns(UserWarning, match="watching ended while 1 units were being warmed"):
        report = treated(model, X, BiasWarming(gamma=50.0))
    written = [c.tensor for c in report.treatments[0].changes if not c.state]
    assert written == ["down.weight", "up1.bias"]
    before[:, 2] += 50
    torch.testing.assert_close(pre_activation(model), before)


def half_frozen() -> nn.Module:
    torch.manual_seed(0)
    model = sums()()
    kill(model, "up1.bias", [2])
    model.get_submodule("up1").requires_grad_(False)
    return model


def test_a_frozen_summand_leaves_the_shift_to_another() -> None:
    model = half_frozen()
    trainable = [p for p in model.parameters() if p.requires_grad]
    with pytest.warns(UserWarning, match="watching ended while 1 units were being warmed"):
        report = treated(model, X, BiasWarming(quiet=False), trainable)
    assert [c.tensor for c in report.treatments[0].changes if not c.state] == ["up2.bias"]


@pytest.mark.parametrize("remedy", [Recycle(), ThermalKick(), Restandardize()], ids=str)
def test_a_frozen_summand_cannot_be_redrawn(remedy: Remedy) -> None:
    model = half_frozen()
    trainable = [p for p in model.parameters() if p.requires_grad]
    (refusal,) = treated(model, X, remedy, trainable).refusals
    assert refusal.reason == "up1.weight is frozen"


def test_a_skip_stays_and_is_told() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        out: Tensor = net.down(net.act(net.up(x) + net.before(net.stem(x))))
        return out

    torch.manual_seed(0)
    layers = {"stem": nn.Linear(12, 8), "before": nn.ReLU(), "up": nn.Linear(12, 8)}
    model = Net(forward, **layers, act=nn.ReLU(), down=nn.Linear(8, 5))
    kill(model, "up.bias", [2])
    report = treated(model, X, Recycle())
    note = {treatment.site: treatment.note for treatment in report.treatments}["act"]
    assert note == "rows of up drawn afresh; <skip from before> adds to them as before"


# ── tied and derived parameters ─────────────────────────────────────────────────────────────


class Tied(nn.Module):
    """An autoencoder; ``link`` says how the decoder comes by its weight."""

    def __init__(self, link: Callable[[nn.Linear, nn.Linear], None], run: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.act, self.down = nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12)
        self.head, self.run = nn.Linear(12, 3), run
        link(self.up, self.down)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.up(x))
        out: Tensor = self.head(self.down(hidden) if self.run else hidden)
        return out


def same(up: nn.Linear, down: nn.Linear) -> None:
    down.weight = up.weight


def transposed(up: nn.Linear, down: nn.Linear) -> None:
    down.weight = nn.Parameter(up.weight.detach().t())


def by_data(up: nn.Linear, down: nn.Linear) -> None:
    down.weight.data = up.weight.data


TIED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "used-in-both": (lambda: Tied(same), "up.weight is used in 2 places (it is down.weight as w"),
    "used-in-one": (lambda: Tied(same, run=False), "up.weight is tied to down.weight"),
    "transposed": (lambda: Tied(transposed), "down.weight is tied to up.weight"),
    "by-data": (lambda: Tied(by_data, run=False), "up.weight is tied to down.weight"),
}


@pytest.mark.parametrize("name", TIED)
def test_tied_parameters_are_refused_with_the_name_of_the_other(name: str) -> None:
    build, reason = TIED[name]
    model = build()
    kill(model, "up.bias", [2])
    before = clones(model)
    report = treated(model, X, Recycle(), {id(p): p for p in model.parameters()}.values())
    assert not report.treatments
    assert reason in report.refusals[0].reason
    assert not changed(before, clones(model))


def test_a_module_that_stands_at_two_places_but_runs_once_is_treated() -> None:
    model = Tied(lambda up, down: None, run=False)
    model.alias = model.up
    kill(model, "up.bias", [2])
    assert treated(model, X, Recycle()).treatments[0].units.tolist() == [2]


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return weight_norm(layer)


DERIVED = [parametrizations.weight_norm, spectral_norm, old_weight_norm]


@pytest.mark.parametrize("derive", DERIVED, ids=lambda f: f.__name__)
def test_weights_that_are_computed_from_others_are_refused(
    derive: Callable[[nn.Module], nn.Module],
) -> None:
    torch.manual_seed(0)
    for first, reason in ((True, "the weight of its linear layer is"), (False, "not all layers")):
        layers = nn.Linear(12, 8), nn.Linear(8, 3)
        up, down = (derive(layers[0]), layers[1]) if first else (layers[0], derive(layers[1]))
        model = nn.Sequential(up, nn.ReLU(), down)
        kill(model, "0.bias", [2])
        (refusal,) = treated(model, X, Recycle()).refusals
        assert reason in refusal.reason
        assert "is not a parameter of the model" in refusal.reason


def test_lazy_layers_are_treated_once_they_have_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    model(X)
    kill(model, "0.bias", [2])
    out = model(X)
    assert treated(model, X, Recycle()).treatments[0].units.tolist() == [2]
    torch.testing.assert_close(model(X), out)


# ── whole layers, and networks dead from birth ──────────────────────────────────────────────


def born_dead(layers: int = 8, width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [12, *[width] * layers]
    chain: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        chain += [nn.Linear(inputs, outputs), nn.ReLU()]
        nn.init.constant_(chain[-2].bias, -3)
    return nn.Sequential(*chain, nn.Linear(width, 2))


@pytest.mark.parametrize("remedy", [Recycle(), Restandardize(quiet=True)], ids=str)
def test_a_dead_chain_treated_in_one_window_gives_what_it_gave(remedy: Remedy) -> None:
    model = born_dead()
    out = model(X)
    assert treated(model, X, remedy).treatments
    torch.testing.assert_close(model(X), out, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("remedy", [None, Recycle(), Restandardize()], ids=str)
def test_a_network_dead_from_birth_learns_once_it_is_treated(remedy: Remedy | None) -> None:
    model = born_dead()
    target = (X[:, 0] + X[:, 1] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    policy = None if remedy is None else Policy(remedy, when=0.0, guard=False)
    rules = Rules(min_samples=1)
    with Watch(
        model, optimizer=optimizer, policy=policy, rules=rules, stats_every_n_steps=1
    ) as watch:
        for step in range(600):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), target).backward()
            optimizer.step()
            watch.step()
            if step % 20 == 19 and step < 400:
                watch.close_window()
    accuracy = float((model(X).argmax(1) == target).float().mean())
    assert accuracy > 0.9 if remedy else accuracy < 0.7
