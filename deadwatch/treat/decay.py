"""Exempts parameters from weight decay without touching the layout of an optimizer's groups.

A further group would break a resume, which counts groups, and several learning-rate schedulers,
which hold one value for each. So the exempt parameters move to a group of their own only while the
optimizer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class Exemption:
    """Takes weight decay off some parameters of one optimizer.

    Between steps, and while a closure runs, the optimizer's groups are its own, object by object;
    so are its state dict, its copies and its pickles, which take no hook along.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._exempt: set[Tensor] = set()  # tensors hash by identity
        self._handles: list[RemovableHandle] = []
        self._aside: list[tuple[dict[str, Any], dict[str, Any]]] = []  # groups, what they held
        self._extra: list[dict[str, Any]] = []
        _ALL.add(self)

    def add(self, parameters: Iterable[Tensor]) -> None:
        """Exempt more parameters, now or whenever the optimizer comes to own them."""
        self._exempt.update(parameters)
        if self._handles or not self._exempt:
            return
        optimizer = self._optimizer
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._mended),
            # A step that raised leaves the groups as they were within it.
            optimizer.register_state_dict_pre_hook(self._mended),
            optimizer.register_load_state_dict_pre_hook(self._mended),
        ]

    def spares(self, optimizer: Optimizer, parameter: Tensor) -> bool:
        """Whether it takes the decay by an optimizer off a parameter."""
        return optimizer is self._optimizer and parameter in self._exempt

    def discard(self, parameter: Tensor) -> None:
        """Let a parameter decay again."""
        self._exempt.discard(parameter)

    def release(self) -> None:
        """Let all parameters decay again, and take every hook off the optimizer."""
        self.mend()
        self._exempt.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def mend(self) -> None:
        """Put the groups back as they are between steps."""
        if not self._aside:
            return
        groups = self._optimizer.param_groups
        groups[:] = [group for group in groups if not _among(group, self._extra)]
        for group, held in self._aside:
            group.update(held)
        self._extra.clear()
        self._aside.clear()

    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Step pre-hook: set the exempt parameters aside, after the closure if there is one."""
        self._set_aside()
        if len(args) > 1 and callable(args[1]):
            args = (args[0], self._around(args[1]), *args[2:])
        elif callable(kwargs.get("closure")):
            kwargs = {**kwargs, "closure": self._around(kwargs["closure"])}
        return args, kwargs

    def _mended(self, *_: object) -> None:
        self.mend()

    def _around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The user's closure, which sees the groups as they are between steps."""

        def closed() -> Any:
            self.mend()
            loss = closure()
            self._set_aside()
            return loss

        return closed

    def _set_aside(self) -> None:
        self.mend()
        for group in list(self._optimizer.param_groups):
            if not _decays(group):
                continue
            params: list[Tensor] = group["params"]
            exempt = [parameter in self._exempt for parameter in params]
            if all(exempt):  # some optimizers cannot step an empty group
                self._aside.append((group, {"weight_decay": group["weight_decay"]}))
                group["weight_decay"] = 0.0
            elif any(exempt):
                lists = {k: v for k, v in group.items() if k in ("params", "param_names")}
                self._aside.append((group, lists))
                apart = {key: _pick(items, exempt) for key, items in lists.items()}
                self._extra.append({**group, **apart, "weight_decay": 0.0})
                others = [not each for each in exempt]
                group.update({key: _pick(items, others) for key, items in lists.items()})
        self._optimizer.param_groups.extend(self._extra)


_ALL: WeakSet[Exemption] = WeakSet()  # of an optimizer there may be several


def spared(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Whether weight decay was taken off a parameter, by whomever."""
    return any(one.spares(optimizer, parameter) for one in _ALL)


def _decays(group: dict[str, Any]) -> bool:
    decay = group.get("weight_decay")
    return decay is not None and bool(group["params"]) and bool(decay != 0)


def _pick(items: list[Any], chosen: list[bool]) -> list[Any]:
    return [item for item, wanted in zip(items, chosen, strict=True) if wanted]


def _among(group: dict[str, Any], groups: list[dict[str, Any]]) -> bool:
    return any(group is other for other in groups)
