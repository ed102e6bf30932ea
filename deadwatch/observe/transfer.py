"""The one transfer that reads what is kept of all sites.

What is launched, and what runs in Python, is by statistic and not by site, as far as it can be:
there may be a thousand sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deadwatch.observe import stats
from deadwatch.observe.accumulate import SiteState
from deadwatch.records import SiteSnapshot

T = TypeVar("T")


def by_device(items: Iterable[T], tensor_of: Callable[[T], Tensor]) -> dict[torch.device, list[T]]:
    """Items by the device on which their tensor lies: what lies on one can be read at once."""
    found: dict[torch.device, list[T]] = {}
    for item in items:
        found.setdefault(tensor_of(item).device, []).append(item)
    return found


def fetch(states: Sequence[SiteState]) -> tuple[SiteSnapshot, ...]:
    """Read all sites with one device-to-host copy for each device they lie on.

    The ages are those of the window's start.
    """
    found: dict[SiteState, _Fetched] = {}
    for device, there in by_device(states, lambda state: state.seen).items():
        columns = {"seen": [state.seen for state in there]}
        columns |= {name: [state.data[name] for state in there] for name in stats.STATISTICS}
        packed, places = _pack(columns, device)
        host = packed.cpu().numpy()
        found |= _unpack({name: host[at].view(kind) for name, (at, kind) in places.items()}, there)
    return tuple(_snapshot(state, *found[state]) for state in states)


_Fetched = tuple[int, dict[str, npt.NDArray[Any]]]
"""What compiled graphs have counted at a site, and its statistics."""

_Place = tuple[slice, type[Any]]
"""Where the bytes of a statistic lie, and what they are."""


def _pack(
    columns: Mapping[str, list[Tensor]], device: torch.device
) -> tuple[Tensor, dict[str, _Place]]:
    """All columns in one tensor of bytes; the tensors of a column lie end to end."""
    spans, end = {}, 0
    for name, tensors in columns.items():
        dtype = max((tensor.dtype for tensor in tensors), key=lambda dtype: dtype.itemsize)
        start, end = end, end + sum(t.numel() for t in tensors) * dtype.itemsize
        spans[name] = slice(start, end), dtype
        end = -(-end // _WIDEST) * _WIDEST  # or the next could not be viewed as what it is
    packed = torch.empty(end, dtype=torch.uint8, device=device)
    for name, (span, dtype) in spans.items():
        torch.cat(columns[name], out=packed[span].view(dtype))
    return packed, {name: (span, _NUMPY[dtype]) for name, (span, dtype) in spans.items()}


def _unpack(
    columns: dict[str, npt.NDArray[Any]], states: Sequence[SiteState]
) -> dict[SiteState, _Fetched]:
    """The statistics of each site as snapshots have them: (C,), and wide enough for a sum."""
    seen = columns.pop("seen")
    units = [state.units for state in states]
    for name, column in columns.items():
        stat = stats.STATISTICS[name]
        wide = column.astype(stats.host_dtype(stat), copy=False)
        columns[name] = np.repeat(wide, units) if stat.shared else wide
    found = {}
    for state, count, end in zip(states, map(int, seen), np.cumsum(units), strict=True):
        own = slice(end - state.units, end)
        found[state] = count, {name: column[own] for name, column in columns.items()}
    return found


def _snapshot(state: SiteState, seen: int, data: dict[str, npt.NDArray[Any]]) -> SiteSnapshot:
    samples = state.samples + seen
    if state.lost or (state.hidden and not seen):
        samples, data = 0, stats.blank(state.units)
    if state.lost:  # any gate may have been open here: what other ranks saw proves no death
        data["suspect"][:] = True
    return SiteSnapshot(state.site, samples, data, state.age, state.flat, state.share)


_WIDEST = 8

_NUMPY: dict[torch.dtype, type[Any]] = {
    torch.bool: np.bool_,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float32: np.float32,
    torch.float64: np.float64,
}
