"""One snapshot out of those of all processes. This is the only file that calls a collective.

A unit is dead only if it is dead on every rank, so ranks merge what they measured before anything
is judged. The number of collectives of a window does not depend on the number of sites, nor on
what they are: four all-reduces. The first has three numbers: whether all ranks have the same news
of their sites (see `roll.py`), and the steps. The others have one flat buffer each: two sums and
one maximum (minima travel negated), 88 bytes a unit in all. Where units are due for treatment there
is a fifth, of two numbers: whether all ranks have treated alike. In a window in which ranks have
met different sites, there are two more exchanges, of their news alone.

What gauges measure travels in the same buffers, and their names with the news.

Besides these: one broadcast of a seed at the start of a policy, one all-reduce whenever the guard
looks at the loss (32 steps after a treatment it has done so six times), one a window while
``stats_every_n_steps="auto"`` has not found its interval. Sharded parameters of activation classes
of the model's own are gathered to try these out (`pure_copy`): at every `Watch.attach`, and once a
window where they are learned. `Watch.state_dict` takes an all-reduce
and one gathering of what each rank measured, so that a run resumed by as many ranks is the same to
the bit; where that would be more than `GATHERED` bytes in all, it merges as a window does instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from deadwatch.observe import merging, stats
from deadwatch.observe.merging import keys_of, offered, offered_of
from deadwatch.observe.merging import merged as merged_gauges
from deadwatch.observe.remarks import FAILED, tell_alone
from deadwatch.observe.roll import Roll, digest, number_of
from deadwatch.observe.stats import STATISTICS
from deadwatch.records import Bools, Floats, SiteSnapshot, Snapshot

_SUMS = tuple(
    name
    for name, stat in STATISTICS.items()
    if stat.merge == "sum" and stat.kind != "flag" and not stat.shared
)
_MINIMA = tuple(name for name, stat in STATISTICS.items() if stat.merge == "min")
_MAXIMA = tuple(
    name for name, stat in STATISTICS.items() if stat.merge == "max" and stat.kind != "flag"
)
_FLAGS = tuple(name for name, stat in STATISTICS.items() if stat.kind == "flag")


GATHERED = 1 << 28
"""Bytes of what all ranks measured up to which a checkpoint keeps that of each of them."""


def reduce(snapshot: Snapshot, roll: Roll | None = None) -> Snapshot:
    """Merge the snapshots of all ranks, and bring the ages to the end of the window.

    Args:
        snapshot: What this rank measured.
        roll: The sites as they were known to all when the last window was merged; is updated.
    """
    return aged(merge(snapshot, roll))


def merge(snapshot: Snapshot, roll: Roll | None = None) -> Snapshot:
    """Merge the snapshots of all ranks; ages are those of the window's start."""
    roll = Roll() if roll is None else roll
    if meet(roll) < roll.ranks:
        tell_alone(snapshot.window, roll.ranks)
        roll.ranks = _world()
    return _merged(snapshot, roll) if _world() > 1 else snapshot


def meet(roll: Roll) -> int:
    """How many ranks there are now, which the roll notes if they are more than before."""
    roll.ranks = max(roll.ranks, _world())
    return _world()


def is_too_much(size: int) -> bool:
    """Whether so many bytes of each rank are more than all of them can be given."""
    return _world() > 1 and largest(size) * _world() > GATHERED


def aged(snapshot: Snapshot) -> Snapshot:
    """Bring the ages from the start of the window to its end."""
    return replace(snapshot, sites=tuple(_aged(site) for site in snapshot.sites))


def common_seed() -> int:
    """The seed of rank 0, on every rank; draws nothing from any random stream."""
    seed = torch.initial_seed() % (1 << 62)
    if _world() > 1:
        with _together():
            buffer = torch.tensor([seed], dtype=torch.int64, device=_device())
            dist.broadcast(buffer, src=0)
            seed = int(buffer)
    return seed


def largest(number: int) -> int:
    """The largest of the numbers that all ranks have; the same on all of them."""
    return _largest(number)[0] if _world() > 1 else number


def alike(value: object) -> bool:
    """Whether a value looks the same on all ranks; the answer is the same on all of them."""
    if _world() == 1:
        return True
    own = number_of(value)
    most, least = _largest(own, -own)
    return most == -least


def every_rank(value: Any) -> list[Any]:
    """What each rank has, on every rank, in their order."""
    if _world() == 1:
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    with _together():
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
    with _together(_PASSES):
        dist.all_reduce(buffer)
    somewhere, *means = (buffer / _world()).split([len(own), *(p.numel() for p in parameters)])
    return [
        mean.view_as(p).to(p) if here or bool(flag) else None  # waits only where this rank has none
        for here, flag, mean, p in zip(own, somewhere, means, parameters, strict=True)
    ]


def rank() -> int:
    """Which of the processes this is."""
    return dist.get_rank() if _world() > 1 else 0


def mine(gathered: list[Any]) -> Any:
    """Of what `every_rank` returned, perhaps in another run, this rank's; None if it had others."""
    return gathered[rank()] if len(gathered) == _world() else None


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


_CALLS = (
    "exchange what they measured here",
    "close_window(), peek(), step() and state_dict() of a Watch are to be called",
)
_PASSES = (
    "average the gradients of learned slopes here, which DDP does not know",
    "every backward pass through the model is to be taken",
)


@contextmanager
def _together(what: tuple[str, str] = _CALLS) -> Iterator[None]:
    """Have the error of a collective say what was going on; it stays what it is."""
    try:
        yield
    except Exception as error:
        done, rule = what
        error.add_note(
            f"deadwatch: all processes of the group {done}, and at least one did not take part. "
            "Either it failed or was killed: look for its own error. Or it went another way: "
            f"{rule} on every process alike, not on the first alone."
        )
        raise


def _largest(*numbers: int) -> list[int]:
    with _together():
        buffer = torch.tensor(numbers, device=_device())
        dist.all_reduce(buffer, dist.ReduceOp.MAX)
        return [int(number) for number in buffer.tolist()]


def _of_the_first(value: Any) -> Any:
    box = [value]
    with _together():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def _aged(site: SiteSnapshot) -> SiteSnapshot:
    if not site.data:
        return site
    # A NaN may have hidden an open gate: such a window is no evidence of anything.
    unknown = site.opened | site.data["suspect"]
    return replace(site, age=np.where(unknown, 0, site.age + site.samples))


def _merged(snapshot: Snapshot, roll: Roll) -> Snapshot:
    steps = _call(snapshot, roll)
    missing: dict[str, str] = {}
    sites = roll.align(snapshot.sites)
    rows = {}
    for site in sites:
        name = site.site.name
        if roll.conflict(name):
            missing[name] = roll.conflict(name)
        elif site.share.total or site.units:
            rows[name] = _row(site, lost=bool({name, site.base} & snapshot.missing.keys()))
            rows[name] |= offered_of(site, snapshot.gauges, roll.gauged)
    first = snapshot.window.first_step
    weights = offered(snapshot.gauges, roll.gauged, first, rank())
    exchanged, weights = _exchanged(list(rows.values()), weights)
    found = dict(zip(rows, exchanged, strict=True))
    merged = [_site(site, found.get(site.site.name)) for site in sites]
    missing |= {name: FAILED for name, row in found.items() if row["numbers"][2]}
    window = replace(snapshot.window, last_step=max(snapshot.window.last_step, steps - 1))
    gauges = merged_gauges(snapshot.gauges, roll.gauged, weights, found, first)
    return Snapshot(window, tuple(merged), steps, missing, gauges)


def _call(snapshot: Snapshot, roll: Roll) -> int:
    """Agree with the other ranks on the roll; returns the steps of the rank that took most."""
    news, gauged = roll.news(snapshot.sites), keys_of(snapshot.gauges) - roll.gauged
    own = number_of((digest(news), sorted(gauged))) if gauged else digest(news)
    most, least, steps = _largest(own, -own, snapshot.steps)
    if most == -least:
        roll.settle(news)
        roll.gauged |= gauged
    else:
        first = _of_the_first(news)
        answers = every_rank((roll.answer(first, news), gauged))
        roll.combine(first, [answer for answer, _ in answers])
        roll.gauged = roll.gauged.union(*(keys for _, keys in answers))
    roll.told(snapshot.sites)
    return steps


_Row = dict[str, Any]
"""The arrays of one site, by name: (C,), but for the numbers (3,).

Of units that are spread over processes, C are all of them, and the samples of each are told: the
numbers are those of one process.
"""


def _row(site: SiteSnapshot, *, lost: bool) -> _Row:
    """What a rank gives of a site; nothing, if it does not observe it any more."""
    place, units = slice(site.share.first, site.share.first + site.units), site.share.total
    data = _blank(site)
    for name in () if lost else site.data:
        # Flags and extremes count once, however many ranks have seen the same samples.
        if site.share.counts or STATISTICS[name].merge in ("max", "min"):
            data[name][place] = site.data[name]
    samples = 0 if lost or not site.share.counts else site.samples
    row: _Row = {**data, "age": np.zeros_like(data["count"], np.int64)}
    row["age"][place] = site.age
    row["total"] = data["finite"] * data["mean"]
    row["numbers"] = np.array([samples, data["count"][0], lost])
    row["flags"] = sum(flag * _FLAG**shift for shift, flag in enumerate(_flags(site, data, place)))
    if units is not None:
        row["samples"] = np.zeros(units)
        row["samples"][place] = samples
    else:
        del row["count"]
    return row | {f"-{name}": -data[name] for name in _MINIMA}


def _blank(site: SiteSnapshot) -> dict[str, Any]:
    return stats.blank(site.share.total or site.units)


def _flags(site: SiteSnapshot, data: Mapping[str, Any], place: slice) -> list[Bools]:
    # Ranks on which a site never ran have no say in whether its closed side is flat.
    sharp = np.zeros(len(data["count"]), np.bool_)
    sharp[place] = ~site.flat
    return [*(data[name] for name in _FLAGS), sharp]


def _exchanged(rows: list[_Row], weights: _Row) -> tuple[list[_Row], _Row]:
    """The rows of all ranks in one, with the moments around their common centre.

    Args:
        rows: Those of the sites.
        weights: What gauges tell of weights.
    """
    names = ("numbers", "samples", "count", "flags", "total", *_SUMS, *merging.SUMS)
    *sums, told = _all_reduce([*rows, weights], names, dist.ReduceOp.SUM)
    for row, total in zip(rows, sums, strict=True):
        row["centre"] = total["total"] / np.maximum(total["finite"], 1)
        row["spread"] = row["m2"] + row["finite"] * np.square(row["mean"] - row["centre"])
    spreads = _all_reduce(rows, ("spread",), dist.ReduceOp.SUM)
    extremes = ("age", *_MAXIMA, *(f"-{name}" for name in _MINIMA), *merging.MAXIMA)
    *tops, most = _all_reduce([*rows, weights], extremes, dist.ReduceOp.MAX)
    return [
        {**total, **top, "mean": row["centre"], "m2": spread["spread"]}
        for row, total, spread, top in zip(rows, sums, spreads, tops, strict=True)
    ], told | most


def _site(site: SiteSnapshot, row: _Row | None) -> SiteSnapshot:
    """A site with what all ranks have measured; None for nothing."""
    if row is None:
        return replace(site, samples=0, data={})
    age, counts = row["age"].astype(np.int64), row["flags"].astype(np.int64)
    *flags, sharp = (counts // _FLAG**place % _FLAG > 0 for place in range(len(_FLAGS) + 1))
    whole = replace(site, age=age, flat=~sharp)
    if row["numbers"][2]:  # part of the evidence is none
        return replace(whole, samples=0, data={})
    # Of units that lie in other processes, those seen least tell how many samples were judged.
    samples = int(row.get("samples", row["numbers"][:1]).min())
    count = row.get("count", np.full(len(age), row["numbers"][1]))
    data = row | dict(zip(_FLAGS, flags, strict=True)) | {"count": count}
    data |= {name: -row[f"-{name}"] for name in _MINIMA}
    kept = {name: data[name].astype(stats.host_dtype(stat)) for name, stat in STATISTICS.items()}
    return replace(whole, samples=samples, data=kept)


_FLAG = 1 << 17
"""More ranks than there can be: several sums of flags share the 53 exact bits of a float64."""


def _all_reduce(rows: list[_Row], names: Sequence[str], operation: Any) -> list[dict[str, Floats]]:
    """Reduce the named arrays of all sites in one flat buffer."""
    keys = [(index, name) for index, row in enumerate(rows) for name in names if name in row]
    arrays = [np.asarray(rows[index][name], np.float64) for index, name in keys]
    with _together():
        buffer = torch.from_numpy(np.concatenate([*arrays, np.zeros(0)])).to(_device())
        dist.all_reduce(buffer, operation)
        flat = buffer.cpu().numpy()
    result: list[dict[str, Floats]] = [{} for _ in rows]
    offset = 0
    for (index, name), array in zip(keys, arrays, strict=True):
        result[index][name] = flat[offset : offset + array.size]
        offset += array.size
    return result
