"""The arguments of a `Watch`, checked."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from deadwatch.activations import readable
from deadwatch.errors import ConfigError, DeadwatchError, MixedModelsWarning
from deadwatch.judge.advice import check_ignore
from deadwatch.judge.rules import Rules
from deadwatch.observe.gauges import Gauging
from deadwatch.observe.sites import Selection
from deadwatch.observe.strategies import only_watchable, some_processes
from deadwatch.treat.optim import rates
from deadwatch.treat.policy import Policy, resolve
from deadwatch.treat.shards import resharded

_OVERHEAD = 0.02
"""The bound, if statistics are taken as often as possible and none is given."""


@dataclass(frozen=True)
class Settings:
    """The arguments of a `Watch` that do not depend on the model, checked."""

    policy: Policy | str | None = None
    rules: Rules | None = None
    include: Sequence[str] | str | None = None
    exclude: Sequence[str] | str | None = None
    unit_dim: Mapping[str, int] | None = None
    stats_every_n_steps: int | Literal["auto"] = 10
    overhead: float | None = None
    count_no_grad: bool = False
    advice: bool = False
    gradients: bool = False
    ignore: Sequence[str] = ()

    def __post_init__(self) -> None:
        resolve(self.policy)
        check_ignore(self.ignore)
        _check_interval(self.stats_every_n_steps, self.overhead)
        if self.rules is not None and not isinstance(self.rules, Rules):
            raise ConfigError(f"rules is {self.rules!r}; expected deadwatch.Rules(...) or None")
        for name, effect in _SWITCHES.items():
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; expected True to {effect}, or False"
                )
        for name in ("include", "exclude"):
            _check_patterns(name, getattr(self, name))
        dims = self.unit_dim
        if dims is not None and (
            not isinstance(dims, Mapping)
            or not all(isinstance(key, str) and _whole(value) for key, value in dims.items())
        ):
            raise ConfigError(
                f"unit_dim is {dims!r}; expected axes by pattern of the activation's path, such as "
                "{'encoder.*': -1}"
            )

    @property
    def treats(self) -> bool:
        """Whether the policy does more than watch."""
        return resolve(self.policy) is not None

    @property
    def interval(self) -> int | None:
        """How often statistics are taken; None to find that out."""
        return None if self.stats_every_n_steps == "auto" else self.stats_every_n_steps

    @property
    def bound(self) -> float:
        """What watching may add, as a share of a training step."""
        return _OVERHEAD if self.overhead is None else self.overhead

    def selection(self) -> Selection:
        """Which activations to watch."""
        return Selection(_patterns(self.include), _patterns(self.exclude), self.unit_dim)

    def gauging(self, optimizers: Sequence[Optimizer]) -> Gauging | None:
        """What is measured beside the activations; None for nothing."""
        if not (self.advice or self.gradients):
            return None
        return Gauging(
            layers=self.advice,
            gradients=self.gradients,
            training=self.advice,
            rates=partial(rates, optimizers),
        )


_SWITCHES = {
    "count_no_grad": "count forwards under no_grad too",
    "advice": "measure what advice is based on",
    "gradients": "measure the gradients at pre-activations",
}


def _check_interval(every: object, overhead: object) -> None:
    if every != "auto" and (not _whole(every) or every < 1):  # type: ignore[operator]
        raise ConfigError(
            f"stats_every_n_steps is {every!r}; expected an integer of 1 (every step) or more, or "
            "'auto' to keep to an overhead"
        )
    if overhead is None:
        return
    if every != "auto":
        raise ConfigError(
            f"overhead is {overhead!r} and stats_every_n_steps is {every!r}; a bound is kept by "
            "choosing how often statistics are taken: pass stats_every_n_steps='auto' with it"
        )
    if isinstance(overhead, bool) or not isinstance(overhead, float) or not 0 < overhead < 1:
        raise ConfigError(
            f"overhead is {overhead!r}; expected a share of a training step, such as 0.02"
        )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_total_steps(total_steps: object, policy: Policy | str | None) -> None:
    """Check that a policy which needs the length of the run can know it."""
    if total_steps is not None and (not _whole(total_steps) or total_steps < 1):  # type: ignore[operator]
        raise ConfigError(
            f"total_steps is {total_steps!r}; expected the training steps of the whole run, or None"
        )
    if total_steps is None and isinstance(policy, Policy) and isinstance(policy.until, float):
        raise ConfigError(
            f"until is {policy.until!r}, a share of the run, and its length is not known: pass "
            "total_steps=... to Watch (max_steps=... to a Trainer), or a training step as until"
        )


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters, by name; compiled parts have the same."""
    named = model.named_parameters()
    return {readable(name): tuple(own.shape) for name, own in named if not is_lazy(own)}


def check_shapes(model: nn.Module, saved: Mapping[str, Sequence[int]]) -> None:
    """Check that treatments which go on find what they were given to.

    Raises:
        DeadwatchError: A parameter is missing, or has another shape.
    """
    here = shapes_of(model)
    for name, shape in saved.items():
        if here.get(name) != tuple(shape):
            found = f"has {here[name]}" if name in here else "is not there"
            raise DeadwatchError(
                f"the state is of a run that treated another model: {name} had shape "
                f"{tuple(shape)}, and here it {found}. Load the model's own state first, with "
                "deadwatch.restore(model, state_dict); or leave this state out to start anew"
            )


def _check_patterns(name: str, given: object) -> None:
    patterns = [given] if isinstance(given, str) else given
    if patterns is not None and (
        not isinstance(patterns, (list, tuple))
        or not all(isinstance(pattern, str) for pattern in patterns)
    ):
        raise ConfigError(
            f"{name} is {given!r}; expected a pattern of activation paths such as 'encoder.*', or "
            "a list of them"
        )


def check_strategy(model: nn.Module, optimizers: object, policy: Policy | str | None) -> None:
    """Check that what is to be treated lies in this process as it was built.

    Args:
        model: The model.
        optimizers: The argument of that name, checked or not.
        policy: The argument of that name.

    Raises:
        ConfigError: The model is trained by a strategy under which it can only be watched.
    """
    if resolve(policy) is None:
        parted = some_processes(model)
        if parted is not None:
            warnings.warn(
                f"the model is or holds {parted.found}: what these measure is merged with what the "
                "others do, also if they train another model, and a unit is dead only if it is "
                "dead in all of them",
                MixedModelsWarning,
                stacklevel=3,
            )
        return
    several = isinstance(optimizers, (list, tuple))
    strategy = only_watchable(model, optimizers if several else (optimizers,))  # type: ignore[arg-type]
    if strategy is not None:
        raise ConfigError(
            f"the policy treats units, and the model is or holds {strategy.found}: "
            f"{strategy.reason}. Pass policy='watch' to only watch, or {strategy.instead}"
        )


def optimizers_of(given: Optimizer | Iterable[Optimizer] | None) -> tuple[Optimizer, ...]:
    """The optimizers that were given, checked."""
    if given is None:
        return ()
    several = isinstance(given, Iterable) and not isinstance(given, (str, type))
    found: tuple[object, ...] = tuple(given) if several else (given,)  # type: ignore[arg-type]
    for one in found:
        if not isinstance(one, Optimizer):
            raise ConfigError(
                f"optimizer is or holds a {type(one).__name__!r}; expected a "
                "torch.optim.Optimizer, or several in a list"
            )
    return tuple(one for one in found if isinstance(one, Optimizer))


def check_ownership(
    model: nn.Module,
    optimizers: tuple[Optimizer, ...],
    policy: Policy | None,
    given: Policy | str | None,
) -> None:
    """Check that the optimizers train the model, and that there is one where one is needed."""
    if policy is not None and not optimizers:
        raise ConfigError(
            f"policy {given!r} treats units, and their optimizer state has to follow: pass "
            "optimizer=..., or policy='watch' to only watch"
        )
    if optimizers:
        resharded(model.modules())
    for optimizer in optimizers:
        if optimizer not in owners([optimizer], model):
            raise ConfigError(
                f"the {type(optimizer).__name__} given as optimizer updates no parameter of the "
                "model; pass the one that was built from model.parameters()"
            )


def owners(found: Iterable[object], model: nn.Module) -> list[Optimizer]:
    """The optimizers of torch among what was found that update a parameter of the model."""
    mine = {id(parameter) for parameter in model.parameters()}
    return [
        one
        for one in found
        if isinstance(one, Optimizer)
        and any(id(p) in mine for group in one.param_groups for p in group["params"])
    ]


def _patterns(given: Sequence[str] | str | None) -> Sequence[str] | None:
    return (given,) if isinstance(given, str) else given
