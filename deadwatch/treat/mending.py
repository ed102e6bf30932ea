"""Fixes of findings that can be applied: to a live optimizer, or to parameters before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

from deadwatch.activations import readable
from deadwatch.errors import CannotTreat
from deadwatch.records import Finding
from deadwatch.treat import shards
from deadwatch.treat.decay import Exemption
from deadwatch.treat.optim import hypers


def mendable(
    finding: Finding, model: nn.Module, optimizers: Sequence[Optimizer]
) -> Callable[[], str] | None:
    """What applies the fix of a finding; None if it takes an edit of the code."""
    fixer = _FIXERS.get(finding.id)
    if fixer is None:
        return None
    return partial(fixer, finding, model, tuple(optimizers))


def _no_decay(finding: Finding, model: nn.Module, optimizers: tuple[Optimizer, ...]) -> str:
    spared = _parameters(finding, model)
    for optimizer in optimizers:
        updated = hypers([optimizer])
        Exemption(optimizer).add(one for one in spared if id(one) in updated)
    return (
        f"no weight decay on {len(spared)} biases and norm parameters from the next step on; the "
        "groups and the state of the optimizer are as they were. A checkpoint does not hold that: "
        "do it again in a run that is resumed"
    )


def _zero(finding: Finding, model: nn.Module, optimizers: tuple[Optimizer, ...]) -> str:
    for one in _own(finding, model):
        nn.init.zeros_(one)
    return f"{', '.join(finding.where)} set to zero"


def _kaiming(finding: Finding, model: nn.Module, optimizers: tuple[Optimizer, ...]) -> str:
    linear = 'nonlinearity="linear"' in finding.code
    for one in _own(finding, model):
        nn.init.kaiming_normal_(one, nonlinearity="linear" if linear else "relu")
    return f"{len(finding.where)} weights drawn anew (He et al. 2015)"


_FIXERS: dict[str, Callable[[Finding, nn.Module, tuple[Optimizer, ...]], str]] = {
    "DW201": _zero,
    "DW202": _kaiming,
    "DW301": _no_decay,
}


def _parameters(finding: Finding, model: nn.Module) -> list[nn.Parameter]:
    named = model.named_parameters(remove_duplicate=False)
    known = {readable(name): parameter for name, parameter in named}
    gone = [name for name in finding.where if name not in known]
    if gone:
        raise CannotTreat(f"{finding.id}: {', '.join(gone)} is no longer a parameter of the model")
    return [known[name] for name in finding.where]


@torch.no_grad()
def _own(finding: Finding, model: nn.Module) -> list[nn.Parameter]:
    """The parameters concerned, all of which are whole in this process."""
    found = _parameters(finding, model)
    for name, one in zip(finding.where, found, strict=True):
        if shards.is_sharded(one):
            raise CannotTreat(f"{finding.id}: {name} is sharded; initialise it before sharding")
    return found
