"""One snapshot out of those of all processes. This is the only file that calls a collective.

A unit is dead only if it is dead on every rank, so ranks merge what they measured before anything
is judged. The number of collectives does not depend on the number of sites: one exchange of the
site lists, then one flat buffer for each of two sums and one maximum (minima travel negated).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from deadwatch.observe.assembly import assembled, placed
from deadwatch.observe.stats import STATISTICS
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
    for name, parts in known.items():
        own, site = here.get(name, replace(parts[0], samples=0, data={})), assembled(parts)
        if site is None:
            aligned.append(replace(own, samples=0, data={}))
        else:
            aligned.append(replace(site, data=placed(own, site)))
    return aligned


def _merged(sites: list[SiteSnapshot]) -> list[SiteSnapshot]:
    sites = [site for site in sites if site.data] + [site for site in sites if not site.data]
    rows = [dict(site.data) for site in sites if site.data]
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
        # Of units that lie in other processes, those seen least tell how many were judged.
        merged.append(replace(site, samples=int(total["samples"].min()), data=kept))
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
