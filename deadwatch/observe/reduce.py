"""One snapshot out of those of all processes. This is the only file that calls a collective.

A unit is dead only if it is dead on every rank, so ranks merge what they measured before anything
is judged. The number of collectives does not depend on the number of sites: one exchange of the
site lists, then one flat buffer for each of two sums and one maximum (minima travel negated).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from deadwatch.observe import stats
from deadwatch.observe.stats import STATISTICS
from deadwatch.observe.unite import united
from deadwatch.records import Floats, SiteSnapshot, Snapshot

_SUMS = tuple(name for name, stat in STATISTICS.items() if stat.merge == "sum")
_MAXIMA = tuple(name for name, stat in STATISTICS.items() if stat.merge == "max")
_MINIMA = tuple(name for name, stat in STATISTICS.items() if stat.merge == "min")


def reduce(snapshot: Snapshot) -> Snapshot:
    """Merge the snapshots of all ranks, and bring the ages to the end of the window."""
    if _world() > 1:
        snapshot = replace(snapshot, sites=tuple(_merged(_aligned(list(snapshot.sites)))))
    return aged(snapshot)


def aged(snapshot: Snapshot) -> Snapshot:
    """Bring the ages from the start of the window to its end."""
    return replace(snapshot, sites=tuple(_aged(site) for site in snapshot.sites))


def common_seed() -> int:
    """The seed of rank 0, on every rank; draws nothing from any random stream."""
    seed = torch.initial_seed() % (1 << 62)
    if _world() > 1:
        buffer = torch.tensor([seed], dtype=torch.int64, device=_device())
        dist.broadcast(buffer, src=0)
        seed = int(buffer)
    return seed


def on_any_rank(statement: bool) -> bool:
    """Whether a statement is true on any rank; the answer is the same on all of them."""
    return bool(largest(int(statement)))


def largest(number: int) -> int:
    """The largest of the numbers that all ranks have; the same on all of them."""
    if _world() == 1:
        return number
    buffer = torch.tensor([number], device=_device())
    dist.all_reduce(buffer, dist.ReduceOp.MAX)
    return int(buffer)


def every_rank(value: Any) -> list[Any]:
    """What each rank has, on every rank, in their order."""
    if _world() == 1:
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def averaging() -> Callable[[Sequence[Tensor]], list[Tensor | None]] | None:
    """What averages the gradients of parameters over all ranks; None where there is only one."""
    return mean_gradients if _world() > 1 else None


def mean_gradients(parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of parameters over all ranks, by one collective, in their order.

    A rank that has none counts as zero, as it does in DDP; where none has one, it is None.
    """
    own = [p.grad is not None for p in parameters]
    values = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    wide = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
    device = parameters[0].device
    flags = torch.tensor(own, dtype=wide, device=device)
    buffer = torch.cat([flags, *(value.to(device, wide).flatten() for value in values)])
    dist.all_reduce(buffer)
    somewhere, *means = (buffer / _world()).split([len(own), *(p.numel() for p in parameters)])
    return [
        mean.view_as(p).to(p) if here or bool(flag) else None  # waits only where this rank has none
        for here, flag, mean, p in zip(own, somewhere, means, parameters, strict=True)
    ]


def mine(gathered: list[Any]) -> Any:
    """Of what `every_rank` returned, perhaps in another run, this rank's; None if it had others."""
    if len(gathered) != _world():
        return None
    return gathered[dist.get_rank() if _world() > 1 else 0]


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _aged(site: SiteSnapshot) -> SiteSnapshot:
    if not site.data:
        return site
    # A NaN may have hidden an open gate: such a window is no evidence of anything.
    unknown = site.opened | site.data["suspect"]
    return replace(site, age=np.where(unknown, 0, site.age + site.samples))


def _aligned(sites: list[SiteSnapshot]) -> list[SiteSnapshot]:
    """This rank's snapshots in an order common to all ranks, empty where this rank has none."""
    here = {site.site.name: site for site in sites}
    blank = [replace(site, samples=0, data={}) for site in sites]
    known: dict[str, list[SiteSnapshot]] = {}
    for other in (other for rank in every_rank(blank) for other in rank):
        known.setdefault(other.site.name, []).append(other)
    aligned = []
    for name, found in known.items():
        site = united(found)
        own = here.get(name, site)
        if own.units and own.units == site.units:
            aligned.append(replace(site, samples=own.samples, data=own.data))
        else:
            data = stats.blank(site.units) if site.units else {}
            aligned.append(replace(site, samples=0, data=data))
    return aligned


def _merged(sites: list[SiteSnapshot]) -> list[SiteSnapshot]:
    sites = [site for site in sites if site.units] + [site for site in sites if not site.units]
    rows = [{**site.data, "samples": np.array([site.samples])} for site in sites if site.units]
    for row in rows:
        row["total"] = row["finite"] * row["mean"]
        row |= {f"-{name}": -row[name] for name in _MINIMA}
    sums = _all_reduce(rows, ("samples", "total", *_SUMS), dist.ReduceOp.SUM)
    for row, total in zip(rows, sums, strict=True):
        row["centre"] = total["total"] / np.maximum(total["finite"], 1)
        row["spread"] = row["m2"] + row["finite"] * np.square(row["mean"] - row["centre"])
    spreads = _all_reduce(rows, ("spread",), dist.ReduceOp.SUM)
    tops = _all_reduce(rows, (*_MAXIMA, *(f"-{name}" for name in _MINIMA)), dist.ReduceOp.MAX)
    merged = []
    for site, row, total, spread, top in zip(sites, rows, sums, spreads, tops, strict=False):
        data = total | top | {"mean": row["centre"], "m2": spread["spread"]}
        data |= {name: -top[f"-{name}"] for name in _MINIMA}
        kept = {name: data[name].astype(site.data[name].dtype) for name in STATISTICS}
        merged.append(replace(site, samples=int(total["samples"][0]), data=kept))
    return merged + sites[len(rows) :]


def _all_reduce(
    rows: list[dict[str, Any]], names: Iterable[str], operation: Any
) -> list[dict[str, Floats]]:
    """Reduce the named arrays of all sites in one flat buffer."""
    keys = [(index, name) for index in range(len(rows)) for name in names]
    arrays = [np.asarray(rows[index][name], np.float64) for index, name in keys]
    buffer = torch.from_numpy(np.concatenate([*arrays, np.zeros(0)])).to(_device())
    dist.all_reduce(buffer, operation)
    flat = buffer.cpu().numpy()
    result: list[dict[str, Floats]] = [{} for _ in rows]
    offset = 0
    for (index, name), array in zip(keys, arrays, strict=True):
        result[index][name] = flat[offset : offset + array.size]
        offset += array.size
    return result
