"""What a saved run costs, what it is not resumed into, and parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from deadwatch import (
    BiasWarming,
    DeadwatchError,
    Policy,
    Recycle,
    Remedy,
    Swap,
    Watch,
    restore,
)
from tests.nets import mlp
from tests.resuming import Run, Setup, differences, differs_when_interrupted
from tests.test_resume import dying, treating
from tests.test_resume_lightning import Fit, Resumable, resumed_differently, watcher

IN_PROGRESS: dict[str, Remedy] = {
    "fixed": BiasWarming(hold=1, anneal=30),
    "closed loop": BiasWarming(hold=1, anneal=30, schedule="closed-loop"),
    "swap": Swap("leaky_relu", anneal=30),
}


def state_of(then: Any, done: int = 7, **policy: Any) -> dict[str, Any]:
    run = Run(treating(then, **policy))
    run.go_on(done)
    return run.state()


# ── what it costs ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("done", [5, 7])
@pytest.mark.parametrize("name", IN_PROGRESS)
def test_a_state_holds_no_python_object_for_each_unit(name: str, done: int) -> None:
    state = state_of(IN_PROGRESS[name], done, control=0.2)["watch"]
    assert [items for items in sequences(state) if len(items) > 4] == []


def sequences(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        yield value
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, (dict, list, tuple)):
            yield from sequences(item)


# ── another policy ──────────────────────────────────────────────────────────────────────

OTHERS: dict[str, tuple[Any, Any, str]] = {
    "a remedy of another kind": (
        IN_PROGRESS["fixed"],
        IN_PROGRESS["swap"],
        r"holds a BiasWarming in progress, on rung 1 .* policy \(Swap\) has none there",
    ),
    "a remedy that is over at once": (
        IN_PROGRESS["swap"],
        Recycle(),
        r"holds a Swap in progress.* policy \(Recycle\) has none there; resume with the policy",
    ),
    "another order": (
        IN_PROGRESS["fixed"],
        [Recycle(), IN_PROGRESS["fixed"]],
        r"holds a BiasWarming in progress.* \(Recycle → BiasWarming\).* or with policy=None",
    ),
    "a fixed schedule for a closed loop": (
        IN_PROGRESS["closed loop"],
        IN_PROGRESS["fixed"],
        "as its units allow, and schedule is 'linear' here; resume with the schedule",
    ),
    "a closed loop for a fixed schedule": (
        IN_PROGRESS["fixed"],
        IN_PROGRESS["closed loop"],
        "by a fixed schedule, and schedule is 'closed-loop' here; resume with the schedule",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_in_progress_goes_on_under_its_own_policy_only(name: str) -> None:
    saved, other, message = OTHERS[name]
    state = state_of(saved)
    with pytest.raises(DeadwatchError, match=message):
        Run(treating(other), state)


# ── another model ───────────────────────────────────────────────────────────────────────


class Around(nn.Module):
    """The same model one level deeper."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "narrower": (lambda: mlp(width=2), r"0.weight had shape \(16, 12\), and here it has \(2, 12\)"),
    "wider": (lambda: mlp(width=20), r"0.weight had shape \(16, 12\), and here it has \(20, 12\)"),
    "deeper": (Around, r"0.weight had shape \(16, 12\), and here it is not there.*start anew"),
}


@pytest.mark.parametrize("name", MODELS)
def test_treatments_do_not_go_on_in_another_model(name: str) -> None:
    kind, message = MODELS[name]
    state = state_of(Recycle())["watch"]
    model = kind()
    watch = Watch(model, optimizer=torch.optim.Adam(model.parameters()), policy=Policy(Recycle()))
    with pytest.raises(DeadwatchError, match=message):
        watch.load_state_dict(state)


def test_treatments_do_not_go_on_in_a_model_that_was_not_loaded() -> None:
    state = state_of(Swap("prelu"))["watch"]
    model = dying(mlp())
    optimizer = torch.optim.Adam(model.parameters())
    watch = Watch(model, optimizer=optimizer, policy=Policy(Swap("prelu")))
    with pytest.raises(DeadwatchError, match=r"1\.replacement\.weight had .* not there"):
        watch.load_state_dict(state)


# ── learned slopes in parameter groups ──────────────────────────────────────────────────


def by_size(named: Any) -> Any:
    """Weights decay, what has one axis does not; a slope lies with the weight it belongs to."""
    params = [parameter for _, parameter in named]
    wide, flat = ([p for p in params if (p.ndim > 1) is many] for many in (True, False))
    return [{"params": wide, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}]


def backwards(named: Any) -> Any:
    return [parameter for _, parameter in reversed(list(named))]


def with_names(named: Any) -> Any:
    named = list(named)
    return [
        {"params": [(n, p) for n, p in named if (p.ndim > 1) is many]} for many in (True, False)
    ]


GROUPS: dict[str, Callable[[Any], Any]] = {
    "by size": by_size,
    "backwards": backwards,
    "with names": with_names,
}


def grouped(groups: Callable[[Any], Any]) -> Setup:
    setup = treating(Swap("prelu"))
    last: list[nn.Module] = []

    def model() -> nn.Module:
        last[:] = [dying(mlp())]
        return last[0]

    setup.model = model
    setup.optimizer = lambda _: torch.optim.AdamW(groups(last[0].named_parameters()), lr=1e-2)
    return setup


@pytest.mark.parametrize("name", GROUPS)
def test_learned_slopes_find_their_parameter_group_again(name: str) -> None:
    setup = grouped(GROUPS[name])
    assert differs_when_interrupted(setup) == {}
    run = Run(setup)
    run.go_on()
    assert any("replacement" in name for name, _ in run.model.named_parameters())


def test_an_optimizer_that_was_loaded_into_other_places_is_refused() -> None:
    setup = grouped(backwards)
    run = Run(setup)
    run.go_on(7)
    state = run.state()
    model = setup.model()
    restore(model, state["model"])
    optimizer = setup.optimizer(None)
    optimizer.load_state_dict(state["optimizer"])
    watch = Watch(model, optimizer=optimizer, policy=setup.policy())
    with pytest.raises(DeadwatchError, match="load the state of the Watch first"):
        watch.load_state_dict(state["watch"])


def test_an_optimizer_in_the_order_of_the_model_may_be_loaded_first() -> None:
    setup = treating(Swap("prelu"))
    run = Run(setup)
    run.go_on(7)
    resumed = Run(setup, run.state())
    optimizer = torch.optim.Adam(resumed.model.parameters())
    optimizer.load_state_dict(run.optimizer.state_dict())
    watch = Watch(resumed.model, optimizer=optimizer, policy=setup.policy())
    watch.load_state_dict(run.watch.state_dict())
    assert differences(optimizer.state_dict(), run.optimizer.state_dict()) == []


@pytest.mark.parametrize("name", GROUPS)
def test_a_fit_resumed_with_parameter_groups_goes_on_bitwise(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def configure_optimizers(self: Resumable) -> Any:
        return torch.optim.AdamW(GROUPS[name](self.named_parameters()), lr=1e-2)

    monkeypatch.setattr(Resumable, "configure_optimizers", configure_optimizers)
    fitted = Fit(watcher(Policy(Swap("prelu"), when=0.01, cooldown=0), window=3), tmp_path)
    assert resumed_differently(fitted) == {}
    assert fitted.run()["ledger"]


# ── state dicts of the model ────────────────────────────────────────────────────────────


def swapped() -> nn.Module:
    run = Run(treating(Swap("prelu")))
    run.go_on()
    run.watch.detach()
    return run.model


def test_a_plain_model_takes_the_state_dict_of_an_averaged_copy() -> None:
    averaged = AveragedModel(swapped())
    model = mlp()
    restore(model, averaged.state_dict())
    assert differences(dict(model.state_dict()), dict(averaged.module.state_dict())) == []


def test_a_swap_without_its_mask_is_named() -> None:
    state = {key: value for key, value in swapped().state_dict().items() if "mask" not in key}
    with pytest.raises(DeadwatchError, match=r"1\.deadwatch_mask is missing; load it as it was"):
        restore(mlp(), state)


def test_settings_that_are_none_are_named() -> None:
    state = swapped().state_dict() | {"1.deadwatch_restore": torch.zeros(())}
    with pytest.raises(DeadwatchError, match=r"deadwatch_restore entry of this state dict reads 0"):
        restore(mlp(), state)
