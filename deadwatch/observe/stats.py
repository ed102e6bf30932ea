"""The per-unit statistics: one line each, with its merge rule.

An *accumulator* is a dict of tensors, one entry per unit (C,), at most 64 bytes a unit in all; a
*batch* is what one activation adds to it. Counts are integers, so that they stay exact; moments
merge by the pairwise formula of Chan, Golub & LeVeque (1983), in float64 where the device has it.

Legend: C units of a site; z pre-activation; f(z) output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Accumulator = dict[str, Tensor]
Batch = dict[str, Tensor | int]
Merge = Literal["sum", "max", "min", "mean", "m2"]


@dataclass(frozen=True)
class Statistic:
    """How one per-unit statistic is kept, starts and merges.

    Attributes:
        merge: How two of them become one.
        kind: A *flag* takes a byte; a *count* 8; *few*, which counts rare events up to 2³¹ − 1,
            takes 4; an *extreme* 4, or 8 where activations do; a *real* 8, or 4 without float64.
        start: What it is of nothing.
        shared: Whether it is one number for all units.
    """

    merge: Merge
    kind: Literal["flag", "count", "few", "extreme", "real"]
    start: float = 0
    shared: bool = False


STATISTICS: dict[str, Statistic] = {
    # Liveness, on every counted forward.
    "opened": Statistic("max", "flag"),  # the gate was open at least once
    "suspect": Statistic("max", "flag"),  # a NaN hid what the gate did
    # Moments, on sampled forwards.
    "count": Statistic("sum", "count", shared=True),  # elements looked at
    "open": Statistic("sum", "count"),  # elements with an open gate
    "finite": Statistic("sum", "count"),  # elements neither NaN nor infinite
    "mean": Statistic("mean", "real"),  # mean of z over the finite elements
    "m2": Statistic("m2", "real"),  # sum of squared deviations of z from its mean
    "min": Statistic("min", "extreme", math.inf),
    "max": Statistic("max", "extreme", -math.inf),
    "out_bad": Statistic("sum", "few"),  # elements of f(z) that are NaN or infinite
    "out_sum": Statistic("sum", "real"),  # sum of f(z)
    "out_abs": Statistic("sum", "real"),  # sum of |f(z)|
}


def dtype_of(statistic: Statistic, device: torch.device, wide: bool) -> torch.dtype:
    """The dtype a statistic is kept in on a device; ``wide`` if activations have 8 bytes."""
    if statistic.kind == "real":
        return real_dtype(device)
    if statistic.kind == "extreme":
        return torch.float64 if wide else torch.float32
    return {"flag": torch.bool, "count": torch.int64, "few": torch.int32}[statistic.kind]


def real_dtype(device: torch.device) -> torch.dtype:
    """Float64, or float32 on the one kind of device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def new(units: int, device: torch.device, *, wide: bool = False) -> Accumulator:
    """An empty accumulator for ``units`` units; ``wide`` if activations have 8 bytes."""
    return {
        name: torch.full(
            (1 if stat.shared else units,),
            stat.start,
            dtype=dtype_of(stat, device, wide),
            device=device,
        )
        for name, stat in STATISTICS.items()
    }


def blank(units: int) -> dict[str, npt.NDArray[Any]]:
    """The statistics of units of which nothing is known, on the host, as a snapshot has them."""
    return {
        name: np.full(units, stat.start).astype(host_dtype(stat))
        for name, stat in STATISTICS.items()
    }


def host_dtype(statistic: Statistic) -> type[Any]:
    """The dtype a statistic has in a snapshot, where there is room."""
    if statistic.kind == "flag":
        return np.bool_
    return np.int64 if statistic.kind in ("count", "few") else np.float64


def reset_(accumulators: Iterable[Accumulator]) -> None:
    """Empty accumulators in place, all at once."""
    starts: dict[float, list[Tensor]] = {}
    for accumulator in accumulators:
        for name, tensor in accumulator.items():
            starts.setdefault(STATISTICS[name].start, []).append(tensor)
    for start, tensors in starts.items():
        torch._foreach_zero_(tensors)
        if start:
            torch._foreach_add_(tensors, start)


def update_(into: Accumulator, batch: Batch, finite: int | None = None) -> None:
    """Merge a batch into an accumulator, in place.

    Args:
        into: The accumulator.
        batch: Any subset of the statistics, moments together.
        finite: The finite elements that every unit has had so far, if that is one number.
    """
    if "mean" in batch:
        _merge_moments_(into, batch, finite)
    for name, value in batch.items():
        stat = STATISTICS[name]
        if stat.kind == "flag":
            into[name].bitwise_or_(value)
        elif stat.kind == "few":
            into[name].copy_(torch.maximum(into[name], into[name] + value))  # or it would wrap
        elif stat.merge == "sum":
            into[name].add_(value)
        elif stat.merge == "max":
            into[name].clamp_(min=value)
        elif stat.merge == "min":
            into[name].clamp_(max=value)


def weighted(batch: Batch, weight: Tensor) -> Batch:
    """A batch that counts if ``weight`` is 1, and is empty if it is 0 (1,)."""
    counts = weight > 0
    return {
        name: torch.where(counts, value, STATISTICS[name].start).to(value.dtype)
        if isinstance(value, Tensor)
        else weight * value
        for name, value in batch.items()
    }


def _merge_moments_(into: Accumulator, batch: Batch, finite: int | None) -> None:
    theirs, delta = batch["finite"], batch["mean"] - into["mean"]
    into["m2"].add_(batch["m2"])
    if finite is not None and isinstance(theirs, int):
        share = theirs / max(1, finite + theirs)
        into["m2"].addcmul_(delta, delta, value=finite * share)
        into["mean"].add_(delta, alpha=share)
        return
    mine = into["finite"].to(into["mean"].dtype)
    shares = theirs / (mine + theirs).clamp_(min=1)
    into["m2"].addcmul_(delta.square(), mine * shares)
    into["mean"].addcmul_(delta, shares)
