"""The only file that writes optimizer state, always by parameter identity."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deadwatch.errors import DeadwatchError, OptimizerStateWarning
from deadwatch.records import Change, Ints
from deadwatch.treat import shards
from deadwatch.treat.decay import Exemption, spared
from deadwatch.treat.moments import (
    FIRST_MOMENTS,
    RULES,
    SECOND_MOMENTS,
    SHARED_AT_BIRTH,
    Rows,
    at_birth,
    unguided,
)
from deadwatch.treat.surgery import host_copy

Rule = Literal["by_state", "restart", "keep"]

KNOWN: tuple[type[Optimizer], ...] = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
)


@dataclass(frozen=True, eq=False)
class Restart:
    """Slices ``index`` along ``axis`` of a parameter whose optimizer state is to be renewed.

    ``live`` are the slices that belong to live units: the model for the second moments. With
    ``rows``, only within these indices of axis 0.
    """

    tensor: str
    axis: int
    index: Ints
    live: Ints
    rows: range | None = None


class Hyper(NamedTuple):
    """How an optimizer updates one parameter.

    Attributes:
        optimizer: Its class.
        lr: The learning rate; NaN if there is none, or reading it would wait for a device.
        decay: The weight decay; 0 if there is none, or it was taken off.
    """

    optimizer: str
    lr: float
    decay: float


def hypers(optimizers: Iterable[Optimizer]) -> dict[int, Hyper]:
    """How parameters are updated, by their ``id``."""
    found = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            lr, decay = (_plain(group.get(name)) for name in ("lr", "weight_decay"))
            for parameter in group["params"]:
                off = math.isnan(decay) or spared(optimizer, parameter)
                found[id(parameter)] = Hyper(type(optimizer).__name__, lr, 0.0 if off else decay)
    return found


def rates(optimizers: Iterable[Optimizer]) -> list[float]:
    """The learning rate of each group of parameters; NaN as in `Hyper`."""
    return [_plain(group.get("lr")) for one in optimizers for group in one.param_groups]


def _plain(value: object) -> float:
    """A number; of a tensor on a device NaN, for to read it would wait for that."""
    if isinstance(value, Tensor) and value.device.type == "cpu" and value.numel() == 1:
        return float(value)
    return float(value) if isinstance(value, (int, float)) else math.nan


class OptimizerState:
    """The state that one or several optimizers keep for a model's parameters.

    Args:
        optimizers: The optimizers.
        rule: What becomes of the moments of treated rows, by its name in `moments.RULES`.
    """

    def __init__(self, optimizers: Sequence[Optimizer], rule: Rule = "by_state") -> None:
        self._optimizers = tuple(optimizers)
        self._exemptions = tuple(Exemption(optimizer) for optimizer in self._optimizers)
        self._rule = rule
        self._warned: set[type] = set()

    def owner(self, parameter: Tensor) -> Optimizer | None:
        """The optimizer that updates ``parameter``, or None."""
        found = self._home(parameter)
        return None if found is None else found[0]

    def _home(self, parameter: Tensor) -> tuple[Optimizer, dict[str, Any]] | None:
        """The optimizer that updates ``parameter``, and the group that holds it."""
        for optimizer, exemption in zip(self._optimizers, self._exemptions, strict=True):
            exemption.mend()
            for group in optimizer.param_groups:
                if any(owned is parameter for owned in group["params"]):
                    return optimizer, group
        return None

    # ── the state of treated rows ───────────────────────────────────────────────────────

    @torch.no_grad()
    def restart(self, parameter: Tensor, restart: Restart) -> tuple[Change, ...]:
        """Renew the state of some slices; that of all live slices stays bit-equal.

        Returns:
            What was written, values before and after; empty where the optimizer keeps no state, or
            one that is not understood, of which a warning tells once.
        """
        home = self._home(parameter)
        if home is None or self._rule == "keep":
            return ()
        optimizer, group = home
        if not understood(optimizer):
            self._warn_unknown(optimizer)
            return ()
        state = {k: v for k, v in optimizer.state.get(parameter, {}).items() if torch.is_tensor(v)}
        moments = {
            key: _rows(v, restart)
            for key, v in state.items()
            if key in FIRST_MOMENTS | SECOND_MOMENTS and v.shape == parameter.shape
        }
        new = RULES[self._rule](moments) if len(restart.live) else unguided(moments)
        if not len(restart.live) and _covers(restart, parameter):
            new = at_birth(moments, group.get("initial_accumulator_value", 0.0))
            new |= {k: torch.tensor(v) for k, v in SHARED_AT_BIRTH.items() if k in state}
        return tuple(_record(key, state[key], restart, value) for key, value in new.items())

    @torch.no_grad()
    def undo(self, parameter: Tensor, change: Change) -> None:
        """Put back the state that `restart` changed, bit by bit.

        Args:
            parameter: The parameter it belongs to.
            change: What `restart` returned. A state that the optimizer has dropped since then
                stays dropped.
        """
        optimizer = self.owner(parameter)
        state = {} if optimizer is None else optimizer.state.get(parameter, {})
        if change.state not in state:
            return
        value = state[change.state]
        before = torch.as_tensor(change.before, device=value.device).to(value.dtype)
        _write(value, change, before)

    # ── new parameters ──────────────────────────────────────────────────────────────────

    def insert(self, new: nn.Parameter, beside: Tensor, order: Mapping[str, Tensor]) -> None:
        """Hand a new parameter to the optimizer that owns ``beside``, in the same group.

        Args:
            new: The parameter to add.
            beside: A parameter of the group that is to take it.
            order: All parameters of the model by name in ``parameters()`` order, ``new``
                included. The new one takes its place in that order, so that a resumed run, which
                builds its optimizer from ``parameters()``, finds each state where it belongs.
        """
        home = self._home(beside)
        assert home is not None
        _, group = home
        rank = {id(parameter): position for position, parameter in enumerate(order.values())}
        names = {id(parameter): name for name, parameter in order.items()}
        ahead = [p for p in group["params"] if rank.get(id(p), -1) < rank[id(new)]]
        _put(group, len(ahead), new, names[id(new)])

    def remove(self, parameter: Tensor) -> None:
        """Take a parameter and its state out again: the exact inverse of `insert`."""
        home = self._home(parameter)
        if home is None:
            return
        optimizer, group = home
        place = next(i for i, owned in enumerate(group["params"]) if owned is parameter)
        del group["params"][place]
        if "param_names" in group:
            del group["param_names"][place]
        optimizer.state.pop(parameter, None)
        for exemption in self._exemptions:
            exemption.discard(parameter)

    def homes(self, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, int, int]]:
        """Where parameters lie: number of the optimizer, of its group, and place in the group."""
        names = {id(parameter): name for name, parameter in parameters.items()}
        return {
            names[id(owned)]: (number, group, place)
            for number, optimizer in enumerate(self._optimizers)
            for group, held in enumerate(optimizer.param_groups)
            for place, owned in enumerate(held["params"])
            if id(owned) in names
        }

    def rehome(
        self, parameters: Mapping[str, Tensor], homes: Mapping[str, tuple[int, int, int]]
    ) -> None:
        """Put parameters where `homes` found them before, in optimizers that were built anew.

        Raises:
            DeadwatchError: The optimizers' state has been loaded already, in another order.
        """
        now = self.homes(parameters)
        groups = [len(optimizer.param_groups) for optimizer in self._optimizers]
        moving = {
            name: (number, group, place)
            for name, (number, group, place) in homes.items()
            if name in now and number < len(groups) and group < groups[number]
        }
        if all(now[name] == home for name, home in moving.items()):
            return
        if any(optimizer.state for optimizer in self._optimizers):
            raise DeadwatchError(
                f"the optimizer has {', '.join(moving)} at another place in its groups than when "
                "its state was saved, so that what it has loaded belongs to other parameters; load "
                "the state of the Watch first, which puts them right, and the optimizer's after it"
            )
        for name in moving:
            self.remove(parameters[name])
        for name, (number, group, place) in sorted(moving.items(), key=lambda item: item[1]):
            into = self._optimizers[number].param_groups[group]
            _put(into, place, parameters[name], name)

    # ── weight decay ────────────────────────────────────────────────────────────────────

    def exempt(self, parameters: Iterable[Tensor]) -> None:
        """Take weight decay off some parameters from the next step on, until `release`.

        The layout of the groups and the state dict stay as they are. Naming a parameter again
        does nothing more; one that no optimizer owns is exempt as soon as one does.
        """
        parameters = tuple(parameters)
        for exemption in self._exemptions:
            exemption.add(parameters)

    def release(self) -> None:
        """End every exemption and take the hooks off the optimizers."""
        for exemption in self._exemptions:
            exemption.release()

    def _warn_unknown(self, optimizer: Optimizer) -> None:
        if type(optimizer) not in self._warned:
            self._warned.add(type(optimizer))
            names = ", ".join(kind.__name__ for kind in KNOWN)
            warnings.warn(
                f"{type(optimizer).__name__} keeps a state that deadwatch does not know: treated "
                f"parameters keep their old optimizer state. Known are {names}.",
                OptimizerStateWarning,
                stacklevel=2,
            )


def understood(optimizer: Optimizer) -> bool:
    """Whether what an optimizer keeps for a parameter means what it does in `torch.optim`.

    A subclass with a ``step`` of its own may give the same names another meaning.
    """
    # PyTorch wraps the step of every class that is built, so the functions inside are compared.
    step = inspect.unwrap(type(optimizer).step)
    return any(isinstance(optimizer, kind) and step is inspect.unwrap(kind.step) for kind in KNOWN)


def _put(group: dict[str, Any], place: int, parameter: Tensor, name: str) -> None:
    """Give a parameter its place in a group, and its name where names are kept."""
    group["params"].insert(place, parameter)
    if "param_names" in group:
        group["param_names"].insert(place, name)


def _covers(restart: Restart, parameter: Tensor) -> bool:
    return restart.rows is None and len(restart.index) == parameter.shape[restart.axis]


def _rows(moment: Tensor, where: Restart) -> Rows:
    treated, live = (_slices(moment, index, where) for index in (where.index, where.live))
    return Rows(treated, live, where.axis)


def _slices(value: Tensor, index: Ints, where: Restart | Change) -> Tensor:
    """A copy of some slices; of a value that a whole tensor shares, the value."""
    if value.ndim == 0:
        return value.clone()
    return shards.slices(value, where.axis, index, where.rows)


def _write(value: Tensor, where: Restart | Change, new: Tensor) -> None:
    if value.ndim == 0:
        value.copy_(new)
        return
    part, index, new = shards.share(value, where.axis, where.index, new, where.rows)
    part.index_copy_(where.axis, index, new.contiguous())


def _record(key: str, value: Tensor, where: Restart, new: Tensor) -> Change:
    before = host_copy(_slices(value, where.index, where))
    _write(value, where, new)
    after = host_copy(_slices(value, where.index, where))
    return Change(where.tensor, where.axis, where.index, before, after, where.rows, key)
