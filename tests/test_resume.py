"""A run that is interrupted at any step and resumed ends bit for bit as one that was not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from deadwatch import (
    BiasWarming,
    DeadwatchError,
    NoBiasDecay,
    Policy,
    PositiveBias,
    Recycle,
    Remedy,
    Restandardize,
    Revive,
    Swap,
    ThermalKick,
    Watch,
    WindowReport,
)
from deadwatch.errors import ResumeWarning, SiteDisabledWarning
from tests.nets import SharedReLU, conv, mlp
from tests.ranks import run_ranks
from tests.resuming import EVENTS, Run, Setup, differences, differs_when_interrupted


class Functions(nn.Module):
    """Functions with several calls, parts that run in some steps only, and a slope that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.norm = nn.BatchNorm1d(8)
        self.second = nn.Linear(8, 8)
        self.rare = nn.Sequential(nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 8), nn.ReLU())
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x)))
        h = F.relu(self.second(h)) + F.leaky_relu(h, 0.0)
        if x[0, 0] > 0.5:
            h = h + self.rare(h)
        out: Tensor = self.last(h)
        return out


class Chance(nn.Module):
    """What reads its units depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(12, 8), nn.ReLU()
        self.always, self.sometimes = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.first(x))
        out: Tensor = self.always(h)
        return out + self.sometimes(h) if x[0, 0] > 0 else out


class Learned(nn.Module):
    """An activation of the model's own, whose gate moves with its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        return torch.maximum(z, self.edge)


def dying(model: nn.Module) -> nn.Module:
    """Kill three units of the first layer."""
    with torch.no_grad():
        first = next(m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
        assert first.bias is not None
        first.bias[:3] -= 30
    return model


SETUPS = {
    "modules": Setup(lambda: dying(mlp())),
    "functions": Setup(lambda: dying(Functions())),
    "shared and in-place": Setup(SharedReLU, batch=(4, 3, 5, 5)),
    "convolutions": Setup(lambda: dying(conv(2, norm=True)), batch=(4, 3, 4, 4)),
    "learned gates": Setup(lambda: mlp(Learned)),
    "readers by chance": Setup(Chance),
    "selected": Setup(mlp, watch={"exclude": "1"}),
}


@pytest.mark.filterwarnings("ignore::deadwatch.errors.UnseenSiteWarning")
@pytest.mark.parametrize("name", SETUPS)
def test_what_is_measured_does_not_depend_on_interruptions(name: str) -> None:
    assert differs_when_interrupted(SETUPS[name]) == {}


@pytest.mark.filterwarnings("ignore::deadwatch.errors.UnseenSiteWarning")
@pytest.mark.parametrize("name", SETUPS)
def test_a_run_may_be_interrupted_after_every_step(name: str) -> None:
    whole = Run(SETUPS[name])
    whole.go_on()
    state: Any = None
    for done in range(1, len(EVENTS) + 1):
        run = Run(SETUPS[name], state)
        run.go_on(done)
        state = run.state()
    assert differences(whole.result(), run.result()) == []


# ── treatments ──────────────────────────────────────────────────────────────────────────

REMEDIES: dict[str, Remedy | list[Remedy]] = {
    "warming, fixed": BiasWarming(hold=2, anneal=3, quiet=False),
    "warming, cosine": BiasWarming(hold=1, anneal=6, schedule="cosine"),
    "warming, closed loop": BiasWarming(hold=1, anneal=4, schedule="closed-loop"),
    "recycling": Recycle(),
    "kick": ThermalKick(),
    "restandardizing": Restandardize(),
    "reviving": Revive(),
    "leaky for good": Swap("leaky_relu"),
    "leaky for a while": Swap("leaky_relu", anneal=5),
    "learned slopes": Swap("prelu"),
    "another function": Swap("elu", only="all"),
    "ladder": [BiasWarming(gamma=0.1, hold=0, anneal=2, quiet=False), Recycle(), ThermalKick()],
}


def treating(then: Any, kind: Callable[[], nn.Module] = mlp, **policy: Any) -> Setup:
    """Three units are dead from the start, and treated from the first window on."""
    given = {"when": 0.01, "cooldown": 0} | policy
    return Setup(lambda: dying(kind()), lambda: Policy(then, **given))


@pytest.mark.parametrize("name", REMEDIES)
def test_treatments_do_not_depend_on_interruptions(name: str) -> None:
    setup = treating(REMEDIES[name])
    assert differs_when_interrupted(setup) == {}
    assert treated(setup)


def treated(setup: Setup) -> bool:
    run = Run(setup)
    run.go_on()
    return any(report.treatments for report in run.reports)


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_does_not_depend_on_interruptions(name: str) -> None:
    setup = treating([BiasWarming(hold=0, anneal=3), Recycle()])
    setup.optimizer = OPTIMIZERS[name]
    assert differs_when_interrupted(setup) == {}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learned_slopes_are_found_again_by_the_optimizer(name: str) -> None:
    setup = treating(Swap("prelu"))
    setup.optimizer = OPTIMIZERS[name]
    assert differs_when_interrupted(setup) == {}
    run = Run(setup)
    run.go_on()
    assert any("replacement" in name for name, _ in run.model.named_parameters())


POLICIES: dict[str, dict[str, Any]] = {
    "control group": {"control": 0.4},
    "patience and cooldown": {"patience": 2, "cooldown": 1},
    "budget": {"budget": 0.1},
    "limit per unit": {"per_unit": 1},
    "warmup and end": {"warmup": 5, "until": 10},
    "preventives": {"prevent": PositiveBias(0.1)},
    "no decay of biases": {"prevent": NoBiasDecay()},
    "model-wide": {"scope": "model", "when": 0.01},
    "dormant units": {"measure": "dormant"},
}


@pytest.mark.parametrize("name", POLICIES)
def test_policies_do_not_depend_on_interruptions(name: str) -> None:
    setup = treating([BiasWarming(hold=0, anneal=3), Recycle()], **POLICIES[name])
    setup.optimizer = OPTIMIZERS["adamw"]
    assert differs_when_interrupted(setup) == {}


@pytest.mark.parametrize("name", REMEDIES)
def test_what_the_guard_takes_back_does_not_depend_on_interruptions(name: str) -> None:
    setup = treating(REMEDIES[name], warmup=8)
    setup.loss = lambda step, loss: torch.tensor(math.nan if step > 8 else 1 + 0.01 * (step % 3))
    assert differs_when_interrupted(setup) == {}
    run = Run(setup)
    run.go_on()
    assert any(entry.undone for entry in run.watch.ledger)


# ── compiled ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("nothing_compiled_before")
def test_a_compiled_model_is_resumed_with_the_same_counts_and_moments() -> None:
    def compiled() -> nn.Module:
        model: Any = torch.compile(dying(mlp()), backend="eager")
        return model  # type: ignore[no-any-return]

    whole = Run(Setup(compiled))
    whole.go_on()
    for done in (1, 3, 7, 9):
        run = Run(Setup(compiled))
        run.go_on(done)
        resumed = Run(Setup(compiled), run.state())
        resumed.go_on()
        for one, other in zip(whole.reports, resumed.reports, strict=True):
            assert_close(one, other)


def assert_close(one: WindowReport, other: WindowReport) -> None:
    """Graphs and what runs without them sum in another order."""
    assert one.window == other.window
    for site, same_site in zip(one.values(), other.values(), strict=True):
        assert site.site == same_site.site
        for name in ("samples", "state", "age", "open_fraction", "nonfinite"):
            np.testing.assert_array_equal(getattr(site, name), getattr(same_site, name))
        for name in ("mean", "std", "min", "max", "mean_abs", "mean_out"):
            np.testing.assert_allclose(getattr(site, name), getattr(same_site, name), rtol=1e-5)


# ── what does not fit ───────────────────────────────────────────────────────────────────


def saved(setup: Setup, done: int = 7) -> Any:
    run = Run(setup)
    run.go_on(done)
    return run.state()["watch"]


@pytest.mark.parametrize("attached", [True, False])
def test_a_state_may_be_loaded_before_or_after_attaching(attached: bool) -> None:
    setup = treating(BiasWarming(hold=3))
    state = saved(setup)
    run = Run(setup)
    watch = Watch(run.model, optimizer=run.optimizer, policy=setup.policy())
    if attached:
        watch.attach()
    watch.load_state_dict(state)
    watch.attach()
    assert watch.steps == 5
    assert len(watch.ledger) == 1
    assert differences(watch.state_dict(), state) == []


def test_a_state_is_not_loaded_into_a_run_that_has_begun() -> None:
    state = saved(SETUPS["modules"])
    run = Run(SETUPS["modules"])
    run.go_on(1)
    with pytest.raises(DeadwatchError, match="after forwards have been counted; make a new Watch"):
        run.watch.load_state_dict(state)


def test_a_state_of_another_version_is_refused() -> None:
    state = saved(SETUPS["modules"]) | {"version": 0}
    with pytest.raises(DeadwatchError, match="version 0, and this deadwatch reads version"):
        Run(SETUPS["modules"]).watch.load_state_dict(state)


def test_a_layer_of_another_size_starts_anew_and_says_so() -> None:
    state = saved(Setup(mlp))
    run = Run(Setup(lambda: mlp(width=9)))
    run.watch.load_state_dict(state)
    with pytest.warns(ResumeWarning, match="had 16 units on axis -1 in the checkpoint"):
        run.train()
    report = run.watch.peek()
    assert [site.units for site in report.values()] == [9, 9]
    assert [site.samples for site in report.values()] == [8, 8]
    assert report.window.index == 1


def test_activations_that_are_not_watched_now_are_left_out_and_named() -> None:
    state = saved(Setup(mlp))
    run = Run(Setup(mlp, watch={"exclude": "3"}))
    with pytest.warns(ResumeWarning, match="are not watched now.*: 3$"):
        run.watch.load_state_dict(state)
    assert list(run.watch.peek()) == ["1"]


def test_activations_that_are_watched_only_now_start_anew() -> None:
    state = saved(Setup(mlp, watch={"exclude": "3"}))
    run = Run(Setup(mlp))
    run.watch.load_state_dict(state)
    assert [site.samples for site in run.watch.peek().values()] == [8, 0]
    run.train()
    assert [site.samples for site in run.watch.peek().values()] == [16, 8]


def test_what_was_measured_by_another_number_of_processes_adds_up() -> None:
    state = saved(Setup(mlp))
    run = Run(Setup(mlp))
    state["ranks"] *= 2
    run.watch.load_state_dict(state)
    report = run.watch.peek()
    assert (report.window.index, report.window.first_step) == (1, 4)
    assert [site.samples for site in report.values()] == [16, 16]


def test_a_policy_that_is_gone_is_told() -> None:
    state = saved(treating(BiasWarming(hold=3)))
    run = Run(Setup(mlp))
    with pytest.warns(ResumeWarning, match="no policy.*of 1 treatments"):
        run.watch.load_state_dict(state)
    run.train()
    assert not run.watch.ledger


def test_a_policy_that_is_new_starts_with_an_empty_ledger() -> None:
    state = saved(Setup(mlp))
    run = Run(treating(Recycle()))
    run.watch.load_state_dict(state)
    run.train()
    assert not len(run.watch.ledger)


class Moody(nn.Module):
    """Gives its activation what it cannot observe, in one of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.calls = nn.Linear(12, 8), nn.ReLU(), 0

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.first(x)
        out: Tensor = self.act(h[:, :5] if x[0, 0] > 1 else h)
        return out


@pytest.mark.filterwarnings("ignore::deadwatch.errors.UnseenSiteWarning")
def test_an_activation_that_was_given_up_stays_so() -> None:
    run = Run(Setup(Moody))
    with pytest.warns(SiteDisabledWarning, match="'act' failed"):
        run.go_on()
    state = run.state()["watch"]
    again = Run(Setup(Moody))
    again.watch.load_state_dict(state)
    again.train()
    assert again.watch.peek()["act"].samples == 0


def test_what_is_saved_does_not_change_with_the_run_nor_with_what_it_is_loaded_into() -> None:
    setup = treating(BiasWarming(hold=1, schedule="closed-loop"))
    run = Run(setup)
    run.go_on(9)
    state = run.watch.state_dict()
    before = copy.deepcopy(state)
    run.go_on()
    assert differences(state, before) == []
    other = Run(setup)
    other.watch.load_state_dict(state)
    other.go_on(5)
    assert differences(state, before) == []


# ── several processes ───────────────────────────────────────────────────────────────────

SCRIPT = """
import os, sys
import torch.distributed as dist
from deadwatch import BiasWarming
from tests.resuming import Run, differences
from tests.test_resume import treating

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
)
setup = treating(BiasWarming(hold=2, anneal=3, quiet=False), warmup=8)
setup.salt = rank  # every rank has data of its own
setup.loss = lambda step, loss: (9.0 if step > 8 and rank else 1.0) + 0.01 * (step % 3)
whole = Run(setup)
whole.go_on()
assert any(entry.undone for entry in whole.watch.ledger)
for done in (2, 6, 9, 14, 15):
    run = Run(setup)
    run.go_on(done)
    state = run.state()
    saved = [state["watch"]]
    dist.broadcast_object_list(saved, 0)  # only one rank's checkpoint is written
    resumed = Run(setup, state | {"watch": saved[0]})
    resumed.go_on()
    found = differences(whole.result(), resumed.result())
    assert not found, (done, found[:3])
dist.barrier()
sys.stdout.flush()
os._exit(0)  # gloo's own threads now and then abort an orderly exit
"""


def test_two_processes_resume_from_the_state_that_one_of_them_saved(tmp_path: Path) -> None:
    run_ranks(SCRIPT, tmp_path)
