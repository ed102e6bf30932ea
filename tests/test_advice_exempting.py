"""The fix of DW301 takes weight decay off biases and norms in an optimizer that is in use."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from deadwatch import NoBiasDecay, advise
from tests.advised import by, changed, rows, values


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Small(nn.Module):
    """A network with a norm, and an order of parameters in which biases and weights alternate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(12, 16), nn.BatchNorm1d(16)
        self.act, self.last = nn.ReLU(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.act(self.norm(self.first(x))))
        return out


SPARED = {"first.bias", "norm.weight", "norm.bias", "last.bias"}


def one_group(kind: type[Any], **options: Any) -> Callable[[nn.Module], Optimizer]:
    def build(model: nn.Module) -> Optimizer:
        made: Optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.1, **options)
        return made

    return build


def groups(kind: type[Any], **options: Any) -> Callable[[nn.Module], Optimizer]:
    def build(model: nn.Module) -> Optimizer:
        parts = [list(part.parameters()) for part in model.children()]
        own = [{"params": part, "lr": 0.01 * (i + 1)} for i, part in enumerate(parts) if part]
        made: Optimizer = kind(own, lr=0.01, weight_decay=0.1, **options)
        return made

    return build


BUILDS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "SGD": one_group(SGD, momentum=0.9),
    "Adam": one_group(Adam),
    "AdamW": one_group(AdamW),
    "AdamW in groups": groups(AdamW),
    "SGD in groups": groups(SGD, momentum=0.9),
}


def step(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    model(rows(64, features=12)).square().mean().backward()
    optimizer.step()


def warmed(build: Callable[[nn.Module], Optimizer]) -> tuple[nn.Module, Optimizer]:
    """A model and an optimizer that have taken some steps."""
    model = Small()
    optimizer = build(model)
    for _ in range(3):
        step(model, optimizer)
    return model, optimizer


def fixed(model: nn.Module, *optimizers: Optimizer) -> list[str]:
    return [one.fix() for one in by("DW301", advise(model, optimizer=optimizers))]


def idle(model: nn.Module, optimizer: Optimizer) -> set[str]:
    """The parameters that a step without any gradient moves: those that decay, under AdamW."""
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    for one in model.parameters():
        one.grad = torch.zeros_like(one)
    optimizer.step()
    return {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}


def raised(model: nn.Module) -> nn.Module:
    """The model with no parameter at zero, from where decay could not move it."""
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.5)
    return model


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_from_the_next_step_on_weights_decay_and_biases_and_norms_do_not(kind: type[Any]) -> None:
    model = raised(Small())
    twin = copy.deepcopy(model)
    optimizer = one_group(kind)(model)
    assert fixed(model, optimizer)
    assert idle(model, optimizer) == {"first.weight", "last.weight"}
    assert idle(twin, one_group(kind)(twin)) == {"first.weight", "last.weight"} | SPARED


@pytest.mark.parametrize("name", BUILDS)
def test_groups_and_state_of_the_optimizer_stay_as_they_are(name: str) -> None:
    model, optimizer = warmed(BUILDS[name])
    before = copy.deepcopy(optimizer.state_dict())
    own = list(optimizer.param_groups)
    held = [list(group["params"]) for group in own]
    (told,) = fixed(model, optimizer)
    assert "no weight decay on 4 biases and norm parameters" in told
    for _ in range(2):
        assert all(group is one for group, one in zip(optimizer.param_groups, own, strict=True))
        for group, params in zip(own, held, strict=True):
            assert all(a is b for a, b in zip(group["params"], params, strict=True))
            assert group["weight_decay"] == 0.1
        step(model, optimizer)
    model, optimizer = warmed(BUILDS[name])
    fixed(model, optimizer)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, state in before["state"].items():
        assert state.keys() == after["state"][index].keys()


@pytest.mark.parametrize("name", BUILDS)
def test_the_state_is_equal_to_the_bit_before_the_next_step(name: str) -> None:
    model, optimizer = warmed(BUILDS[name])
    before = copy.deepcopy(optimizer.state_dict()["state"])
    weights = values(model)
    fixed(model, optimizer)
    assert not changed(model, weights)
    now = optimizer.state_dict()["state"]
    assert now.keys() == before.keys()
    for index, state in before.items():
        for key, value in state.items():
            same = torch.equal(value, now[index][key]) if torch.is_tensor(value) else True
            assert same, key


@pytest.mark.parametrize("name", BUILDS)
def test_training_is_from_then_on_that_of_groups_without_decay(name: str) -> None:
    """To the bit, against an optimizer whose spared parameters have a group of their own."""
    model, optimizer = warmed(BUILDS[name])
    twin, other = copy.deepcopy((model, optimizer))
    fixed(model, optimizer)
    names = {id(one): name for name, one in twin.named_parameters()}
    for group in list(other.param_groups):
        spared = [one for one in group["params"] if names[id(one)] in SPARED]
        group["params"] = [one for one in group["params"] if names[id(one)] not in SPARED]
        other.param_groups.append({**group, "params": spared, "weight_decay": 0.0})
    other.param_groups[:] = [group for group in other.param_groups if group["params"]]
    for _ in range(4):
        step(model, optimizer)
        step(twin, other)
    assert not changed(model, values(twin))


@pytest.mark.parametrize("name", BUILDS)
def test_applied_twice_it_is_as_applied_once_and_nothing_is_left_to_find(name: str) -> None:
    model, optimizer = warmed(BUILDS[name])
    twin, other = copy.deepcopy((model, optimizer))
    (finding,) = by("DW301", advise(model, optimizer=optimizer))
    assert finding.fix() == finding.fix()
    fixed(twin, other)
    assert not by("DW301", advise(model, optimizer=optimizer))
    for _ in range(3):
        step(model, optimizer)
        step(twin, other)
    assert not changed(model, values(twin))
    assert not by("DW301", advise(model, optimizer=optimizer))


def test_the_code_does_what_the_fix_does() -> None:
    model, optimizer = warmed(one_group(AdamW))
    twin, other = copy.deepcopy((model, optimizer))
    fixed(model, optimizer)
    NoBiasDecay().exempt(twin, other)
    step(model, optimizer)
    step(twin, other)
    assert not changed(model, values(twin))
    assert not by("DW301", advise(twin, optimizer=other))


def test_several_optimizers_are_fixed_each_by_its_own_finding() -> None:
    model = Small()
    raised(model)
    first = AdamW([*model.first.parameters(), *model.norm.parameters()], weight_decay=0.1)
    second = SGD(model.last.parameters(), lr=0.01, weight_decay=0.1)
    found = {f.where: f for f in by("DW301", advise(model, optimizer=[first, second]))}
    found["last.bias",].fix()
    (left,) = by("DW301", advise(model, optimizer=[first, second]))
    assert left.where == ("first.bias", "norm.weight", "norm.bias")
    left.fix()
    assert not by("DW301", advise(model, optimizer=[first, second]))
    moved = idle(model, first) | idle(model, second)
    assert moved == {"first.weight", "last.weight"}


def test_schedulers_go_on_with_all_parameters() -> None:
    rates = []
    for fix in (False, True):
        model, optimizer = warmed(groups(SGD, momentum=0.9))
        schedule = OneCycleLR(optimizer, [0.1, 0.2, 0.3], total_steps=9)
        if fix:
            fixed(model, optimizer)
        for _ in range(6):
            step(model, optimizer)
            schedule.step()
        rates.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
        optimizer.load_state_dict(optimizer.state_dict())
    assert rates[0] == rates[1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_of_the_optimizer_decay_as_before(
    copied: Callable[[Any], tuple[nn.Module, Optimizer]],
) -> None:
    model = raised(Small())
    optimizer = one_group(AdamW)(model)
    fixed(model, optimizer)
    twin, other = copied((model, optimizer))
    assert not by("DW301", advise(model, optimizer=optimizer))
    (finding,) = by("DW301", advise(twin, optimizer=other))
    assert idle(twin, other) >= SPARED
    finding.fix()  # as in a run that is resumed
    assert not idle(twin, other) & SPARED
    assert not idle(model, optimizer) & SPARED
