"""What makes the units of each site: biases, sizes of rows, and a sketch of how the rows differ.

Legend: C units of a site; F elements of the weight for each; J columns of a sketch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deadwatch.observe.parameters import is_whole
from deadwatch.observe.transfer import by_device
from deadwatch.observe.views import wide
from deadwatch.records import Floats, Rows, SiteSnapshot, Wire
from deadwatch.records.sites import LAYERS, NORMS

COLUMNS = 16
"""Directions of a sketch: a distance is right to about a fifth."""

_SEED = 20130521

Parameters = Mapping[str, Tensor]


@torch.no_grad()
def rows_of(model: nn.Module, sites: Iterable[SiteSnapshot]) -> dict[str, Rows]:
    """The rows of every site whose producers are known and in this process, and no summands.

    Behind a batch norm they are its own: β, |γ| and γ. Behind a layer or group norm, which does not
    standardise each unit, they are β and |γ|, and the sketch is of γ times the direction of the
    layer's row: what makes two units alike there.
    """
    parameters = {n: p.detach() for n, p in model.named_parameters() if not is_lazy(p)}
    ends = {site: _ends(site, parameters) for site in sites}
    known = {site: wires for site, wires in ends.items() if wires is not None}
    longest = max((layer.per_unit for layer, _ in known.values() if layer is not None), default=0)
    noise = torch.randn(longest, COLUMNS, generator=torch.Generator().manual_seed(_SEED))
    noise /= math.sqrt(COLUMNS)
    tables = {
        site.site.name: _table(layer, norm, parameters, site.units, noise)
        for site, (layer, norm) in known.items()
    }
    normed = {site.site.name: _is_batch_norm(norm) for site, (_, norm) in known.items()}
    return {
        name: Rows(table[:, 0], table[:, 1], table[:, 2:], normed[name])
        for name, table in fetch(tables).items()
    }


def fetch(tables: Mapping[str, Tensor]) -> dict[str, Floats]:
    """Tables of all sites, in one transfer a device."""
    found: dict[str, Floats] = {}
    for names in by_device(tables, tables.__getitem__).values():
        flat = torch.cat([tables[name].flatten() for name in names]).cpu()
        parts = flat.split([tables[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            found[name] = part.view(tables[name].shape).numpy().astype(np.float64)
    return {name: found[name] for name in tables}


_Ends = tuple[Wire | None, Wire | None]
"""The layer that makes the units, and the norm that stands last; one of them may be missing."""


def _is_batch_norm(norm: Wire | None) -> bool:
    return norm is not None and norm.kind == "batch_norm"


def _ends(site: SiteSnapshot, parameters: Parameters) -> _Ends | None:
    """What makes the units; None if that cannot be told from the parameters here."""
    wires = site.site.producers
    whole = site.share.total is None and site.units and _are_here(wires, parameters)
    if not wires or not whole or any(wire.branch or wire.kind == "skip" for wire in wires):
        return None
    layer = wires[0] if wires[0].kind in LAYERS else None
    norm = wires[-1] if wires[-1].kind in NORMS else None
    return (layer, norm) if layer is not None or norm is not None else None


def _are_here(wires: Sequence[Wire], parameters: Parameters) -> bool:
    """Whether all parameters are in this process, as a whole and as they were when traced."""
    named = [name for wire in wires for name in wire.names]
    return all(name in parameters and is_whole(parameters[name]) for name in named) and all(
        wire.weight is None or tuple(parameters[wire.weight].shape) == wire.shape for wire in wires
    )


def _table(
    layer: Wire | None, norm: Wire | None, parameters: Parameters, units: int, noise: Tensor
) -> Tensor:
    """Bias, size and sketch side by side (C, 2 + J); NaN where there is none."""
    last = norm or layer
    assert last is not None
    found = torch.full((units, 1), math.nan)
    if layer is not None:
        device = parameters[layer.weight].device if layer.weight else found.device
        with torch.autocast(device.type, enabled=False):
            found = _sketched(layer, parameters, noise)
    if norm is not None:
        found = _behind(norm, layer, parameters, units, found)
    bias = _entries(last, last.bias, parameters, found[:, :1], math.nan)
    table = torch.cat([bias, found], 1)
    if len(last.units) == units:
        return table
    whole = table.new_full((units, table.shape[1]), math.nan)  # a slice took some of them
    whole[last.units.start : last.units.stop] = table
    return whole


def _sketched(layer: Wire, parameters: Parameters, noise: Tensor) -> Tensor:
    """Sizes and sketches of a layer's rows (C, 1 + J)."""
    assert layer.weight is not None
    weight = wide(parameters[layer.weight])
    if layer.axis == 1:  # (in, out / groups, …), and the inputs of a group lie side by side
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    first, last = (layer.offset + end * layer.block for end in _span(layer))
    rows = weight[first:last].reshape(len(layer.units), -1)
    sizes = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.cat([sizes, rows @ noise[: rows.shape[1]].to(rows)], 1)


def _behind(
    norm: Wire, layer: Wire | None, parameters: Parameters, units: int, rows: Tensor
) -> Tensor:
    """Sizes and sketches behind a norm."""
    scale = _entries(norm, norm.weight, parameters, rows[:, :1], 1.0)
    same = layer is not None and layer.units == norm.units
    if _is_batch_norm(norm) or not same:
        return torch.cat([scale.abs(), scale], 1)
    return torch.cat([scale.abs(), scale * rows[:, 1:] / rows[:, :1]], 1)


def _entries(
    wire: Wire, name: str | None, parameters: Parameters, like: Tensor, none: float
) -> Tensor:
    """The entries of a vector that belong to the units (C, 1); ``none`` if there is no vector."""
    if name is None:
        return like.new_full((len(wire.units), 1), none)
    first, last = (wire.offset + end for end in _span(wire))
    return wide(parameters[name])[first:last, None].to(like)


def _span(wire: Wire) -> tuple[int, int]:
    return wire.units.start, wire.units.stop
