"""Proof that wires say what is so, by overwriting exactly what they name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deadwatch.observe.sites import pre_activation
from deadwatch.records import Site, Wire


@contextmanager
def hooked(model: nn.Module, name: str, hook: Callable[..., Any]) -> Iterator[None]:
    """Change, or look at, what a module returns."""
    handle = model.get_submodule(name).register_forward_hook(hook)
    yield
    handle.remove()


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        yield
    model.load_state_dict(before)


def fill(model: nn.Module, wire: Wire, unit: int, value: Callable[[Tensor], Tensor]) -> None:
    """Overwrite exactly what a wire says is a unit's in the weight, groups and all."""
    assert wire.weight is not None
    weight = model.get_parameter(wire.weight)
    for index in wire.slices(np.array([unit])):
        if wire.axis == 0:
            weight[index] = value(weight[index])
        else:
            rows, columns = weight.shape[0] // wire.groups, weight.shape[1]
            group, column = divmod(int(index), columns)
            there = slice(group * rows, (group + 1) * rows), column
            weight[there] = value(weight[there])


def unit_set(site: Site, unit: int, value: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, h: Tensor) -> Tensor:
        h = h.clone()
        there = h.select(site.unit_dim, unit)
        there.copy_(value(there))
        return h

    return hook


def differ(a: Tensor, b: Tensor) -> bool:
    return not torch.allclose(a, b, rtol=1e-3, atol=1e-5)


def prove_readers(model: Any, x: Tensor, site: Site) -> None:
    """Zeroing the columns of a unit does what zeroing the unit does.

    Where other values share the columns, or the values are changed on the way, zeroed columns at
    least leave the unit no say: whatever it is, the output is the same.
    """
    name = site.name
    units = site.producers[0].units if site.producers else site.consumers[0].units
    plain = not any(wire.shared or wire.through for wire in site.consumers)
    replaced = torch.zeros_like if plain else torch.randn_like
    told = []
    for unit in units:
        with weights_kept(model), hooked(model, name, unit_set(site, unit, replaced)):
            without = model(x)
            for wire in site.consumers:
                fill(model, wire, unit, torch.zeros_like)
            silenced = model(x)
        with weights_kept(model):
            before = model(x)
            for wire in site.consumers:
                fill(model, wire, unit, torch.zeros_like)
            after = model(x)
        torch.testing.assert_close(after, without if plain else silenced)
        told.append(differ(before, without))
    assert any(told)


def pre_activations(model: Any, x: Tensor, name: str) -> Tensor:
    seen: list[Tensor] = []
    module = model.get_submodule(name)
    handle = module.register_forward_pre_hook(
        lambda m, args: seen.append(pre_activation(m, args[0]).clone())
    )
    model(x)
    handle.remove()
    return seen[-1]


def prove_producers(model: Any, x: Tensor, site: Site, sites: Mapping[str, Site]) -> None:
    """The rows of a unit move that unit alone, and without all of them it is constant.

    So no producer is missing: of a sum, all summands are named, the skipped site included.
    """
    for unit in range(site.producers[0].units.stop):
        for wire in (wire for wire in site.producers if wire.weight is not None):
            _prove_alone(model, x, site, wire, unit)
    unit = 1
    assert not _constant(model, x, site, unit)
    skips = [wire.module for wire in site.producers if wire.kind == "skip"]
    with weights_kept(model):
        for wire in (wire for wire in site.producers if wire.weight is not None):
            fill(model, wire, unit, torch.zeros_like)
        for name in skips:
            assert not _constant(model, x, site, unit)
            with hooked(model, name, unit_set(sites[name], unit, torch.zeros_like)):
                assert _constant(model, x, site, unit)
        assert skips or _constant(model, x, site, unit)


def _prove_alone(model: Any, x: Tensor, site: Site, wire: Wire, unit: int) -> None:
    with weights_kept(model):
        before = pre_activations(model, x, site.name)
        fill(model, wire, unit, lambda row: row + 1)
        if wire.bias is not None:
            model.get_parameter(wire.bias)[wire.offset + unit] += 1
        moved = pre_activations(model, x, site.name) != before
    rest = [axis for axis in range(moved.ndim) if axis != site.unit_dim % moved.ndim]
    assert moved.sum(rest).nonzero().flatten().tolist() == [unit]


def _constant(model: Any, x: Tensor, site: Site, unit: int) -> bool:
    return bool(pre_activations(model, x, site.name).select(site.unit_dim, unit).std() < 1e-6)
