"""The per-unit statistics: one line each, with its merge rule.

A *batch* and an *accumulator* are the same thing: a dict of tensors, one entry per unit (C,).
Counts are integers, so that they stay exact; moments merge by the pairwise formula of
Chan, Golub & LeVeque (1983), in float64 where the device has it.

Legend: C units of a site; z pre-activation; f(z) output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Accumulator = dict[str, Tensor]
Merge = Literal["sum", "max", "min", "mean", "m2"]


@dataclass(frozen=True)
class Statistic:
    """How one per-unit statistic starts and merges, and on which forwards it is taken."""

    merge: Merge
    kind: Literal["flag", "count", "real"]
    start: float = 0


STATISTICS: dict[str, Statistic] = {
    # Liveness, on every counted forward.
    "opened": Statistic("max", "flag"),  # the gate was open at least once
    "suspect": Statistic("max", "flag"),  # a NaN hid what the gate did
    # Moments, on sampled forwards.
    "count": Statistic("sum", "count"),  # elements looked at
    "open": Statistic("sum", "count"),  # elements with an open gate
    "finite": Statistic("sum", "count"),  # elements neither NaN nor infinite
    "mean": Statistic("mean", "real"),  # mean of z over the finite elements
    "m2": Statistic("m2", "real"),  # sum of squared deviations of z from its mean
    "min": Statistic("min", "real", math.inf),
    "max": Statistic("max", "real", -math.inf),
    "out_count": Statistic("sum", "count"),  # finite elements of f(z)
    "out_sum": Statistic("sum", "real"),  # sum of f(z)
    "out_abs": Statistic("sum", "real"),  # sum of |f(z)|
}


def dtype_of(statistic: Statistic, device: torch.device) -> torch.dtype:
    """The dtype a statistic is kept in on a device."""
    if statistic.kind == "flag":
        return torch.bool
    if statistic.kind == "count":
        return torch.int64
    return real_dtype(device)


def real_dtype(device: torch.device) -> torch.dtype:
    """Float64, or float32 on the one kind of device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def new(units: int, device: torch.device) -> Accumulator:
    """An empty accumulator for ``units`` units."""
    return {
        name: torch.full((units,), stat.start, dtype=dtype_of(stat, device), device=device)
        for name, stat in STATISTICS.items()
    }


def blank(units: int) -> dict[str, npt.NDArray[Any]]:
    """The statistics of units of which nothing is known, on the host."""
    kinds = {"flag": np.bool_, "count": np.int64, "real": np.float64}
    return {
        name: np.full(units, stat.start).astype(kinds[stat.kind])
        for name, stat in STATISTICS.items()
    }


def reset_(accumulator: Accumulator) -> None:
    """Empty an accumulator in place."""
    for name, tensor in accumulator.items():
        tensor.fill_(STATISTICS[name].start)


def update_(into: Accumulator, batch: Accumulator) -> None:
    """Merge ``batch`` (any subset of the statistics, moments together) into ``into``, in place."""
    if "mean" in batch:
        _merge_moments_(into, batch)
    for name, value in batch.items():
        rule = STATISTICS[name].merge
        if rule == "sum":
            into[name].add_(value)
        elif rule == "max":
            into[name].copy_(torch.maximum(into[name], value.to(into[name].dtype)))
        elif rule == "min":
            into[name].copy_(torch.minimum(into[name], value.to(into[name].dtype)))


def weighted(batch: Accumulator, weight: Tensor) -> Accumulator:
    """A batch that counts if ``weight`` is 1, and is empty if it is 0 (1,)."""
    counts = weight > 0
    return {
        name: torch.where(counts, value, STATISTICS[name].start).to(value.dtype)
        for name, value in batch.items()
    }


def _merge_moments_(into: Accumulator, batch: Accumulator) -> None:
    real = into["mean"].dtype
    mine, theirs = into["finite"].to(real), batch["finite"].to(real)
    share = theirs / (mine + theirs).clamp_(min=1)
    delta = batch["mean"].to(real) - into["mean"]
    into["m2"].add_(batch["m2"].to(real) + delta.square() * mine * share)
    into["mean"].add_(delta * share)
