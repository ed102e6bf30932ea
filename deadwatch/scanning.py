"""A look at a model that is not being trained, such as one fresh from its constructor."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deadwatch.advising import advise
from deadwatch.errors import ConfigError
from deadwatch.judge.rules import Rules, judge
from deadwatch.observe.frames import Counting
from deadwatch.observe.gauges import Gauging
from deadwatch.observe.lookout import Eager
from deadwatch.observe.reduce import aged
from deadwatch.observe.remarks import tell_unseen
from deadwatch.observe.sharding import local_of
from deadwatch.observe.sites import unwrapped
from deadwatch.observe.taps import Taps
from deadwatch.records import WindowReport
from deadwatch.settings import Settings
from deadwatch.treat.shards import resharded

Forward = Callable[[nn.Module, Any], object]


def scan(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward | None = None,
    rules: Rules | None = None,
    include: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str | None = None,
    unit_dim: Mapping[str, int] | None = None,
    advice: bool = False,
) -> WindowReport:
    """Run batches through a model, once, and judge its units: which are dead before any training?

    The model runs in the mode it is in (dropout and batch norm act accordingly), without gradients
    and uncompiled; all its forwards count, and all statistics are taken of each. Weights, buffers,
    training modes and random number generators are afterwards what they were before. In a
    distributed run each process looks at what it is given; nothing of it is exchanged. Of a model
    sharded by ``fully_shard``, whose forwards need all processes, call it on each of them alike.

    Args:
        model: The model.
        batches: What to run through it, say a `DataLoader` or ``[x]``.
        forward: Called as ``forward(model, batch)`` for each batch. By default tensors are given
            to the model as they are, mappings as keyword arguments, and of a tuple or list the
            first element (inputs before targets).
        rules: As for `Watch`.
        include: As for `Watch`.
        exclude: As for `Watch`.
        unit_dim: As for `Watch`.
        advice: Whether the report holds what `advise` says of the model and the report.

    Returns:
        The report, as that of a window; `WindowReport.window` counts batches.

    Raises:
        ConfigError: An argument is wrong, or there was no batch.

    Example:
        >>> report = scan(model, [x])
        >>> print(report.dead_ratio)
    """
    if isinstance(batches, Tensor):
        raise ConfigError(
            f"batches is a tensor of shape {tuple(batches.shape)}, whose rows would be taken for "
            "batches; expected an iterable of batches, such as [x]"
        )
    _check(model, forward)
    model = unwrapped(model)
    settings = Settings(None, rules, include, exclude, unit_dim)
    counting = Counting(no_grad=True, evaluation=True)
    taps = Taps(model, settings.selection(), 1, counting, Gauging(layers=True))
    call = forward or _forward
    seen = 0
    with _unchanged(model), torch.no_grad(), Eager(), taps:
        for batch in batches:
            call(model, batch)
            taps.step()
            seen += 1
        taps.warn_if_bare(ran=True)
        snapshot = taps.complete(aged(taps.read()))
    if not seen:
        raise ConfigError("batches is empty; expected at least one batch to run through the model")
    report = judge(snapshot, rules or Rules())
    tell_unseen(report, snapshot.missing)
    if not advice:
        return report
    return replace(report, findings=tuple(advise(model, report=report)), advised=True)


def _check(model: object, forward: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model is {type(model).__name__!r}; expected a torch.nn.Module to look at"
        )
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ConfigError(
            "the model has lazy parameters, which its first forward would initialise; call it "
            "once, then scan it"
        )
    if forward is not None and not callable(forward):
        raise ConfigError(
            f"forward is {forward!r}; expected a function of the model and a batch, such as "
            "lambda model, batch: model(batch['x'])"
        )


def _forward(model: nn.Module, batch: Any) -> object:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put back what a forward, or whoever makes the batches, may change."""
    modes = {module: module.training for module in model.modules()}
    resharded(model.modules())
    kept = dict([*model.named_parameters(), *model.named_buffers()])
    values = {name: local_of(t.detach()).clone() for name, t in kept.items() if not t.is_meta}
    devices = {tensor.device.index for tensor in kept.values() if tensor.device.type == "cuda"}
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(sorted(index for index in devices if index is not None)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        for module, training in modes.items():
            module.training = training
        resharded(modes)
        for name, value in values.items():
            _restore(model, name, kept[name], value)


def _restore(model: nn.Module, name: str, tensor: Tensor, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if getattr(owner, leaf, None) is not tensor:
        setattr(owner, leaf, tensor)  # a forward may assign a new one
    with torch.no_grad():
        here = local_of(tensor)
        if not torch.equal(here, value):
            here.copy_(value)
