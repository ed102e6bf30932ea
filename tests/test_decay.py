"""Exempt parameters do not decay, and nothing else about the optimizer changes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deadwatch.treat.optim import OptimizerState

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, momentum=0.9, foreach=False),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1),
}
every_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
X = torch.linspace(-1, 1, 12).view(4, 3)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.PReLU(5), nn.Linear(5, 2))


def biases(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.ndim == 1]


def weights(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.ndim == 2]


def backward(model: nn.Module) -> Tensor:
    model.zero_grad()
    loss: Tensor = model(X).square().sum()
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: Optimizer, steps: int = 5) -> None:
    for _ in range(steps):
        backward(model)
        optimizer.step()


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def layout(optimizer: Optimizer) -> list[Any]:
    """Every group and every parameter by identity, and their decay."""
    return [
        (id(group), [id(p) for p in group["params"]], set(group), group["weight_decay"])
        for group in optimizer.param_groups
    ]


def exempted(
    build: Callable[[Any], Optimizer] = OPTIMIZERS["sgd"],
) -> tuple[nn.Module, Optimizer, OptimizerState]:
    model = net()
    optimizer = build(model.parameters())
    state = OptimizerState([optimizer])
    state.exempt(biases(model))
    return model, optimizer, state


# ── what it does ────────────────────────────────────────────────────────────────────────


@every_optimizer
def test_it_is_bit_equal_to_a_group_without_decay(build: Callable[[Any], Optimizer]) -> None:
    model, optimizer, _ = exempted(build)
    truth, decayed = net(), net()
    groups = [{"params": weights(truth)}, {"params": biases(truth), "weight_decay": 0}]
    train(model, optimizer)
    train(truth, build(groups))
    train(decayed, build(decayed.parameters()))
    assert equal(model, truth)
    assert not equal(model, decayed)


@every_optimizer
def test_a_group_may_be_exempt_as_a_whole(build: Callable[[Any], Optimizer]) -> None:
    model, truth = net(), net()
    groups = [{"params": weights(model)}, {"params": biases(model)}]
    optimizer = build(groups)
    OptimizerState([optimizer]).exempt(biases(model))
    other = build([{"params": weights(truth)}, {"params": biases(truth), "weight_decay": 0}])
    train(model, optimizer)
    train(truth, other)
    assert equal(model, truth)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1]


@every_optimizer
def test_release_lets_them_decay_again(build: Callable[[Any], Optimizer]) -> None:
    model, optimizer, state = exempted(build)
    plain = net()
    state.release()
    state.release()
    train(model, optimizer)
    train(plain, build(plain.parameters()))
    assert equal(model, plain)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_pre_hooks


def test_exempting_again_changes_nothing() -> None:
    model, optimizer, state = exempted()
    once = net()
    other = OPTIMIZERS["sgd"](once.parameters())
    OptimizerState([other]).exempt(biases(once))
    state.exempt(biases(model)[:1])
    state.exempt(biases(model))
    train(model, optimizer)
    train(once, other)
    assert equal(model, once)
    assert len(optimizer._optimizer_step_pre_hooks) == 1


def test_exempting_nothing_leaves_the_optimizer_alone() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    OptimizerState([optimizer]).exempt([])
    assert not optimizer._optimizer_step_pre_hooks


def test_a_parameter_is_exempt_as_soon_as_an_optimizer_owns_it() -> None:
    model = net()
    slope = model[1].weight
    optimizer = OPTIMIZERS["sgd"]([p for p in model.parameters() if p is not slope])
    state = OptimizerState([optimizer])
    state.exempt([slope])
    state.insert(slope, model[0].weight, dict(model.named_parameters()))
    truth = net()
    others = [p for p in truth.parameters() if p is not truth[1].weight]
    groups = [{"params": others}, {"params": [truth[1].weight], "weight_decay": 0}]
    train(model, optimizer)
    train(truth, OPTIMIZERS["sgd"](groups))
    assert equal(model, truth)


def test_a_removed_parameter_is_no_longer_exempt() -> None:
    model, optimizer, state = exempted()
    slope = model.get_submodule("1").weight
    state.remove(slope)
    state.insert(slope, model.get_submodule("0").weight, dict(model.named_parameters()))
    before = slope.detach().clone()
    train(model, optimizer, 1)
    decay = before - slope.detach() - 0.1 * slope.grad
    assert torch.allclose(decay, 0.1 * 0.1 * before, atol=1e-6)


def test_two_optimizers() -> None:
    model, truth = net(), net()
    builds = [OPTIMIZERS["adamw"], OPTIMIZERS["sgd"]]
    parts = zip(builds, model[::2], strict=True)
    optimizers = [build(part.parameters()) for build, part in parts]
    OptimizerState(optimizers).exempt(biases(model))
    others = [
        build([{"params": [part.weight]}, {"params": [part.bias], "weight_decay": 0}])
        for build, part in zip(builds, truth[::2], strict=True)
    ]
    for _ in range(4):
        backward(model)
        backward(truth)
        for optimizer in (*optimizers, *others):
            optimizer.step()
    assert equal(model, truth)


# ── what it leaves as it is ─────────────────────────────────────────────────────────────


@every_optimizer
def test_between_steps_the_optimizer_is_as_without(build: Callable[[Any], Optimizer]) -> None:
    model, optimizer, _ = exempted(build)
    plain = build(net().named_parameters())
    before = layout(optimizer)
    train(model, optimizer)
    assert layout(optimizer) == before
    got, expected = optimizer.state_dict(), plain.state_dict()
    for group in expected["param_groups"]:
        del group["param_names"]
    assert got["param_groups"] == expected["param_groups"]


def test_names_stay_with_their_parameters() -> None:
    model = net()
    names = [name for name, _ in model.named_parameters()]
    optimizer = OPTIMIZERS["adamw"](model.named_parameters())
    OptimizerState([optimizer]).exempt(biases(model))
    seen: list[list[str]] = []

    def look(optimizer: Optimizer, *_: object) -> None:
        seen.extend(group["param_names"] for group in optimizer.param_groups)

    optimizer.register_step_pre_hook(look)
    train(model, optimizer, 1)
    spared = [name for name, p in model.named_parameters() if p.ndim == 1]
    assert seen == [[name for name in names if name not in spared], spared]
    assert optimizer.param_groups[0]["param_names"] == names


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one() -> None:
    model, optimizer, _ = exempted(OPTIMIZERS["adamw"])
    train(model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer)
    resumed, other, _ = exempted(OPTIMIZERS["adamw"])
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    train(resumed, other)
    assert equal(model, resumed)


@pytest.mark.parametrize("when", ["before", "after"])
def test_schedulers_reach_exempt_parameters(when: str) -> None:
    model, truth = net(), net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    groups = [{"params": weights(truth)}, {"params": biases(truth), "weight_decay": 0}]
    other = OPTIMIZERS["sgd"](groups)
    if when == "before":
        OptimizerState([optimizer]).exempt(biases(model))
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=8) for o in (optimizer, other)
    ]
    if when == "after":
        OptimizerState([optimizer]).exempt(biases(model))
    for _ in range(6):
        train(model, optimizer, 1)
        train(truth, other, 1)
        for schedule in schedules:
            schedule.step()
    assert equal(model, truth)


def test_a_scaler_that_skips_a_step() -> None:
    model, optimizer, _ = exempted()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = layout(optimizer)
    scaler.scale(backward(model))
    model.get_submodule("0").bias.grad.fill_(float("inf"))
    weights_before = copy.deepcopy(model)
    scaler.step(optimizer)
    scaler.update()
    assert equal(model, weights_before)
    backward(model)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert not equal(model, weights_before)
    assert layout(optimizer) == before


@pytest.mark.parametrize("by_name", [True, False])
def test_a_closure_sees_the_groups_as_they_are_between_steps(by_name: bool) -> None:
    model, optimizer, _ = exempted()
    truth, other, _ = exempted()
    before = layout(optimizer)
    seen = []

    def closure() -> Tensor:
        seen.append(layout(optimizer) == before)
        optimizer.param_groups[0]["lr"] = 0.05  # a warm-up by hand, inside Lightning's step
        return backward(model)

    for _ in range(3):
        loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        assert loss is not None
        other.param_groups[0]["lr"] = 0.05
        train(truth, other, 1)
    assert seen == [True] * 3
    assert equal(model, truth)


def failing(optimizer: Optimizer, model: nn.Module) -> None:
    """A step that raises where the exempt parameters are set aside."""

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = optimizer.register_step_pre_hook(fail)
    backward(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    handle.remove()
    assert len(optimizer.param_groups) == 2


def test_a_step_that_raised_is_mended_by_the_next() -> None:
    model, optimizer, _ = exempted(OPTIMIZERS["adamw"])
    truth, other, _ = exempted(OPTIMIZERS["adamw"])
    before = layout(optimizer)
    failing(optimizer, model)
    train(model, optimizer)
    train(truth, other)
    assert layout(optimizer) == before
    assert equal(model, truth)


LOOKS: dict[str, Callable[[Optimizer, OptimizerState], Any]] = {
    "saving": lambda optimizer, state: optimizer.state_dict(),
    "loading": lambda optimizer, state: optimizer.load_state_dict(exempted()[1].state_dict()),
    "releasing": lambda optimizer, state: state.release(),
    "treating": lambda optimizer, state: state.owner(optimizer.param_groups[0]["params"][0]),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_step_that_raised_is_mended_before_anyone_looks(
    look: Callable[[Optimizer, OptimizerState], Any],
) -> None:
    model, optimizer, state = exempted()
    before = [row[1:] for row in layout(optimizer)]
    failing(optimizer, model)
    look(optimizer, state)
    assert [row[1:] for row in layout(optimizer)] == before


def test_a_closure_that_raises_leaves_the_groups_as_they_are() -> None:
    _, optimizer, _ = exempted()
    before = layout(optimizer)

    def closure() -> Tensor:
        raise KeyboardInterrupt("stop")

    with pytest.raises(KeyboardInterrupt, match="stop"):
        optimizer.step(closure)
    assert layout(optimizer) == before


def test_a_subclass_whose_step_calls_its_base() -> None:
    class Loud(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model, optimizer, _ = exempted(lambda p: Loud(p, lr=0.1, weight_decay=0.1, momentum=0.9))
    truth, other, _ = exempted()
    before = layout(optimizer)
    train(model, optimizer)
    train(truth, other)
    assert equal(model, truth)
    assert layout(optimizer) == before


def test_copies_and_pickles_take_no_hook_along() -> None:
    model, optimizer, state = exempted()
    train(model, optimizer)
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    copies = [
        copy.deepcopy(optimizer),
        pickle.loads(pickle.dumps(optimizer)),
        torch.load(file, weights_only=False),
    ]
    for one in copies:
        assert not one._optimizer_step_pre_hooks
        assert repr(one.state_dict()) == repr(optimizer.state_dict())
    before = layout(optimizer)
    copies[0].step()
    assert layout(optimizer) == before
    train(model, optimizer)
    state.release()
